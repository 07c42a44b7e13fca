"""Whom an org has told of what: e-mail addresses, a webhook, kinds of notices, hours of runway."""

from __future__ import annotations

import ipaddress
import re
import secrets
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from ledger import keys
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import Changed, InvalidRequest
from ledger.lua import Scripts, text

KINDS: Final = ("stage", "runway", "budget", "purchase", "refund", "top_up")
"""What there are notices of; `refund` includes disputes."""
EMAILS_MAX: Final = 20
RUNWAY_HOURS_MAX: Final = 24 * 366
_SECRET_MIN: Final = 16
_SECRET_MAX: Final = 200
_URL_MAX: Final = 500
_LOCAL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Hook(msgspec.Struct, frozen=True):
    """A webhook; `secret` signs what is sent to it."""

    url: str
    secret: str


class Preferences(msgspec.Struct, frozen=True):
    """Nothing is sent to an org that says nothing. `runway_hours`: it is told when credits last no longer than this.

    `revision`: another one after each change, never the same again.
    """

    email: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS
    runway_hours: float = 24.0
    webhook: Hook | None = None
    revision: str = "0"


class NoticePreferences:
    """Reads and sets them."""

    def __init__(self, client: Client, scripts: Scripts, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._scripts = scripts
        self._clock: Clock = clock or now_us

    async def orgs(self) -> list[str]:
        """Those that set any, ever."""
        return sorted(text(org) for org in await again(lambda: self._client.smembers(keys.NOTICE_ORGS)))

    async def read(self, org: str) -> Preferences:
        """An org that never set any has those of nobody to tell."""
        data, revision = await again(
            lambda: self._client.hmget(keys.of_org(org).notices, "preferences", "preferences_rev")
        )
        found = Preferences() if data is None else msgspec.json.decode(data, type=Preferences)
        return msgspec.structs.replace(found, revision=text(revision) or "0")

    async def put(
        self, org: str, wanted: Preferences, *, who: str, address: str | None = None, if_revision: str | None = None
    ) -> Preferences:
        """Set them, with an entry in the journal that has no secret in it; gives them back as they are then.

        `if_revision`: only if they still are of this revision (`*`: any).
        Raises: InvalidRequest naming what is wrong; Changed; LedgerUnavailable (retry is safe).
        """
        check(wanted)
        entry = {
            "type": "notices", "at": format_time(self._clock()), "who": who, "from": address,
            "email": list(wanted.email), "kinds": list(wanted.kinds), "runway_hours": wanted.runway_hours,
            "webhook": None if wanted.webhook is None else wanted.webhook.url,
        }  # fmt: skip
        names = keys.of_org(org)
        await again(lambda: self._client.sadd(keys.NOTICE_ORGS, org))
        made = msgspec.structs.replace(wanted, revision=secrets.token_hex(8))
        kept = msgspec.structs.asdict(wanted)
        del kept["revision"]  # it is kept beside them
        said = await self._scripts.setting.durably(
            [names.notices, names.journal],
            ["preferences", msgspec.json.encode(kept), msgspec.json.encode(entry), if_revision or "", made.revision],
        )
        if text(said) == "changed":
            raise Changed(f"The notices of org {org!r} are not those that were read; read them again.")
        return made if text(said) == "set" else await self.read(org)


def preferences_shape(org: str, found: Preferences) -> dict[str, Any]:
    """Without the secret, which is shown once only, to whom it is made for."""
    return {
        "org": org,
        "email": list(found.email),
        "kinds": list(found.kinds),
        "runway_hours": found.runway_hours,
        "webhook": None if found.webhook is None else {"url": found.webhook.url, "secret": None},
    }


def why_nobody(org: str, found: Preferences, has_mail: bool) -> str:
    """Why a test would reach nobody, and the remedy; empty where somebody is reached."""
    if found.webhook is not None or (found.email and has_mail):
        return ""
    if not found.email:
        return f"Org {org} names nobody to tell: set e-mail addresses or a webhook first."
    return (
        f"Nobody would be told: org {org} names e-mail addresses only, "
        "and no mail server is set up here (notices.smtp in the settings)."
    )


def test_event(org: str, who: str, now_us: int) -> dict[str, Any]:
    """An event that everybody is told of whom the org named."""
    return {"event": secrets.token_hex(16), "type": "test", "at": format_time(now_us), "org": org, "who": who}


def new_secret() -> str:
    """For a webhook whose owner gives none."""
    return f"whs_{secrets.token_urlsafe(32)}"


def check(wanted: Preferences) -> None:
    """Raises: InvalidRequest naming the field, the value and what would be right."""
    if len(wanted.email) > EMAILS_MAX:
        raise InvalidRequest(f"email: {len(wanted.email)} addresses; at most {EMAILS_MAX} are told")
    for address in wanted.email:
        if not is_address(address):
            raise InvalidRequest(f"email: {address!r:.80} is not an address like ops@example.org")
    if len({address.lower() for address in wanted.email}) < len(wanted.email):
        raise InvalidRequest("email: an address is there twice")
    for kind in wanted.kinds:
        if kind not in KINDS:
            raise InvalidRequest(f"kinds: {kind!r:.40} is none of {', '.join(KINDS)}")
    if not 0 <= wanted.runway_hours <= RUNWAY_HOURS_MAX:
        raise InvalidRequest(f"runway_hours: {wanted.runway_hours:g} is not from 0 to {RUNWAY_HOURS_MAX}")
    if wanted.webhook is not None:
        _check_hook(wanted.webhook)


def is_address(given: str) -> bool:
    """Whether it is an e-mail address in ASCII, without a display name, quotes or comments."""
    local, at, domain = given.rpartition("@")
    labels = domain.split(".")
    return (
        bool(at)
        and len(given) <= 254
        and 0 < len(local) <= 64
        and _LOCAL.fullmatch(local) is not None
        and len(labels) > 1
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's: not of this machine, of its network, or of another reserved."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        # All that is given out is in there; elsewhere are addresses that networks translate to others of their own.
        if ip not in _GIVEN_OUT or ip.sixtofour is not None or ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast


def hook_problem(url: str, allow_private: bool) -> str:
    """What of a URL is not allowed, "" where nothing is; its name is looked up only when it is used."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "is not a URL"
    if allow_private:
        return ""
    if parts.scheme != "https":
        return "is not an https URL"
    # Addresses are not looked up as names are, so they are looked at here, in whatever form they are written.
    is_number = ":" in host or host.rstrip(".").rpartition(".")[2].isdigit() or host.startswith("0x")
    if is_number and not is_public(host):
        return f"is at {host}, which is no public address"
    return ""


def wanted_hook(url: str, secret: str | None, before: Preferences, allow_private: bool) -> tuple[Hook, bool]:
    """A webhook, and whether its secret was made here: without one given, that of the same
    URL stays. Another URL has a secret of its own: whoever is behind it is to know no other.

    Raises: InvalidRequest.
    """
    if problem := hook_problem(url, allow_private):
        raise InvalidRequest(f"webhook.url: {url!r:.80} {problem}")
    if secret is not None:
        return Hook(url, secret), False
    if before.webhook is not None and before.webhook.url == url:
        return Hook(url, before.webhook.secret), False
    return Hook(url, new_secret()), True


_GIVEN_OUT: Final = ipaddress.ip_network("2000::/3")


def _check_hook(hook: Hook) -> None:
    try:
        parts = urlsplit(hook.url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in ("https", "http")
        or not hook.url.isascii()
        or not hook.url.isprintable()
        or " " in hook.url
        or len(hook.url) > _URL_MAX
        or "@" in parts.netloc
    ):
        raise InvalidRequest(
            f"webhook.url: expected https://host/path of at most {_URL_MAX} characters, without user and password"
        )
    if not _SECRET_MIN <= len(hook.secret) <= _SECRET_MAX or not hook.secret.isascii():
        raise InvalidRequest(f"webhook.secret: expected {_SECRET_MIN} to {_SECRET_MAX} ASCII characters")
