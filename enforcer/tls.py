"""Certificates of the listener, read again when their files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

from config.settings import Tls
from ledger.errors import InvalidRequest

_LOOK_SECONDS: Final = 2.0
log = logging.getLogger(__name__)


class Certificates:
    """A server's SSL context that follows its files; a pair that does not fit leaves the last good one in force."""

    def __init__(self, settings: Tls) -> None:
        """Raises: InvalidRequest naming what cannot be used."""
        self._settings = settings
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._state()
        try:
            self._load(self.context)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(f"enforcer.tls: {self._named()}: {error}") from error

    async def follow(self) -> None:
        """Looks at the files until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> bool:
        """Takes over changed files; whether they were changed and good."""
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a key that does not fit must not spoil ours
            self._load(self.context)
        except (OSError, ssl.SSLError) as error:
            log.error("the last good certificate stays in force: %s: %s", self._named(), error)
            return False
        log.info("%s: in force as it is now", self._named())
        return True

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._settings.cert, self._settings.key)
        if self._settings.client_ca is not None:
            # Who is taken out of the file stays trusted until a restart: OpenSSL only adds.
            context.load_verify_locations(self._settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths()]

    def _paths(self) -> list[Path]:
        paths = (self._settings.cert, self._settings.key, self._settings.client_ca)
        return [path for path in paths if path is not None]

    def _named(self) -> str:
        return ", ".join(str(path) for path in self._paths())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
