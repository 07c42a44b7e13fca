"""Forms that move credits: each one that is shown has a key of its own, so that sending it twice moves them once."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from console.desk import Desk
from console.refused import beside
from console.typed import typed_credits
from ledger.corrections import REASON_MAX
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.money import AmountError

Texts = dict[str, str]
_PREFIX: Final = "console:"
_KEY: Final = re.compile(r"console:[A-Za-z0-9_-]{1,56}")
_NOT_WHOLE: Final = "This form is not whole; send it again from here."


def new_key() -> str:
    """For one form, each time that it is shown empty."""
    return _PREFIX + secrets.token_urlsafe(18)


async def read_form(desk: Desk, request: web.Request, fields: Mapping[str, str]) -> tuple[Texts, int, Texts]:
    """(values of the fields, micro-credits, what is wrong with which) of a form that moves credits of an org; key,
    credits and reason are looked at here. The micro-credits are 0 where something is wrong with them.

    Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable.
    """
    form = await desk.pages.sessions.check_csrf(request)
    await desk.ledger.accounts.balance(request.match_info["org"])  # says it when there is no such org
    values = {name: str(form.get(name, "")).strip() for name in fields}
    errors: Texts = {}
    micro = 0
    if _KEY.fullmatch(values["key"]) is None:
        errors[""] = _NOT_WHOLE
        values["key"] = new_key()
    try:
        micro = typed_credits(values["credits"])
        if micro <= 0:
            errors["credits"] = "Expected more than 0."
    except AmountError as error:
        errors["credits"] = str(error)
    if not 0 < len(values["reason"]) <= REASON_MAX:
        errors["reason"] = f"Why? In at most {REASON_MAX} characters; it is in the journal for ever."
    return values, micro, errors


def note(error: IdempotencyConflict | InvalidRequest, values: Texts, errors: Texts, done: str) -> None:
    """What the ledger refused, beside the field that it is about. `done`: what this form did when it was first sent."""
    if isinstance(error, InvalidRequest):
        field, text = beside(error, {name: name for name in values})
        errors[field] = text
        return
    errors[""] = f"This form was sent before, with other values, and that {done} was made: {error}"
    values["key"] = new_key()
