"""Encapsulated requests and responses (RFC 9458, section 4).

The client seals one request to a gateway's key and gets a context that opens the one
response; the gateway opens the request and gets the context that seals that response.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from sealgate.errors import DecryptionError, EncapsulationError, KeyConfigError
from sealgate.protocol import hpke
from sealgate.protocol.hpke import Buffer, Context, KemPrivateKey, PrivateKey, Suite
from sealgate.protocol.keyconfig import KeyConfig

__all__ = [
    "HEADER_BYTES",
    "REQUEST_LABEL",
    "REQUEST_MEDIA_TYPE",
    "RESPONSE_MEDIA_TYPE",
    "TAG_BYTES",
    "RequestHeader",
    "ResponseContext",
    "choose_suite",
    "open_request",
    "parse_header",
    "seal_request",
]

REQUEST_MEDIA_TYPE = "message/ohttp-req"
RESPONSE_MEDIA_TYPE = "message/ohttp-res"

HEADER_BYTES = 7

# Begins the HPKE info of a request.
REQUEST_LABEL = b"message/bhttp request\x00"
_RESPONSE_LABEL = b"message/bhttp response"
# Of both AEADs.
TAG_BYTES = 16
# From here on a copy costs more than setting up a streaming cipher.
_LARGE_BYTES = 64 << 10


@dataclass(frozen=True)
class RequestHeader:
    """The seven bytes in front of an encapsulated request (section 4.3)."""

    key_id: int
    kem_id: int
    kdf_id: int
    aead_id: int

    def encode(self) -> bytes:
        """The header's bytes, which are also part of the HPKE info."""
        return (
            self.key_id.to_bytes(1, "big")
            + self.kem_id.to_bytes(2, "big")
            + self.kdf_id.to_bytes(2, "big")
            + self.aead_id.to_bytes(2, "big")
        )

    @classmethod
    def decode(cls, data: bytes) -> RequestHeader:
        """The header whose seven bytes these are.

        Raises:
            EncapsulationError: fewer bytes.
        """
        if len(data) < HEADER_BYTES:
            raise EncapsulationError("encapsulated request is too short")
        return cls(
            key_id=data[0],
            kem_id=int.from_bytes(data[1:3], "big"),
            kdf_id=int.from_bytes(data[3:5], "big"),
            aead_id=int.from_bytes(data[5:7], "big"),
        )


class ResponseContext:
    """Seals or opens the one response to a request (section 4.4).

    Attributes:
        encapsulated_key: of the request: no two honest requests have the same.
    """

    def __init__(self, context: Context, enc: bytes) -> None:
        self._suite = context.suite
        self.encapsulated_key = enc
        self._nonce_bytes = max(self._suite.nn, self._suite.nk)
        self._secret = context.export(_RESPONSE_LABEL, self._nonce_bytes)

    def __repr__(self) -> str:
        return f"<ResponseContext {self._suite}>"

    def seal(self, response: Buffer, *, nonce: bytes | None = None) -> bytes:
        """Encapsulate a response.

        Args:
            response: a Binary HTTP response.
            nonce: for published test vectors only; fresh if absent.
        """
        nonce = nonce or secrets.token_bytes(self._nonce_bytes)
        key, aead_nonce = self._keys(nonce)
        return nonce + self._suite.aead(key).encrypt(aead_nonce, response, b"")

    def seal_parts(
        self, parts: Sequence[Buffer], *, nonce: bytes | None = None
    ) -> bytes | bytearray:
        """Encapsulate a response that lies in several buffers.

        A large response is encrypted from where it lies into the one buffer that is
        sent: joining the parts first would be one more copy of it.

        Args:
            parts: together a Binary HTTP response.
            nonce: for published test vectors only; fresh if absent.
        """
        size = sum(map(len, parts))
        if size < _LARGE_BYTES or self._suite.aead_id != hpke.AEAD_AES_128_GCM:
            return self.seal(b"".join(parts), nonce=nonce)
        nonce = nonce or secrets.token_bytes(self._nonce_bytes)
        sealed = bytearray(len(nonce) + size + TAG_BYTES)
        sealed[: len(nonce)] = nonce
        key, aead_nonce = self._keys(nonce)
        encryptor = Cipher(AES(key), GCM(aead_nonce)).encryptor()
        with memoryview(sealed) as view:
            end = len(nonce)
            for part in parts:
                end += encryptor.update_into(part, view[end:])
        encryptor.finalize()
        sealed[-TAG_BYTES:] = encryptor.tag
        return sealed

    def open(self, data: Buffer) -> bytes:
        """Open an encapsulated response.

        Raises:
            EncapsulationError: too short.
            DecryptionError: it does not authenticate.
        """
        if len(data) < self._nonce_bytes + TAG_BYTES:
            raise EncapsulationError("encapsulated response is too short")
        view = memoryview(data)
        key, aead_nonce = self._keys(bytes(view[: self._nonce_bytes]))
        aead = self._suite.aead(key)
        try:
            return aead.decrypt(aead_nonce, view[self._nonce_bytes :], b"")
        except InvalidTag:
            raise DecryptionError("response does not authenticate") from None

    def _keys(self, nonce: bytes) -> tuple[bytes, bytes]:
        prk = hpke.hkdf_extract(self.encapsulated_key + nonce, self._secret)
        key = hpke.hkdf_expand(prk, b"key", self._suite.nk)
        return key, hpke.hkdf_expand(prk, b"nonce", self._suite.nn)


