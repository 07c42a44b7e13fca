"""`docs/access.md`, out of the routes that the guard enforces: `python -m cli.access_table docs/access.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from api.routes import PART, Route
from ledger.tokens import ORG_ROLES, ROLES

OPEN: Final = {
    "/-/healthy": "says that the process answers",
    "/-/ready": "says whether the ledger is there",
    "/metrics": "for Prometheus: counts, and how far orgs are exhausted; keep it off the outside network",
    "/openapi.json": "this description",
    "/docs": "this description, as a page",
    "/k8s/admission": "checks a client certificate, or a token of role scheduler or admin that is bound to no org",
    "/k8s/admission/{cluster}": "as above",
    "/k8s/admission/{cluster}/{token}": "as above, the token in the path, for API servers that send none",
    "/v1/payments/stripe": "checks the provider's signature",
    "/console/payments/{org}/{order}": "where a buyer comes back to: its address has a key of its own",
    "/console/static/{version}/{name}": "the look of the pages",
    "/console/sign-in": "signs in",
    "/console/sign-out": "signs out",
    "/console/choose": "of somebody who signed in and may act in several roles",
    "/console/oidc/start": "signs in through the provider",
    "/console/oidc/callback": "signs in through the provider",
}
"""Routes without roles, and what guards them instead."""
_HEAD: Final = """\
# Who may do what

Made from the routes themselves (`python -m cli.access_table docs/access.md`): the roles in these tables are the ones
that the guard checks. A test asks every call as every role, for the caller's own org, for another and for one that is
not there.

- **own org**: a token of role owner or viewer is for one org. It sees and changes that org only, whether the org is
  named in the path, in the query or in the body; lists hold that org alone. A scheduler's token may be bound to an org
  too, and then admits for that org only.
- What a token may not see is refused with 403 in the same words whether it exists or not, before anything is looked
  up. Without a token, or with one that is unknown, expired or revoked, the answer is 401. A revoked token is refused
  within 5 seconds.
- More than 20 tokens a minute that are none, from one address (IPv6: one /64), are answered with 429 and `Retry-After`
  from then on; signing in to the console counts too. Valid tokens from the same address go on working. Behind a
  proxy, set `enforcer.trusted_proxies`, or all its callers are one address. `credits_auth_failures_total` counts.
- The console asks for the same roles by the session of whoever signed in. Who is not signed in is sent to do so.
"""


def every_route() -> list[Route]:
    """All routes of an enforcer with everything set up. Nothing is connected to."""
    from redis.asyncio import Redis

    from cli.console import console_side
    from cli.payments import payment_routes
    from config.console import Oidc
    from config.settings import Settings
    from enforcer.app import ROUTES, build_app
    from enforcer.failures import Failures
    from ledger.store import Ledger

    ledger = Ledger(Redis(), 0)
    settings = Settings(path=Path("settings.yaml"))
    provider: Any = Oidc  # what signs in through it is not called here
    console = console_side(ledger, settings, Failures(), provider)
    return build_app(ledger, settings, more=payment_routes(None)(ledger), console=console)[ROUTES]


def concerns_org(route: Route) -> bool:
    """Whether a call is about an org: one that is named, or those in its list."""
    parts = PART.findall(route.path)
    asked = () if route.about is None else (route.about.body, route.about.query)
    structs = [kind for kind in asked if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    return (
        "org" in parts
        or "hold_id" in parts
        or route.path == "/v1/orgs"
        or any("org" in kind.__struct_fields__ for kind in structs)
    )


def render(routes: Iterable[Route]) -> str:
    """The whole page, in Markdown."""
    guarded = [route for route in routes if route.roles is not None]
    calls = [route for route in guarded if route.via == "token"]
    pages = [route for route in guarded if route.via == "session"]
    unguarded = dict.fromkeys((route.method, route.path) for route in routes if route.roles is None)
    rows = [f"| `{method} {path}` | {OPEN.get(path, '')} |" for method, path in unguarded]
    parts = [
        _HEAD, "## Calls\n", _table(calls), "## Pages of the console\n", _table(pages),
        "## Open to everyone, or checked otherwise\n", "| call | why |", "|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(parts)


def _table(routes: Iterable[Route]) -> str:
    lines = [f"| call | {' | '.join(ROLES)} |", "|---" * (len(ROLES) + 1) + "|"]
    for route in routes:
        cells = [_cell(route, role) for role in ROLES]
        lines.append(f"| `{route.method} {route.path}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(route: Route, role: str) -> str:
    if role not in (route.roles or ()):
        return ""
    return "own org" if role in ORG_ROLES and concerns_org(route) else "yes"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(every_route()), encoding="utf-8")
