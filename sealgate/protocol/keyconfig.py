"""Key configurations: how a gateway publishes what it can open (RFC 9458, section 3).

Media type ``application/ohttp-keys``: a list of configurations, each with its length.
A list in which anything is malformed is refused whole (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sealgate.errors import KeyConfigError
from sealgate.protocol.hpke import (
    AEAD_AES_128_GCM,
    AEAD_CHACHA20_POLY1305,
    KDF_HKDF_SHA256,
    Suite,
)
from sealgate.protocol.kem import PUBLIC_KEY_BYTES

__all__ = ["KEYS_MEDIA_TYPE", "KeyConfig", "decode_list", "encode_list"]

KEYS_MEDIA_TYPE = "application/ohttp-keys"
MAX_LIST_BYTES = 64 << 10

_OFFERED = (
    (KDF_HKDF_SHA256, AEAD_AES_128_GCM),
    (KDF_HKDF_SHA256, AEAD_CHACHA20_POLY1305),
)


@dataclass(frozen=True)
class KeyConfig:
    """One public key and the symmetric algorithms offered with it.

    Attributes:
        key_id: 0 to 255, chosen by the gateway.
        kem_id: RFC 9180 identifier.
        public_key: raw bytes.
        symmetric: pairs (KDF identifier, AEAD identifier), in order of preference.
    """

    key_id: int
    kem_id: int
    public_key: bytes
    symmetric: tuple[tuple[int, int], ...] = _OFFERED

    def encode(self) -> bytes:
        """The configuration's bytes (RFC 9458, section 3.1)."""
        algorithms = b"".join(
            kdf.to_bytes(2, "big") + aead.to_bytes(2, "big")
            for kdf, aead in self.symmetric
        )
        return (
            self.key_id.to_bytes(1, "big")
            + self.kem_id.to_bytes(2, "big")
            + self.public_key
            + len(algorithms).to_bytes(2, "big")
            + algorithms
        )

    @classmethod
    def decode(cls, data: bytes) -> KeyConfig:
        """Parse exactly one configuration.

        Raises:
            KeyConfigError: truncated, trailing bytes, no algorithm, or a KEM whose
                public key length is not known.
        """
        if len(data) < 3:
            raise KeyConfigError("key configuration is truncated")
        kem_id = int.from_bytes(data[1:3], "big")
        size = PUBLIC_KEY_BYTES.get(kem_id)
        if size is None:
            raise KeyConfigError(f"unknown KEM {kem_id:#06x}")
        public_key, rest = data[3 : 3 + size], data[3 + size :]
        if len(rest) < 2:
            raise KeyConfigError("key configuration is truncated")
        length, algorithms = int.from_bytes(rest[:2], "big"), rest[2:]
        if length != len(algorithms) or length % 4 or not length:
            raise KeyConfigError("symmetric algorithms do not match their length")
        symmetric = tuple(
            (
                int.from_bytes(algorithms[i : i + 2], "big"),
                int.from_bytes(algorithms[i + 2 : i + 4], "big"),
            )
            for i in range(0, length, 4)
        )
        return cls(data[0], kem_id, public_key, symmetric)

    def choose(self) -> Suite:
        """The first offered suite that this version supports.

        Raises:
            KeyConfigError: there is none.
        """
        for kdf_id, aead_id in self.symmetric:
            try:
                return Suite(self.kem_id, kdf_id, aead_id)
            except KeyConfigError:
                continue
        raise KeyConfigError("no supported symmetric algorithm is offered")


def encode_list(configs: Sequence[KeyConfig]) -> bytes:
    """The ``application/ohttp-keys`` document (RFC 9458, section 3.2)."""
    encoded = [config.encode() for config in configs]
    return b"".join(len(item).to_bytes(2, "big") + item for item in encoded)


def decode_list(data: bytes) -> list[KeyConfig]:
    """Parse an ``application/ohttp-keys`` document.

    Configurations with a KEM this version does not know are passed over, as section 3
    lets a client do; anything malformed refuses the whole list.

    Raises:
        KeyConfigError: too long, truncated, malformed, or nothing usable in it.
    """
    if len(data) > MAX_LIST_BYTES:
        raise KeyConfigError(f"more than {MAX_LIST_BYTES} bytes of key configurations")
    configs: list[KeyConfig] = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 2], "big")
        item = data[position + 2 : position + 2 + length]
        if len(item) != length or length < 3:
            raise KeyConfigError("key configuration list is truncated")
        if int.from_bytes(item[1:3], "big") in PUBLIC_KEY_BYTES:
            configs.append(KeyConfig.decode(item))
        position += 2 + length
    if not configs:
        raise KeyConfigError("no usable key configuration")
    return configs
