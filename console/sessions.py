"""Who is signed in: the cookie, and that a form was sent from a page of this site.

The cookie holds a session's secret and is of no use elsewhere: HttpOnly, of this host and path, not sent along with
forms of other sites; over https it is `__Host-credits`, which no other site can set. Stolen, it works until the session
ends, from any address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from aiohttp import web
from multidict import MultiDict, MultiDictProxy

from config.console import Console
from ledger.sessions import SECRET_MAX, Session, SessionStore
from ledger.tokens import Token

SECURE_COOKIE: Final = "__Host-credits"
PLAIN_COOKIE: Final = "credits"
CSRF_FIELD: Final = "csrf"
FORM_MAX: Final = 64 * 1024
_FIELDS_MAX: Final = 200
_LOOPBACK: Final = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")
_ELSEWHERE: Final = (
    "This form was not sent from a page of this site, so nothing was done. Open the page here and send it from there."
)
_STALE: Final = (
    "This form is of another session, so nothing was done. Open the page again and send the form from there."
)
_NO_PUBLIC_URL: Final = (
    "This form says it comes from {origin}, and this service does not know that it is reached there: "
    "set console.public_url to that address in the settings. Nothing was done."
)

Form = MultiDictProxy[str]


class Sessions:
    """Cookies and forms of the console."""

    def __init__(self, store: SessionStore, settings: Console) -> None:
        self.store = store
        self._public_url = None if settings.public_url is None else settings.public_url.rstrip("/")

    def is_secure(self, request: web.Request) -> bool:
        """Whether the browser speaks https, be it with a proxy before us."""
        return request.secure if self._public_url is None else self._public_url.startswith("https:")

    def may_sign_in(self, request: web.Request) -> bool:
        """Whether a secret may go over this connection: https, the browser's own machine, or as the settings say."""
        return self.is_secure(request) or self._public_url is not None or is_loopback(request.host)

    def url_of(self, path: str) -> str:
        """Where a browser finds a path of this site; needs `console.public_url`."""
        assert self._public_url is not None, "the settings refuse a provider without public_url"
        return self._public_url + path

    async def identify(self, request: web.Request) -> Token | None:
        """As whom the sender of a request acts, None where nobody is signed in (any more)."""
        session = await self.current(request)
        return None if session is None else await self.store.caller(session)

    async def current(self, request: web.Request) -> Session | None:
        """The session of a request, also of somebody who has not chosen a role yet."""
        return await self.store.find(self._secret(request))

    def csrf_token(self, request: web.Request) -> str:
        """What forms of this session carry; no page of another site can know it. "" without a session."""
        secret = self._secret(request)
        return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest() if secret else ""

    async def check_csrf(self, request: web.Request) -> Form:
        """The fields of a form that was sent from a page of this site, in this session.

        Raises: web.HTTPForbidden, and as `read_form`.
        """
        form = await self.read_form(request)
        expected = self.csrf_token(request)
        given = form.get(CSRF_FIELD, "")
        if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
            raise web.HTTPForbidden(text=_STALE)
        return form

    async def read_form(self, request: web.Request) -> Form:
        """The fields of a form that was sent from a page of this site.

        Raises: web.HTTPForbidden; HTTPRequestEntityTooLarge above 64 KiB; HTTPUnsupportedMediaType; HTTPBadRequest.
        """
        self.check_origin(request)
        if request.content_type != "application/x-www-form-urlencoded":
            raise web.HTTPUnsupportedMediaType(text="A form is expected: application/x-www-form-urlencoded.")
        data = bytearray()
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > FORM_MAX:
                raise web.HTTPRequestEntityTooLarge(max_size=FORM_MAX, actual_size=len(data))
        try:
            fields = parse_qsl(
                data.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX
            )  # fmt: skip
        except (UnicodeDecodeError, ValueError):
            raise web.HTTPBadRequest(text=f"The form cannot be read: UTF-8, at most {_FIELDS_MAX} fields.") from None
        return MultiDictProxy(MultiDict(fields))

    def check_origin(self, request: web.Request) -> None:
        """A browser says where a form comes from; who says nothing is no browser of this century's.

        Raises: web.HTTPForbidden.
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is not None and site != "same-origin":
            raise web.HTTPForbidden(text=_ELSEWHERE)
        # `null`: the page has Referrer-Policy: no-referrer; then only the browser's own word counts.
        if origin is None or origin == "null":
            if site is None:
                raise web.HTTPForbidden(text=_ELSEWHERE)
        elif origin.lower() not in self._own_origins(request):
            raise web.HTTPForbidden(text=_NO_PUBLIC_URL.format(origin=origin[:200]) if site else _ELSEWHERE)

    async def begin(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Signs in: a new secret into the browser's cookie. What the browser was signed in as before is over."""
        before = self._secret(request)
        secret = await self.store.begin(session)
        if before:
            await self.store.end(before)
        response.set_cookie(
            self._cookie(request), secret, path="/", secure=self.is_secure(request), httponly=True, samesite="Lax"
        )

    async def choose(self, request: web.Request, response: web.StreamResponse, session: Session, chosen: int) -> None:
        """Goes on in another role of the same person, until the same time, under a new secret."""
        await self.begin(request, response, msgspec.structs.replace(session, chosen=chosen))

    async def end(self, request: web.Request, response: web.StreamResponse, *, of: str | None = None) -> None:
        """Signs out; with `of`, every session of a person (or `EVERYBODY`), in all browsers."""
        if of is not None:
            await self.store.end_all(of)
        secret = self._secret(request)
        if secret:
            await self.store.end(secret)
        response.del_cookie(
            self._cookie(request), path="/", secure=self.is_secure(request), httponly=True, samesite="Lax"
        )

    def keep(self, request: web.Request, response: web.StreamResponse, name: str, value: str, *, seconds: int) -> None:
        """Has the browser keep something for a while, beside the session; "" for 0 seconds has it forget."""
        response.set_cookie(
            f"{self._cookie(request)}-{name}", value, max_age=seconds, path="/", secure=self.is_secure(request),
            httponly=True, samesite="Lax",
        )  # fmt: skip

    def kept(self, request: web.Request, name: str) -> str:
        """What the browser kept, "" where there is nothing."""
        return request.cookies.get(f"{self._cookie(request)}-{name}", "")

    def _cookie(self, request: web.Request) -> str:
        return SECURE_COOKIE if self.is_secure(request) else PLAIN_COOKIE

    def _secret(self, request: web.Request) -> str:
        secret = request.cookies.get(self._cookie(request), "")
        return secret if secret.isascii() and len(secret) <= SECRET_MAX else ""

    def _own_origins(self, request: web.Request) -> set[str]:
        own = {f"{request.scheme}://{request.host}".lower()}
        if self._public_url is not None:
            parts = urlsplit(self._public_url.lower())
            usual = {"http": ":80", "https": ":443"}[parts.scheme]
            own.add(f"{parts.scheme}://{parts.netloc.removesuffix(usual)}")
        return own


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is the browser's own machine."""
    return _LOOPBACK.fullmatch(host.lower()) is not None
