"""A mail server on the loopback that does what the test says with what it is given."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class PostOffice:
    """`says`: answers to come, by what is asked (RCPT or DATA): a line, `cut`, `take and cut`, or `wait`."""

    port: int = 0
    mail: list[EmailMessage] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    says: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    login: tuple[str, str] = ("credits", "pass word")
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def _next(self, what: str) -> str:
        if self.says and self.says[0][0] == what:
            return self.says.pop(0)[1]
        return ""

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.asked += 1
        if address in self.rejected:
            return "550 5.1.1 No such user"
        if line := self._next("RCPT"):
            return line
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        said = self._next("DATA")
        if said in ("", "take and cut"):
            assert isinstance(envelope.content, bytes)
            message: Any = email.message_from_bytes(envelope.content, policy=email.policy.default)
            message["X-To"] = ", ".join(envelope.rcpt_tos)
            self.mail.append(message)
        if said in ("cut", "take and cut"):
            assert server.transport is not None
            server.transport.close()
        if said == "wait":
            await self.released.wait()
        return said if said[:1].isdigit() else "250 OK"

    def check(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        """Whether a login is good."""
        given = isinstance(data, LoginPassword) and (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self.login, handled=False)

    def ids(self) -> list[str]:
        """Of the messages, in their order."""
        return [str(one["Message-ID"]) for one in self.mail]

    def subjects(self) -> list[str]:
        """Of the messages, in their order."""
        return [str(one["Subject"]) for one in self.mail]


@asynccontextmanager
async def post_office(tls: ssl.SSLContext | None = None, mode: str = "none") -> AsyncIterator[PostOffice]:
    """Serves on a free port of the loopback. `mode`: none, starttls or implicit, with the certificate of `tls`."""
    office, loop = PostOffice(), asyncio.get_running_loop()
    options: dict[str, Any] = {}
    if mode == "starttls":
        options = {"tls_context": tls, "require_starttls": True, "auth_required": True}
    if mode != "none":
        options |= {"authenticator": office.check, "auth_require_tls": mode == "starttls"}
    server = await loop.create_server(
        lambda: SMTP(office, loop=loop, **options), "127.0.0.1", 0, ssl=tls if mode == "implicit" else None
    )
    office.port = server.sockets[0].getsockname()[1]
    try:
        yield office
    finally:
        office.released.set()
        server.close()
        await server.wait_closed()
