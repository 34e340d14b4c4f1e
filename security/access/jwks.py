"""The issuer's public keys (RFC 7517), each bound to one algorithm (RFC 8725, 3.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.errors import KeyFileError, TokenError
from security.key_files import read_secret
from security.settings.issuers import ALGORITHMS, SHARED_SECRET

__all__ = [
    "MAX_JWKS_BYTES",
    "JwkSet",
    "VerificationKey",
    "find_key",
    "load_jwks",
    "load_secret",
    "parse_jwks",
    "parse_key",
]

MAX_JWKS_BYTES = 256 << 10
MAX_KEYS = 64
MAX_KID_CHARACTERS = 256
# RFC 7518, sections 3.2 to 3.5; larger keys only make each verification dearer.
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
MIN_SECRET_BYTES = 32

# (kty, crv) of the keys this version takes, and what each may verify.
_ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("OKP", "Ed25519"): ("EdDSA",),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("RSA", "None"): ("RS256", "PS256"),
}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True)
class VerificationKey:
    """A key that verifies signatures of one algorithm, and of no other.

    Attributes:
        algorithm: its name (RFC 7518).
        entry: the JWK; equal keys are the same.
        jwk: the library's key.
    """

    algorithm: str
    entry: Mapping[str, Any] = field(repr=False)
    jwk: jwt.PyJWK = field(repr=False, compare=False)

    def verify(self, signed: bytes, signature: bytes) -> None:
        """Verify a JWS signature (RFC 7515, section 5.2).

        Raises:
            TokenError: it does not verify.
        """
        try:
            verified = self.jwk.Algorithm.verify(signed, self.jwk.key, signature)
        except (jwt.PyJWTError, ValueError):
            verified = False
        if not verified:
            raise TokenError("signature does not verify")


# By kid; a shared secret stands alone, under None.
JwkSet = Mapping[str | None, VerificationKey]


def find_key(keys: JwkSet, kid: object) -> VerificationKey | None:
    """The key of a name; a shared secret answers to every one."""
    secret = keys.get(None)
    return secret or (keys.get(kid) if isinstance(kid, str) else None)


def load_jwks(path: Path, *, algorithms: Collection[str] = ALGORITHMS) -> JwkSet:
    """Read a JWK Set file.

    Returns:
        Keys by ``kid``; each knows the one algorithm it verifies.

    Raises:
        KeyFileError: unreadable, malformed, no key, a private or symmetric key, a
            missing or repeated ``kid``, or a key meant for something else.
    """
    try:
        data = read_regular(path, max_bytes=MAX_JWKS_BYTES, follow_links=True)
    except BundleError as error:
        raise KeyFileError(f"{path}: {error}") from None
    return parse_jwks(data, source=str(path), algorithms=algorithms)


def load_secret(path: Path) -> JwkSet:
    """Read the key that HS256 is verified with: whatever ``kid`` says, it is this one.

    Raises:
        KeyFileError: as `security.key_files.read_secret`, or it is too short.
    """
    secret = read_secret(path)
    if len(secret) < MIN_SECRET_BYTES:
        raise KeyFileError(f"{path}: a secret has at least {MIN_SECRET_BYTES} bytes")
    octets = jwt.utils.base64url_encode(secret).decode()
    return {None: _key({"kty": "oct", "k": octets}, SHARED_SECRET)}


def parse_jwks(
    data: bytes,
    *,
    source: str,
    algorithms: Collection[str] = ALGORITHMS,
    lenient: bool = False,
) -> JwkSet:
    """Parse a JWK Set.

    Args:
        data: the document.
        source: names it in errors.
        algorithms: the issuer's; a key that several of them could use must say which.
        lenient: leave out keys that cannot be used (RFC 7517, section 5), for sets that
            an issuer publishes for everybody. A private key is never left out.

    Raises:
        KeyFileError: as `load_jwks`, or no key can be used.
    """
    try:
        document = strict_json.loads_object(data, max_bytes=MAX_JWKS_BYTES)
    except JsonError as error:
        raise KeyFileError(f"{source}: {error}") from None
    entries = document.get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_KEYS:
        raise KeyFileError(f"{source}: expected an array of 1 to {MAX_KEYS} keys")
    keys: dict[str | None, VerificationKey] = {}
    first_fault: KeyFileError | None = None
    for entry in entries:
        kid = _kid(entry, source)
        if kid in keys:
            raise KeyFileError(f"{source}: kid {kid!r} occurs twice")
        try:
            keys[kid] = parse_key(entry, f"{source}: key {kid!r}", algorithms)
        except KeyFileError as error:
            if not lenient:
                raise
            first_fault = first_fault or error
    if not keys and first_fault is not None:
        raise first_fault
    return keys


def _kid(entry: Any, source: str) -> str:
    """The key's name; also refuses what no set of public keys may hold."""
    kid = entry.get("kid") if isinstance(entry, dict) else None
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS:
        raise KeyFileError(f"{source}: a key has no kid")
    if entry.get("kty") != "oct" and _PRIVATE & entry.keys():
        # Not even where others are left out: whoever publishes it has lost it.
        raise KeyFileError(
            f"{source}: key {kid!r} is private; only public keys belong here"
        )
    return kid


def parse_key(
    entry: Mapping[str, Any], where: str, known: Collection[str]
) -> VerificationKey:
    """Parse one public JWK.

    Args:
        entry: may be hostile.
        where: names it in errors.
        known: the algorithms it may be bound to.

    Raises:
        KeyFileError: it is private, malformed, or cannot be bound to just one of them.
    """
    if _PRIVATE & entry.keys():
        raise KeyFileError(f"{where} is private; only public keys belong here")
    possible = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv"))))
    if possible is None:
        raise KeyFileError(f"{where} is not RSA, Ed25519, P-256 or P-384")
    operations = entry.get("key_ops", ["verify"])
    if (
        entry.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        raise KeyFileError(f"{where} is not for verifying signatures")
    algorithm = _bind(entry.get("alg"), possible, where, known)
    try:
        key = _key(entry, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        raise KeyFileError(f"{where} is malformed") from None
    if entry["kty"] == "RSA":
        _check_rsa(key.jwk.key, where)
    return key


def _key(entry: Mapping[str, Any], algorithm: str) -> VerificationKey:
    jwk = jwt.PyJWK(dict(entry), algorithm=algorithm)
    return VerificationKey(algorithm, entry, jwk)


def _bind(
    stated: Any, possible: Collection[str], where: str, known: Collection[str]
) -> str:
    """The one algorithm that a key verifies."""
    if stated is not None and stated not in possible:
        raise KeyFileError(f"{where} cannot be used with its alg")
    bound = [name for name in possible if name in known and stated in (None, name)]
    if not bound:
        raise KeyFileError(f"{where} is for none of the issuer's algorithms")
    if len(bound) > 1:
        raise KeyFileError(
            f"{where} has no alg: let the issuer's algorithms hold one of "
            + ", ".join(bound)
        )
    return bound[0]


def _check_rsa(key: Any, where: str) -> None:
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise KeyFileError(
            f"{where} has {key.key_size} bits, not {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        )
    # A huge exponent makes verifying slow, a tiny one has a history of forgeries.
    if not 65537 <= key.public_numbers().e < 1 << 32:
        raise KeyFileError(f"{where} has an odd exponent")
