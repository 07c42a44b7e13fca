"""Pictures of the console for the docs: `python -m tests.console_pictures docs/img [NAME ...]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

from ledger.budgets import budget_id
from ledger.exhaustion import Act, TierState
from tests.console_browser import chromium, visitor
from tests.console_lab import ConsoleLab, console_lab, fill, use
from tests.servers import ServerProcess

ORG: Final = "/console/orgs/acme"
PICTURES: Final = {
    "overview": ("owner", ORG, "light", (1280, 1250)),
    "overview-dark": ("admin", f"{ORG}?period=24h", "dark", (1280, 1250)),
    "overview-phone": ("owner", ORG, "light", (390, 1250)),
    "running": ("admin", f"{ORG}#running", "light", (1280, 1000)),
    "usage": ("owner", f"{ORG}/usage?period=30d&group_by=project&group_by=user", "light", (1280, 1250)),
    "budgets-phone": ("owner", f"{ORG}/budgets", "dark", (390, 1250)),
    "grants": ("owner", f"{ORG}/grants", "dark", (1280, 700)),
    "journal": ("owner", f"{ORG}/journal", "light", (1280, 1250)),
    "buy": ("owner", f"{ORG}/buy?credits=750", "light", (1280, 1300)),
    "orgs": ("admin", "/console/orgs?sort=stage", "light", (1280, 780)),
    "stages-phone": ("admin", "/console/stages", "light", (390, 750)),
}
"""Name -> whose eyes, address, colours, size."""


async def draw(lab: ConsoleLab, directory: Path, names: list[str], *, full: bool = False) -> None:
    """PNGs of the named pages. `full`: in full length."""
    async with chromium() as browser:
        for name in names:
            role, address, scheme, size = PICTURES[name]
            async with visitor(browser, lab.url, lab.tokens[role], scheme=scheme, size=size) as page:
                answer = await page.goto(address)
                assert answer is not None
                assert answer.status == 200, (name, answer.status)
                path = directory / f"console-{name}.png"
                await page.screenshot(path=path, full_page=full)
                print(path)


async def neighbours(lab: ConsoleLab) -> None:
    """Other orgs, one of which ran out, for the pages of administrators."""
    ledger, who, now = lab.ledger, "token:4f1c0a9be2d77a10 (admin)", lab.clock[0]
    await ledger.accounts.upsert("facilities", who=who, unlimited=True)
    for org, micro in (("globex", 8_125_500_000), ("hooli", 940_000_000), ("initech", 62_000_000)):
        await ledger.accounts.grant(org, micro, key="2026", who=who, reason="Research allocation 2026")
    await ledger.accounts.upsert("umbrella", who=who, contact="ops@umbrella.example")
    minute = 60_000_000
    await ledger.exhaustion.write("umbrella", "", TierState(), TierState(2, now - 95 * minute), None)
    tier = budget_id("genomics", "kim", "month")
    await ledger.exhaustion.write("hooli", tier, TierState(), TierState(4, now - 12 * minute), None)
    for job in ("4711", "4712"):
        await ledger.exhaustion.note("hooli", tier, "simulated-default", job, Act("suspend", now - 11 * minute))


async def main(directory: Path, names: list[str]) -> None:
    """Draws them over a ledger that is filled for it."""
    with tempfile.TemporaryDirectory() as scratch:
        server = ServerProcess(Path(scratch)).start()
        try:
            async with console_lab(server.url, jobs_per_hour=9) as lab:
                await fill(lab)
                await use(lab)
                await neighbours(lab)
                await draw(lab, directory, names)
        finally:
            server.kill9()


if __name__ == "__main__":
    if len(sys.argv) < 2 or set(sys.argv[2:]) - set(PICTURES):
        sys.exit(f"usage: python -m tests.console_pictures DIRECTORY [{' | '.join(PICTURES)}]")
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:] or list(PICTURES)))
