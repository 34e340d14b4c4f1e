"""Keys on a schedule: generate, rotate, retire, list (RFC 9458, sections 6.6 and 6.7).

`rotate` may run as often as one likes, from cron for example: it adds a key where the
newest is due, and deletes those whose overlap is over. What the server publishes and
accepts follows from the files alone, so nothing else must be told.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from security.errors import KeyFileError
from security.sealing.keyring import (
    KEMS,
    MAX_KEYS,
    RingKey,
    active_keys,
    generate_key,
    load_keys,
)

__all__ = ["KeyStatus", "Rotation", "generate", "list_keys", "retire", "rotate"]


@dataclass(frozen=True)
class KeyStatus:
    """A key, and where it stands.

    Attributes:
        key_id, kem_id, path: which.
        created_at: Unix seconds.
        state: "current" is published; "overlap" still opens requests; "over" does not,
            and is only waiting to be deleted.
        until: Unix seconds; when a current key is due for rotation, when an
            overlapping one ends or ended.
    """

    key_id: int
    kem_id: int
    path: Path
    created_at: float
    state: str
    until: float


@dataclass(frozen=True)
class Rotation:
    """What a rotation did: the files it wrote, the ids of the keys it deleted."""

    generated: tuple[Path, ...]
    retired: tuple[int, ...]


def generate(
    folder: Path, *, now: float, passphrase: bytes | None = None
) -> tuple[Path, ...]:
    """Add a fresh key of each KEM, whatever the age of the ones there are.

    Raises:
        KeyFileError: the folder holds something else, or no more keys fit.
    """
    with _locked(folder):
        return _generate(folder, KEMS, now=now, passphrase=passphrase)


def rotate(
    folder: Path,
    *,
    now: float,
    lifetime_s: float,
    overlap_s: float,
    passphrase: bytes | None = None,
) -> Rotation:
    """Replace each KEM's key if it is due, and delete keys past their overlap.

    Args:
        folder: of the ring; made if it does not exist.
        now: Unix seconds.
        lifetime_s: age at which a key is replaced.
        overlap_s: for how long its predecessor still opens requests.
        passphrase: encrypts new keys, if given.

    Raises:
        KeyFileError: the folder holds something else, or a key cannot be written.
    """
    with _locked(folder):
        retired = _retire(folder, now=now, overlap_s=overlap_s)
        keys = _load(folder)
        due = [kem_id for kem_id in KEMS if now - _newest(keys, kem_id) >= lifetime_s]
        generated = _generate(folder, due, now=now, passphrase=passphrase)
    return Rotation(generated, retired)


def retire(
    folder: Path, *, now: float, overlap_s: float, key_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """Delete keys past their overlap, and the ones named, at once.

    Clients that still use a deleted key are told to fetch the configurations again.

    Returns:
        The ids of the deleted keys.

    Raises:
        KeyFileError: a named key does not exist, or none would be left.
    """
    with _locked(folder):
        return _retire(folder, now=now, overlap_s=overlap_s, key_ids=key_ids)


def list_keys(
    folder: Path, *, now: float, lifetime_s: float, overlap_s: float
) -> list[KeyStatus]:
    """Where each key stands, newest first.

    Raises:
        KeyFileError: the folder holds something else.
    """
    keys = load_keys(folder)
    statuses: list[KeyStatus] = []
    for kem_id in KEMS:
        of_kem = sorted(
            (item for item in keys if item.key.kem_id == kem_id),
            key=lambda item: (item.created_at, item.key_id),
        )
        for item, successor in zip(of_kem, [*of_kem[1:], None]):
            if successor is None:
                state, until = "current", item.created_at + lifetime_s
            else:
                until = successor.created_at + overlap_s
                state = "overlap" if now < until else "over"
            statuses.append(
                KeyStatus(item.key_id, kem_id, item.path, item.created_at, state, until)
            )
    return sorted(statuses, key=lambda s: (-s.created_at, s.kem_id))


def _generate(
    folder: Path, kem_ids: Sequence[int], *, now: float, passphrase: bytes | None
) -> tuple[Path, ...]:
    paths: list[Path] = []
    for kem_id in kem_ids:
        keys = _load(folder)
        if len(keys) >= MAX_KEYS:
            raise KeyFileError(f"{folder}: holds {MAX_KEYS} keys; retire some first")
        key_id = _free_id(keys)
        path = generate_key(
            folder, key_id, kem_id=kem_id, created_at=now, passphrase=passphrase
        )
        paths.append(path)
    return tuple(paths)


def _retire(
    folder: Path, *, now: float, overlap_s: float, key_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    keys = _load(folder)
    for key_id in key_ids:
        if key_id not in {item.key_id for item in keys}:
            raise KeyFileError(f"{folder}: there is no key {key_id}")
    active = {i.key_id for i in active_keys(keys, now=now, overlap_s=overlap_s)}
    gone = [i for i in keys if i.key_id not in active or i.key_id in key_ids]
    if keys and len(gone) == len(keys):
        raise KeyFileError(f"{folder}: no key would be left; generate one first")
    for item in gone:
        item.path.unlink()
    return tuple(item.key_id for item in gone)


def _load(folder: Path) -> list[RingKey]:
    return load_keys(folder) if any(folder.iterdir()) else []


def _newest(keys: Sequence[RingKey], kem_id: int) -> float:
    times = [item.created_at for item in keys if item.key.kem_id == kem_id]
    return max(times, default=float("-inf"))


def _free_id(keys: Sequence[RingKey]) -> int:
    """The id behind the newest key's; an id is free for long before it comes again."""
    taken = {item.key_id for item in keys}
    newest = max(keys, key=lambda item: (item.created_at, item.key_id), default=None)
    start = 1 if newest is None else newest.key_id + 1
    return next(i % 256 for i in range(start, start + 256) if i % 256 not in taken)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One rotation at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}") from None
    finally:
        os.close(descriptor)
