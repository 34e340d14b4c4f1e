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

Which of these an issuer's settings relax, and to what effect, says
`security.settings.profiles`.

Of one issuer the tokens may be opaque. It is asked about what has no header or names it
(`security.access.introspection`), and 6 to 9 hold its answer to the same rules.

Skipped: whether the caller has the key or certificate that a token is bound to, since
that is asked of every request (`security.access.dpop`, `service.callers`).

Verifying costs about 100 µs, so verified tokens are remembered, by SHA-256 of the whole
token. From a remembered one, what may change is checked again: 7's time, 9, and that
the issuer's keys are those that it was verified with. Refusals are not remembered:
their number has no bound, and the bound is better spent on callers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from security.access import jws
from security.access.claims import ClaimReader, Principal
from security.access.introspection import Introspector, PendingError
from security.access.jwks import JwkSet
from security.access.key_sources import KeySource, open_source
from security.errors import KeysUnavailableError, TokenError
from security.settings.access import AccessSettings
from security.settings.issuers import IssuerSettings

__all__ = ["Principal", "RevocationList", "Verifier"]

# Of a command, for an issuer's answer.
_MAX_WAIT_S = 15.0


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
    """One whose tokens are signed with its keys, or known to it alone."""

    settings: IssuerSettings
    source: KeySource | Introspector
    reader: ClaimReader
    types: frozenset[str]


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    reader: ClaimReader
    source: KeySource
    keys: JwkSet


class Verifier:
    """Verifies access tokens of the configured issuers."""

    def __init__(
        self,
        access: AccessSettings,
        *,
        revocations: RevocationList | None = None,
        report_stale: Callable[[str, bool], None] = lambda issuer, stale: None,
    ) -> None:
        """Open the issuers' keys.

        Args:
            access: the settings.
            revocations: what is revoked.
            report_stale: told which issuer's last good keys stand in for newer ones.

        Raises:
            KeyFileError: a file of keys cannot be used.
        """
        self._max_bytes = access.max_token_bytes
        self._revocations = revocations
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()
        self._max_entries = access.token_cache_entries
        self._introspector: Introspector | None = None
        self._issuers: dict[str, _Issuer] = {}
        for settings in access.all_issuers:
            reader = ClaimReader(settings, leeway_s=access.leeway_s)
            source: KeySource | Introspector
            if settings.introspection:
                source = self._introspector = Introspector(settings, reader)
            else:
                source = open_source(settings, partial(report_stale, settings.issuer))
            types = frozenset(map(_media_type, settings.token_types))
            self._issuers[settings.issuer] = _Issuer(settings, source, reader, types)

    def has_keys(self) -> bool:
        """Whether tokens of one issuer at least can be verified now."""
        for issuer in self._issuers.values():
            with contextlib.suppress(KeysUnavailableError):
                # Whether one can be asked is seen when there is something to ask.
                if isinstance(issuer.source, Introspector) or issuer.source.current():
                    return True
        return False

    def verify(self, token: str, *, now: float) -> Principal:
        """Return the principal of a token.

        Args:
            token: from an Authorization header; may be hostile.
            now: seconds since the epoch.

        Raises:
            TokenError: any of the module's checks failed; the message says which, for
                the log only. Of an unknown key it may hold the fetch to wait for.
            KeysUnavailableError: the issuer's keys are not there yet.
            PendingError: the issuer is being asked about it; verify it again then.
            IntrospectionError: the issuer cannot be asked.
            RevocationStoreError: whether it is revoked cannot be told.
        """
        if len(token) > self._max_bytes:
            raise TokenError("token is too long")
        name = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._cache.get(name)
        if known is not None and known.source.current() is known.keys:
            known.reader.check_time(known.principal, int(now))
            self._cache.move_to_end(name)
            principal = known.principal
        else:
            principal = self._verify(token, name, int(now))
        if self._revocations is not None:
            self._revocations.check(principal)
        return principal

    def verify_waiting(self, token: str, *, now: float) -> Principal:
        """As `verify`, but wait for an issuer that has to be asked: for commands."""
        try:
            return self.verify(token, now=now)
        except PendingError as error:
            concurrent.futures.wait([error.fetch], timeout=_MAX_WAIT_S)
        return self.verify(token, now=now)

    def issuer_of(self, principal: Principal) -> IssuerSettings:
        """The settings of the issuer that a principal came from."""
        return self._issuers[principal.issuer].settings

    def _verify(self, token: str, name: bytes, now: int) -> Principal:
        """Checks 1 to 8."""
        try:
            parsed = jws.parse(token, max_bytes=self._max_bytes)
            claims = parsed.claims()
        except TokenError:
            if self._introspector is None or jws.has_header(token):
                raise
            return self._introspector.principal(token, name, now)
        issuer = self._issuer(claims)
        source = issuer.source
        if isinstance(source, Introspector):
            return source.principal(token, name, now)
        _check_type(parsed.header, issuer)
        keys = source.current()
        try:
            jws.verify(parsed, keys)
        except jws.UnknownKidError as error:
            error.fetch = source.unknown()
            raise
        digest = f"sha256:{hashlib.sha256(parsed.signed).hexdigest()}"
        principal = issuer.reader.read(claims, now, digest=digest)
        self._remember(name, _Verified(principal, issuer.reader, source, keys))
        return principal

    def _issuer(self, claims: Mapping[str, Any]) -> _Issuer:
        """Whose a token is by its ``iss``, or else by what its subject begins with."""
        named, subject = claims.get("iss"), claims.get("sub")
        if isinstance(named, str) and named in self._issuers:
            return self._issuers[named]
        for issuer in self._issuers.values():
            settings = issuer.settings
            if (
                "iss" not in claims
                and "iss-absent" in settings.relax
                and isinstance(subject, str)
                and subject.startswith(settings.subject_prefix)
            ):
                return issuer
        raise TokenError("iss is not a configured issuer")

    def _remember(self, name: bytes, verified: _Verified) -> None:
        if not self._max_entries:
            return
        self._cache[name] = verified
        self._cache.move_to_end(name)
        if len(self._cache) > self._max_entries:
            self._cache.popitem(last=False)


def _check_type(header: Mapping[str, Any], issuer: _Issuer) -> None:
    if "typ" not in header and "typ-absent" in issuer.settings.relax:
        return
    typ = header.get("typ")
    if not isinstance(typ, str) or _media_type(typ) not in issuer.types:
        raise TokenError("typ is not the issuer's")


def _media_type(name: str) -> str:
    """A type without the prefix that it may leave out (RFC 7515, 4.1.9)."""
    return name.lower().removeprefix("application/")
