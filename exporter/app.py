"""The exporter: sources, meter, ledger and metrics put together. Wiring only."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from config.problems import ConfigError
from config.rates import load_rates, parse_rates
from config.reload import Reloader
from config.settings import Settings
from config.sources import ApoloSource as ApoloSettings
from exporter.books import Books
from exporter.charge_back import ChargeBack
from exporter.factory import make_sources
from exporter.health import LedgerHealth
from exporter.ledger_text import LedgerText
from exporter.operations import Operations
from exporter.rates import RatesInForce
from exporter.retire import retire_idle, retire_old
from exporter.rounds import RoundReport, Rounds
from exporter.schedule import Schedule
from exporter.server import Answers, application, listening
from exporter.source_rounds import RatesOfPlatform, SourceRounds
from exporter.sources.base import Source
from exporter.upkeep import Upkeep
from exporter.verification import Verification
from exporter.view import View
from ledger.clock import Clock, now_us
from ledger.errors import CreditsError
from ledger.model import RatePlan
from ledger.store import Ledger, open_ledger

log = logging.getLogger(__name__)
_PING_SECONDS = 2.0
_WATCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What became of one source's round."""

    source: str
    report: RoundReport | None
    error: str | None

    @property
    def ok(self) -> bool:
        """Whether everything the source reports is charged."""
        return self.error is None


class Exporter:
    """A running exporter."""

    def __init__(self, url: str, reload: Callable[[], object]) -> None:
        """`url`: where it serves. `reload()` starts to read the configuration again."""
        self.url = url
        self.reload = reload


async def run_once(settings: Settings, clock: Clock | None = None) -> list[RoundResult]:
    """One round of each source, committed. `clock` replaces all clocks in tests, here and below.

    Raises: ConfigError (rates, where the ledger has none either); LedgerUnavailable, LedgerDamaged, InvalidRequest
        where the ledger cannot be opened.
    """
    try:
        plans: Mapping[str, RatePlan] | ConfigError = load_rates(settings.rates)
    except ConfigError as error:
        plans = error
    async with _metering(settings, plans, clock) as metering:
        results = list(await asyncio.gather(*(_one_round(job) for job in metering.jobs)))
        results += [await _one_charge_back(back) for back in metering.charge_backs]
        return results


async def serve(settings: Settings, stop: asyncio.Event, clock: Clock | None = None) -> None:
    """Meters and serves until `stop` is set; SIGHUP reads the configuration again.

    Raises: as `exporting`.
    """
    async with exporting(settings, clock) as exporter:
        with _on_hangup(exporter.reload):
            await stop.wait()
            log.info("Exporter: stopping; a commit under way is waited for.")


@asynccontextmanager
async def exporting(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Exporter]:
    """An exporter that meters and serves for as long as the block lasts.

    Raises: ConfigError (rates, where the ledger has none either); LedgerUnavailable, LedgerDamaged, InvalidRequest
        where the ledger cannot be opened; CannotListen.
    """
    rates: RatesInForce | None = None

    async def put_in_force(plans: dict[str, RatePlan]) -> None:
        assert rates is not None, "the file is followed only once the ledger is open"
        await rates.publish(plans)

    try:
        plans: Mapping[str, RatePlan] | ConfigError = load_rates(settings.rates)
    except ConfigError as error:
        plans = error
    nothing: dict[str, RatePlan] = {}
    reloader = Reloader(settings.rates, parse_rates, put_in_force, clock=clock or now_us, fallback=nothing)
    async with AsyncExitStack() as stack:
        metering = await stack.enter_async_context(_metering(settings, plans, clock))
        rates = metering.rates
        reloads: set[asyncio.Task[bool]] = set()
        stack.callback(lambda: [task.cancel() for task in reloads])
        verification = Verification(settings.redis.url, settings.data_dir)
        answers = _answers(metering, reloader, verification, clock or now_us)
        remedy = f"set exporter.listen in {settings.path} to a free address of this machine"
        port = await stack.enter_async_context(listening(application(answers), settings.exporter.listen, remedy))
        await stack.enter_async_context(_task(reloader.run()))
        await stack.enter_async_context(_task(verification.run()))
        await stack.enter_async_context(_task(Upkeep(settings).run()))
        configured = {s.name for s in settings.sources}
        watch = max(_WATCH_SECONDS, 4 * settings.metering.interval_seconds)
        await stack.enter_async_context(_task(retire_idle(metering.books, configured, watch)))
        for back in metering.charge_backs:
            await stack.enter_async_context(_task(back.run()))
        schedule = Schedule(metering.jobs, settings.metering.interval_seconds)
        schedule.start()
        stack.push_async_callback(schedule.stop)

        def reload() -> None:
            task = asyncio.create_task(reloader.reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        host = settings.exporter.host or "127.0.0.1"
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("Exporter: metrics at %s/metrics; %d sources.", url, len(metering.jobs))
        yield Exporter(url, reload)


@dataclass(frozen=True, slots=True)
class _Metering:
    """An open ledger, and rounds of every configured source."""

    ledger: Ledger
    books: Books
    rates: RatesInForce
    view: View
    jobs: list[SourceRounds]
    charge_backs: list[ChargeBack]


@asynccontextmanager
async def _metering(
    settings: Settings, plans: Mapping[str, RatePlan] | ConfigError, clock: Clock | None
) -> AsyncIterator[_Metering]:
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            open_ledger(settings.redis.url, settings.data_dir, settings.metering.epoch_us, clock)
        )
        if isinstance(plans, ConfigError):
            plans = await _last_good(ledger, settings, plans)
        books = Books(ledger)
        priced = [s for s in settings.sources if isinstance(s, ApoloSettings) and s.use_platform_rates]
        rates = RatesInForce(ledger.rates, plans, {s.cluster for s in settings.sources}, {s.cluster for s in priced})
        await rates.publish()
        await retire_old(books, {s.name for s in settings.sources}, (clock or now_us)())
        sources = make_sources(settings.sources, rates.priced_apps, clock or now_us)
        for source in sources:
            stack.push_async_callback(source.close)
        health = LedgerHealth()
        jobs: list[SourceRounds] = []
        view = View(books, [], health)
        completing = {s.name for s in priced}
        for source in sources:
            prices = None
            if source.name in completing and isinstance(source, RatesOfPlatform):
                prices = source, rates
            rounds = Rounds(books, source, _hold_us(settings, source))
            jobs.append(SourceRounds(rounds, health, after=view.refresh, prices=prices, clock=clock or now_us))
        view.sources = [job.health for job in jobs]
        for name, mark in (await ledger.charging.source_marks()).items():
            for job in jobs:
                if job.health.name == name:
                    job.health.charged_us = job.health.snapshot_us = mark
        await view.refresh()
        passing_on = [s for s in settings.sources if isinstance(s, ApoloSettings) and s.charge_back is not None]
        charge_backs = [ChargeBack(ledger, one, clock or now_us) for one in passing_on]
        for back in charge_backs:
            stack.push_async_callback(back.close)
        yield _Metering(ledger, books, rates, view, jobs, charge_backs)


