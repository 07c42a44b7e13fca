"""The decision: modes, a time budget that holds whatever the ledger does, and what is said when it is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from config.settings import AdmissionSettings
from enforcer.aftermath import Aftermath
from enforcer.deadlines import Deadlines
from enforcer.metrics import ALLOWED, DENIED, EXCEPTED, SHADOWED, EnforcerMetrics
from enforcer.spool import LetThrough, SpoolError
from ledger import refusal_text
from ledger.admission import AdmissionRequest, Decision, Quote, Terms, in_mode
from ledger.clock import Clock
from ledger.errors import CreditsError, LedgerUnavailable
from ledger.hold_ids import new_hold_id
from ledger.journal import decision_entry
from ledger.model import Code
from ledger.refusals import EXCEPTION, REFUSAL, SHADOW, Refused
from ledger.store import Ledger

T = TypeVar("T")
log = logging.getLogger(__name__)
_WAITING_PART: Final = 0.97
"""Of the time for a request: for all that is waited for. The rest is for writing the answer."""
_LEDGER_PART: Final = 0.9
"""The same for the ledger, so that what is said without it is said in time."""
_LEDGER_PART_BEFORE_DISK: Final = 0.8
"""The same where what is let through has to be on disk before."""
_FAIR_PART: Final = 0.25
"""A ledger that is silent for so long is taken to be away; for less, only this request is decided without it."""
_OFF: Final = Decision(True, Code.OK, "Credits are not checked here.")
_MODES_MAX: Final = 10_000
"""Orgs with a mode of their own that is known while the ledger is away."""


class Desk:
    """Every way to ask for admission ends here, so that all get the same answer in the same words."""

    def __init__(
        self, ledger: Ledger, settings: AdmissionSettings, metrics: EnforcerMetrics, clock: Clock,
        buy_url: str | None = None, spool: Path | None = None,
    ) -> None:  # fmt: skip
        """`spool`: see `Aftermath`. Raises: InvalidRequest where that file cannot be used."""
        self.ledger = ledger
        self.settings = settings
        self.metrics = metrics
        self.aftermath = Aftermath(ledger, metrics, spool)
        self.terms = Terms(int(settings.hold_minutes * 60_000_000), settings.unknown_org, buy_url)
        self._clock = clock
        self._modes: dict[str, str] = {}
        self._may_pass = settings.on_ledger_down == "allow"
        self._seconds = settings.decision_seconds * _WAITING_PART
        self._ledger_seconds = settings.decision_seconds * (
            _LEDGER_PART_BEFORE_DISK if self._may_pass else _LEDGER_PART
        )
        self._deadlines = Deadlines(self._ledger_seconds)

    def until(self, waited: float = 0.0) -> float:
        """When the time for a request ends, of which so many seconds were waited for already: on the loop's clock."""
        return _now() + self._seconds - waited

    async def decide(
        self, request: AdmissionRequest, *, who: str, via: str, until: float | None = None,
        excuse: Callable[[], Awaitable[bool]] | None = None,
    ) -> Decision:  # fmt: skip
        """The decision on a request, within the time set for it. `via`: how it was asked, for the journal.

        `until`: when that time ends, where it is shared with more than this (see `until`); it is kept at less cost
            where it begins now.
        `excuse`: asked where it is refused, whether it is to be let through all the same.
        """
        mode = self.settings.mode_of(request.cluster)
        if mode == "off":
            return _OFF
        start = _now()
        if not request.hold_id:
            request = replace(request, hold_id=new_hold_id(request.org))
        decision = await self._ask(request, who, via, start, until)
        if decision.policy_mode or self._modes:
            self._remember_mode(request.org, decision)
        mode = decision.policy_mode or mode
        if decision.allowed:
            if decision.code is not Code.OK:  # let through without the ledger
                self.metrics.count(EXCEPTED, decision.code)
            elif decision.policy_mode != "off":
                self.metrics.count(ALLOWED, decision.code)
        elif mode == "shadow":
            self.metrics.count(SHADOWED, decision.code)
            self._journal(SHADOW, request, decision, who, via)
            decision = replace(decision, allowed=True, reason=refusal_text.shadowed(decision.reason))
        elif excuse is not None and await self._is_excused(excuse, self._end(start, until)):
            decision = replace(decision, allowed=True, reason=refusal_text.started_anew(decision.reason))
            self.metrics.count(EXCEPTED, decision.code)
            self._journal(EXCEPTION, request, decision, who, via)
        else:
            self.metrics.count(DENIED, decision.code)
            self._journal(REFUSAL, request, decision, who, via)
        self.metrics.observe(_now() - start)
        return decision

    async def quote(self, request: AdmissionRequest, until: float | None = None) -> Quote:
        """What work would cost, within the time set for a decision. Raises: LedgerUnavailable."""
        start = _now()
        end = self._end(start, until)
        if self.aftermath.is_away or self._is_over(end):
            raise LedgerUnavailable(refusal_text.ledger_unavailable())
        try:
            return await self._within(end, self.ledger.admissions.quote(request, self.terms))
        except (LedgerUnavailable, TimeoutError) as error:
            self._missed(error, start)
            raise LedgerUnavailable(refusal_text.ledger_unavailable()) from error

    def _end(self, start: float, until: float | None) -> float:
        """When the time ends for what was asked at `start`: on the loop's clock, as all of these."""
        return start + self._seconds if until is None else until

    async def _within(self, end: float, answer: Awaitable[T]) -> T:
        """What the ledger says, in its part of the time. Raises: TimeoutError."""
        async with asyncio.timeout_at(end - self._seconds + self._ledger_seconds):
            return await answer

    def _missed(self, error: Exception, start: float) -> None:
        """The ledger, asked at `start`, did not answer in time. What others took of it is not its fault, and one that
        had to be asked again and again is there."""
        silent = _now() - max(start, self.ledger.admissions.pipelined.answered_at)
        if not isinstance(error, TimeoutError) or silent >= self.settings.decision_seconds * _FAIR_PART:
            self.aftermath.lost()

    def _is_over(self, end: float) -> bool:
        """Whether the ledger cannot be asked any more."""
        return _now() >= end - self._seconds + self._ledger_seconds

    async def _is_excused(self, excuse: Callable[[], Awaitable[bool]], end: float) -> bool:
        """In what is left of the time for a decision."""
        if self.aftermath.is_away:
            return False
        try:
            async with asyncio.timeout_at(end):
                return await excuse()
        except (CreditsError, TimeoutError) as error:
            log.warning("whether refused work is to be let through is not known: %s", error or "no answer in time")
            return False

    async def refuse(
        self, request: AdmissionRequest, decision: Decision, *, who: str, via: str, until: float | None = None
    ) -> Decision:
        """A refusal that needs no ledger (nobody pays for the account, ...), with all that goes with one."""
        mode = self.settings.mode_of(request.cluster)
        if mode == "off":
            return _OFF
        if decision.code is not Code.UNKNOWN_ORG:
            decision = await self._by_own_mode(request.org, decision, until)
            mode = decision.policy_mode or mode
            if decision.allowed:
                return decision
        self.metrics.count(SHADOWED if mode == "shadow" else DENIED, decision.code)
        self._journal(SHADOW if mode == "shadow" else REFUSAL, request, decision, who, via)
        if mode == "shadow":
            return replace(decision, allowed=True, reason=refusal_text.shadowed(decision.reason))
        return decision

    def _remember_mode(self, org: str, decision: Decision) -> None:
        """An org's own mode also counts while the ledger is away, as far as it was seen before."""
        if decision.code is Code.LEDGER_UNAVAILABLE:
            return
        if not decision.policy_mode:
            self._modes.pop(org, None)
        elif org in self._modes or len(self._modes) < _MODES_MAX:
            self._modes[org] = decision.policy_mode

    def unheard(self, request: AdmissionRequest, decision: Decision) -> None:
        """Who asked has gone, and took that for a no: a hold that nobody finds again ends at once."""
        is_named = request.workload_id or request.replaces
        if decision.code is Code.OK and decision.hold_id and not is_named:
            self.aftermath.release(request.org, decision.hold_id)

    async def _by_own_mode(self, org: str, refusal: Decision, until: float | None) -> Decision:
        """By that of its cluster, while nobody can say what its own is."""
        start = _now()
        end = self._end(start, until)
        if self.aftermath.is_away or self._is_over(end):
            return refusal
        try:
            return in_mode(refusal, await self._within(end, self.ledger.admissions.mode_of(org)))
        except (LedgerUnavailable, TimeoutError) as error:
            self._missed(error, start)
            return refusal

    async def _ask(
        self, request: AdmissionRequest, who: str, via: str, start: float, until: float | None
    ) -> Decision:  # fmt: skip
        if self.aftermath.is_away or (until is not None and self._is_over(until)):
            return await self._without_ledger(request, who, via, self._end(start, until), was_asked=False)

        def answered_late(answer: Any) -> None:
            is_its_own = answer[0] == b"ok" and answer[5] == b"new" and answer[3].decode() == request.hold_id
            if is_its_own and not self._may_pass:  # one that was changed stays, for its job is still there
                self.aftermath.release(request.org, request.hold_id)

        admissions = self.ledger.admissions
        decision = asked = None
        try:
            if until is None:
                asked = admissions.ask(request, self.terms, answered_late)
            if asked is not None:
                self._deadlines.watch(asked.answer, start)
                try:
                    await asked.answer
                except TimeoutError:
                    raise
                except Exception:
                    asked = None  # what can be helped by asking again is, below; what cannot is said there
                else:
                    decision = admissions.allowed(asked)
            if decision is None:
                again = admissions.admit(request, self.terms, answered_late, asked)
                decision = await self._within(self._end(start, until), again)
        except asyncio.CancelledError:
            if not request.dry_run:  # nobody hears the answer, which may have come by now
                self.aftermath.release(request.org, request.hold_id, may_come=True)
            raise
        except (LedgerUnavailable, TimeoutError) as error:
            self._missed(error, start)
            return await self._without_ledger(request, who, via, self._end(start, until), was_asked=True)
        if decision.replayed and decision.hold_id:
            self.aftermath.given(decision.hold_id)
        return decision

    async def _without_ledger(
        self, request: AdmissionRequest, who: str, via: str, end: float, *, was_asked: bool
    ) -> Decision:
        own_mode = self._modes.get(request.org, "")
        required = self.ledger.admissions.known_required(request, self.terms)
        if self._may_pass and own_mode != "off" and required is not None:
            decision = Decision(
                True, Code.LEDGER_UNAVAILABLE, refusal_text.let_through(request.cluster), None, None, required,
                None if request.dry_run else request.hold_id,
            )  # fmt: skip
            if await self._passes(request, decision, who, via, end):
                return decision
        if was_asked and not request.dry_run:
            # Whether its hold was made is not known. A hold that is replaced stays, for its job is still there.
            self.aftermath.release(request.org, request.hold_id, may_come=True)
        said = refusal_text.ledger_unavailable()
        return in_mode(Decision(False, Code.LEDGER_UNAVAILABLE, said, None, None, required or 0), own_mode)

    async def _passes(self, request: AdmissionRequest, decision: Decision, who: str, via: str, end: float) -> bool:
        """Whether there is room under the org's cap, and it is kept for the ledger before the time ends."""
        cap, required = self.settings.allow_cap_micro, decision.required_micro
        if request.dry_run:
            return self.aftermath.has_room(request.org, required, cap)
        entry = decision_entry(EXCEPTION, request, decision, who=who, via=via, now_us=self._clock())
        try:
            async with asyncio.timeout_at(end):
                return await self.aftermath.let_through(LetThrough(request, self.terms, required, entry), cap)
        except (SpoolError, TimeoutError) as error:
            log.error("nothing can be let through: %s", error or "the disk takes too long")
            return False

    def _journal(self, kind: str, request: AdmissionRequest, decision: Decision, who: str, via: str) -> None:
        entry = decision_entry(kind, request, decision, who=who, via=via, now_us=self._clock())
        self.aftermath.note(Refused(request.org, entry))


def _now() -> float:
    return asyncio.get_running_loop().time()
