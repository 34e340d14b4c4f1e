"""The issuer's public keys (RFC 7517), each bound to one algorithm (RFC 8725, 3.1).

Issuers publish their sets for everybody: an entry that is not for us is left out, and
said so. A private key is never left out, and neither is a set of which nothing remains;
only one that is empty as published is taken as it is: the issuer's emergency stop.
"""

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
    "KeyRules",
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

# (kty, crv) of the keys this version takes, and what each may verify. RFC 9864 has two
# names for one algorithm: which of them a key without alg is meant for makes no
# difference, which one a token says it was signed with must be the key's.
_ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("RSA", "None"): ("RS256", "PS256"),
}
_SAME = frozenset({"EdDSA", "Ed25519"})
# The library knows the one by its older name only.
_LIBRARY_NAMES = {"Ed25519": "EdDSA"}
# Members of private keys: RFC 7518, 6.2.2, 6.3.2 and 6.4.1; AKP's (ML-DSA).
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
SIGNATURE_USES = frozenset({"sig"})


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


# By kid and algorithm, so that one key may be published for two; a shared secret
# stands alone, under None.
JwkSet = Mapping[tuple[str | None, str], VerificationKey]


def find_key(keys: JwkSet, kid: object, algorithm: object) -> VerificationKey | None:
    """The key of a name and an algorithm; a shared secret answers to every name.

    Raises:
        TokenError: the name is known, but only for other algorithms.
    """
    secret = keys.get((None, SHARED_SECRET))
    if secret is not None:
        kid = None
    if isinstance(algorithm, str) and (kid is None or isinstance(kid, str)):
        found = keys.get((kid, algorithm))
        if found is not None:
            return found
    if any(known == kid for known, _ in keys):
        raise TokenError("alg is not the key's")
    return None


@dataclass(frozen=True)
class KeyRules:
    """What an issuer's settings say about its keys.

    Attributes:
        algorithms: accepted ones; a key that several could use must say which.
        uses: accepted values of ``use``.
    """

    algorithms: Collection[str] = ALGORITHMS
    uses: Collection[str] = SIGNATURE_USES


def load_jwks(
    path: Path, *, rules: KeyRules = KeyRules(), left_out: list[str] | None = None
) -> JwkSet:
    """Read a JWK Set file.

    Raises:
        KeyFileError: unreadable, or as `parse_jwks`.
    """
    try:
        data = read_regular(path, max_bytes=MAX_JWKS_BYTES, follow_links=True)
    except BundleError as error:
        raise KeyFileError(f"{path}: {error}") from None
    return parse_jwks(data, source=str(path), rules=rules, left_out=left_out)


def load_secret(path: Path) -> JwkSet:
    """Read the key that HS256 is verified with: whatever ``kid`` says, it is this one.

    Raises:
        KeyFileError: as `security.key_files.read_secret`, or it is too short.
    """
    secret = read_secret(path)
    if len(secret) < MIN_SECRET_BYTES:
        raise KeyFileError(f"{path}: a secret has at least {MIN_SECRET_BYTES} bytes")
    octets = jwt.utils.base64url_encode(secret).decode()
    return {(None, SHARED_SECRET): _key({"kty": "oct", "k": octets}, SHARED_SECRET)}


def parse_jwks(
    data: bytes,
    *,
    source: str,
    rules: KeyRules = KeyRules(),
    left_out: list[str] | None = None,
) -> JwkSet:
    """Parse a JWK Set.

    Args:
        data: the document.
        source: names it in errors.
        rules: of the issuer.
        left_out: is given a line for each entry that is not for us.

    Returns:
        Each key under its ``kid`` and the one algorithm it verifies; nothing for a set
        that is empty.

    Raises:
        KeyFileError: no JWK Set, a private or symmetric key, two keys of one name and
            algorithm, or entries of which none can be used.
    """
    try:
        document = strict_json.loads_object(data, max_bytes=MAX_JWKS_BYTES)
    except JsonError as error:
        raise KeyFileError(f"{source}: {error}") from None
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeyFileError(f"{source}: expected an array of at most {MAX_KEYS} keys")
    keys: dict[tuple[str | None, str], VerificationKey] = {}
    faults = [] if left_out is None else left_out
    for number, entry in enumerate(entries, start=1):
        where = f"{source}: key {_name(entry, number)}"
        _refuse_private(entry, where)
        try:
            kid = _kid(entry, where)
            found = parse_key(entry, where, rules)
        except KeyFileError as error:
            faults.append(str(error))
            continue
        for key in found:
            if keys.setdefault((kid, key.algorithm), key) != key:
                raise KeyFileError(f"{where} occurs twice")
    if entries and not keys:
        raise KeyFileError(faults[0])
    return keys


