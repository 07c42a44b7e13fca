"""The ledger's past as OpenMetrics text, for a Prometheus that was installed later.

    credits export openmetrics > history.om
    promtool tsdb create-blocks-from --max-block-duration=744h openmetrics history.om DATA

A counter's value at a full hour is all that was used before it. Series come one after the other, each in order of
time, so that no reader has to sort; memory is bounded, whatever the length of the history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from exporter import metric_names as m
from exporter.exposition import credits_text, family_head, line_head, seconds_text
from ledger.clock import parse_time
from ledger.money import HOUR_US, parse_credits
from ledger.statement import entries_of, taken_back
from ledger.store import Ledger
from ledger.usage_reader import DAY_US, Horizon, OrgReader, read_horizon

_CELLS_MAX: Final = 2_000_000
"""Row-hours held at once."""
Names = Callable[[m.Metric], str]
"""metric -> the name of its hourly checkpoints, which the dashboards read."""


async def history(ledger: Ledger, from_us: int, to_us: int, checkpoint: Names) -> AsyncIterator[str]:
    """Lines of what was spent, granted, expired and taken back, at each full hour in [from, to] at which it changed,
    and daily.

    Raises: LedgerUnavailable, LedgerDamaged.
    """
    from_us += -from_us % HOUR_US
    to_us -= to_us % HOUR_US
    orgs = await ledger.accounts.orgs()
    horizon = await read_horizon(ledger)
    for metric in _with_checkpoints(m.SPENT, checkpoint):
        yield _head(metric)
        for org in orgs:
            async for lines in _spent(ledger, org, metric, from_us, to_us, horizon):
                yield lines
    for source, steps in (
        (m.GRANTED, _granted),
        (m.EXPIRED, _expired),
        (m.WITHDRAWN, partial(_taken, sign=-1)),
        (m.RESTORED, partial(_taken, sign=1)),
    ):
        for metric in _with_checkpoints(source, checkpoint):
            yield _head(metric)
            for org in orgs:
                for labels, changes in sorted((await steps(ledger, org)).items()):
                    yield _series(line_head(metric, labels), changes, from_us, to_us)
    for metric in _with_checkpoints(m.LEDGER_EPOCH, checkpoint):
        yield _head(metric)
        value = seconds_text(ledger.epoch_us)
        times = sorted({*_daily(max(from_us, ledger.epoch_us + -ledger.epoch_us % HOUR_US), to_us)})
        yield "".join(f"{line_head(metric, ())}{value} {us // 1_000_000}\n" for us in times)
    yield "# EOF\n"


def _with_checkpoints(metric: m.Metric, checkpoint: Names) -> Iterator[m.Metric]:
    yield metric
    yield m.Metric(checkpoint(metric), "gauge", metric.labels, metric.help)


def _head(metric: m.Metric) -> str:
    return family_head(metric, openmetrics=True) + "\n"


async def _spent(
    ledger: Ledger, org: str, metric: m.Metric, from_us: int, to_us: int, horizon: Horizon
) -> AsyncIterator[str]:
    reader = OrgReader(ledger, org)
    await reader.open()
    rows = reader.rows
    at_once = max(1, _CELLS_MAX // max(1, (to_us - ledger.epoch_us) // HOUR_US))
    for start in range(0, len(rows), at_once):
        numbers = range(start, min(start + at_once, len(rows)))
        fields = None if len(numbers) == len(rows) else [str(number) for number in numbers]
        changes: dict[int, list[tuple[int, int]]] = {number: [] for number in numbers}
        async for hour, bucket in reader.hours(to_us, fields):
            grain = DAY_US if hour < horizon.hours_us else HOUR_US
            end = hour - hour % grain + grain
            for field, value in bucket.items():
                if field.isdigit() and (series := changes.get(int(field))) is not None:
                    series.append((end, int(value)))
        for number in numbers:
            row = rows[number]
            labels = (row.cluster, org, row.project, row.user, row.kind, row.resource, row.app)
            if changes[number]:
                yield _series(line_head(metric, labels), changes[number], from_us, to_us)


def _hour_end(us: int) -> int:
    return us - us % HOUR_US + HOUR_US


Steps = dict[tuple[str, ...], list[tuple[int, int]]]
"""Label values -> (full hour, micro-credits more)."""


async def _granted(ledger: Ledger, org: str) -> Steps:
    found: Steps = {}
    for record in await ledger.accounts.grants(org):
        step = (_hour_end(parse_time(record.granted_at)), parse_credits(record.credits))
        found.setdefault((org, record.source), []).append(step)
    return found


async def _expired(ledger: Ledger, org: str) -> Steps:
    steps = [
        (_hour_end(entry.at_us), entry.micro) for entry in await entries_of(ledger, org) if entry.what == "expired"
    ]
    return {(org,): steps} if steps else {}


async def _taken(ledger: Ledger, org: str, sign: int) -> Steps:
    """What was taken back (-1), or given again (1)."""
    steps = [
        (_hour_end(taken.at_us), abs(taken.micro)) for taken in await taken_back(ledger, org) if taken.micro * sign > 0
    ]
    return {(org,): steps} if steps else {}


def _series(head: str, changes: Iterable[tuple[int, int]], from_us: int, to_us: int) -> str:
    """The samples of one counter: at the full hours at which it changed, and once a day."""
    sums: dict[int, int] = {}
    for us, micro in changes:
        at = max(us, from_us)
        if at <= to_us:
            sums[at] = sums.get(at, 0) + micro
    if not sums:
        return ""
    times: Sequence[int] = sorted({*sums, *_daily(min(sums), to_us)})
    lines = []
    total = 0
    for at in times:
        total += sums.get(at, 0)
        lines.append(f"{head}{credits_text(total)} {at // 1_000_000}\n")
    return "".join(lines)


def _daily(from_us: int, to_us: int) -> Iterator[int]:
    """Full days (UTC) in a period, and both of its ends."""
    if from_us <= to_us:
        yield from_us
        yield from range(from_us + -from_us % DAY_US, to_us + 1, DAY_US)
        yield to_us
