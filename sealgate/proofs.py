"""The key that a client's token is bound to, and the proofs made with it (RFC 9449)."""

from __future__ import annotations

import secrets

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.errors import ProfileError
from sealgate.protocol import dpop

__all__ = ["ProofKey"]


class ProofKey:
    """A private key that the client alone has.

    A token that is bound to it is worth nothing to who finds the token. Give the
    issuer its `thumbprint` (or let it see a proof), and the client the key.

    >>> key = ProofKey.generate()
    >>> len(key.thumbprint)
    43
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Take a key.

        Raises:
            ProfileError: of another curve than P-256.
        """
        if not isinstance(key.curve, ec.SECP256R1):
            raise ProfileError("proof_key is not a P-256 key")
        self._key = key
        self.thumbprint = dpop.thumbprint(dpop.public_jwk(key.public_key()))

    def __repr__(self) -> str:
        return f"<ProofKey {self.thumbprint}>"

    @classmethod
    def generate(cls) -> ProofKey:
        """A new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: str) -> ProofKey:
        """Read a PKCS#8 PEM key that is not encrypted.

        Raises:
            ProfileError: it is something else.
        """
        try:
            key = serialization.load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ProfileError("proof_key is not a private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ProfileError("proof_key is not a P-256 key")
        return cls(key)

    def to_pem(self) -> str:
        """The key as PKCS#8 PEM. Write it readable by one user."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    def prove(
        self,
        method: str,
        url: str,
        *,
        token: str | None,
        now: float,
        nonce: str | None = None,
    ) -> str:
        """The proof for one request; never to be sent with another.

        Args:
            method: of the request.
            url: of the request.
            token: that is sent with it; None where it is asked for (RFC 9449, 5): the
                token endpoint binds it to this key.
            now: seconds since the epoch.
            nonce: the server's, if it gave one.

        Raises:
            ProfileError: a token that is no token.
        """
        try:
            return dpop.make_proof(
                self._key,
                method=method,
                url=url,
                token=token,
                identifier=secrets.token_urlsafe(16),
                now=int(now),
                nonce=nonce,
            )
        except UnicodeEncodeError:
            raise ProfileError("the token is not ASCII") from None
