"""The issuer's public keys (RFC 7517), each bound to one algorithm (RFC 8725, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.errors import KeyFileError

__all__ = ["JwkSet", "load_jwks"]

MAX_JWKS_BYTES = 256 << 10
MAX_KEYS = 64

# (kty, crv) of the keys this version takes, and the one algorithm each may verify.
_ALGORITHMS = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}

JwkSet = Mapping[str, jwt.PyJWK]


def load_jwks(path: Path) -> JwkSet:
    """Read a JWK Set file.

    Returns:
        Keys by ``kid``; each knows the one algorithm it verifies.

    Raises:
        KeyFileError: unreadable, malformed, no key, a private or symmetric key, a
            missing or repeated ``kid``, or a key meant for something else.
    """
    try:
        data = read_regular(path, max_bytes=MAX_JWKS_BYTES, follow_links=True)
        document = strict_json.loads_object(data, max_bytes=MAX_JWKS_BYTES)
    except (BundleError, JsonError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    entries = document.get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_KEYS:
        raise KeyFileError(f"{path}: expected an array of 1 to {MAX_KEYS} keys")
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        kid, key = _parse(entry, path)
        if kid in keys:
            raise KeyFileError(f"{path}: kid {kid!r} occurs twice")
        keys[kid] = key
    return keys


def _parse(entry: Any, path: Path) -> tuple[str, jwt.PyJWK]:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    if not isinstance(kid, str) or not kid:
        raise KeyFileError(f"{path}: a key has no kid")
    algorithm = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv"))))
    if algorithm is None:
        raise KeyFileError(f"{path}: key {kid!r} is neither Ed25519 nor P-256")
    if "d" in entry:
        raise KeyFileError(
            f"{path}: key {kid!r} is private; only public keys belong here"
        )
    operations = entry.get("key_ops", ["verify"])
    if (
        entry.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        raise KeyFileError(f"{path}: key {kid!r} is not for verifying signatures")
    if entry.get("alg", algorithm) != algorithm:
        raise KeyFileError(f"{path}: key {kid!r} cannot be used with its alg")
    try:
        return kid, jwt.PyJWK(entry, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        raise KeyFileError(f"{path}: key {kid!r} is malformed") from None
