"""A stand-in for an OpenID provider: discovery, keys, a page to sign in, codes with PKCE, ID tokens, userinfo.

What a provider refuses, it refuses here: another redirect address, a code that was used, a verifier that does not fit,
a wrong client secret. `fault` names one thing that it does wrong.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import html
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlencode

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.standins.faults import serving

CLIENT_ID = "credits"
CLIENT_SECRET = "s3cret:with/odd chars"


@dataclass
class OidcProvider:
    """The provider's side."""

    redirect_uri: str = ""
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> claims, beside sub, iss and the rest that every ID token has."""
    userinfo: dict[str, Any] = field(default_factory=dict)
    """Claims that only userinfo has."""
    fault: str = ""
    url: str = ""
    algorithms: tuple[str, ...] = ("RS256",)
    keys: list[RSAKey | ECKey] = field(default_factory=lambda: [_first()])
    """The last one signs."""
    asked: list[str] = field(default_factory=list)
    """Paths, as they were asked for."""
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _access: dict[str, str] = field(default_factory=dict)

    def rotate(self) -> None:
        """Another key from now on; the one before is gone."""
        self.keys = [_key(f"key{len(self.asked)}")]

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/userinfo", self._userinfo)
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(request.path)
        what = request.path.rsplit("/", 1)[-1]
        if self.fault == f"500 {what}":
            return web.Response(status=500, text="<h1>oops</h1>")
        if self.fault == f"slow {what}":
            await asyncio.sleep(30)
        if self.fault == f"huge {what}":
            return web.Response(body=b'{"a": "' + b"x" * 2_000_000 + b'"}', content_type="application/json")
        if self.fault == f"nonsense {what}":
            return web.Response(body=b"[" * 5000, content_type="application/json")
        if self.fault == f"redirect {what}":
            raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": "https://evil.example" if self.fault == "other issuer in discovery" else self.url,
                "authorization_endpoint": f"{self.url}/authorize?tenant=1",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "id_token_signing_alg_values_supported": [*self.algorithms, "none", "HS256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _keys(self, request: web.Request) -> web.Response:
        listed = [key.as_dict(private=False) for key in self.keys]
        odd = [{"kty": "oct", "k": "AAAA", "kid": "o"}, {"kty": "RSA", "kid": "broken"}, {"kty": "ML-DSA"}, "x"]
        return web.json_response({"keys": [*odd, *listed]})

    async def _authorize(self, request: web.Request) -> web.Response:
        """The page to sign in; with `login` it goes back with a code."""
        asked = request.query
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        if asked["client_id"] != CLIENT_ID or asked["redirect_uri"] != self.redirect_uri:
            return web.Response(status=400, text="unknown client or redirect_uri")
        if "login" not in asked:
            hidden = "".join(
                f'<input type="hidden" name="{name}" value="{html.escape(value)}">' for name, value in asked.items()
            )
            people = "".join(f'<button name="login" value="{name}">{name}</button>' for name in self.people)
            page = f"<!doctype html><title>Provider</title><h1>Who are you?</h1><form>{hidden}{people}</form>"
            return web.Response(text=page, content_type="text/html")
        back = {"state": asked["state"], "iss": self.url}
        if self.fault == "mix-up":
            back["iss"] = "https://evil.example"
        if self.fault == "no iss":
            del back["iss"]
        if self.fault == "denied":
            back |= {"error": "access_denied", "error_description": "<b>Not</b> today\n"}
        else:
            back["code"] = secrets.token_urlsafe(16)
            self._codes[back["code"]] = dict(asked)
        raise web.HTTPFound(f"{self.redirect_uri}?{urlencode(back)}")

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        scheme, _, pair = request.headers.get("Authorization", "").partition(" ")
        given = [unquote(part) for part in base64.b64decode(pair).decode().partition(":")[::2]]
        if scheme != "Basic" or given != [CLIENT_ID, CLIENT_SECRET]:
            return web.json_response({"error": "invalid_client"}, status=401)
        asked = self._codes.pop(str(form["code"]), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(str(form["code_verifier"]).encode()).digest())
        if (
            asked is None
            or form["redirect_uri"] != asked["redirect_uri"]
            or challenge.rstrip(b"=").decode() != asked["code_challenge"]
            or form["grant_type"] != "authorization_code"
        ):
            said = {"error": "invalid_grant", "error_description": "The code is not known, or not yours."}
            return web.json_response(said, status=400)
        access = secrets.token_urlsafe(16)
        self._access[access] = asked["login"]
        token = self.id_token(asked["login"], asked["nonce"])
        return web.json_response({"id_token": token, "access_token": access, "token_type": "Bearer"})

    def id_token(self, login: str, nonce: str) -> str:
        """A signed ID token, as the fault has it."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url, "sub": f"sub-{login}", "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce,
            **self.people[login],
        }  # fmt: skip
        key = self.keys[-1]
        header: dict[str, Any] = {"alg": "RS256", "kid": key.kid}
        claims |= {
            "wrong nonce": {"nonce": "another"},
            "no nonce": {"nonce": None},
            "wrong aud": {"aud": "another"},
            "several aud without azp": {"aud": [CLIENT_ID, "another"]},
            "azp of another": {"azp": "another"},
            "wrong iss": {"iss": "https://evil.example"},
            "expired": {"exp": now - 61, "iat": now - 400},
            "exp is text": {"exp": str(now + 300)},
            "exp is no number": {"exp": float("nan")},
            "no exp": {"exp": None},
            "from the future": {"iat": now + 120},
            "not yet": {"nbf": now + 120},
            "no sub": {"sub": ""},
            "sub is a number": {"sub": 7},
        }.get(self.fault, {})
        if self.fault == "alg none":
            return f"{_b64(json.dumps({'alg': 'none'}).encode())}.{_b64(json.dumps(claims).encode())}."
        if self.fault == "HS256 with the public key":
            # By hand: the library does not lend itself to it.
            header = {"alg": "HS256", "kid": key.kid}
            signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
            return f"{signed}.{_b64(hmac.digest(key.as_pem(private=False), signed.encode(), 'sha256'))}"
        if self.fault == "unknown kid":
            return jwt.encode({**header, "kid": "nobody's"}, claims, _key("nobody's"))
        if self.fault == "another key under this kid":
            return jwt.encode(header, claims, _key(str(key.kid)))
        if self.fault == "key in the header":
            own = _key("own")
            return jwt.encode({"alg": "RS256", "kid": "own", "jwk": own.as_dict(private=False)}, claims, own)
        if self.fault == "PS256 unannounced":
            return jwt.encode({**header, "alg": "PS256"}, claims, key, algorithms=["PS256"])
        if isinstance(key, ECKey) or "RS256" not in self.algorithms:
            return jwt.encode({**header, "alg": self.algorithms[0]}, claims, key, algorithms=[self.algorithms[0]])
        if self.fault == "no kid":
            header = {"alg": "RS256"}
        token = jwt.encode(header, claims, key)
        if self.fault == "changed after signing":
            head, _, signature = token.split(".")
            body = _b64(json.dumps({**claims, "groups": ["credits-admins"]}).encode())
            token = f"{head}.{body}.{signature}"
        return "not.a.token" if self.fault == "no token" else token

    async def _userinfo(self, request: web.Request) -> web.Response:
        login = self._access[request.headers["Authorization"].removeprefix("Bearer ")]
        about = "sub-somebody-else" if self.fault == "userinfo of another" else f"sub-{login}"
        return web.json_response({"sub": about, **self.userinfo})


@asynccontextmanager
async def oidc_provider(provider: OidcProvider) -> AsyncIterator[OidcProvider]:
    """Serves it on the loopback."""
    async with serving(provider.app()) as provider.url:
        yield provider


@lru_cache(maxsize=1)  # the one that each provider begins with
def _first() -> RSAKey:
    return _key("first")


def _key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
