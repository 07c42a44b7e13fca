"""Tells people: events become notices for those whom an org named, and notices are sent until they are taken.

Several enforcers take turns by a lease. A notice is given up a day after its first event.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from config.notices import NoticeSettings
from config.settings import Settings
from enforcer.mailer import Mailer, NotSent
from enforcer.metrics import EnforcerMetrics
from enforcer.org_hooks import OrgHooks
from enforcer.watch import Watch
from ledger import keys
from ledger.errors import CreditsError
from ledger.notice_prefs import NoticePreferences, Preferences
from ledger.notice_text import kind_of
from ledger.notices import GIVE_UP_MS, Notice, Recipient, wall_ms
from ledger.store import Ledger

EMAIL, WEBHOOK = "email", "webhook"
_READER: Final = "router"
_AT_ONCE: Final = 4
_PAGE: Final = 100
_LEASE_SECONDS: Final = 120.0
_SOON: Final = ("purchase", "refund", "top_up", "test")
"""Kinds that nobody waits an hour for."""
_SOON_MS: Final = 60_000
_PAUSE_MS: Final = 30_000
_PAUSE_MAX_MS: Final = 3_600_000
_STOP_SECONDS: Final = 2.0
log = logging.getLogger(__name__)


class Telling:
    """One round is `once()`: look, route, send."""

    def __init__(
        self, ledger: Ledger, settings: NoticeSettings, mailer: Mailer | None, hooks: OrgHooks,
        pause_ms: int = _PAUSE_MS,
    ) -> None:  # fmt: skip
        """`mailer` None: no e-mail is sent. `pause_ms`: before the second try; later ones come less often."""
        self._ledger = ledger
        self._notices = ledger.notices
        self._preferences = NoticePreferences(ledger.client, ledger.scripts)
        self._watch = Watch(ledger, self._preferences)
        self._mailer = mailer
        self._hooks = hooks
        self._every_ms = int(settings.every_minutes * 60_000)
        self._pause_ms = pause_ms
        self._who = secrets.token_hex(8)

    async def run(self, seconds: float, stop: asyncio.Event, metrics: EnforcerMetrics) -> None:
        """Rounds until `stop` is set."""
        while not stop.is_set():
            try:
                await metrics.look(self._ledger)
                await self.once()
            except CreditsError as error:
                log.warning("nobody is told anything for now: %s", error)
            except Exception:
                log.exception("a round of notices failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await stop.wait()
        with suppress(CreditsError):
            await self._notices.lead(self._who, 0)

    async def once(self) -> bool:
        """One round; False where another enforcer does it. Raises: LedgerUnavailable."""
        if not await self._notices.lead(self._who, _LEASE_SECONDS):
            return False
        await self._watch.once()
        await self._route()
        while due := await self._notices.due(_AT_ONCE):
            if not await self._notices.lead(self._who, _LEASE_SECONDS):
                return False
            await asyncio.gather(*(self._send(one) for one in due))
        return True

    async def _route(self) -> None:
        while True:
            before = await self._notices.cursor(_READER)
            found = await self._notices.events(before, _PAGE)
            for place, event in found:
                org, to = await self._recipients(place, event)
                if not await self._notices.route(before, place, event, org, to):
                    return  # another enforcer is at it
                before = place
            if len(found) < _PAGE:
                return

    async def _recipients(self, place: str, event: bytes) -> tuple[str, Sequence[Recipient]]:
        about = msgspec.json.decode(event)
        org, kind = str(about.get("org", "")), kind_of(about)
        if not org or wall_ms() - int(place.partition("-")[0]) > GIVE_UP_MS:
            return org, ()
        wanted = await self._preferences.read(org)
        if kind != "test" and kind not in wanted.kinds:
            return org, ()
        spacing = min(_SOON_MS, self._every_ms) if kind in _SOON else self._every_ms
        to = []
        if self._mailer is not None:
            to += [Recipient(EMAIL, one, keys.US.join((org, kind, one)), spacing) for one in wanted.email]
        if wanted.webhook is not None:
            to.append(Recipient(WEBHOOK, wanted.webhook.url, "", 0))
        return org, to

    async def _send(self, notice_id: str) -> None:
        notice = await self._notices.take(notice_id)
        if notice is None:
            return
        wanted = await self._preferences.read(notice.org)
        problem, is_final = await self._try(notice, wanted)
        if not problem:
            await self._notices.done(notice)
            return
        what = f"a notice of org {notice.org} to {notice.to}"
        if is_final or wall_ms() - notice.first_ms > GIVE_UP_MS:
            log.error("%s is given up: %s", what, problem)
            await self._notices.done(notice)
            return
        log.warning("%s is tried again: %s", what, problem)
        await self._notices.later(notice, min(_PAUSE_MAX_MS, self._pause_ms * 2 ** min(notice.attempts, 10)))

    async def _try(self, notice: Notice, wanted: Preferences) -> tuple[str, bool]:
        """(what is wrong, whether another try is of no use); "" where it was taken."""
        if notice.channel == WEBHOOK:
            if wanted.webhook is None or wanted.webhook.url != notice.to:
                return "its webhook is no longer that of the org", True
            return await self._hooks.send(wanted.webhook, notice.events[0].encode()), False
        if notice.to not in wanted.email:
            return "the org wants nobody told there any more", True
        if self._mailer is None:
            return "the settings have no mail server", False
        try:
            await self._mailer.send(notice)
        except NotSent as error:
            return str(error), error.is_final
        except TimeoutError:
            return "the mail server takes too long", False
        except CreditsError as error:
            return str(error), False
        return "", False


@asynccontextmanager
async def telling(ledger: Ledger, settings: Settings, metrics: EnforcerMetrics) -> AsyncIterator[Telling]:
    """Tells people for as long as the block lasts."""
    given = settings.notices
    mailer = None
    if given.smtp is not None and given.sender is not None:
        mailer = Mailer(given.smtp, given.sender, given.public_url)
    hooks = OrgHooks(given.private_webhooks)
    one, stop = Telling(ledger, given, mailer, hooks), asyncio.Event()
    task = asyncio.create_task(one.run(settings.metering.interval_seconds, stop, metrics))
    try:
        yield one
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=_STOP_SECONDS)
        task.cancel()
        await hooks.close()
        if mailer is not None:
            mailer.close()