def seal_request(
    config: KeyConfig, request: Buffer, *, ephemeral: PrivateKey | None = None
) -> tuple[bytes, ResponseContext]:
    """Encapsulate a Binary HTTP request to a gateway's key (section 4.3).

    Args:
        config: the gateway's key configuration.
        request: a Binary HTTP request.
        ephemeral: for published test vectors only; fresh if absent.

    Returns:
        The encapsulated request, and the context that opens its response.

    Raises:
        KeyConfigError: no supported suite is offered.
        DecryptionError: the configured public key is not valid.
    """
    suite, encoded = _begun(config)
    enc, context = hpke.setup_sender(
        suite, config.public_key, REQUEST_LABEL + encoded, ephemeral=ephemeral
    )
    sealed = encoded + enc + context.seal(request)
    return sealed, ResponseContext(context, enc)


# A client seals to the same configuration over and over. Refusals are not remembered.
@lru_cache(maxsize=16)
def _begun(config: KeyConfig) -> tuple[Suite, bytes]:
    suite = config.choose()
    header = RequestHeader(config.key_id, suite.kem_id, suite.kdf_id, suite.aead_id)
    return suite, header.encode()


def parse_header(data: Buffer) -> RequestHeader:
    """Read the identifiers of an encapsulated request, to choose the key by.

    Raises:
        EncapsulationError: too short for a header, a key and an AEAD tag.
    """
    # The shortest body has X25519's 32-byte encapsulated key; `open_request` checks the
    # length that the chosen suite needs.
    if len(data) < HEADER_BYTES + 32 + TAG_BYTES:
        raise EncapsulationError("encapsulated request is too short")
    return _header(bytes(data[:HEADER_BYTES]))


def choose_suite(header: RequestHeader) -> Suite:
    """The suite that a header names.

    Raises:
        EncapsulationError: it is not supported.
    """
    try:
        return _suite(header.kem_id, header.kdf_id, header.aead_id)
    except KeyConfigError as error:
        raise EncapsulationError(str(error)) from None


# Public values. What strangers make up pushes out what they made up before, no more.
_header = lru_cache(maxsize=64)(RequestHeader.decode)
# Refusals are not remembered, so there are no more of them than supported suites.
_suite = lru_cache(Suite)


def open_request(
    data: Buffer, private_key: KemPrivateKey
) -> tuple[bytes, ResponseContext]:
    """Open an encapsulated request whose header named this private key (section 4.3).

    Args:
        data: the encapsulated request, possibly hostile.
        private_key: the key that `parse_header` led to.

    Returns:
        The Binary HTTP request, and the context that seals its response.

    Raises:
        EncapsulationError: too short for its suite, or a suite that is not supported.
            Lengths are checked before any key is used.
        DecryptionError: it does not authenticate. What was decrypted until then is
            the library's, which drops it.
    """
    header = parse_header(data)
    suite = choose_suite(header)
    end = HEADER_BYTES + suite.nenc
    if len(data) < end + TAG_BYTES:
        raise EncapsulationError("encapsulated request is too short")
    enc = bytes(data[HEADER_BYTES:end])
    info = REQUEST_LABEL + bytes(data[:HEADER_BYTES])
    context = hpke.setup_receiver(suite, private_key, enc, info)
    request = context.open(memoryview(data)[end:])
    return request, ResponseContext(context, enc)
