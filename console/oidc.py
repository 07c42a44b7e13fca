"""An OpenID Connect provider: where people are sent to sign in, and what it says of who came back.

Authorization code flow with PKCE. Everything that comes from the provider is bounded in time and size, and an ID token
counts only with a signature by one of the provider's keys, made for this service, now, and for this very sign-in.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec

from config.console import Oidc
from console.id_token import BadIdToken, Expected, KeyRing, check
from ledger.clock import Clock
from ledger.errors import CreditsError

T = TypeVar("T")
_BODY_MAX: Final = 256 * 1024
_DISCOVERY_SECONDS: Final = 3600.0
_KEYS_SECONDS: Final = 3600.0
_KEYS_AGAIN_SECONDS: Final = 10.0
"""Keys are asked for anew when one is missing, but not at everybody's wish."""
_TEXT_MAX: Final = 300


class ProviderError(CreditsError):
    """The provider did not let somebody in, or cannot be used; the text is for that person."""


class Discovery(msgspec.Struct, frozen=True):
    """What a provider says of itself, as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    authorization_response_iss_parameter_supported: bool = False


class Tokens(msgspec.Struct, frozen=True):
    """What a code is exchanged for."""

    id_token: str
    access_token: str = ""


class Provider:
    """One provider. `redirect_uri`: where it sends people back to."""

    def __init__(self, settings: Oidc, http: aiohttp.ClientSession, clock: Clock, redirect_uri: str) -> None:
        self.settings = settings
        self._http = http
        self._clock = clock
        self._redirect_uri = redirect_uri
        self._limit = aiohttp.ClientTimeout(total=settings.timeout_seconds)
        self._known: tuple[float, Discovery] | None = None
        self._keys: tuple[float, KeyRing] | None = None

    async def sign_in_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where the browser goes to sign in. Raises: ProviderError."""
        found = await self._discovery()
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code", "client_id": self.settings.client_id, "redirect_uri": self._redirect_uri,
            "scope": " ".join(self.settings.scopes), "state": state, "nonce": nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        # Some providers have a query of their own there.
        joint = "&" if urlsplit(found.authorization_endpoint).query else "?"
        return f"{found.authorization_endpoint}{joint}{urlencode(asked)}"

    async def claims(self, code: str, nonce: str, verifier: str, issuer: str | None) -> Mapping[str, Any]:
        """What the provider says of the person for whom it gave `code`; `issuer` as it came along with it.

        Raises: ProviderError.
        """
        found = await self._discovery()
        if issuer is None and found.authorization_response_iss_parameter_supported:
            raise ProviderError("The answer of the provider does not say whose it is, as this one always does.")
        if issuer is not None and issuer != self.settings.issuer:
            raise ProviderError("The answer is another provider's than the one that was asked.")
        tokens = await self._exchange(found, code, verifier)
        claims = await self._verified(found, tokens.id_token, nonce)
        wanted = {rule.claim for rule in self.settings.rules} | {self.settings.name_claim}
        is_missing = any(name.partition(".")[0] not in claims and name not in claims for name in wanted)
        if is_missing and found.userinfo_endpoint is not None and tokens.access_token:
            more = await self._userinfo(found.userinfo_endpoint, tokens.access_token)
            if more.get("sub") != claims["sub"]:
                raise ProviderError("The provider's userinfo is about somebody else than its ID token.")
            claims = {**more, **claims}
        return claims

    async def _discovery(self) -> Discovery:
        if self._known is not None and time.monotonic() - self._known[0] < _DISCOVERY_SECONDS:
            return self._known[1]
        url = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        found = _decode(await self._fetch("GET", url, "description"), Discovery, "description")
        if found.issuer != self.settings.issuer:
            raise ProviderError(
                f"The provider calls itself {_printable(found.issuer)}, but console.oidc.issuer is "
                f"{self.settings.issuer}: they have to be the same, to the letter."
            )
        for endpoint in (
            found.authorization_endpoint, found.token_endpoint, found.jwks_uri, found.userinfo_endpoint,
        ):  # fmt: skip
            if endpoint is not None and urlsplit(endpoint).scheme not in ("https", urlsplit(found.issuer).scheme):
                raise ProviderError(f"The provider's address {_printable(endpoint)} is not https.")
        self._known = time.monotonic(), found
        return found

    async def _exchange(self, found: Discovery, code: str, verifier: str) -> Tokens:
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }  # fmt: skip
        headers = {}
        secret = None if self.settings.client_secret is None else self.settings.client_secret.read()
        if secret is None:
            form["client_id"] = self.settings.client_id
        elif "client_secret_basic" in found.token_endpoint_auth_methods_supported:
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self.settings.client_id, "client_secret": secret}
        answer = await self._fetch("POST", found.token_endpoint, "token", data=form, headers=headers)
        return _decode(answer, Tokens, "answer to the code")

    async def _verified(self, found: Discovery, id_token: str, nonce: str) -> Mapping[str, Any]:
        expected = Expected(
            found.issuer, self.settings.client_id, nonce, self._clock() // 1_000_000, self.settings.leeway_seconds,
            found.id_token_signing_alg_values_supported,
        )  # fmt: skip
        try:
            ring = await self._key_ring(found, _KEYS_SECONDS)
            if not ring.knows(id_token):
                # The provider changes its keys when it likes.
                ring = await self._key_ring(found, _KEYS_AGAIN_SECONDS)
            return check(id_token, ring, expected)
        except BadIdToken as error:
            raise ProviderError(f"The provider's ID token does not count: {error}") from error

    async def _key_ring(self, found: Discovery, seconds: float) -> KeyRing:
        if self._keys is None or time.monotonic() - self._keys[0] >= seconds:
            ring = KeyRing.read(await self._fetch("GET", found.jwks_uri, "keys"))
            self._keys = time.monotonic(), ring
        return self._keys[1]

    async def _userinfo(self, url: str, access_token: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {access_token}"}
        return _decode(await self._fetch("GET", url, "userinfo", headers=headers), dict[str, Any], "userinfo")

    async def _fetch(self, method: str, url: str, what: str, **more: Any) -> bytes:
        """The body of a good answer. Raises: ProviderError in words for the person who waits."""
        data = bytearray()
        try:
            async with self._http.request(
                method, url, timeout=self._limit, allow_redirects=False, **more
            ) as response:  # fmt: skip
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > _BODY_MAX:
                        raise ProviderError(f"The provider's {what} is larger than {_BODY_MAX} bytes.")
                if response.status != 200:
                    raise ProviderError(_refusal(response.status, bytes(data), what))
        except TimeoutError as error:
            seconds = f"{self.settings.timeout_seconds:g}"
            raise ProviderError(f"The provider does not answer within {seconds} s. Try again later.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderError("The provider cannot be reached. Try again later.") from error
        return bytes(data)


def said_by(error: str, description: str) -> str:
    """What a provider says went wrong, for the person who came back from it."""
    told = f": {_printable(description)}" if description else ""
    return f"The provider did not sign you in ({_printable(error)}){told}."


def _refusal(status: int, data: bytes, what: str) -> str:
    try:
        told = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        told = {}
    if isinstance(told.get("error"), str):
        return said_by(told["error"], str(told.get("error_description", "")))
    return f"The provider answers {status} when asked for its {what}. Try again later."


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderError(f"The provider's {what} is not what it has to be: {_printable(str(error))}") from error


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_TEXT_MAX])
