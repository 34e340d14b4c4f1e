"""The key ring of a running server: read again when its folder changes.

No request waits for it and none is lost: between two looks at the folder, a second
apart, the ring is one object that requests in work keep using.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from security.errors import KeyFileError
from security.sealing.keyring import KeyRing, RingKey, active_keys, load_keys

__all__ = ["LiveRing"]

CHECK_INTERVAL_S = 1.0
# File systems stamp changes with a coarse clock: a folder that changed this recently
# may have changed again since without showing it.
SETTLED_S = 2.0

_log = logging.getLogger(__name__)


class LiveRing:
    """Keeps the last ring that loaded; drops keys when their overlap is over."""

    def __init__(
        self,
        folder: Path,
        *,
        overlap_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the ring.

        Raises:
            KeyFileError: it cannot be loaded; only later failures are survived.
        """
        self._folder = folder
        self._overlap_s = overlap_s
        self._clock = clock
        self._monotonic = monotonic
        self._stamp = self._settled_stamp()
        self._keys = load_keys(folder)
        self._ring = KeyRing(self._active())
        self._next_check = monotonic() + CHECK_INTERVAL_S
        self._complaint = ""

    def __repr__(self) -> str:
        return f"<LiveRing {self._ring!r}>"

    def current(self) -> KeyRing:
        """The ring to use for one request."""
        now = self._monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_INTERVAL_S
            self._refresh()
        return self._ring

    def _refresh(self) -> None:
        try:
            stamp = self._settled_stamp()
            if stamp is None or stamp != self._stamp:
                self._keys = load_keys(self._folder)
                self._stamp, self._complaint = stamp, ""
        except KeyFileError as error:
            self._stamp = None
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("key ring not reloaded: %s", error)
        active = self._active()
        ring = KeyRing(active)
        if (ring.ids, ring.document) != (self._ring.ids, self._ring.document):
            _log.info("key ring: %r", ring)
        self._ring = ring

    def _active(self) -> list[RingKey]:
        return active_keys(self._keys, now=self._clock(), overlap_s=self._overlap_s)

    def _settled_stamp(self) -> tuple[int, int] | None:
        """What identifies the folder's content; None while that may still change."""
        try:
            status = os.stat(self._folder)
        except OSError as error:
            raise KeyFileError(f"{self._folder}: {error.strerror}") from None
        if abs(self._clock() - status.st_mtime) < SETTLED_S:
            return None
        return status.st_ino, status.st_mtime_ns
