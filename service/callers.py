"""Who calls: the Authorization field of a request, and what it is answered with.

1. one Authorization field (RFC 6750, section 3.1); none is no error, but no caller;
2. its scheme is Bearer, or DPoP where an issuer allows that;
3. the token verifies (`security.access.tokens`);
4. a token that is bound to a certificate comes from who has shown that certificate to
   us in TLS (RFC 8705, section 3): on the connection of the outer request, if it came
   sealed. Behind what ends TLS nobody has, so such tokens are refused there;
5. a token that is bound to a key only comes with a proof (RFC 9449, section 7.2), and
   one that is not only where its issuer allows it.

Refusals say how to do better (RFC 6750, section 3; RFC 9728, section 5.1): the metadata
of this resource, which names the authorization servers, answers without a token.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping

import orjson

from sealgate.protocol.bhttp import Headers, Request, Response
from sealgate.protocol.dpop import PROOF_HEADER
from security.access.dpop import PROOF_ALGORITHMS, Proofs
from security.access.introspection import PendingError
from security.access.issuer import DEVELOPMENT_ISSUER
from security.access.jws import UnknownKidError
from security.access.tokens import Principal, Verifier
from security.errors import CredentialsError, TokenError
from security.settings.access import AccessSettings
from service.problems import Challenges, Problem

__all__ = ["RESOURCE_METADATA", "Callers", "documents"]

# RFC 9728, section 3.1.
RESOURCE_METADATA = "/.well-known/oauth-protected-resource"
_BEARER, _DPOP = b"bearer", b"dpop"
# For what an issuer is asked: its new keys, or about a token.
MAX_WAITING, MAX_WAIT_S = 32, 2.0
_DOCUMENT: Headers = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"max-age=3600"),
)


class Callers:
    """Finds out who calls.

    Attributes:
        challenges: what refusals say in WWW-Authenticate.
    """

    def __init__(
        self,
        verifier: Verifier,
        access: AccessSettings,
        *,
        proofs: Proofs | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire it.

        Args:
            verifier: of tokens.
            access: the settings.
            proofs: checks proofs; None where no issuer's tokens may be bound.
            clock: Unix seconds.
        """
        self._verifier = verifier
        self._waiting = 0
        self._proofs = proofs
        self._clock = clock
        modes = {issuer.dpop for issuer in access.all_issuers}
        metadata = access.resource and access.resource + RESOURCE_METADATA
        self.challenges = Challenges(
            metadata_url=metadata,
            bearer=modes != {"required"},
            dpop_algorithms=PROOF_ALGORITHMS if modes - {"off"} else (),
        )

    async def authenticate(
        self, request: Request, certificate: str | None = None
    ) -> Principal:
        """Return who sent a request.

        Args:
            request: from anyone; the inner one, if it came sealed.
            certificate: thumbprint of the one that its connection's client has.

        Raises:
            Problem: it says nothing about that.
            AccessError: it is not believed, or cannot be told.
        """
        scheme, token = self._credentials(request.headers)
        principal = await self._verify(token)
        mode = self._check_bound(principal, scheme, certificate)
        if scheme == _BEARER:
            return principal
        if mode == "off" or self._proofs is None or principal.confirmation is None:
            raise TokenError("an unbound token came as a bound one")
        await self._proofs.check(
            [_text(v) for name, v in request.headers if name == PROOF_HEADER],
            method=_text(request.method),
            path=_text(request.path.partition(b"?")[0]),
            token=token,
            account=principal.account,
            confirmation=principal.confirmation,
            now=self._clock(),
        )
        return principal

    def bearer_token(self, headers: Headers) -> str | None:
        """The token of a request with these fields; None if it comes with a proof.

        Raises:
            Problem, AccessError: as `authenticate`.
        """
        scheme, token = self._credentials(headers)
        return token if scheme == _BEARER else None

    def bearer(self, token: str, certificate: str | None) -> Principal:
        """As `authenticate`, of a bearer token about which nobody has to be asked.

        Raises:
            AccessError: as `authenticate`, or an issuer has to be asked.
        """
        principal = self._verifier.verify(token, now=self._clock())
        self._check_bound(principal, _BEARER, certificate)
        return principal

    def _check_bound(
        self, principal: Principal, scheme: bytes, certificate: str | None
    ) -> str:
        """Check 4, and of 5 that no proof is missing; returns how its issuer binds."""
        issuer = self._verifier.issuer_of(principal)
        if principal.certificate is not None:
            _check_certificate(principal.certificate, certificate)
        elif issuer.certificate_bound:
            raise TokenError("the issuer's tokens must be bound to a certificate")
        if scheme == _BEARER:
            if principal.confirmation is not None:
                raise TokenError("a bound token came as a bearer token")
            if issuer.dpop == "required":
                raise TokenError("the issuer's tokens must be bound to a key")
        return issuer.dpop

    async def _verify(self, token: str) -> Principal:
        """Check 3; a token that its issuer has to be asked for waits for one answer.

        The number that waits is bounded, since strangers can name unknown keys and
        invent tokens; who had an active one a moment ago does not count.
        """
        try:
            return self._verifier.verify(token, now=self._clock())
        except (UnknownKidError, PendingError) as error:
            counted = not (isinstance(error, PendingError) and error.known)
            if error.fetch is None or (counted and self._waiting >= MAX_WAITING):
                raise
            self._waiting += counted
            try:
                fetched = asyncio.wrap_future(error.fetch)
                await asyncio.wait({fetched}, timeout=MAX_WAIT_S)
            finally:
                self._waiting -= counted
        return self._verifier.verify(token, now=self._clock())

    def _credentials(self, headers: Headers) -> tuple[bytes, str]:
        """Checks 1 and 2."""
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise Problem("unauthenticated", headers=self.challenges.headers())
        if len(values) != 1:
            raise CredentialsError("more than one Authorization field")
        scheme, _, token = values[0].partition(b" ")
        scheme = scheme.lower()
        if scheme not in (_BEARER, _DPOP):
            raise TokenError("neither a bearer token nor a bound one")
        try:
            return scheme, token.decode("ascii")
        except UnicodeDecodeError:
            raise TokenError("not a compact JWS") from None


