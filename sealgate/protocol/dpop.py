"""Proofs that a caller has the key its token is bound to (DPoP, RFC 9449).

A proof is a JWT of type ``dpop+jwt``, made anew for each request: it names the method
and the URL, the token, and the time, and is signed with a key whose public half it
holds. What is signed and compared is here; who believes it when is the server's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from sealgate.errors import ProtocolError
from sealgate.protocol import strict_json

__all__ = [
    "NONCE_HEADER",
    "PROOF_HEADER",
    "PROOF_TYPE",
    "SCHEME",
    "make_proof",
    "normalize_target",
    "public_jwk",
    "thumbprint",
    "token_hash",
]

SCHEME = b"DPoP"
PROOF_HEADER = b"dpop"
NONCE_HEADER = b"dpop-nonce"
PROOF_TYPE = "dpop+jwt"

# RFC 7638, section 3.2, and RFC 8037, section 2: what a thumbprint covers.
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_TARGET = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]+)(/[^?#\s]*)?(?:[?#]\S*)?"
)
_UNRESERVED = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")


def public_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """A P-256 key as a JWK (RFC 7518, section 6.2)."""
    numbers = key.public_numbers()
    x, y = (_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def thumbprint(jwk: Mapping[str, object]) -> str:
    """The SHA-256 thumbprint of a public JWK (RFC 7638), which tokens are bound to.

    Raises:
        ProtocolError: the key lacks a member.

    >>> thumbprint({"kty": "OKP", "crv": "Ed25519",
    ...     "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    'kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k'
    """
    names = _REQUIRED.get(str(jwk.get("kty")), ())
    members = {name: jwk.get(name) for name in names}
    if not members or not all(isinstance(value, str) for value in members.values()):
        raise ProtocolError("not a public JWK")
    return _base64url(hashlib.sha256(strict_json.dumps(members)).digest())


def token_hash(token: str) -> str:
    """What a proof names its token by: ``ath`` (RFC 9449, section 4.2)."""
    return _base64url(hashlib.sha256(token.encode("ascii")).digest())


def normalize_target(url: str) -> str:
    """A URL as proofs are compared by: without query, in one spelling (RFC 3986, 6.2).

    Raises:
        ProtocolError: no such URL.

    >>> normalize_target("HTTPS://Models.Example:443/v2/%6dodels?x#y")
    'https://models.example/v2/models'
    """
    match = _TARGET.fullmatch(url)
    if match is None:
        raise ProtocolError("not a target URL")
    scheme, authority = match[1].lower(), match[2].lower()
    authority = authority.removesuffix(_DEFAULT_PORTS.get(scheme, "\0"))
    return f"{scheme}://{authority}{_ESCAPE.sub(_escape, match[3] or '/')}"


def make_proof(
    key: ec.EllipticCurvePrivateKey,
    *,
    method: str,
    url: str,
    token: str | None,
    identifier: str,
    now: int,
    nonce: str | None = None,
) -> str:
    """Make the proof for one request (RFC 9449, section 4.2).

    Args:
        key: P-256; the token is bound to its thumbprint.
        method: of the request.
        url: of the request; a query is left out.
        token: that is sent with it; None where it is asked for.
        identifier: never used before (``jti``).
        now: seconds since the epoch.
        nonce: the server's, if it gave one.
    """
    header = {"alg": "ES256", "jwk": public_jwk(key.public_key()), "typ": PROOF_TYPE}
    claims: dict[str, object] = {
        "htm": method,
        "htu": normalize_target(url),
        "iat": now,
        "jti": identifier,
    }
    if token is not None:
        claims["ath"] = token_hash(token)
    if nonce is not None:
        claims["nonce"] = nonce
    parts = (strict_json.dumps(part) for part in (header, claims))
    signed = ".".join(map(_base64url, parts))
    # JOSE wants the two numbers in place of the DER structure (RFC 7518, section 3.4).
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
    return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
