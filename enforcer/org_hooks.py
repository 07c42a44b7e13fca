"""Webhooks of orgs: where to is somebody else's word, so it is looked at closely before anything is sent there."""

from __future__ import annotations

import errno
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from enforcer.notify import post
from ledger.notice_prefs import Hook, hook_problem, is_public


class NotPublic(OSError):
    """The address is not one of the Internet's."""


class _PublicResolver(AbstractResolver):
    """Names of public addresses only: what is connected to is what was looked at."""

    def __init__(self) -> None:
        self._names = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        if not found or not all(is_public(one["host"]) for one in found):
            raise NotPublic(errno.EACCES, f"{host} is at an address that is not public")
        return found

    async def close(self) -> None:
        await self._names.close()


class OrgHooks:
    """Sends events to webhooks of orgs."""

    def __init__(self, allow_private: bool) -> None:
        """`allow_private`: http, and addresses of private networks, are good too."""
        self._allow_private = allow_private
        self._session: aiohttp.ClientSession | None = None

    async def send(self, hook: Hook, event: bytes) -> str:
        """What is wrong, "" where it was taken."""
        if problem := hook_problem(hook.url, self._allow_private):
            return problem
        if self._session is None:
            options: dict[str, Any] = {} if self._allow_private else {"resolver": _PublicResolver()}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, **options),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return await post(self._session, hook.url, hook.secret, event)

    async def close(self) -> None:
        """Ends its connections."""
        if self._session is not None:
            await self._session.close()
