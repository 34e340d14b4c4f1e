"""Progress of long commands: what runs, for how long still, and what each stage gave.

Results go to standard output, one plain line each. Progress goes to standard error: a
line that changes on a terminal, elsewhere a line now and then, so that a log shows that
the command lives.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

__all__ = ["Stages"]

# Nothing is said of what takes less.
_EVERY_S = 5.0
_TERMINAL_EVERY_S = 0.5
_BAR = 20
_WIDTH = 100
# Until a stage is reported, and between two.
_NAMELESS = "working"


class Stages:
    """Shows stages as they are reported: ``stages(name, share, result)``.

    While one runs, its state is shown again and again, also where the command is busy
    and reports nothing.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every_s = _TERMINAL_EVERY_S if self._terminal else _EVERY_S
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._stage, self._share, self._note = _NAMELESS, 0.0, ""
        self._left_s: float | None = None
        self._first_share = 0.0
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Stages:
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._ticker.join()
        with self._lock:
            self._clear()

    def __call__(
        self,
        stage: str,
        share: float,
        result: str = "",
        note: str = "",
        left_s: float | None = None,
    ) -> None:
        """Report that a share of a stage, from 0 to 1, is done, or what it gave.

        Args:
            stage: its name.
            share: how much of it is done.
            result: what stays when it is done; empty before.
            note: what else is shown while it runs.
            left_s: seconds that it still takes, where that is known better than from
                the share.
        """
        with self._lock:
            if stage != self._stage:
                self._stage, self._first_share = stage, share
                self._began = time.monotonic()
            self._share, self._note, self._left_s = share, note, left_s
            if result:
                self._clear()
                self._stage, self._share, self._note = _NAMELESS, 0.0, ""
                self._began = self._shown = time.monotonic()
                print(f"{stage:<12}{result}", flush=True)
            else:
                self._show()

    def _tick(self) -> None:
        while not self._over.wait(self._every_s):
            with self._lock:
                self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < self._every_s:
            return
        self._shown = now
        text = f"{self._stage}{self._state(now)}"[:_WIDTH]
        if self._terminal:
            done = round(_BAR * min(1.0, self._share))
            text = f"\r\x1b[K[{'#' * done:<{_BAR}}] {text}"
        else:
            text += "\n"
        sys.stderr.write(text)
        sys.stderr.flush()

    def _state(self, now: float) -> str:
        """How much is done, and how long the rest takes, if it goes on as so far."""
        spent, done = now - self._began, self._share - self._first_share
        left = self._left_s
        if left is None and done > 0:
            left = spent * (1 - self._share) / done
        state = f" {100 * self._share:.0f}%" if self._share else ""
        time_left = "" if left is None else f", about {left:.0f} s left"
        note = f"; {self._note}" if self._note else ""
        return f"{state}, {spent:.0f} s so far{time_left}{note}"

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
