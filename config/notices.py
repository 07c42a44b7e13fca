"""Notices: e-mail, and how often. Without the section, only webhooks are told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from config import values
from config.fields import At, Reader, Refused, choice, section, setting
from config.values import Secret

_ADDRESS: Final = re.compile(r"[^\s@<>\"(),;:\\\[\]]{1,64}@[A-Za-z0-9.-]{1,253}")


def _read_address(at: At) -> str:
    text = values.text.read(at)
    if not _ADDRESS.fullmatch(text) or not text.isascii():
        raise Refused("is not an e-mail address like credits@example.org")
    return text


_address = Reader("e-mail address", _read_address)
_port = values.whole_number(1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    """The mail server that takes notices."""

    host: str = field(metadata=setting(values.text, "Its name or address."))
    port: int | None = field(
        default=None, metadata=setting(_port, "Its port.", absent="587, with `implicit` 465, with `none` 25")
    )
    tls: str = field(
        default="starttls",
        metadata=setting(
            choice("starttls", "implicit", "none"),
            "`starttls` and `implicit` check its certificate; `none` is for a server of this machine.",
        ),
    )
    user: str | None = field(default=None, metadata=setting(values.text, "Who logs in.", absent="nobody"))
    password: Secret | None = field(
        default=None, repr=False, metadata=setting(values.secret, "The password of `user`.", absent="none")
    )
    timeout_seconds: float = field(
        default=20.0, metadata=setting(values.seconds, "How long it has for each of its answers.")
    )

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            raise Refused("has one of user and password; give both, or none")

    @property
    def at_port(self) -> int:
        """The port that is used."""
        return self.port or {"starttls": 587, "implicit": 465, "none": 25}[self.tls]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeSettings:
    """How people are told. Whom to tell of what, each org says itself."""

    smtp: Smtp | None = field(
        default=None, metadata=setting(section(Smtp), "The mail server.", absent="no e-mail is sent")
    )
    sender: str | None = field(
        default=None,
        metadata=setting(_address, "Where e-mail comes from; needed with `smtp`.", name="from", absent="none"),
    )
    public_url: str | None = field(
        default=None,
        metadata=setting(
            values.url("http", "https"), "Where the console is reached: said in e-mail, to change preferences.",
            absent="not said",
        ),
    )  # fmt: skip
    every_minutes: float = field(
        default=60.0,
        metadata=setting(
            values.minutes,
            "An org gets one e-mail of a kind in this time; what happens meanwhile goes into the next one. Purchases, "
            "refunds and auto top-ups are told of within a minute.",
        ),
    )
    private_webhooks: bool = field(
        default=False,
        metadata=setting(
            values.truth, "Whether webhooks of orgs may be at http URLs and at addresses of private networks."
        ),
    )

    def __post_init__(self) -> None:
        if self.smtp is not None and self.sender is None:
            raise Refused("has smtp but no from: the address that e-mail comes from")