def _refuse_private(entry: Any, where: str) -> None:
    """Not even where others are left out: whoever publishes it has lost it.

    Raises:
        KeyFileError: it is private, or no key at all.
    """
    if not isinstance(entry, dict):
        raise KeyFileError(f"{where} is no object")
    if _PRIVATE & entry.keys():
        raise KeyFileError(f"{where} is private; only public keys belong here")


def _name(entry: Any, number: int) -> str:
    """What errors call an entry: its kid, or its place."""
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return repr(kid[:MAX_KID_CHARACTERS]) if isinstance(kid, str) else str(number)


def _kid(entry: Mapping[str, Any], where: str) -> str:
    kid = entry.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS:
        raise KeyFileError(f"{where} has no kid")
    return kid


def parse_key(
    entry: Mapping[str, Any], where: str, rules: KeyRules
) -> list[VerificationKey]:
    """Parse one public JWK.

    Args:
        entry: may be hostile.
        where: names it in errors.
        rules: what it may be bound to.

    Returns:
        The key, once under each name of its algorithm.

    Raises:
        KeyFileError: it is private, malformed, weak, or cannot be bound to just one
            algorithm.
    """
    _refuse_private(entry, where)
    possible = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv"))))
    if possible is None:
        raise KeyFileError(f"{where} is not RSA, Ed25519, P-256 or P-384")
    operations = entry.get("key_ops", ["verify"])
    if (
        str(entry.get("use", "sig")) not in rules.uses
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        raise KeyFileError(f"{where} is not for verifying signatures")
    algorithms = _bind(entry.get("alg"), possible, where, rules.algorithms)
    try:
        keys = [_key(entry, algorithm) for algorithm in algorithms]
    except (jwt.PyJWTError, ValueError, TypeError):
        raise KeyFileError(f"{where} is malformed") from None
    if entry["kty"] == "RSA":
        _check_rsa(keys[0].jwk.key, where)
    return keys


def _key(entry: Mapping[str, Any], algorithm: str) -> VerificationKey:
    name = _LIBRARY_NAMES.get(algorithm, algorithm)
    jwk = jwt.PyJWK({**entry, "alg": name}, algorithm=name)
    return VerificationKey(algorithm, entry, jwk)


def _bind(
    stated: Any, possible: Collection[str], where: str, known: Collection[str]
) -> list[str]:
    """The one algorithm that a key verifies, by all of its names."""
    if stated is not None and stated not in possible:
        raise KeyFileError(f"{where} cannot be used with its alg")
    bound = [name for name in possible if name in known and stated in (None, name)]
    if not bound:
        raise KeyFileError(f"{where} is for none of the issuer's algorithms")
    if len(bound) > 1 and not _SAME.issuperset(bound):
        raise KeyFileError(
            f"{where} has no alg: let the issuer's algorithms hold one of "
            + ", ".join(bound)
        )
    return bound


def _check_rsa(key: Any, where: str) -> None:
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise KeyFileError(
            f"{where} has {key.key_size} bits, not {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        )
    # A huge exponent makes verifying slow, a tiny one has a history of forgeries.
    if not 65537 <= key.public_numbers().e < 1 << 32:
        raise KeyFileError(f"{where} has an odd exponent")
    if _has_roca_form(key.public_numbers().n):
        raise KeyFileError(f"{where} is of the weak form ROCA (CVE-2017-15361)")


# Nemec, Sys, Svenda, Klinec, Matyas: The Return of Coppersmith's Attack (CCS 2017),
# section 3.1: primes k*M + (65537^a mod M), with M a product of the first primes, leave
# a modulus that is a power of 65537 modulo each of these. One of another origin is so
# with a probability below 2^-150.
_ROCA_GENERATOR = 65537
_ROCA_PRIMES = (
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83,
    89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
)  # fmt: skip
_ROCA_POWERS = {
    prime: frozenset(pow(_ROCA_GENERATOR, e, prime) for e in range(prime))
    for prime in _ROCA_PRIMES
}


def _has_roca_form(modulus: int) -> bool:
    return all(modulus % prime in powers for prime, powers in _ROCA_POWERS.items())
