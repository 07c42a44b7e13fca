"""Auto top-up over HTTP: an org's terms, and how it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from aiohttp import web

from api import payment_shapes
from api.conditions import GIVES_ETAG, IfMatch, etag, if_match
from api.routes import Operation, Route
from api.types import AskedCredits, AskedLimit, said
from config.payments import Payments
from console.answers import answer, credits_of, read_json
from console.payments import Till
from console.payments_api import not_sold
from console.provider import ProviderUnavailable
from ledger.accounts import Accounts
from ledger.clock import now_us
from ledger.errors import InvalidRequest
from ledger.money import format_micro
from ledger.top_ups import Terms, TopUp, top_up_shape

_EDIT: Final = ("admin", "owner")
_SEE: Final = ("admin", "owner", "viewer")
_MINUTES_MAX: Final = 44_640
COOL_DOWN_MINUTES: Final = 60.0
log = logging.getLogger(__name__)


class AutoTopUpBody(msgspec.Struct, forbid_unknown_fields=True):
    """Below `threshold` available credits, `credits` are bought, at most `monthly_cap` a calendar month (UTC)."""

    threshold: AskedLimit
    credits: AskedCredits
    monthly_cap: AskedLimit
    cool_down_minutes: Annotated[float, said(minimum=0, maximum=_MINUTES_MAX)] = COOL_DOWN_MINUTES
    enabled: bool = True


def make_terms(
    payments: Payments, threshold_micro: int, micro: int, cap_micro: int, cool_down_minutes: float, enabled: bool,
    who: str,
) -> Terms:  # fmt: skip
    """The terms as the ledger keeps them. Raises: InvalidRequest."""
    if not payments.sells(micro):
        least, most = format_micro(payments.minimum_micro), format_micro(payments.maximum_micro)
        raise InvalidRequest(f"credits: {format_micro(micro)} are not sold at once; from {least} to {most} are")
    if not 0 <= cool_down_minutes <= _MINUTES_MAX:
        raise InvalidRequest(f"cool_down_minutes: {cool_down_minutes} is not from 0 to {_MINUTES_MAX} (31 days)")
    return Terms(threshold_micro, micro, cap_micro, int(cool_down_minutes * 60_000_000), enabled, who)


async def end_top_up(till: Till, org: str, who: str, address: str | None, if_revision: str | None = None) -> None:
    """End it; its card is forgotten here, and at the provider as far as that can be reached.

    Raises: Changed where the terms are not of `if_revision` any more; LedgerUnavailable.
    """
    card = await till.top_ups.remove(org, who, address, if_revision=if_revision)
    if card is None:
        return
    try:
        await till.provider.forget(card.method)
    except ProviderUnavailable as error:
        log.warning("org %s: its card is forgotten here, but not at the provider: %s", org, error)


class TopUpApi:
    """Without a till the calls are there and say that nothing is sold."""

    def __init__(
        self, till: Till | None, accounts: Accounts, who: Callable[[web.Request], str],
        address_of: Callable[[web.Request], str | None],
    ) -> None:  # fmt: skip
        """`who`: what the journal calls the caller of a request; `address_of`: where that is."""
        self._till = till
        self._accounts = accounts
        self._who = who
        self._address_of = address_of

    def calls(self) -> list[Route]:
        """All calls, with the roles that may make them."""
        path, none = "/v1/orgs/{org}/auto-top-up", (501,)
        get = Operation("payments", payment_shapes.AutoTopUp, problems=none, gives=GIVES_ETAG)
        put = get._replace(
            body=AutoTopUpBody, headers=IfMatch, problems=(412, *none),
            example={"threshold": "50", "credits": "200", "monthly_cap": "1000"},
        )  # fmt: skip
        delete = Operation("payments", headers=IfMatch, statuses=(204,), problems=(412, *none))
        calls = [
            Route("GET", path, self.get, _SEE, about=get),
            Route("PUT", path, self.put, _EDIT, about=put),
            Route("DELETE", path, self.delete, _EDIT, about=delete),
        ]
        return calls if self._till is not None else [call._replace(handler=not_sold(call.handler)) for call in calls]

    @property
    def till(self) -> Till:
        assert self._till is not None, "the calls are only made with a till"
        return self._till

    async def get(self, request: web.Request) -> web.Response:
        """An org's auto top-up, and how it stands."""
        org = request.match_info["org"]
        await self._accounts.balance(org)
        return _answer(await self.till.top_ups.read(org))

    async def put(self, request: web.Request) -> web.Response:
        """Sets the terms; where it was paused, it goes on."""
        body = await read_json(request, AutoTopUpBody)
        org = request.match_info["org"]
        terms = make_terms(
            self.till.settings, credits_of("threshold", body.threshold), credits_of("credits", body.credits),
            credits_of("monthly_cap", body.monthly_cap), body.cool_down_minutes, body.enabled, self._who(request),
        )  # fmt: skip
        await self._accounts.balance(org)  # says it where there is no such org
        address = self._address_of(request)
        return _answer(await self.till.top_ups.put(org, terms, address, if_revision=if_match(request)))

    async def delete(self, request: web.Request) -> web.Response:
        """Ends it and forgets the card; an order in flight goes on to its end."""
        org = request.match_info["org"]
        await self._accounts.balance(org)  # says it where there is no such org
        await end_top_up(self.till, org, self._who(request), self._address_of(request), if_match(request))
        return web.Response(status=204)


def _answer(found: TopUp) -> web.Response:
    return answer(top_up_shape(found, now_us()), headers=etag(found.revision))
