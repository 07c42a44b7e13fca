"""The console: how long somebody stays signed in, and signing in through an OpenID provider."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from config import values
from config.fields import Refused, choice, list_of, section, setting
from config.values import Secret

ROLES: Final = ("admin", "owner", "viewer")
"""Who may sign in, the strongest first; a scheduler has nothing to look at."""
_STAR = re.compile(r"\{([0-9]+)\}")
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcRule:
    """People whose claim has this value have this role. All rules are tried, and everything that they give counts."""

    claim: str = field(
        metadata=setting(values.text, "Claim of the ID token or of userinfo; `a.b` is claim `b` within `a`.")
    )
    value: str = field(
        default="*",
        metadata=setting(
            values.text, "What it is, or has among its values; `*` stands for any text, `?` for one character."
        ),
    )
    role: str = field(metadata=setting(choice(*ROLES), "The role."))
    org: str | None = field(
        default=None,
        metadata=setting(
            values.text, "The org, for `owner` and `viewer`; `{1}`, `{2}`: what each `*` stands for.", absent="—"
        ),
    )

    def __post_init__(self) -> None:
        if (self.org is None) != (self.role == "admin"):
            wanted = "is of role admin, which is for all orgs: leave org out"
            raise Refused(wanted if self.role == "admin" else f"is of role {self.role}, which is for one org: add org")
        stars = self.value.count("*")
        odd = [number for number in _STAR.findall(self.org or "") if not 1 <= int(number) <= stars]
        if odd:
            raise Refused(f"has {{{odd[0]}}} in org, but its value has {stars} *")

    def applies(self, claims: Mapping[str, Any]) -> list[tuple[str, str | None]]:
        """(role, org) for each value of the claim that fits.

        An e-mail address counts only where the provider says that it is verified: else it is what somebody typed.
        """
        if self.claim == "email" and claims.get("email_verified") is not True:
            return []
        found = []
        for value in _values(claims, self.claim):
            match = _pattern(self.value).fullmatch(value)
            if match is not None:
                found.append((self.role, None if self.org is None else _filled(self.org, match.groups())))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Oidc:
    """Signing in through an OpenID Connect provider. Signing in by token stays possible."""

    issuer: str = field(
        metadata=setting(
            values.url("https", "http"),
            "The provider, as it calls itself; its `/.well-known/openid-configuration` is read. http only on loopback.",
        )
    )
    client_id: str = field(metadata=setting(values.text, "What the provider calls this service."))
    client_secret: Secret | None = field(
        default=None,
        metadata=setting(values.secret, "The secret that goes with it.", absent="none, a public client"),
    )
    scopes: tuple[str, ...] = field(
        default=("openid", "profile", "email"),
        metadata=setting(list_of(values.text), "What is asked for; `openid` has to be among them."),
    )
    rules: tuple[OidcRule, ...] = field(
        metadata=setting(list_of(section(OidcRule)), "Who has which role, by what the provider says of them.")
    )
    name_claim: str = field(
        default="email", metadata=setting(values.text, "The claim that people are called by here and in the journal.")
    )
    button: str = field(
        default="Sign in with single sign-on", metadata=setting(values.text, "What the sign-in page calls it.")
    )
    leeway_seconds: float = field(
        default=60.0,
        metadata=setting(values.number("seconds", 0, 300, "60"), "How far the provider's clock may be off."),
    )
    timeout_seconds: float = field(
        default=10.0, metadata=setting(values.seconds, "How long the provider has for an answer.")
    )

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise Refused("has an issuer with http://, so anybody on the way could sign in as anyone; use https://")
        if parts.query or parts.fragment:
            raise Refused("has an issuer with ? or #, which an issuer never has")
        if "openid" not in self.scopes:
            raise Refused("has scopes without openid; add it")
        if not self.rules:
            raise Refused("has no rules, so nobody could sign in; add one, like {claim: groups, value: x, role: admin}")

    def roles_of(self, claims: Mapping[str, Any]) -> list[tuple[str, str | None]]:
        """Every (role, org) that the rules give, in their order, each once."""
        return list(dict.fromkeys(given for rule in self.rules for given in rule.applies(claims)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The web pages below `/console`."""

    session_hours: float = field(
        default=12.0,
        metadata=setting(values.number("hours", 0.01, 24 * 31, "12"), "After this, everybody signs in again."),
    )
    idle_minutes: float = field(
        default=60.0,
        metadata=setting(values.number("minutes", 0.01, 60 * 24 * 31, "60"), "Who does nothing for so long, too."),
    )
    public_url: str | None = field(
        default=None,
        metadata=setting(
            values.url("http", "https"),
            "Where people reach this service, like `https://credits.example.org`; needed behind a proxy, "
            "and for `oidc`.",
            absent="the address that a browser asked for",
        ),
    )
    oidc: Oidc | None = field(
        default=None, metadata=setting(section(Oidc), "Signing in through a provider.", absent="by token only")
    )

    def __post_init__(self) -> None:
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
                raise Refused(
                    "has a public_url with more than scheme, host and port; write https://credits.example.org"
                )
        if self.oidc is not None and self.public_url is None:
            raise Refused("has oidc without public_url, which the provider sends people back to; add public_url")


def _filled(org: str, parts: Sequence[str]) -> str:
    return _STAR.sub(lambda star: parts[int(star[1]) - 1], org)


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Texts at a claim: its own, or those of a list. A name with dots is a whole name first, then a path."""
    value: Any = claims.get(name)
    if value is None and "." in name:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    items = value if isinstance(value, list) else [value]
    return [item if isinstance(item, str) else str(item).lower() for item in items if isinstance(item, str | bool)]


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """`*` stands for at least one character, and no more than it has to."""
    parts = {"*": "(.+?)", "?": "."}
    return re.compile("".join(parts.get(letter) or re.escape(letter) for letter in text), re.DOTALL)
