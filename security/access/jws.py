"""A signed text (JWS, RFC 7515) in its compact form: parsed strictly, then verified.

`parse` looks at nothing but the form, and trusts nothing. `verify` chooses the key by
``kid``, and holds the header's ``alg`` against the one algorithm of that key (RFC 8725,
3.1). ``jwk``, ``jku``, ``x5u`` and ``x5c`` are never looked at (RFC 8725, 3.10).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.access.jwks import JwkSet, find_key
from security.errors import TokenError

__all__ = ["Jws", "UnknownKidError", "has_header", "parse", "verify"]

MAX_DEPTH = 8
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class UnknownKidError(TokenError):
    """The header names a key that is not there.

    Attributes:
        fetch: a fetch that is under way and may bring it.
    """

    fetch: Future[None] | None = None


@dataclass(frozen=True)
class Jws:
    """A parsed and unverified JWS.

    Attributes:
        header: the protected header.
        payload: bytes of the payload.
        signed: what the signature is over.
        signature: the signature.
    """

    header: Mapping[str, Any]
    payload: bytes = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def claims(self) -> dict[str, Any]:
        """The payload as a strict JSON object: a repeated claim is two texts in one.

        Raises:
            TokenError: it is none.
        """
        return _object(self.payload)


def parse(text: str, *, max_bytes: int) -> Jws:
    """Parse the compact serialization (RFC 7515, section 7.1).

    Args:
        text: may be hostile.
        max_bytes: refuse longer texts before anything else.

    Raises:
        TokenError: too long; padding, blanks or anything else that base64url does not
            need; a header that is no strict JSON object; extensions.
    """
    if len(text) > max_bytes:
        raise TokenError("token is too long")
    if not _COMPACT.fullmatch(text):
        raise TokenError("not a compact JWS")
    head, payload, signature = text.split(".")
    header = _object(_decode(head))
    # No extension is understood, so none may be critical (RFC 7515, 4.1.11); b64 alone
    # would change what is signed (RFC 7797).
    if "crit" in header or "b64" in header:
        raise TokenError("crit and b64 are not supported")
    return Jws(
        header,
        _decode(payload),
        text.rpartition(".")[0].encode("ascii"),
        _decode(signature),
    )


def has_header(text: str) -> bool:
    """Whether a text begins as JWS and JWE do, whatever is wrong with it here.

    It may be a good token to somebody who reads less strictly.
    """
    head, dot, _ = text.partition(".")
    try:
        data = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)).strip()
    except ValueError:  # binascii.Error is one
        return False
    return bool(dot) and data.startswith(b"{") and data.endswith(b"}")


def verify(jws: Jws, keys: JwkSet) -> None:
    """Verify a signature with the key that the header names.

    Raises:
        UnknownKidError: there is no such key.
        TokenError: another algorithm than the key's, or it does not verify.
    """
    key = find_key(keys, jws.header.get("kid"), jws.header.get("alg"))
    if key is None:
        raise UnknownKidError("kid is not known")
    key.verify(jws.signed, jws.signature)


def _decode(text: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise TokenError("not base64url") from None
    # Unused bits of the last character must be zero: one content, one spelling.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text.encode("ascii"):
        raise TokenError("not base64url")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=len(data), max_depth=MAX_DEPTH)
    except JsonError:
        raise TokenError("not a strict JSON object") from None