async def _last_good(ledger: Ledger, settings: Settings, error: ConfigError) -> dict[str, RatePlan]:
    """The rates that are in force in the ledger, for a file that is refused at the start.

    Raises: ConfigError, the given one, where a cluster never had any.
    """
    plans: dict[str, RatePlan] = {}
    for cluster in sorted({source.cluster for source in settings.sources}):
        plan = (await ledger.rates.read(cluster))[1]
        if plan is None:
            raise error
        plans[cluster] = plan
    log.error("%s; the last good rates stay in force", error)
    return plans


def _hold_us(settings: Settings, source: Source) -> int:
    """What running work is to have set aside: nothing where nothing is ever refused."""
    admission = settings.admission
    return 0 if admission.mode_of(source.cluster) == "off" else round(admission.hold_minutes * 60_000_000)


def _answers(
    metering: _Metering, reloader: Reloader[dict[str, RatePlan]], verification: Verification, clock: Clock
) -> Answers:
    health = metering.view.sources
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(
        Operations(
            health,
            metering.view.ledger,
            lambda: (reloader.last_reload_successful, reloader.last_success_us),
            verification,
            clock,
            metering.charge_backs,
        )
    )

    async def missing() -> list[str]:
        found = [f"source {s.name} was not asked yet" for s in health if not s.tried]
        if not await _answers_ping(metering.ledger):
            found.append("the ledger's server does not answer")
        return found

    async def reload() -> str | None:
        return None if await reloader.reload() else reloader.last_error

    return Answers(registry, LedgerText(metering.view, clock).render, missing, reload)


async def _answers_ping(ledger: Ledger) -> bool:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await ledger.charging.source_marks()
    except (CreditsError, TimeoutError):
        return False
    return True


async def _one_round(job: SourceRounds) -> RoundResult:
    name = job.health.name
    try:
        report = await job.once()
    except CreditsError as error:
        return RoundResult(name, None, str(error))
    except Exception as error:
        log.exception("Source %s: a fault of the exporter", name)
        return RoundResult(name, None, f"{type(error).__name__}: {error}")
    if report.failed:
        return RoundResult(name, report, f"another exporter was at work on {', '.join(report.failed)}; run it again")
    return RoundResult(name, report, None)


async def _one_charge_back(back: ChargeBack) -> RoundResult:
    try:
        await back.once()
    except CreditsError as error:
        return RoundResult(back.source, None, f"charges were not passed on to the platform: {error}")
    return RoundResult(back.source, None, None)


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        while not task.done():
            task.cancel()  # again and again: one that comes together with a result is lost
            await asyncio.wait([task], timeout=0.5)
        with suppress(asyncio.CancelledError):
            task.result()


@contextmanager
def _on_hangup(reload: Callable[[], object]) -> Iterator[None]:
    """SIGHUP reloads, where signals can be had: in the main thread."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
