"""A part of `verify`: holds and what running work sets aside, against their sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from ledger import keys
from ledger.clock import format_time, parse_time
from ledger.findings import Findings, Hashes
from ledger.lua import text
from ledger.money import format_micro
from ledger.runs import NEVER, OPEN, Run
from ledger.scopes import class_field

Orphan = dict[str, str | None]


def check_holds(found: Findings, hashes: Hashes, expiry: Mapping[str, int], now_us: int) -> list[Orphan]:
    """Holds are what their sums say, and end by `expiry` (ms); gives those that are orphans."""
    names = keys.of_org(found.org)
    tiers: dict[str, int] = defaultdict(int)
    holds = {text(i): msgspec.json.decode(data) for i, data in hashes[names.holds].items()}
    found.checked["holds"] += len(holds)
    for hold in holds.values():
        for tier in hold["tiers"]:
            tiers[tier] += int(hold["amount"]) * int(hold["left"])
    found.sums("held", {text(k): int(v) for k, v in hashes[names.held].items()}, "holds", tiers)
    told_apart = [tier for tier in tiers if tier.startswith(class_field("", "")[:2])]
    if told_apart:
        found.same("held, by class of work", sum(tiers[tier] for tier in told_apart), "holds", tiers[""])
    for hold_id in holds.keys() ^ expiry.keys():
        found.differ(f"hold {hold_id}", "has no expiry" if hold_id in holds else "expires but is not there")
    for hold_id in holds.keys() & expiry.keys():
        if expiry[hold_id] * 1000 <= now_us:
            found.differ(f"hold {hold_id}", f"should have ended at {format_time(expiry[hold_id] * 1000)}")
    for workload, named in hashes[names.hold_of].items():
        if text(named) not in holds:
            found.differ(f"workload {text(workload)!r}", f"names hold {text(named)}, which is not there")
    parts: dict[str, int] = defaultdict(int)
    for name, values in hashes.items():
        if name.startswith(f"{names.running}:"):
            for tier, micro in values.items():
                parts[text(tier)] += int(micro)
    running = {text(k): int(v) for k, v in hashes[names.running].items()}
    found.sums("to be held for running work", running, "sources", parts)
    return _orphans(found.org, hashes, holds, expiry)


def _orphans(org: str, hashes: Hashes, holds: Mapping[str, Any], expiry: Mapping[str, int]) -> list[Orphan]:
    """Holds of work that is charged now, or was until after they were made."""
    if not any(hold["workload"] for hold in holds.values()):
        return []
    names = keys.of_org(org)
    last_us: dict[str, int] = {}
    for data in (*hashes[names.runs].values(), *hashes[names.ended].values()):
        run = Run.decode(org, data)
        if run.kind != "storage":
            name = f"{run.cluster}{keys.US}{run.id}"
            last_us[name] = max(last_us.get(name, 0), NEVER if run.state == OPEN else run.ended_us or run.until_us)
    orphans: list[Orphan] = []
    for hold_id, hold in holds.items():
        until_us = last_us.get(hold["workload"] or "", 0)
        if until_us <= parse_time(hold["at"]):
            continue
        orphans.append(
            {
                "org": org, "hold_id": hold_id, "cluster": hold["cluster"], "project": hold["project"],
                "user": hold["user"], "workload": hold["workload"].partition(keys.US)[2],
                "credits": format_micro(int(hold["amount"]) * int(hold["left"])), "held_at": hold["at"],
                "expires_at": format_time(expiry[hold_id] * 1000) if hold_id in expiry else None,
                "why": "its work is charged already" if until_us == NEVER else "its work has ended",
            }
        )  # fmt: skip
    return orphans
