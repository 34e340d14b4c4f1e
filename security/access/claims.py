"""What a token says, by the claims that its issuer's settings name.

Numbers as in `security.access.tokens`: 6 is who issued it for whom, 7 when, 8 about
whom and what.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from security.errors import TokenError
from security.settings.issuers import IssuerSettings

__all__ = ["ClaimReader", "Principal"]

# scope = scope-token *( SP scope-token ) (RFC 6749, 3.3).
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
_MAX_TEXT = 512
_MAX_GROUPS = 512
_MISSING = object()
# To a key (RFC 9449, section 6.1), to a certificate (RFC 8705, section 3.1).
_BINDINGS = frozenset(("jkt", "x5t#S256"))


@dataclass(frozen=True)
class Principal:
    """Who a verified token speaks for.

    Attributes:
        subject: unique within its issuer.
        client_id: the client through which it calls.
        token_id: the token's own identifier.
        scopes: the granted scope tokens.
        expires_at: seconds since the epoch.
        issuer: who says so.
        issued_at: seconds since the epoch.
        not_before: seconds since the epoch.
        groups: groups and roles.
        tenant: the organization, if the issuer's settings name a claim for it.
        confirmation: thumbprint of the key that the token is bound to (RFC 9449, 6), or
            None if it is to none.
        certificate: thumbprint of the certificate that it is bound to (RFC 8705, 3.1),
            or None if it is to none.
    """

    subject: str
    client_id: str
    token_id: str
    scopes: frozenset[str]
    expires_at: int
    issuer: str = ""
    issued_at: int = 0
    not_before: int = 0
    groups: frozenset[str] = frozenset()
    tenant: str | None = None
    confirmation: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)

    @functools.cached_property  # asked several times for each request
    def account(self) -> str:
        """Names the subject among those of all issuers.

        Issuers' names hold no NUL, so no two pairs share a name.
        """
        return f"{self.issuer}\0{self.subject}"


class ClaimReader:
    """Reads the claims of one issuer's tokens."""

    def __init__(self, issuer: IssuerSettings, *, leeway_s: int) -> None:
        self._issuer = issuer
        self._leeway_s = leeway_s
        required = [item.partition("=") for item in issuer.required_claims]
        self._required = [(name, value) for name, _, value in required]
        self._relaxed = frozenset(issuer.relax)

    def read(self, claims: Mapping[str, Any], now: int, *, digest: str) -> Principal:
        """Checks 6 to 8.

        Args:
            claims: of a token whose signature verified.
            now: seconds since the epoch.
            digest: of what is signed: the token's name, where it has none. A signature
                can be spelt in several ways, so it is no part of it.

        Raises:
            TokenError: one of the checks failed.
        """
        issuer = self._issuer
        self._check_parties(claims)
        expires_at, issued_at, not_before = self._times(claims, now)
        tenant = issuer.tenant_claim
        token_id = digest
        if not self._may_lack(claims, issuer.token_id_claim, "jti-absent"):
            token_id = _text(claims, issuer.token_id_claim)
        loose = "scope-array" in self._relaxed
        bound_to = _confirmation(claims)
        return Principal(
            subject=self._subject(claims),
            client_id=self._client(claims),
            token_id=token_id,
            scopes=_scopes(claims, issuer.scope_claims, loose=loose),
            expires_at=expires_at,
            issuer=issuer.issuer,
            issued_at=issued_at,
            not_before=not_before,
            groups=_groups(claims, issuer.group_claims),
            tenant=_text(claims, tenant) if tenant else None,
            confirmation=bound_to.get("jkt"),
            certificate=bound_to.get("x5t#S256"),
        )

    def _may_lack(self, claims: Mapping[str, Any], name: str, relaxed: str) -> bool:
        return relaxed in self._relaxed and _find(claims, name) is _MISSING

    def _check_parties(self, claims: Mapping[str, Any]) -> None:
        """Check 6."""
        issuer = self._issuer
        if claims.get("iss") != issuer.issuer and not self._may_lack(
            claims, "iss", "iss-absent"
        ):
            raise TokenError("iss is not the configured issuer")
        if not self._may_lack(claims, "aud", "aud-absent"):
            audience = claims.get("aud")
            audiences = audience if isinstance(audience, list) else [audience]
            if not issuer.audience or issuer.audience not in audiences:
                raise TokenError("aud does not contain this server")
        for name, value in self._required:
            found = _find(claims, name)
            if found in (_MISSING, None) or (value and found != value):
                raise TokenError(f"{name} is not {value or 'there'}")

    def _subject(self, claims: Mapping[str, Any]) -> str:
        subject = _text(claims, self._issuer.subject_claim)
        if not subject.startswith(self._issuer.subject_prefix):
            raise TokenError(f"{self._issuer.subject_claim} has another prefix")
        return subject

    def _client(self, claims: Mapping[str, Any]) -> str:
        client = _text(claims, self._issuer.client_claim)
        if self._issuer.clients and client not in self._issuer.clients:
            raise TokenError(f"{self._issuer.client_claim} is none of the clients")
        return client

    def check_time(self, principal: Principal, now: int) -> None:
        """What of check 7 changes with time.

        Raises:
            TokenError: expired, or not yet valid.
        """
        leeway = self._leeway_s
        if principal.expires_at + leeway <= now:
            raise TokenError("token has expired")
        if principal.issued_at - leeway > now:
            raise TokenError("iat is in the future")
        if principal.not_before - leeway > now:
            raise TokenError("nbf is in the future")

    def _times(self, claims: Mapping[str, Any], now: int) -> tuple[int, int, int]:
        """Check 7; returns exp, iat and nbf."""
        leeway = self._leeway_s
        whole = "fractional-times" not in self._relaxed
        expires_at = _time(claims, "exp", whole=whole)
        # Without iat, the oldest that the token could be for a revocation.
        undated = self._may_lack(claims, "iat", "iat-absent")
        issued_at = 0 if undated else _time(claims, "iat", whole=whole)
        if expires_at + leeway <= now:
            raise TokenError("token has expired")
        if issued_at - leeway > now:
            raise TokenError("iat is in the future")
        not_before = _time(claims, "nbf", whole=whole) if "nbf" in claims else 0
        if not_before - leeway > now:
            raise TokenError("nbf is in the future")
        if expires_at - (now if undated else issued_at) > self._issuer.max_lifetime_s:
            raise TokenError("lifetime is too long")
        return expires_at, issued_at, not_before


