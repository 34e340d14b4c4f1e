"""Access tokens: a JWT (RFC 9068) becomes a principal, or a refusal.

The checks of `Verifier.verify`, in order:

1. size, and the exact shape of a compact JWS (RFC 7515, 7.1): no padding, no blanks;
2. header, strict JSON: no ``crit`` (RFC 7515, 4.1.11); ``jwk``, ``jku``, ``x5u``,
   ``x5c`` are never looked at (RFC 8725, 3.10);
3. payload, strict JSON: a repeated claim is two tokens in one; ``iss`` names an issuer
   we have, and ``typ`` is one of its types (RFC 9068, 4);
4. ``kid`` names a key of that issuer, ``alg`` is the one bound to it (RFC 8725, 3.1);
5. signature;
6. ``iss`` is exactly the issuer's, ``aud`` contains us (RFC 9068, 4), claims that are
   required say what they must;
7. ``exp``, ``iat``, ``nbf`` are integers; now is inside; the lifetime is bounded;
8. ``sub``, ``client_id``, ``jti``, or what the issuer calls them, are there (RFC 9068,
   2.2); scopes are RFC 6749's; ``cnf`` is understood;
9. the token, its subject and its client are not revoked.

Skipped: whether the caller has the key that a token is bound to, since that is asked of
every request (`security.access.dpop`).

Verifying costs about 100 µs, so verified tokens are remembered, by SHA-256 of the whole
token. From a remembered one, what may change is checked again: 7's time, 9, and that
the issuer's keys are those that it was verified with. Refusals are not remembered:
their number has no bound, and the bound is better spent on callers.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from security.access import jws
from security.access.claims import ClaimReader, Principal
from security.access.jwks import JwkSet
from security.access.key_sources import KeySource, open_source
from security.errors import KeysUnavailableError, TokenError
from security.settings.access import AccessSettings
from security.settings.issuers import IssuerSettings

__all__ = ["Principal", "RevocationList", "Verifier"]

_MEDIA_TYPE = "application/"


class RevocationList(Protocol):
    """Says which tokens are not valid any more."""

    def check(self, principal: Principal) -> None:
        """Refuse a token that was revoked.

        Raises:
            TokenError: it was.
            RevocationStoreError: it cannot be told.
        """


@dataclass(frozen=True)
class _Issuer:
    settings: IssuerSettings
    keys: KeySource
    reader: ClaimReader
    types: frozenset[str]


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    issuer: _Issuer
    keys: JwkSet


class Verifier:
    """Verifies access tokens of the configured issuers."""

    def __init__(
        self, access: AccessSettings, *, revocations: RevocationList | None = None
    ) -> None:
        """Open the issuers' keys.

        Raises:
            KeyFileError: a file of keys cannot be used.
        """
        self._max_bytes = access.max_token_bytes
        self._revocations = revocations
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()
        self._max_entries = access.token_cache_entries
        self._issuers = {
            settings.issuer: _Issuer(
                settings,
                open_source(settings),
                ClaimReader(settings, leeway_s=access.leeway_s),
                frozenset(kind.lower() for kind in settings.token_types),
            )
            for settings in access.all_issuers
        }

    def has_keys(self) -> bool:
        """Whether tokens of one issuer at least can be verified now."""
        for issuer in self._issuers.values():
            with contextlib.suppress(KeysUnavailableError):
                if issuer.keys.current():
                    return True
        return False

    def verify(self, token: str, *, now: float) -> Principal:
        """Return the principal of a token.

        Args:
            token: the compact JWS from an Authorization header; may be hostile.
            now: seconds since the epoch.

        Raises:
            TokenError: any of the module's checks failed; the message says which, for
                the log only.
            KeysUnavailableError: the issuer's keys are not there yet.
            RevocationStoreError: whether it is revoked cannot be told.
        """
        if len(token) > self._max_bytes:
            raise TokenError("token is too long")
        name = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._cache.get(name)
        if known is not None and known.issuer.keys.current() is known.keys:
            known.issuer.reader.check_time(known.principal, int(now))
            self._cache.move_to_end(name)
        else:
            known = self._verify(token, int(now))
            self._remember(name, known)
        if self._revocations is not None:
            self._revocations.check(known.principal)
        return known.principal

    def issuer_of(self, principal: Principal) -> IssuerSettings:
        """The settings of the issuer that a principal came from."""
        return self._issuers[principal.issuer].settings

    def _verify(self, token: str, now: int) -> _Verified:
        """Checks 1 to 8."""
        parsed = jws.parse(token, max_bytes=self._max_bytes)
        claims = parsed.claims()
        named = claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise TokenError("iss is not a configured issuer")
        typ = parsed.header.get("typ")
        if (
            not isinstance(typ, str)
            or typ.lower().removeprefix(_MEDIA_TYPE) not in issuer.types
        ):
            raise TokenError("typ is not the issuer's")
        keys = issuer.keys.current()
        try:
            jws.verify(parsed, keys)
        except jws.UnknownKidError:
            issuer.keys.unknown()
            raise
        return _Verified(issuer.reader.read(claims, now), issuer, keys)

    def _remember(self, name: bytes, verified: _Verified) -> None:
        if not self._max_entries:
            return
        self._cache[name] = verified
        self._cache.move_to_end(name)
        if len(self._cache) > self._max_entries:
            self._cache.popitem(last=False)
