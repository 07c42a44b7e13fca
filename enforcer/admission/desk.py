"""The decision: modes, a time budget that holds whatever the ledger does, and what is said when it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import msgspec

from config.settings import AdmissionSettings
from enforcer.aftermath import Aftermath
from enforcer.deadlines import Deadlines
from enforcer.metrics import ALLOWED, DENIED, EXCEPTED, SHADOWED, EnforcerMetrics
from ledger import refusal_text
from ledger.admission import AdmissionRequest, Decision, Quote, Terms
from ledger.clock import Clock
from ledger.errors import CreditsError, LedgerUnavailable
from ledger.hold_ids import new_hold_id
from ledger.journal import decision_entry
from ledger.model import Code
from ledger.refusals import EXCEPTION, REFUSAL, SHADOW, Refused
from ledger.store import Ledger

log = logging.getLogger(__name__)
_OFF: Final = Decision(True, Code.OK, "Credits are not checked here.")


class Desk:
    """Every way to ask for admission ends here, so that all get the same answer in the same words."""

    def __init__(
        self, ledger: Ledger, settings: AdmissionSettings, metrics: EnforcerMetrics, clock: Clock,
        buy_url: str | None = None,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.settings = settings
        self.metrics = metrics
        self.aftermath = Aftermath(ledger, metrics, self._back)
        self.terms = Terms(int(settings.hold_minutes * 60_000_000), settings.unknown_org, buy_url)
        self._clock = clock
        self._deadlines = Deadlines(settings.decision_seconds)
        self._let_through: dict[str, int] = {}

    async def decide(
        self, request: AdmissionRequest, *, who: str, via: str, excuse: Callable[[], Awaitable[bool]] | None = None
    ) -> Decision:
        """The decision on a request, within the time set for it. `via`: how it was asked, for the journal.

        `excuse`: asked where it is refused, whether it is to be let through all the same.
        """
        mode = self.settings.mode_of(request.cluster)
        if mode == "off":
            return _OFF
        start = time.perf_counter()
        if not request.hold_id:
            request = msgspec.structs.replace(request, hold_id=new_hold_id(request.org))
        decision = await self._ask(request)
        mode = decision.policy_mode or mode
        if decision.allowed:
            if decision.code is not Code.OK:  # let through without the ledger
                self.metrics.count(EXCEPTED, decision.code)
                self._journal(EXCEPTION, request, decision, who, via)
            elif decision.policy_mode != "off":
                self.metrics.count(ALLOWED, decision.code)
        elif mode == "shadow":
            self.metrics.count(SHADOWED, decision.code)
            self._journal(SHADOW, request, decision, who, via)
            decision = replace(decision, allowed=True, reason=refusal_text.shadowed(decision.reason))
        elif excuse is not None and await self._is_excused(excuse, start):
            decision = replace(decision, allowed=True, reason=refusal_text.started_anew(decision.reason))
            self.metrics.count(EXCEPTED, decision.code)
            self._journal(EXCEPTION, request, decision, who, via)
        else:
            self.metrics.count(DENIED, decision.code)
            self._journal(REFUSAL, request, decision, who, via)
        self.metrics.observe(time.perf_counter() - start)
        return decision

    async def quote(self, request: AdmissionRequest) -> Quote:
        """What work would cost, within the time set for a decision. Raises: LedgerUnavailable."""
        if self.aftermath.is_away:
            raise LedgerUnavailable(refusal_text.ledger_unavailable())
        try:
            return await self._deadlines.within(self.ledger.admissions.quote(request, self.terms))
        except (LedgerUnavailable, TimeoutError) as error:
            self.aftermath.lost()
            raise LedgerUnavailable(refusal_text.ledger_unavailable()) from error

    async def _is_excused(self, excuse: Callable[[], Awaitable[bool]], start: float) -> bool:
        """In what is left of the time for a decision."""
        try:
            async with asyncio.timeout(self.settings.decision_seconds - (time.perf_counter() - start)):
                return await excuse()
        except (CreditsError, TimeoutError) as error:
            log.warning("whether refused work is to be let through is not known: %s", error)
            return False

    def refuse(self, request: AdmissionRequest, decision: Decision, *, who: str, via: str) -> Decision:
        """A refusal that needs no ledger (nobody pays for the account, ...), with all that goes with one."""
        mode = self.settings.mode_of(request.cluster)
        if mode == "off":
            return _OFF
        self.metrics.count(SHADOWED if mode == "shadow" else DENIED, decision.code)
        self._journal(SHADOW if mode == "shadow" else REFUSAL, request, decision, who, via)
        if mode == "shadow":
            return replace(decision, allowed=True, reason=refusal_text.shadowed(decision.reason))
        return decision

    async def _ask(self, request: AdmissionRequest) -> Decision:
        if self.aftermath.is_away:
            return self._without_ledger(request, was_asked=False)
        stays = self.settings.on_ledger_down == "allow"

        def answered_late(answer: Any) -> None:
            if answer[0] == b"ok" and answer[5] == b"new" and not stays:
                self.aftermath.release(request.org, answer[3].decode())

        try:
            return await self._deadlines.within(self.ledger.admissions.admit(request, self.terms, answered_late))
        except (LedgerUnavailable, TimeoutError):
            self.aftermath.lost()
            return self._without_ledger(request, was_asked=True)

    def _without_ledger(self, request: AdmissionRequest, *, was_asked: bool) -> Decision:
        required = self.ledger.admissions.known_required(request, self.terms)
        if self.settings.on_ledger_down == "allow" and required is not None:
            so_far = self._let_through.get(request.org, 0)
            if so_far + required <= self.settings.allow_cap_micro:
                if not request.dry_run:
                    self._let_through[request.org] = so_far + required
                    self.aftermath.hold(request, self.terms)
                return Decision(
                    True, Code.LEDGER_UNAVAILABLE, refusal_text.let_through(request.cluster), None, None, required,
                    None if request.dry_run else request.hold_id,
                )  # fmt: skip
        if was_asked and not request.dry_run:
            # Whether its hold was made is not known. A hold that is replaced stays, for its job is still there.
            self.aftermath.release(request.org, request.hold_id)
        return Decision(False, Code.LEDGER_UNAVAILABLE, refusal_text.ledger_unavailable(), None, None, required or 0)

    def _back(self) -> None:
        self._let_through.clear()

    def _journal(self, kind: str, request: AdmissionRequest, decision: Decision, who: str, via: str) -> None:
        entry = decision_entry(kind, request, decision, who=who, via=via, now_us=self._clock())
        self.aftermath.note(Refused(request.org, entry))
