"""Stops runs on the event loop that take longer than they should."""

from __future__ import annotations

import threading
import time

import onnxruntime as ort

__all__ = ["Watchdog"]

# A run on the event loop that takes longer is stopped, and none of its model follows.
_INLINE_LIMIT_S = 0.05


class Watchdog:
    """Stops runs on the event loop that take too long, from a thread of its own.

    The thread only wakes up while there are runs to look at.
    """

    def __init__(self, limit_s: float = _INLINE_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._current: tuple[ort.RunOptions, float] | None = None
        self._awake = False
        self._event = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, options: ort.RunOptions) -> None:
        """Watch a run that starts now."""
        self._current = (options, time.monotonic())
        if not self._awake:
            self._wake()

    def end(self) -> None:
        """The run is over."""
        self._current = None

    def _wake(self) -> None:
        self._awake = True
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, name="inference-watchdog", daemon=True
            )
            self._thread.start()
        self._event.set()

    def _watch(self) -> None:
        while True:
            self._event.wait()
            self._event.clear()
            idle = 0
            while idle < 100:
                time.sleep(self._limit_s / 4)
                current = self._current
                idle = 0 if current is not None else idle + 1
                if current and time.monotonic() - current[1] > self._limit_s:
                    current[0].terminate = True
            self._awake = False
            if self._current is not None:  # began between the two lines above
                self._wake()
