"""ID tokens: whether one was signed by a provider's key, for us, now and for this sign-in. Pure.

An algorithm that is not listed here is refused before a key is looked at, so neither `none` nor an HMAC that has a
public key for its secret gets that far; and each algorithm takes keys of its own kind only.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

_KINDS: Final[Mapping[str, type[RSAKey | ECKey]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSAKey),
    **dict.fromkeys(("ES256", "ES384", "ES512"), ECKey),
}
_RSA_BITS_MIN: Final = 2048
_TOKEN_MAX: Final = 64 * 1024
_SUBJECT_MAX: Final = 255


class BadIdToken(Exception):
    """Why an ID token does not count."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ID token has to be. `now` and `leeway` in seconds."""

    issuer: str
    client_id: str
    nonce: str
    now: float
    leeway: float
    algorithms: Collection[str]
    """Those that the provider says it uses."""


class KeyRing:
    """The public keys of a provider."""

    def __init__(self, keys: Collection[RSAKey | ECKey]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, data: bytes) -> KeyRing:
        """A JWK set; what is no key to check signatures by is left out. Raises: BadIdToken."""
        try:
            listed = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadIdToken("the provider's keys cannot be read") from error
        keys = []
        for entry in listed if isinstance(listed, list) else ():
            if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC") or entry.get("use") == "enc":
                continue
            try:
                key = JWKRegistry.import_key(entry)
            except (JoseError, ValueError, TypeError, KeyError):
                continue
            if isinstance(key, ECKey) or (
                isinstance(key, RSAKey) and key.public_key.key_size >= _RSA_BITS_MIN
            ):  # fmt: skip
                keys.append(key)
        return cls(keys)

    def knows(self, token: str) -> bool:
        """Whether there is a key that may have signed a token. Raises: BadIdToken."""
        return bool(self.for_header(header_of(token)))

    def for_header(self, header: Mapping[str, Any]) -> list[RSAKey | ECKey]:
        """The keys that a token with this header may be signed by."""
        kind, kid = _KINDS.get(str(header.get("alg"))), header.get("kid")
        if kind is None:
            return []
        return [key for key in self._keys if isinstance(key, kind) and kid in (None, key.as_dict().get("kid"))]


def header_of(token: str) -> Mapping[str, Any]:
    """The header of a token that nobody has checked. Raises: BadIdToken, also for an algorithm that is not taken."""
    if len(token) > _TOKEN_MAX:
        raise BadIdToken("it is too long")
    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise BadIdToken("it cannot be read") from error
    if header.get("alg") not in _KINDS:
        raise BadIdToken(f"its signature is by the algorithm {str(header.get('alg'))[:20]!r}, which is not accepted")
    return header


def check(token: str, ring: KeyRing, expected: Expected) -> dict[str, Any]:
    """The claims of a token that holds. Raises: BadIdToken."""
    header = header_of(token)
    if header["alg"] not in expected.algorithms:
        raise BadIdToken(f"its signature is by {header['alg']}, which the provider does not say it uses")
    keys = ring.for_header(header)
    if not keys:
        raise BadIdToken("it is signed by a key that the provider does not publish")
    claims = next((found for key in keys if (found := _signed(token, key, header["alg"])) is not None), None)
    if claims is None:
        raise BadIdToken("its signature is wrong")
    _check_claims(claims, expected)
    return claims


def _signed(token: str, key: RSAKey | ECKey, algorithm: str) -> dict[str, Any] | None:
    try:
        return jwt.decode(token, key, algorithms=[algorithm]).claims
    except (JoseError, ValueError, TypeError, RecursionError):
        return None


def _check_claims(claims: Mapping[str, Any], expected: Expected) -> None:
    if claims.get("iss") != expected.issuer:
        raise BadIdToken("it is of another issuer")
    audience = claims.get("aud")
    parties = audience if isinstance(audience, list) else [audience]
    if expected.client_id not in parties:
        raise BadIdToken("it is made for another service")
    party = claims.get("azp")
    if (party is not None or len(parties) > 1) and party != expected.client_id:
        raise BadIdToken("it was given to another service")
    latest, earliest = expected.now + expected.leeway, expected.now - expected.leeway
    if not _instant(claims, "exp") > earliest:
        raise BadIdToken("it has expired")
    if not _instant(claims, "iat") <= latest or ("nbf" in claims and not _instant(claims, "nbf") <= latest):
        raise BadIdToken("it is from the future: are the clocks right, here and at the provider?")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):
        raise BadIdToken("it was made for another sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _SUBJECT_MAX:
        raise BadIdToken("it does not say whom it is about")


def _instant(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadIdToken(f"its {name} is no time")
    return value
