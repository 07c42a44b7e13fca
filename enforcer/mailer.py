"""E-mail: one message to one address, through the mail server of the settings."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import formatdate
from typing import Final
from urllib.parse import quote

import msgspec

from config.notices import Smtp
from ledger.errors import CreditsError
from ledger.notice_text import words
from ledger.notices import Notice

_THREADS: Final = 4
_NAME: Final = "Apolo Credits"


class NotSent(CreditsError):
    """The message was not taken; `is_final`: and never will be."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class Mailer:
    """smtplib blocks, so it runs on threads of its own; a slow server holds up nothing but its own messages."""

    def __init__(
        self, smtp: Smtp, sender: str, public_url: str | None = None, trust: ssl.SSLContext | None = None
    ) -> None:
        """`trust`: whose certificates are good, else those that this machine trusts."""
        self._smtp = smtp
        self._sender = sender
        self._public_url = public_url
        self._trust = trust
        self._threads = ThreadPoolExecutor(_THREADS, "smtp")

    async def send(self, notice: Notice) -> None:
        """Raises: NotSent; TimeoutError where the server takes too long in all."""
        message = compose(notice, self._sender, self._public_url)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(3 * self._smtp.timeout_seconds):
            await loop.run_in_executor(self._threads, self._deliver, message, notice.to)

    def close(self) -> None:
        """A message on its way is left to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, message: EmailMessage, to: str) -> None:
        given = self._smtp
        try:
            with self._connect() as server:
                if given.user is not None and given.password is not None:
                    server.login(given.user, given.password.read())
                server.send_message(message, self._sender, [to])
        except smtplib.SMTPRecipientsRefused as error:
            code, said = error.recipients.get(to, (450, b""))
            raise NotSent(f"{to} is refused: {code} {_shown(said)}", is_final=code >= 500) from error
        except smtplib.SMTPDataError as error:
            why = f"the message is refused: {error.smtp_code} {_shown(error.smtp_error)}"
            raise NotSent(why, is_final=error.smtp_code >= 500) from error
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise NotSent(f"{given.host}:{given.at_port}: {error or type(error).__name__}") from error

    def _connect(self) -> smtplib.SMTP:
        given, name = self._smtp, socket.gethostname()
        if given.tls == "implicit":
            return smtplib.SMTP_SSL(
                given.host, given.at_port, name, timeout=given.timeout_seconds, context=self._context()
            )
        server = smtplib.SMTP(given.host, given.at_port, name, timeout=given.timeout_seconds)
        if given.tls == "starttls":
            try:
                server.starttls(context=self._context())
            except BaseException:
                server.close()
                raise
        return server

    def _context(self) -> ssl.SSLContext:
        return self._trust or ssl.create_default_context()


def compose(notice: Notice, sender: str, public_url: str | None) -> EmailMessage:
    """The message of a notice. Its id follows from the notice's, so that one sent again is known as the same."""
    events = [msgspec.json.decode(event) for event in notice.events]
    where = f" at {public_url.rstrip('/')}/console/orgs/{quote(notice.org, safe='')}/notices" if public_url else ""
    hint = (
        f"You get this because the preferences of org {notice.org} name your address. An owner of the org can change "
        f"or end it{where or ' in the console, or by PUT /v1/orgs/ORG/notices'}."
    )
    said = words(notice.org, events, notice.more, hint)
    message = EmailMessage(SMTP_POLICY)
    message["From"] = Address(_NAME, addr_spec=sender)
    message["To"] = Address(addr_spec=notice.to)
    message["Subject"] = said.subject
    message["Date"] = formatdate(notice.first_ms / 1000)
    message["Message-ID"] = f"<{notice.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(said.text)
    message.add_alternative(said.page, subtype="html")
    return message


def _shown(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:200]