def _find(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by name or by JSON pointer (RFC 6901); `_MISSING` if there is none."""
    if not name.startswith("/"):
        return claims.get(name, _MISSING)
    value: Any = claims
    for part in name[1:].split("/"):
        # Objects only: no claim of interest lies at a place in an array.
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = _find(claims, name)
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT:
        raise TokenError(f"{name} is missing or not text")
    return value


def _time(claims: Mapping[str, Any], name: str, *, whole: bool) -> int:
    value = claims.get(name)
    if type(value) is float and not whole and 0 <= value < 1 << 40:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise TokenError(f"{name} is missing or not an integer")
    return value


def _scopes(
    claims: Mapping[str, Any], names: tuple[str, ...], *, loose: bool
) -> frozenset[str]:
    """The scopes of several claims.

    Args:
        claims: of the token.
        names: of the claims.
        loose: arrays of texts with blanks in and around the scopes are taken too.
    """
    found: set[str] = set()
    for name in names:
        value = _find(claims, name)
        if value is _MISSING or value == "":
            continue
        if loose:
            value = _joined(value)
        if isinstance(value, str):
            if value and not _SCOPE.fullmatch(value):
                raise TokenError("scope is malformed")
            found.update(value.split())
        elif name == "scope" or not isinstance(value, list):
            # RFC 8693, section 4.2: this claim is a text.
            raise TokenError("scope is malformed")
        else:
            found.update(_one_scope(item) for item in value)
    return frozenset(found)


def _joined(value: Any) -> str:
    """Texts of scopes as one, however they are spaced."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise TokenError("scope is malformed")
    return " ".join(part for text in texts for part in text.split(" ") if part)


def _one_scope(value: Any) -> str:
    """An item of an array: a blank in it would smuggle in a second scope."""
    if not isinstance(value, str) or " " in value or not _SCOPE.fullmatch(value):
        raise TokenError("scope is malformed")
    return value


def _groups(claims: Mapping[str, Any], names: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        value = _find(claims, name)
        if value is _MISSING:
            continue
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, str) or not 1 <= len(item) <= _MAX_TEXT:
                raise TokenError(f"{name} is not text, or an array of texts")
            found.add(item)
    if len(found) > _MAX_GROUPS:
        raise TokenError(f"more than {_MAX_GROUPS} groups")
    return frozenset(found)


def _confirmation(claims: Mapping[str, Any]) -> Mapping[str, str]:
    """``cnf`` (RFC 7800): a way of binding that is not known cannot be checked.

    With two thumbprints the caller has to prove both.
    """
    if "cnf" not in claims:
        return {}
    value = claims["cnf"]
    if (
        not isinstance(value, dict)
        or not value
        or not value.keys() <= _BINDINGS
        or not all(isinstance(text, str) and text for text in value.values())
    ):
        raise TokenError("cnf is not understood")
    return value
