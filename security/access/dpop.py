"""Proofs of possession, from the server's side (DPoP, RFC 9449).

The checks of `Proofs.check` are those of section 4.3, in its order and by its numbers:

1.  there is one DPoP field;
2.  it holds one well-formed JWT;
3.  every required claim is there;
4.  ``typ`` is dpop+jwt;
5.  ``alg`` is an asymmetric algorithm of ours;
6.  the signature verifies with the header's ``jwk``;
7.  which holds no private key;
8.  ``htm`` is the request's method;
9.  ``htu`` is the request's URL, without query and fragment;
10. ``nonce`` is one of ours, where nonces are asked for;
11. ``iat`` is within the window, and the proof has not been seen (section 11.1);
12. a. ``ath`` is the token's hash; b. the token is bound to this key.

The URL is this server's own, as it is configured, with the path of the request: of a
sealed request that is the inner one. What the caller says the server is called is not
asked, or a proof made for another server would do.

10 comes after 12, and the memory of 11 last of all, so that only who has the key of a
valid token is given a nonce, or makes the memory grow.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from sealgate.errors import ProtocolError
from sealgate.protocol import dpop
from security.access import jws
from security.access.jwks import KeyRules, parse_key
from security.errors import KeyFileError, NonceError, ProofError, TokenError

__all__ = ["PROOF_ALGORITHMS", "Nonces", "ProofStore", "Proofs"]

PROOF_ALGORITHMS = ("ES256", "ES384", "EdDSA", "Ed25519")
MAX_PROOF_BYTES = 4 << 10
SLOT_S = 10
NONCE_LIFETIME_S = 300
_MAX_IDENTIFIER = 256
_MAC_BYTES = 16


class ProofStore(Protocol):
    """Remembers proofs for all workers: `security.sealing.replay.ReplayStore`."""

    async def insert(
        self, entry: bytes, *, slot: int, owner: bytes, made: int | None = None
    ) -> bool:
        """Remember an entry of an owner, made then; say whether it is new."""

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """Drop the slots before one."""


class Nonces:
    """Nonces that every worker makes and knows, without a memory (section 8).

    One is the number of a period of five minutes, and a keyed hash of that. It is good
    for its period and the next one.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "<Nonces>"

    def current(self, now: float) -> str:
        """The nonce to use now."""
        return self._make(int(now) // NONCE_LIFETIME_S)

    def check(self, nonce: object, now: float) -> None:
        """Accept a nonce of this or the last period.

        Raises:
            NonceError: another one; it carries the current one.
        """
        period = int(now) // NONCE_LIFETIME_S
        given = nonce.encode("utf-8", "replace") if isinstance(nonce, str) else b""
        for valid in (period, period - 1):
            if hmac.compare_digest(given, self._make(valid).encode()):
                return
        raise NonceError(self.current(now))

    def _make(self, period: int) -> str:
        number = period.to_bytes(8, "big")
        mac = hmac.digest(self._key, b"dpop nonce" + number, "sha256")[:_MAC_BYTES]
        return base64.urlsafe_b64encode(number + mac).decode().rstrip("=")


class Proofs:
    """Checks proofs for one server."""

    def __init__(
        self,
        store: ProofStore,
        *,
        key: bytes,
        resource: str,
        nonces: Nonces | None,
        window_s: int,
    ) -> None:
        """Wire it.

        Args:
            store: shared by all who serve.
            key: of the names that subjects have in the store.
            resource: this server's URL, without a path.
            nonces: None asks for none.
            window_s: how far a proof's time may be from ours.
        """
        self._store = store
        self._key = key
        self._resource = resource
        self._nonces = nonces
        self._window_s = window_s
        self._next_forget = 0.0

    async def check(
        self,
        proofs: Sequence[str],
        *,
        method: str,
        path: str,
        token: str,
        account: str,
        confirmation: str,
        now: float,
    ) -> None:
        """Accept a request whose sender has the key of its token.

        Args:
            proofs: the values of all DPoP fields.
            method: of the request.
            path: of the request, without query.
            token: it came with.
            account: of the token; bounds what one subject has remembered.
            confirmation: the thumbprint in the token.
            now: seconds since the epoch.

        Raises:
            NonceError: everything fits, but the nonce.
            ProofError: any other check failed; the message is for the log.
            QuotaError: the account has its share of the memory.
            ReplayStoreError: whether it was seen cannot be told.
        """
        if len(proofs) != 1:
            raise ProofError("not one DPoP field")  # 1
        jwk, claims = _open(proofs[0])
        if claims["htm"] != method:
            raise ProofError("htm is another method")  # 8
        try:
            target = dpop.normalize_target(claims["htu"])
            if target != dpop.normalize_target(self._resource + path):
                raise ProofError("htu is another URL")  # 9
            jkt = dpop.thumbprint(jwk)
        except ProtocolError:
            raise ProofError("htu is no URL") from None
        if abs(claims["iat"] - now) > self._window_s:
            raise ProofError("iat is outside the window")  # 11
        if not _same(claims.get("ath"), dpop.token_hash(token)):
            raise ProofError("ath is another token")  # 12a
        if not _same(jkt, confirmation):
            raise ProofError("the token is bound to another key")  # 12b
        if self._nonces is not None:
            self._nonces.check(claims.get("nonce"), now)  # 10
        self._forget(now)
        owner = hmac.digest(self._key, b"proofs\0" + account.encode(), "sha256")[:8]
        text = f"dpop proof\0{jkt}\0{claims['jti']}".encode()
        entry = hashlib.sha256(text).digest()[:16]
        # The end of 11. The slot is the proof's own, so that a copy meets it there.
        made = claims["iat"]
        slot = made // SLOT_S
        if not await self._store.insert(entry, slot=slot, owner=owner, made=made):
            raise ProofError("seen before")

    def _forget(self, now: float) -> None:
        if now >= self._next_forget:
            self._next_forget = now + SLOT_S
            oldest = int(now) - self._window_s
            self._store.forget(before_slot=oldest // SLOT_S - 1, drop=())


def _open(text: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Checks 2 to 7; returns the public key and the claims."""
    try:
        parsed = jws.parse(text, max_bytes=MAX_PROOF_BYTES)
        claims = parsed.claims()
    except TokenError as error:
        raise ProofError(f"not a JWT: {error}") from None  # 2
    for name, kind in (("jti", str), ("htm", str), ("htu", str), ("iat", int)):
        if type(claims.get(name)) is not kind:
            raise ProofError(f"{name} is missing, or of another type")  # 3
    if (
        not 0 < len(claims["jti"]) <= _MAX_IDENTIFIER
        or not 0 <= claims["iat"] < 1 << 40
    ):
        raise ProofError("jti or iat is out of bounds")  # 3
    if parsed.header.get("typ") != dpop.PROOF_TYPE:
        raise ProofError("typ is not dpop+jwt")  # 4
    jwk = parsed.header.get("jwk")
    if not isinstance(jwk, dict):
        raise ProofError("there is no jwk")  # 6
    try:
        possible = parse_key(jwk, "jwk", KeyRules(PROOF_ALGORITHMS))  # 5, 7
        keys = {key.algorithm: key for key in possible}
        key = keys.get(str(parsed.header.get("alg")))
        if key is None:
            raise ProofError("alg is not the key's")  # 5
        key.verify(parsed.signed, parsed.signature)  # 6
    except (KeyFileError, TokenError) as error:
        raise ProofError(str(error)) from None
    return jwk, claims


def _same(given: object, expected: str) -> bool:
    """Compared in a time that does not say how much of it fits."""
    text = given.encode("utf-8", "replace") if isinstance(given, str) else b""
    return hmac.compare_digest(text, expected.encode())
