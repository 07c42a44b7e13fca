"""`rates.yaml` as exact rate plans, one for each cluster."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config import values
from config.fields import At, File, Refused, Unusable, choice
from config.problems import ConfigError, Problem, near_miss, shown
from config.yaml_nodes import Sequence, parse_yaml, read_bytes
from ledger.model import RatePlan, RateTable
from ledger.money import AmountError, parse_rate

_UNITS: Final = {"presets": "credits_per_hour", "apps": "credits_per_hour", "storage": "credits_per_gb_hour"}
_SLIP: Final = 0.8
"""Likeness from which a name that appears in `scheduled` only is taken for a slip of the fingers."""
_unpriced = choice("deny", "free")

Tables = dict[str, dict[str, int]]
"""Rates in nano-credits an hour, by the keys of _UNITS and then by name."""


@dataclass(frozen=True, slots=True)
class _Overlay:
    """Rates that replace those of the same names from an instant on."""

    from_us: int
    line: int
    tables: Tables
    places: dict[tuple[str, str], At]
    """Where each rate stands that is not said to be `new`."""


def load_rates(path: Path) -> dict[str, RatePlan]:
    """The rate plans in a file, by cluster. Raises: ConfigError with everything that is wrong."""
    return parse_rates(read_bytes(path), str(path))


def parse_rates(content: bytes, name: str) -> dict[str, RatePlan]:
    """The rate plans in the bytes of a file that messages call `name`. Raises: ConfigError."""
    file = File(name, {}, [])
    top = At(file, (), parse_yaml(content, name, file.problems))
    plans = {}
    with suppress(Unusable):
        entries = _known(top, "clusters")
        if "clusters" not in entries:
            top.refuse("lacks the key clusters: {CLUSTER: {presets: {NAME: {credits_per_hour: 1}}}}")
        else:
            for cluster, at in _named(entries["clusters"], "clusters: {CLUSTER: {presets: ...}}").items():
                plans[cluster] = _read_cluster(cluster, at)
    file.finish()
    return plans


def check_rates(path: Path) -> list[Problem]:
    """Everything that is wrong with a file of rates, nothing if it can be used."""
    try:
        load_rates(path)
    except ConfigError as error:
        return list(error.problems)
    return []


def _read_cluster(cluster: str, at: At) -> RatePlan:
    """The plan of a cluster. What is faulty is reported and left out."""
    try:
        entries = _known(at, *_UNITS, "unpriced", "scheduled")
    except Unusable:
        return RatePlan(cluster, ((0, RateTable()),))
    tables: Tables = {group: _read_group(entries[group], group) if group in entries else {} for group in _UNITS}
    unpriced = "deny"
    if "unpriced" in entries:
        with suppress(Unusable):
            unpriced = _unpriced(entries["unpriced"])
    steps = [(0, _table(tables, unpriced))]
    for overlay in _read_scheduled(entries["scheduled"]) if "scheduled" in entries else []:
        _refuse_slips(overlay, tables)
        tables = {group: {**tables[group], **overlay.tables[group]} for group in _UNITS}
        steps.append((overlay.from_us, _table(tables, unpriced)))
    return RatePlan(cluster, tuple(steps))


def _table(tables: Tables, unpriced: str) -> RateTable:
    return RateTable(**tables, unpriced=unpriced)


def _read_group(at: At, group: str, places: dict[tuple[str, str], At] | None = None) -> dict[str, int]:
    """Rates by name; `places` gets those that are not said to be new, in a scheduled group."""
    unit = _UNITS[group]
    rates = {}
    try:
        cells = _named(at, f"{group}: {{NAME: {{{unit}: 1}}}}")
    except Unusable:
        return {}
    for name, cell in cells.items():
        try:
            entries = _known(cell, unit, *([] if places is None else ["new"]))
            new = "new" in entries and values.truth(entries["new"])
            if unit not in entries:
                cell.refuse(f"lacks the key {unit}")
                raise Unusable
            rates[name] = _read_rate(entries[unit])
        except Unusable:
            rates[name] = 0  # the file is refused, and what follows is not to call the name unknown
            continue
        if places is not None and not new:
            places[group, name] = cell
    return rates


def _read_rate(at: At) -> int:
    try:
        return parse_rate(values.decimal_text(at, "40.5"))
    except (AmountError, Refused) as error:
        at.refuse(str(error))
        raise Unusable from None


def _read_scheduled(at: At) -> list[_Overlay]:
    if not isinstance(at.node, Sequence):
        at.refuse(f"is {at.describe()}; expected a list: [{{effective_from: ..., presets: ...}}]")
        return []
    overlays: dict[int, _Overlay] = {}
    for number, node in enumerate(at.node.items):
        here = At(at.file, (*at.path, str(number)), node)
        try:
            overlay = _read_overlay(here)
        except Unusable:
            continue
        if (other := overlays.get(overlay.from_us)) is not None:
            here.refuse(f"takes effect at the same instant as the entry in line {other.line}; write one entry")
        else:
            overlays[overlay.from_us] = overlay
    return [overlays[us] for us in sorted(overlays)]


def _read_overlay(at: At) -> _Overlay:
    entries = _known(at, "effective_from", *_UNITS)
    places: dict[tuple[str, str], At] = {}
    tables = {group: _read_group(entries[group], group, places) if group in entries else {} for group in _UNITS}
    if "effective_from" not in entries:
        at.refuse("lacks the key effective_from: a time like 2027-01-01T00:00:00Z")
        raise Unusable
    if not any(group in entries for group in _UNITS):
        at.refuse(f"changes nothing; expected one of {', '.join(_UNITS)}")
    return _Overlay(values.time(entries["effective_from"]), at.node.line, tables, places)


def _refuse_slips(overlay: _Overlay, before: Tables) -> None:
    """Reports rates for names that nothing has had before and that look like a name that something has."""
    for (group, name), at in overlay.places.items():
        if name in before[group]:
            continue
        match = near_miss(name, before[group], _SLIP)
        if match is not None:
            at.refuse(
                f"{shown(name)} has no rate before; did you mean '{match}'? "
                f"If it is a new one, say so: {{{_UNITS[group]}: ..., new: true}}"
            )


def _known(at: At, *names: str) -> dict[str, At]:
    return at.known_entries(list(names), f"a mapping with {' or '.join(names)}")


def _named(at: At, expected: str) -> dict[str, At]:
    """The mapping at `at` by names; what is no name is reported and left out. Raises: Unusable if it is none."""
    found = {}
    for name, entry in at.entries(expected).items():
        if problem := values.check_name(name):
            at.refuse(f"the name {shown(name)} {problem}", at.line_of(name))
        else:
            found[name] = entry
    return found
