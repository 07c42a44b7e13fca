"""A real Prometheus over a made-up month whose ledger is known exactly, and Grafana's part in a query."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashboards.limits import CHECKPOINT_MINUTE
from dashboards.promql import checkpoint
from dashboards.rules import CHECKPOINTED, recording_rules

MINUTE, HOUR, DAY = 60, 3600, 86_400
Labels = tuple[tuple[str, str], ...]
Sample = tuple[int, str]


def openmetrics(families: Mapping[str, tuple[str, Mapping[Labels, Iterable[Sample]]]]) -> Iterator[str]:
    """OpenMetrics text of families: name -> (type, labels -> (second, value) ascending)."""
    for name, (kind, series) in families.items():
        family = name.removesuffix("_total") if kind == "counter" else name
        yield f"# TYPE {family} {kind}\n"
        for labels, samples in series.items():
            inner = ",".join(f'{key}="{value}"' for key, value in labels)
            head = f"{name}{{{inner}}} " if inner else f"{name} "
            for second, value in samples:
                yield f"{head}{value} {second}\n"
    yield "# EOF\n"


def backfill(text: Iterable[str], scratch: Path, data: Path, seconds: float = 300) -> None:
    """Turns OpenMetrics text into blocks of a Prometheus data directory, within `seconds`."""
    source = scratch / "history.om"
    with source.open("w", encoding="utf-8") as out:
        out.writelines(text)
    command = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=744h", "openmetrics", str(source)]
    subprocess.run([*command, str(data), "-q"], check=True, capture_output=True, timeout=seconds)
    source.unlink()


class PrometheusError(Exception):
    """Prometheus refused a query."""


@dataclass(frozen=True)
class Prometheus:
    """A running server's HTTP API."""

    url: str

    def get(self, path: str, **params: str) -> Any:
        """`data` of an answer.

        Raises: PrometheusError with the server's words.
        """
        body = urllib.parse.urlencode({key.rstrip("_"): value for key, value in params.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{body}", timeout=120) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{json.load(error).get('error')}: {params}") from None

    def instant(self, expr: str, at: float) -> dict[Labels, float]:
        """An instant query: labels -> value."""
        found = self.get("query", query=expr, time=str(at))["result"]
        return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in found}

    def range(self, expr: str, start: float, end: float, step: float) -> dict[Labels, list[tuple[float, str]]]:
        """A range query: labels -> (second, value)."""
        found = self.get("query_range", query=expr, start=str(start), end=str(end), step=str(step))["result"]
        return {tuple(sorted(row["metric"].items())): [(at, v) for at, v in row["values"]] for row in found}


@contextmanager
def prometheus(config: Path, data: Path) -> Iterator[Prometheus]:
    """A server on a free loopback port, for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address={address}", "--storage.tsdb.retention.time=100y", "--log.level=error"]
    with (data.parent / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


Family = tuple[str, Mapping[Labels, Iterable[Sample]]]


@contextmanager
def recorded(
    scratch: Path,
    families: Mapping[str, Family],
    *,
    span: tuple[int, int],
    fine: tuple[int, int],
    away: Iterable[tuple[int, int]] = (),
) -> Iterator[Prometheus]:
    """A server that holds families and what the recording rules make of them, by its own evaluation.

    Checkpoints are recorded over the whole span, the rest from the second `fine[0]` on, every `fine[1]` seconds, and
    nothing in the spans in which Prometheus was `away`.
    """
    data, config = scratch / "data", scratch / "prometheus.yml"
    data.mkdir()
    config.write_text("global: {}\n")
    backfill(openmetrics(families), scratch, data)
    hourly = {checkpoint(metric) for metric in CHECKPOINTED}
    rules = {rule["record"]: rule["expr"] for group in recording_rules()["groups"] for rule in group["rules"]}
    while rules:
        # Rules that read what others record wait for those.
        ready = [name for name, expr in rules.items() if not any(other in expr for other in rules)]
        made: dict[str, Family] = {}
        with prometheus(config, data) as server:
            for name in ready:
                first, step = (span[0] + CHECKPOINT_MINUTE * MINUTE, HOUR) if name in hourly else fine
                rows = server.range(rules.pop(name), first, span[1], step)
                made[name] = ("unknown", {_plain(labels): _seen(row, away) for labels, row in rows.items()})
        backfill(openmetrics({name: family for name, family in made.items() if family[1]}), scratch, data)
    with prometheus(config, data) as server:
        yield server


def _plain(labels: Labels) -> Labels:
    """Labels of an answer as the exposition writes them."""
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in labels)
    return tuple(pair for pair in escaped if pair[0] != "__name__")


def _seen(row: Iterable[tuple[float, str]], away: Iterable[tuple[int, int]]) -> list[Sample]:
    return [(int(at), value) for at, value in row if not _within(int(at), away)]


def as_grafana(expr: str, choices: Mapping[str, str], seconds: int) -> str:
    """An expression as Grafana sends it, for a time range (or an interval) of so many seconds."""
    built_in = {
        "__range_s": str(seconds),
        "__range": f"{seconds}s",
        "__interval_ms": str(seconds * 1000),
        "__interval": f"{seconds}s",
        "__rate_interval": "120s",
    }
    for name, value in sorted({**built_in, **choices}.items(), key=lambda item: -len(item[0])):
        expr = expr.replace(f"${name}", value)
    return expr


@dataclass
class History:
    """A month of a ledger's counters, minute by minute, and what of it was scraped.

    While the exporter is away nothing is charged, and what is missing comes in one step when it is back. While
    only Prometheus is away the ledger goes on unseen.
    """

    start: int
    days: int
    exporter_away: tuple[tuple[int, int], ...]
    """Minutes since the start, half-open."""
    prometheus_away: tuple[tuple[int, int], ...]
    values: dict[Labels, list[int]] = field(default_factory=dict)
    """Micro-credits at each minute from the series' first on."""
    born: dict[Labels, int] = field(default_factory=dict)

    def grow(self, labels: Labels, born: int, seed: int) -> None:
        """Adds a series that has its first charge at a minute."""
        random_ = random.Random(seed)
        total, owed, values = 0, 0, []
        for minute in range(born, self.days * 1440):
            owed += random_.randrange(3_000_000) if random_.random() < 0.9 else 0
            if not _within(minute, self.exporter_away):
                total, owed = total + owed, 0
            values.append(total)
        self.values[labels], self.born[labels] = values, born

    def scraped(self, labels: Labels) -> Iterator[tuple[int, int]]:
        """(minute, micro-credits) of each sample Prometheus has."""
        for minute, value in enumerate(self.values[labels], self.born[labels]):
            if not _within(minute, self.exporter_away) and not _within(minute, self.prometheus_away):
                yield minute, value

    def ledger(self, labels: Labels, at: int) -> int:
        """What the ledger's counter was at an instant."""
        index = (at - self.start) // MINUTE - self.born[labels]
        values = self.values[labels]
        return values[min(index, len(values) - 1)] if index >= 0 else 0

    def seen(self, labels: Labels, at: int) -> int:
        """The last value that was scraped at or before an instant."""
        samples = list(self.scraped(labels))
        index = bisect_right(samples, (at - self.start) // MINUTE, key=lambda sample: sample[0])
        return samples[index - 1][1] if index else 0


def _within(minute: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(since <= minute < until for since, until in spans)


def credits_text(micro: int) -> str:
    """Micro-credits as the exposition writes credits."""
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
