"""The development issuer: mints access tokens where no real authorization server is.

Its key and its tokens are marked: the issuer's name is `DEVELOPMENT_ISSUER`, and a
server whose environment is "production" refuses to start with that name configured.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from sealgate.protocol import strict_json
from security.errors import KeyFileError
from security.key_files import read_private

if TYPE_CHECKING:
    from security.access.jwks import JwkSet

__all__ = [
    "DEVELOPMENT_ISSUER",
    "development_jwks",
    "jwks_document",
    "load_issuer_key",
    "mint",
]

DEVELOPMENT_ISSUER = "urn:sealgate:development-issuer"


def load_issuer_key(home: Path) -> Ed25519PrivateKey:
    """The development issuer's key.

    Raises:
        KeyFileError: missing, or not an Ed25519 key.
    """
    path = home / "keys" / "issuer.pem"
    key = read_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 key")
    return key


def mint(
    key: Ed25519PrivateKey,
    *,
    audience: str,
    subject: str,
    client_id: str,
    scopes: Iterable[str],
    lifetime_s: int,
    now: int,
    confirmation: str | None = None,
) -> str:
    """Sign an access token (RFC 9068, section 2).

    Args:
        key: the development issuer's private key.
        audience: the server the token is for.
        subject: who it speaks for.
        client_id: through which client.
        scopes: what it grants.
        lifetime_s: from ``now`` on.
        now: seconds since the epoch.
        confirmation: thumbprint of the key to bind it to (RFC 9449, section 6.1).
    """
    import jwt  # noqa: PLC0415  (not for --help)

    claims: dict[str, object] = {
        "iss": DEVELOPMENT_ISSUER,
        "aud": audience,
        "sub": subject,
        "client_id": client_id,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + lifetime_s,
        "jti": secrets.token_hex(16),
    }
    if confirmation is not None:
        claims["cnf"] = {"jkt": confirmation}
    headers = {"typ": "at+jwt", "kid": _thumbprint(key.public_key())}
    return jwt.encode(claims, key, algorithm="EdDSA", headers=headers)


def jwks_document(key: Ed25519PublicKey) -> bytes:
    """The JWK Set that a server verifies this issuer's tokens with (RFC 7517)."""
    entry = _jwk(key) | {"kid": _thumbprint(key), "use": "sig", "alg": "EdDSA"}
    return _document([entry])


def development_jwks(keys: JwkSet) -> bytes:
    """A JWK Set as the development issuer publishes it, with its marks."""
    return _document([dict(key.entry) for key in keys.values()])


def _document(entries: list[dict[str, Any]]) -> bytes:
    """Members beside ``keys`` are ignored by who reads it (RFC 7517, section 5)."""
    marks = {"environment": "development", "issuer": DEVELOPMENT_ISSUER}
    return strict_json.dumps({"keys": entries, **marks})


def _jwk(key: Ed25519PublicKey) -> dict[str, str]:
    x = _base64url(key.public_bytes_raw())
    return {"crv": "Ed25519", "kty": "OKP", "x": x}


def _thumbprint(key: Ed25519PublicKey) -> str:
    """JWK thumbprint (RFC 7638; RFC 8037, appendix A.3)."""
    return _base64url(hashlib.sha256(strict_json.dumps(_jwk(key))).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
