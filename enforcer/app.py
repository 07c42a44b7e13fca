"""The enforcer's web application, out of a ledger and settings."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from api import shapes
from api.routes import Handler, Operation, Route
from config.settings import Settings
from config.sources import SlurmSource
from enforcer.access import ConsoleSide, Guard
from enforcer.addresses import behind
from enforcer.admission.desk import Desk
from enforcer.admission.http import AdmissionApi
from enforcer.admission.kubernetes import KubernetesApi
from enforcer.admission.slurm import SlurmApi
from enforcer.bodies import answer
from enforcer.budgets_api import BudgetsApi
from enforcer.callers import Callers
from enforcer.direct import DIRECT
from enforcer.failures import Failures
from enforcer.grants_api import GrantsApi
from enforcer.metrics import EnforcerMetrics
from enforcer.notices import telling
from enforcer.notices_api import NoticesApi
from enforcer.openapi import description_routes
from enforcer.orgs import OrgsApi
from enforcer.problems import ERROR_PAGE, problems
from enforcer.reaper import reaping
from enforcer.server import serving
from enforcer.tokens_api import TokensApi
from enforcer.transfers_api import TransfersApi, sweeping
from enforcer.usage_api import UsageApi
from ledger.clock import Clock, now_us
from ledger.store import Ledger, open_ledger

MoreRoutes = Callable[[Ledger], Iterable[Route]]
"""Gives the routes of others (payments), which import nothing of the enforcer."""
MakeConsole = Callable[[Ledger], ConsoleSide]
log = logging.getLogger(__name__)
_PART: Final = re.compile(r"\{(\w+)\}")
_DIRECT: Final = {("POST", "/v1/admission")}
"""Calls that are asked for so often that finding their route is worth saving."""
DESK: Final = web.AppKey("desk", Desk)
ROUTES: Final[web.AppKey[list[Route]]] = web.AppKey("routes")
"""All calls that an application serves."""


def build_app(
    ledger: Ledger, settings: Settings, clock: Clock = now_us, more: Iterable[Route] = (), buy_url: str | None = None,
    console: ConsoleSide | None = None, failures: Failures | None = None,
) -> web.Application:  # fmt: skip
    """All calls of the enforcer. `more`: routes of others (payments), each behind its roles.

    `buy_url`: where credits are bought, said in refusals. `failures`: where the console counts failures to sign in.
    """
    failures = Failures() if failures is None else failures
    metrics = EnforcerMetrics(f"{settings.enforcer.host}:{settings.enforcer.port}", failures)
    place = f"{settings.enforcer.host}-{settings.enforcer.port}".replace(":", "_")
    spool = settings.data_dir / f"let-through-{place}.jsonl"
    # Also where nothing is let through any more, what was before waits there.
    keeps = settings.admission.on_ledger_down == "allow" or spool.exists()
    desk = Desk(ledger, settings.admission, metrics, clock, buy_url, spool if keeps else None)
    slurm = SlurmApi(desk, [source for source in settings.sources if isinstance(source, SlurmSource)])
    asks_certificates = settings.enforcer.tls is not None and settings.enforcer.tls.client_ca is not None
    callers = Callers(ledger.tokens, settings.admission.decision_seconds, lambda: desk.aftermath.is_away)
    kubernetes = KubernetesApi(desk, callers, settings.sources, asks_certificates, failures)
    proxies = settings.enforcer.trusted_proxies
    middlewares = [behind(proxies), problems] if proxies else [problems]
    app = web.Application(middlewares=middlewares, client_max_size=4 * 1024 * 1024)
    app[DESK] = desk
    routes: list[Route] = [
        *AdmissionApi(desk).routes(),
        *slurm.routes(),
        *kubernetes.routes(),
        *OrgsApi(ledger).routes(),
        *GrantsApi(ledger).routes(),
        *BudgetsApi(ledger).routes(),
        *TransfersApi(ledger).routes(),
        *TokensApi(ledger).routes(),
        *UsageApi(ledger).routes(),
        *NoticesApi(ledger, settings.notices).routes(),
        *_service(metrics),
        *more,
        *(console.routes if console is not None else ()),
    ]
    routes += description_routes(list(routes))
    app[ROUTES] = routes
    direct: dict[tuple[str, str], Handler] = {}
    app[DIRECT] = direct
    guard = Guard(callers, settings.admission.decision_seconds, failures, console)
    for route in routes:
        # A name may be of anything, also of braces, which a part of a path is not by default.
        path = _PART.sub(r"{\1:[^/]+}", route.path)
        handler = guard.guarded(route)
        app.router.add_route(route.method, path, handler)
        if route.method == "GET":
            app.router.add_route("HEAD", path, handler)  # the server leaves the body out
        if (route.method, route.path) in _DIRECT and not proxies:  # else the caller's address is found out first
            direct[route.method, route.path] = _answering(handler)
    app.router.add_post("/k8s/admission/{path:.*}", kubernetes.misdirected)
    if console is not None:
        app[ERROR_PAGE] = console.error_page
    app.cleanup_ctx.append(_background(desk, slurm, kubernetes, [source.cluster for source in settings.sources]))
    return app


def _answering(handler: Handler) -> Handler:
    """As the application calls it: what it raises is answered."""
    return lambda request: problems(request, handler)


def _service(metrics: EnforcerMetrics) -> list[Route]:
    """What tells of the process itself; anybody may ask."""
    text = {"text/plain": "In the format of Prometheus.", "application/openmetrics-text": "In that of OpenMetrics."}
    return [
        Route("GET", "/metrics", metrics.serve, None, about=Operation("service", media=text)),
        Route("GET", "/-/healthy", _healthy, None, about=Operation("service", shapes.Health)),
        Route("GET", "/-/ready", _ready, None, about=Operation("service", shapes.Ready)),
    ]


def _background(
    desk: Desk, slurm: SlurmApi, kubernetes: KubernetesApi, clusters: Sequence[str]
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(app: web.Application) -> AsyncIterator[None]:
        await desk.metrics.load(desk.ledger)
        # Rates are at hand before the first request, also should the ledger be gone by then.
        await asyncio.gather(*(desk.ledger.admissions.prepare(cluster) for cluster in dict.fromkeys(clusters)))
        desk.aftermath.start()
        for tree in slurm.trees.values():
            tree.start()
        yield
        for tree in slurm.trees.values():
            await tree.stop()
        await kubernetes.close()
        await desk.aftermath.stop()

    return run


async def _healthy(request: web.Request) -> web.Response:
    """The process answers."""
    return answer({"status": "ok"})


async def _ready(request: web.Request) -> web.Response:
    """Whether it takes requests, and whether the ledger is there.

    Ready also while the ledger is away: were it taken out of service then, `on_ledger_down` could not act.
    """
    return answer({"status": "ok", "ledger": not request.app[DESK].aftermath.is_away})


async def serve(settings: Settings, stop: asyncio.Event, clock: Clock | None = None, *more: MoreRoutes) -> None:
    """Admits and serves until `stop` is set.

    Raises: as `enforcing`.
    """
    async with enforcing(settings, clock, *more):
        await stop.wait()


@asynccontextmanager
async def enforcing(
    settings: Settings, clock: Clock | None = None, *more: MoreRoutes, console: MakeConsole | None = None,
    failures: Failures | None = None,
) -> AsyncIterator[str]:  # fmt: skip
    """An enforcer that serves for as long as the block lasts; gives its URL. `console` and `failures`: see `build_app`.

    Raises: LedgerUnavailable, LedgerDamaged, InvalidRequest where the ledger cannot be opened or the address or the
        certificates cannot be used.
    """
    async with open_ledger(settings.redis.url, settings.data_dir, settings.metering.epoch_us, clock) as ledger:
        routes = [route for give in more for route in give(ledger)]
        app = build_app(
            ledger, settings, clock or now_us, routes, settings.admission.buy_url,
            None if console is None else console(ledger), failures,
        )  # fmt: skip
        async with (
            serving(app, settings.enforcer) as url,
            reaping(ledger, settings, app[DESK].metrics, clock or now_us),
            telling(ledger, settings, app[DESK].metrics),
            sweeping(ledger.transfers),
        ):
            log.info("Enforcer: API at %s", url)
            yield url
