"""What a worker keeps of a window: one event of each subject, chosen at random.

Every event has a random tag, and of each subject the one with the smallest counts. Over
workers and hosts that is the smallest of all, so that each of a subject's events is as
likely to count as any other, wherever it was answered, and a subject counts once.

No tag is drawn for most events: how many follow until one has a smaller tag is itself a
random number with a known distribution (Li 1994, algorithm L, for a reservoir of one).
So of n events of a subject about ln n are looked at, and the others cost a subtraction.
What is kept of an event are the codes of its bins.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from sealgate.protocol.tensors import Array
from security.errors import MonitoringError

__all__ = ["Coded", "Counted", "Counts", "Sealer", "merge"]

_NONCE_BYTES = 12
# Entries of a segment are filled up to a power of two, at least to this: its length
# says about how many there are, and no more.
_LEAST = 64
_FOREVER = 1 << 62
_random = secrets.SystemRandom().random


class Coded(Protocol):
    """Makes codes of events: what is kept of one that counts."""

    @property
    def width(self) -> int:
        """Codes of an event, each a byte."""

    def codes(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: slice
    ) -> NDArray[np.uint8]:
        """The codes of some rows, shape (rows, width)."""

    def describe(self) -> Any:
        """What they mean, as JSON values."""


@dataclass(frozen=True)
class Counted:
    """What is released of a window, before noise.

    Attributes:
        counts: by name.
        sensitivity: how far one subject moves them, in Euclidean length.
        contribution: in words, what of a subject is counted.
        subjects: their number.
        details: what the counts mean.
    """

    counts: Mapping[str, NDArray[np.int64]] = field(repr=False)
    sensitivity: float
    contribution: str
    subjects: int = field(repr=False)
    details: Mapping[str, Any]


class Counts:
    """One worker's events of one model version in one window.

    The event loop adds, a thread takes. Beyond ``max_subjects`` no new one is counted;
    a window that may have been so full is not released, since there one subject more
    may have kept another one out.
    """

    def __init__(self, layout: Coded, *, max_subjects: int) -> None:
        self._layout = layout
        self._max_subjects = max_subjects
        # By subject: events to pass over, the tag of the one that is kept, its codes.
        self._kept: dict[str, tuple[list[int], float, bytes]] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def add(
        self,
        subject: str,
        rows: int,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """Count a request: each of its rows is an event of its subject.

        Args:
            subject: its pseudonym, 32 hexadecimal digits.
            rows: at least one.
            inputs: as the model took them.
            outputs: those that were asked for.
        """
        kept = self._kept.get(subject)
        if kept is not None:
            left = kept[0]
            if left[0] >= rows:
                left[0] -= rows
                return
            row, tag = left[0], kept[1]
        elif len(self._kept) >= self._max_subjects:
            return
        else:
            row, tag = 0, 1.0
        while True:
            tag *= 1.0 - _random()
            pause = _pause(tag)
            if row + 1 + pause >= rows:
                break
            row += 1 + pause
        codes = self._layout.codes(inputs, outputs, slice(row, row + 1)).tobytes()
        with self._lock:
            self._kept[subject] = [row + 1 + pause - rows], tag, codes
            self._changed.add(subject)

    def take(self, *, whole: bool) -> tuple[bytes, set[str]]:
        """What has changed since the last time, or all, for `Sealer.seal`.

        Returns:
            The bytes, empty if nothing has; and what `put_back` takes where the bytes
            went nowhere.
        """
        with self._lock:
            changed, self._changed = self._changed, set()
            names = list(self._kept) if whole else list(changed)
            kept = [self._kept[name] for name in names]
        if not changed:
            return b"", changed
        width = self._layout.width
        entries = np.zeros(
            max(_LEAST, 1 << (len(names) - 1).bit_length()), _type(width)
        )
        entries["tag"] = math.inf
        some = entries[: len(names)]
        some["subject"] = np.frombuffer(bytes.fromhex("".join(names)), "<u8").reshape(
            -1, 2
        )
        some["tag"] = [tag for _, tag, _ in kept]
        codes = np.frombuffer(b"".join(item for *_, item in kept), np.uint8)
        some["codes"] = codes.reshape(-1, width)
        return entries.tobytes(), changed

    def put_back(self, changed: Iterable[str]) -> None:
        """These changes were not stored: `take` them again."""
        with self._lock:
            self._changed.update(changed)


class Sealer:
    """Encrypts what leaves a worker before noise was added, AES-256-GCM."""

    def __init__(self, secret: bytes) -> None:
        """Derive the key.

        Args:
            secret: of the deployment, 32 random bytes.

        Raises:
            MonitoringError: it is shorter.
        """
        if len(secret) < 32:
            raise MonitoringError("the monitoring key has less than 32 bytes")
        info = b"sealgate monitoring counts v1"
        key = HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)
        self._aead = AESGCM(key)

    def __repr__(self) -> str:
        return "<Sealer>"

    def seal(self, plain: bytes, place: str) -> bytes:
        """Encrypt, bound to the place in the store that it is for."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Decrypt.

        Raises:
            MonitoringError: changed, of another place, or of another key.
        """
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, text, place.encode())
        except (InvalidTag, ValueError):
            raise MonitoringError("counts in the store cannot be opened") from None


def merge(parts: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    """Of each subject, the event with the smallest tag of all parts.

    Args:
        parts: what `Counts.take` gave, of several workers and times.
        width: histograms of the layout.

    Returns:
        Codes, shape (subjects, histograms).

    Raises:
        MonitoringError: a part has entries of another width.
    """
    kind = _type(width)
    if any(len(part) % kind.itemsize for part in parts):
        raise MonitoringError("counts in the store are of another layout")
    entries = np.frombuffer(b"".join(parts), kind)
    entries = entries[np.isfinite(entries["tag"])]
    first, second = entries["subject"].T
    order = np.lexsort((entries["tag"], second, first))
    names = entries["subject"][order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (names[1:] != names[:-1]).any(axis=1)
    codes: NDArray[np.uint8] = entries["codes"][order][new]
    return codes


def _pause(tag: float) -> int:
    """How many events pass until one has a smaller tag."""
    rate = math.log1p(-tag) if tag < 1.0 else -math.inf
    pause = math.log(1.0 - _random()) / rate if rate else math.inf
    return int(min(pause, _FOREVER))


def _type(width: int) -> np.dtype[np.void]:
    return np.dtype([("subject", "<u8", 2), ("tag", "<f8"), ("codes", "u1", (width,))])
