"""What one issuer's tokens must be, and what may be said about it in the settings.

An issuer is a table of ``[[access.issuers]]``, or, for the first one, ``[access]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from security.errors import SettingsError
from security.settings.profiles import RELAXATIONS

__all__ = [
    "ALGORITHMS",
    "SHARED_SECRET",
    "IssuerSettings",
    "KeyLocation",
    "check_issuers",
    "check_resource",
    "https_url",
    "listening_origin",
]

# A file, or an https URL.
KeyLocation = Path | str

ALGORITHMS = ("EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256")
SHARED_SECRET = "HS256"  # noqa: S105  (an algorithm's name)
DPOP_MODES = ("off", "optional", "required")
MAX_ISSUERS = 32
_POSITIVE = (
    "jwks_refresh_s",
    "jwks_retry_s",
    "jwks_max_stale_s",
    "introspection_cache_s",
    "introspection_per_s",
    "max_lifetime_s",
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (nothing is bound)

# A claim of the token's top level, or a JSON pointer (RFC 6901) to one inside another.
_CLAIM = re.compile(
    r"[^/\s\x00-\x1f][^\x00-\x1f]{0,199}|(?:/(?:[^/~\x00-\x1f]|~[01])+){1,6}"
)
_TOKEN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+/-]{1,64}")
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True)
class IssuerSettings:
    """One issuer, and how its tokens are read: RFC 9068, unless a profile says else.

    Names of claims are names of the top level, or JSON pointers (RFC 6901) to nested
    ones: ``/realm_access/roles``.

    Attributes:
        issuer: exact ``iss``.
        profile: of `security.settings.profiles`: sets what is not set here.
        audience: must be in ``aud``.
        jwks: the issuer's public keys (RFC 7517): a file, or an https URL.
        jwks_ca: file of the authorities that may certify the URL's host; the system's
            if absent.
        jwks_refresh_s: how often the URL is fetched.
        jwks_retry_s: at least so long between fetches, however many tokens name keys
            that are not known.
        jwks_max_stale_s: for how long the last good set is used while the file or the
            URL gives none; then the issuer's tokens are answered 503.
        key_uses: values of ``use`` that mark its keys, beside "sig".
        introspection: https URL that is asked about each token (RFC 7662), in place of
            keys: the issuer's tokens are opaque. Of one issuer at most, since a token
            that names nobody may be shown to nobody else. ``jwks_ca`` is for it, too.
        introspection_client: who asks there.
        introspection_secret: file of that client's secret.
        introspection_cache_s: for how long an answer is believed.
        introspection_per_s: about how many tokens that are not known to be active it is
            asked per second, by each worker.
        secret: file of the key that HS256 is verified with, at least 32 bytes; then no
            other algorithm is.
        algorithms: accepted ones; each key is bound to one of them.
        token_types: accepted ``typ`` of the header. "JWT" lets in tokens that do not
            say they are access tokens: name claims that only those have as required.
        relax: of `security.settings.profiles.RELAXATIONS`: what tokens may lack.
        clients: the only ones, if any are named.
        subject_prefix: what every subject begins with.
        max_lifetime_s: longest ``exp`` minus ``iat``.
        required_claims: ``claim=text``, or ``claim`` for any content; refuse tokens
            where one is not so.
        subject_claim: whom the token speaks for.
        client_claim: through which client.
        token_id_claim: its identifier.
        tenant_claim: the organization it belongs to; none if empty.
        scope_claims: what it grants: texts of scopes with spaces, or arrays of scopes.
        group_claims: arrays of groups or roles, or single ones.
        dpop: whether tokens may or must be bound to a key (RFC 9449).
        certificate_bound: refuse tokens that are not bound to a client's certificate
            (RFC 8705). Those that are need theirs whatever stands here.
    """

    issuer: str = ""
    profile: str = "rfc9068"
    audience: str = ""
    jwks: KeyLocation = Path("jwks.json")
    jwks_ca: Path | None = None
    jwks_refresh_s: int = 300
    jwks_retry_s: int = 30
    jwks_max_stale_s: int = 86_400
    key_uses: tuple[str, ...] = ()
    introspection: str = ""
    introspection_client: str = ""
    introspection_secret: Path | None = None
    introspection_cache_s: int = 30
    introspection_per_s: int = 50
    secret: Path | None = None
    algorithms: tuple[str, ...] = ALGORITHMS
    token_types: tuple[str, ...] = ("at+jwt",)
    relax: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    subject_prefix: str = ""
    max_lifetime_s: int = 3600
    required_claims: tuple[str, ...] = ()
    subject_claim: str = "sub"
    client_claim: str = "client_id"
    token_id_claim: str = "jti"  # noqa: S105  (a claim's name)
    tenant_claim: str = ""
    scope_claims: tuple[str, ...] = ("scope",)
    group_claims: tuple[str, ...] = ()
    dpop: str = "off"
    certificate_bound: bool = False


def check_issuers(issuers: Sequence[IssuerSettings]) -> None:
    """Refuse issuers that cannot be meant.

    Raises:
        SettingsError: the message names the issuer and the key.
    """
    if len(issuers) > MAX_ISSUERS:
        raise SettingsError(f"access.issuers: at most {MAX_ISSUERS}")
    if sum(bool(issuer.introspection) for issuer in issuers) > 1:
        raise SettingsError("access.issuers: introspection: of one issuer at most")
    names = [issuer.issuer for issuer in issuers]
    for issuer in issuers:
        where = f"access: issuer {issuer.issuer!r}"
        if not _IDENTIFIER.fullmatch(issuer.issuer):
            raise SettingsError(f"{where}: not an identifier of 1 to 512 characters")
        if names.count(issuer.issuer) > 1:
            raise SettingsError(f"{where}: is there twice")
        lacking = not issuer.audience and "aud-absent" in issuer.relax
        if not _IDENTIFIER.fullmatch(issuer.audience) and not lacking:
            raise SettingsError(f"{where}: audience must be set, without blanks")
        _check_relaxed(issuer, where)
        _check_algorithms(issuer, where)
        _check_introspection(issuer, where)
        _check_claims(issuer, where)
        for name in _POSITIVE:
            if getattr(issuer, name) <= 0:
                raise SettingsError(f"{where}: {name}: must be positive")
        if issuer.jwks_max_stale_s < issuer.jwks_refresh_s:
            raise SettingsError(f"{where}: jwks_max_stale_s: below jwks_refresh_s")
        _check_choice((issuer.dpop,), DPOP_MODES, f"{where}: dpop")


def _check_relaxed(issuer: IssuerSettings, where: str) -> None:
    """What is let go must be made up for by something else."""
    _check_choice(issuer.relax, tuple(RELAXATIONS), f"{where}: relax", empty=True)
    types = issuer.token_types
    if not types or not all(map(_TOKEN_TYPE.fullmatch, types)):
        raise SettingsError(f"{where}: token_types: types like at+jwt or JWT")
    marks = bool(issuer.required_claims or issuer.subject_prefix)
    for name, made_up, by in (
        ("typ-absent", marks, "required_claims or subject_prefix"),
        ("iss-absent", bool(issuer.subject_prefix), "subject_prefix"),
        ("aud-absent", bool(issuer.clients), "clients"),
        (
            "public-issuer",
            marks or bool(issuer.clients),
            "clients, required_claims or subject_prefix",
        ),
    ):
        if name in issuer.relax and not made_up:
            raise SettingsError(f"{where}: {name} needs {by}")


def _check_algorithms(issuer: IssuerSettings, where: str) -> None:
    if isinstance(issuer.jwks, str):
        https_url(issuer.jwks, f"{where}: jwks")
    if issuer.secret is None:
        _check_choice(issuer.algorithms, ALGORITHMS, f"{where}: algorithms")
    elif issuer.algorithms != (SHARED_SECRET,):
        # Never beside public keys: what one side calls a key, another calls a secret.
        raise SettingsError(f'{where}: secret needs algorithms = ["{SHARED_SECRET}"]')


def _check_introspection(issuer: IssuerSettings, where: str) -> None:
    client, secret = issuer.introspection_client, issuer.introspection_secret
    if issuer.introspection:
        https_url(issuer.introspection, f"{where}: introspection")
        if issuer.secret is not None or isinstance(issuer.jwks, str):
            raise SettingsError(f"{where}: introspection stands in place of keys")
        if not _IDENTIFIER.fullmatch(client) or secret is None:
            names = "introspection_client and introspection_secret"
            raise SettingsError(f"{where}: introspection needs {names}")
    elif client or secret is not None:
        raise SettingsError(f"{where}: introspection is not set")


def _check_claims(issuer: IssuerSettings, where: str) -> None:
    required = [item.partition("=") for item in issuer.required_claims]
    if any(mark and not value for _, mark, value in required):
        raise SettingsError(f"{where}: required_claims: expected claim=text or claim")
    named = (
        issuer.subject_claim,
        issuer.client_claim,
        issuer.token_id_claim,
        *([issuer.tenant_claim] if issuer.tenant_claim else []),
        *issuer.scope_claims,
        *issuer.group_claims,
        *(name for name, _, _ in required),
    )
    for name in named:
        if not _CLAIM.fullmatch(name):
            raise SettingsError(f"{where}: {name!r} names no claim")


def _check_choice(
    given: Sequence[str], known: Sequence[str], where: str, *, empty: bool = False
) -> None:
    if not (given or empty) or not set(given) <= set(known):
        raise SettingsError(f"{where}: of {', '.join(known)}")


def check_resource(resource: str, *, production: bool = False) -> None:
    """Refuse what is not the origin of a server.

    Raises:
        SettingsError: not ``https://host[:port]``; plain http beyond this machine or in
            production.
    """
    parts = _split(resource, "access.resource")
    plain = parts.scheme == "http" and parts.hostname in _LOOPBACK and not production
    if (parts.scheme != "https" and not plain) or parts.path or parts.query:
        raise SettingsError(
            "access.resource: expected https://host or https://host:port"
        )


def listening_origin(host: str, port: int, *, tls: bool) -> str:
    """The origin of a server by where it listens; empty where it may have no such name.

    >>> listening_origin("::", 3000, tls=False)
    'http://[::1]:3000'
    >>> listening_origin("192.0.2.1", 3000, tls=False)
    ''
    """
    known = _WILDCARDS.get(host, host)
    shown = f"[{known}]" if ":" in known else known
    origin = f"{'https' if tls else 'http'}://{shown}:{port}"
    try:
        check_resource(origin)
    except SettingsError:
        return ""
    return origin


def https_url(
    url: str, where: str, *, or_here: bool = False, or_plain: bool = False
) -> str:
    """Give the URL back if it is one that keys may come from.

    Args:
        url: as somebody wrote it.
        where: what to call it.
        or_here: whether plain http will do to this machine, by its loopback.
        or_plain: whether plain http will do to any: what comes from there is signed.

    Raises:
        SettingsError: not https, or with a user, a password or a fragment.
    """
    parts = _split(url, where)
    near = or_plain or (or_here and parts.hostname in _LOOPBACK)
    if parts.scheme != "https" and not (parts.scheme == "http" and near):
        plain = "http and " if or_plain else ""
        raise SettingsError(f"{where}: only {plain}https URLs")
    return url


def _split(url: str, where: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # Not the value: a URL that was mistyped may hold a password.
    if not usable or not _IDENTIFIER.fullmatch(url) or "@" in url or "#" in url:
        raise SettingsError(f"{where}: not a URL without user and fragment")
    return parts
