"""Access tokens: a JWT (RFC 9068) becomes a principal, or a refusal.

The checks of `Verifier.verify`, in order:

1. size, and the exact shape of a compact JWS (RFC 7515, 7.1): no padding, no blanks;
2. header, strict JSON: ``typ`` is at+jwt (RFC 9068, 4), no ``crit`` (RFC 7515,
   4.1.11); ``jwk``, ``jku``, ``x5u``, ``x5c`` are never looked at (RFC 8725, 3.10);
3. ``kid`` names a key we hold, ``alg`` is the one bound to that key (RFC 8725, 3.1);
4. signature;
5. payload, strict JSON: a repeated claim is two tokens in one;
6. ``iss`` is exactly ours, ``aud`` contains us (RFC 9068, 4);
7. ``exp``, ``iat``, ``nbf`` are integers; now is inside; the lifetime is bounded;
8. ``sub``, ``client_id``, ``jti`` are there (RFC 9068, 2.2); ``scope`` is RFC 6749's.

Skipped: revocation and sender constraint (DPoP), which other rooms will add.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.access.jwks import JwkSet
from security.errors import TokenError
from security.settings import AccessSettings

__all__ = ["Principal", "Verifier"]

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"at+jwt", "application/at+jwt"})
# scope = scope-token *( SP scope-token ) (RFC 6749, 3.3).
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
_MAX_CLAIM = 512


@dataclass(frozen=True)
class Principal:
    """Who a verified token speaks for.

    Attributes:
        subject: ``sub``.
        client_id: ``client_id``.
        token_id: ``jti``.
        scopes: the granted scope tokens.
        expires_at: ``exp``, seconds since the epoch.
    """

    subject: str
    client_id: str
    token_id: str
    scopes: frozenset[str]
    expires_at: int


class Verifier:
    """Verifies access tokens of one issuer for one audience."""

    def __init__(self, settings: AccessSettings, keys: JwkSet) -> None:
        self._settings = settings
        self._keys = keys
        self._jws = jwt.PyJWS()

    def verify(self, token: str, *, now: float) -> Principal:
        """Return the principal of a token.

        Args:
            token: the compact JWS from an Authorization header; may be hostile.
            now: seconds since the epoch.

        Raises:
            TokenError: any of the module's checks failed; the message says which, for
                the log only.
        """
        if len(token) > self._settings.max_token_bytes:
            raise TokenError("token is too long")
        if not _COMPACT.fullmatch(token):
            raise TokenError("not a compact JWS")
        key = self._key(_segment(token.split(".", 1)[0]))
        try:
            complete = self._jws.decode_complete(
                token, key, algorithms=[key.algorithm_name]
            )
        except (jwt.PyJWTError, ValueError):
            raise TokenError("signature does not verify") from None
        return self._principal(_object(complete["payload"]), int(now))

    def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        """Checks 2 and 3."""
        typ = header.get("typ")
        if not isinstance(typ, str) or typ.lower() not in _TYPES:
            raise TokenError("typ is not at+jwt")
        if "crit" in header:
            raise TokenError("crit is not supported")
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise TokenError("kid is not known")
        if header.get("alg") != key.algorithm_name:
            raise TokenError("alg is not the key's")
        return key

    def _principal(self, claims: Mapping[str, Any], now: int) -> Principal:
        """Checks 6 to 8."""
        settings = self._settings
        if claims.get("iss") != settings.issuer:
            raise TokenError("iss is not the configured issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if settings.audience not in audiences:
            raise TokenError("aud does not contain this server")
        scope = claims.get("scope", "")
        if not isinstance(scope, str) or (scope and not _SCOPE.fullmatch(scope)):
            raise TokenError("scope is malformed")
        return Principal(
            subject=_text(claims, "sub"),
            client_id=_text(claims, "client_id"),
            token_id=_text(claims, "jti"),
            scopes=frozenset(scope.split(" ")) - {""},
            expires_at=self._check_times(claims, now),
        )

    def _check_times(self, claims: Mapping[str, Any], now: int) -> int:
        """Check 7; returns ``exp``."""
        leeway = self._settings.leeway_s
        expires_at, issued_at = _time(claims, "exp"), _time(claims, "iat")
        if expires_at + leeway <= now:
            raise TokenError("token has expired")
        if issued_at - leeway > now:
            raise TokenError("iat is in the future")
        if "nbf" in claims and _time(claims, "nbf") - leeway > now:
            raise TokenError("nbf is in the future")
        if expires_at - issued_at > self._settings.max_lifetime_s:
            raise TokenError("lifetime is too long")
        return expires_at


def _segment(text: str) -> dict[str, Any]:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise TokenError("header is not base64url") from None
    return _object(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=len(data), max_depth=8)
    except JsonError:
        raise TokenError("not a strict JSON object") from None


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_CLAIM:
        raise TokenError(f"{name} is missing or not text")
    return value


def _time(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise TokenError(f"{name} is missing or not an integer")
    return value