def _check_certificate(bound_to: str, shown: str | None) -> None:
    """Check 4."""
    if shown is None:
        raise TokenError("the token's certificate was not shown on this connection")
    if not hmac.compare_digest(bound_to.encode("utf-8", "replace"), shown.encode()):
        raise TokenError("the token is bound to another certificate")


def documents(
    access: AccessSettings, *, certificates: bool, jwks: bytes | None
) -> Mapping[bytes, Response]:
    """What answers without a token, by path.

    Args:
        access: the settings.
        certificates: clients are asked for theirs.
        jwks: of the development issuer, where it may be used.
    """
    found: dict[bytes, Response] = {}
    if access.resource:
        content = orjson.dumps(_metadata(access, certificates=certificates))
        found[RESOURCE_METADATA.encode()] = Response(200, _DOCUMENT, content)
    if jwks is not None:
        found[b"/.well-known/sealgate-development-jwks.json"] = Response(
            200, _DOCUMENT, jwks
        )
    return found


def _metadata(access: AccessSettings, *, certificates: bool) -> dict[str, object]:
    """RFC 9728, section 2. Scopes are not listed: they would name the models."""
    issuers = access.all_issuers
    servers = [one.issuer for one in issuers if one.issuer.startswith("https://")]
    document: dict[str, object] = {
        "resource": access.resource,
        "resource_name": "Sealgate",
        "bearer_methods_supported": ["header"],
    }
    if servers:
        document["authorization_servers"] = servers
    if any(issuer.dpop != "off" for issuer in issuers):
        document["dpop_signing_alg_values_supported"] = PROOF_ALGORITHMS
    if issuers and all(issuer.dpop == "required" for issuer in issuers):
        document["dpop_bound_access_tokens_required"] = True
    if certificates:
        document["tls_client_certificate_bound_access_tokens"] = True
    if any(issuer.issuer == DEVELOPMENT_ISSUER for issuer in issuers):
        document["resource_name"] = "Sealgate (development issuer: not for production)"
    return document


def _text(value: bytes) -> str:
    return value.decode("latin-1")
