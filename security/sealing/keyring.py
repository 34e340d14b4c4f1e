"""HPKE private keys by id, and the configurations that publish them (RFC 9458, 3).

A folder holds one key per file, ``<key id>-<creation time>.pem``, for example
``7-20261121T030000Z.pem``; without the time, the file's own modification time counts.
Since each file says all about its key, adding and removing one is atomic. What is in it
`security.hpke_keys` says. These keys serve Oblivious HTTP and nothing else (section
6.6).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sealgate.errors import UnknownKeyError
from sealgate.protocol import keyconfig
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING, KemPrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp import RequestHeader
from security.errors import KeyFileError
from security.hpke_keys import encode_hpke_key, fresh_hpke_key, read_hpke_key
from security.key_files import write_secret

__all__ = [
    "KEMS",
    "KeyRing",
    "RingKey",
    "active_keys",
    "generate_key",
    "load_keyring",
    "load_keys",
]

MAX_KEYS = 16
# In the order in which clients are offered them.
KEMS = (KEM_XWING, KEM_X25519)

_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(0|[1-9][0-9]*)(?:-([0-9]{8}T[0-9]{6}Z))?\.pem", re.ASCII)


@dataclass(frozen=True)
class RingKey:
    """A private key of the ring.

    Attributes:
        key_id: 0 to 255.
        key: hides itself in `repr`.
        created_at: Unix seconds.
        path: its file.
    """

    key_id: int
    key: KemPrivateKey
    created_at: float
    path: Path

    @property
    def config(self) -> KeyConfig:
        """What is published about it."""
        return KeyConfig(self.key_id, self.key.kem_id, self.key.public_bytes)


class KeyRing:
    """The gateway's keys at one time.

    All of them open requests. Published is the newest of each KEM only: nobody should
    begin to use a key that is about to go (section 6.7).

    Attributes:
        document: the ``application/ohttp-keys`` bytes that clients fetch.
        ids: of all keys, ascending.
    """

    def __init__(self, keys: Sequence[RingKey]) -> None:
        self._keys = {item.key_id: item.key for item in keys}
        self._configs = {item.key_id: item.config for item in keys}
        self.ids = tuple(sorted(self._keys))
        newest = [of_kem[-1] for kem in KEMS if (of_kem := _by_age(keys, kem))]
        self.document = keyconfig.encode_list([item.config for item in newest])

    def __repr__(self) -> str:
        return f"<KeyRing ids={list(self.ids)}>"

    def find(self, header: RequestHeader) -> KemPrivateKey:
        """The key of a request: (key id, KEM), then (KDF, AEAD) (RFC 9458, 4.3).

        Raises:
            UnknownKeyError: any of the four is not what the gateway offers.
        """
        config = self._configs.get(header.key_id)
        if (
            config is None
            or config.kem_id != header.kem_id
            or (header.kdf_id, header.aead_id) not in config.symmetric
        ):
            raise UnknownKeyError("no key for this request")
        return self._keys[header.key_id]


def load_keyring(folder: Path) -> KeyRing:
    """Read every key of a folder, those past their overlap too.

    Raises:
        KeyFileError: no key, an unexpected file, or one that is not such a key.
    """
    return KeyRing(load_keys(folder))


def load_keys(folder: Path) -> list[RingKey]:
    """The keys of a folder, by id.

    Raises:
        KeyFileError: as `load_keyring`.
    """
    try:
        # Kubernetes swaps whole folders under names that begin with two dots.
        names = [name for name in os.listdir(folder) if not name.startswith("..")]
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}") from None
    if not 1 <= len(names) <= MAX_KEYS:
        raise KeyFileError(f"{folder}: expected 1 to {MAX_KEYS} keys")
    keys = sorted((_load(folder / name) for name in names), key=lambda k: k.key_id)
    if len({item.key_id for item in keys}) != len(keys):
        raise KeyFileError(f"{folder}: two keys have the same id")
    return keys


def active_keys(
    keys: Iterable[RingKey], *, now: float, overlap_s: float
) -> list[RingKey]:
    """The keys that still open requests: each KEM's newest, and those it overlaps."""
    keys = list(keys)
    active: list[RingKey] = []
    for kem_id in KEMS:
        of_kem = _by_age(keys, kem_id)
        for item, successor in zip(of_kem, [*of_kem[1:], None]):
            if successor is None or now < successor.created_at + overlap_s:
                active.append(item)
    return active


def generate_key(
    folder: Path,
    key_id: int,
    *,
    kem_id: int = KEM_X25519,
    created_at: float | None = None,
    passphrase: bytes | None = None,
) -> Path:
    """Write a fresh key.

    Args:
        folder: of the ring.
        key_id: 0 to 255, not taken.
        kem_id: one of `KEMS`.
        created_at: Unix seconds, to be part of the name.
        passphrase: encrypts the file, if given.

    Returns:
        Where it was written.

    Raises:
        KeyFileError: the id is taken or not 0 to 255.
    """
    if not 0 <= key_id <= 255:
        raise KeyFileError("a key id is 0 to 255")
    if folder.is_dir() and any(folder.glob(f"{key_id}-*.pem")):
        raise KeyFileError(f"{folder}: key {key_id} exists; keys are never overwritten")
    time = "" if created_at is None else f"-{_format(created_at)}"
    path = folder / f"{key_id}{time}.pem"
    write_secret(path, encode_hpke_key(fresh_hpke_key(kem_id), passphrase=passphrase))
    return path


def _by_age(keys: Iterable[RingKey], kem_id: int) -> list[RingKey]:
    """The keys of a KEM, oldest first; the id decides between equals."""
    of_kem = [item for item in keys if item.key.kem_id == kem_id]
    return sorted(of_kem, key=lambda item: (item.created_at, item.key_id))


def _load(path: Path) -> RingKey:
    key_id, created_at = _parse_name(path)
    return RingKey(key_id, read_hpke_key(path), created_at, path)


def _parse_name(path: Path) -> tuple[int, float]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise KeyFileError(
            f"{path}: expected a file name like 1.pem or 1-20261121T030000Z.pem"
        )
    if len(match[1]) > 3 or int(match[1]) > 255:
        raise KeyFileError(f"{path}: a key id is 0 to 255")
    try:
        created_at = _parse_time(match[2]) if match[2] else os.stat(path).st_mtime
    except (OSError, ValueError):
        raise KeyFileError(f"{path}: no creation time") from None
    return int(match[1]), created_at


def _parse_time(text: str) -> float:
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC).timestamp()


def _format(created_at: float) -> str:
    return datetime.fromtimestamp(created_at, UTC).strftime(_TIME_FORMAT)
