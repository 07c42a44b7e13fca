"""Pictures of the console for the docs: `python -m tests.console_pictures docs/img [NAME ...]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.console_browser import PHONE, WIDE, chromium, visitor
from tests.console_lab import ConsoleLab, console_lab, fill, use
from tests.servers import ServerProcess

PICTURES: Final = {
    "overview": ("owner", "/console/orgs/acme", "light", WIDE),
    "overview-dark": ("admin", "/console/orgs/acme?period=24h", "dark", WIDE),
    "overview-phone": ("owner", "/console/orgs/acme", "light", PHONE),
    "usage": ("owner", "/console/orgs/acme/usage?period=30d&group_by=project&group_by=user", "light", WIDE),
    "budgets": ("owner", "/console/orgs/acme/budgets", "light", WIDE),
    "budgets-phone": ("owner", "/console/orgs/acme/budgets", "dark", PHONE),
    "grants": ("owner", "/console/orgs/acme/grants", "light", WIDE),
    "journal": ("owner", "/console/orgs/acme/journal", "dark", WIDE),
    "buy": ("owner", "/console/orgs/acme/buy?credits=750", "light", WIDE),
    "sign-in": ("", "/console/sign-in", "light", WIDE),
}
"""Name -> whose eyes, address, colours, size."""


async def draw(lab: ConsoleLab, directory: Path, names: list[str]) -> None:
    """PNGs of the named pages, in full length."""
    async with chromium() as browser:
        for name in names:
            role, address, scheme, size = PICTURES[name]
            token = lab.tokens[role] if role else ""
            async with visitor(browser, lab.url, token, scheme=scheme, size=size) as page:
                answer = await page.goto(address)
                assert answer is not None
                assert answer.status == 200, (name, answer.status)
                path = directory / f"console-{name}.png"
                await page.screenshot(path=path, full_page=True)
                print(path)


async def main(directory: Path, names: list[str]) -> None:
    """Draws them over a ledger that is filled for it."""
    with tempfile.TemporaryDirectory() as scratch:
        server = ServerProcess(Path(scratch)).start()
        try:
            async with console_lab(server.url) as lab:
                await fill(lab)
                await use(lab)
                await draw(lab, directory, names)
        finally:
            server.kill9()


if __name__ == "__main__":
    if len(sys.argv) < 2 or set(sys.argv[2:]) - set(PICTURES):
        sys.exit(f"usage: python -m tests.console_pictures DIRECTORY [{' | '.join(PICTURES)}]")
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:] or list(PICTURES)))
