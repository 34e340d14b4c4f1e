"""What each worker runs at this moment, in a file that outlives it; and who was it.

onnxruntime is native code, so a run can end the whole process by a signal. No line of
Python can tell of that afterwards. Each worker therefore keeps a note of every run that
is under way, in a file that is mapped into its memory: request id, pseudonym, model, no
payload. The parent process reads the notes of a worker that died, and keeps them with
the signal in the list of the server's casualties. Whoever is on that list again and
again is held off for a while, so that one caller's requests, or one model, cannot keep
the workers from everybody else.

In the folder that the parent makes for its lifetime::

    worker-PID.notes   slots of 256 bytes: length (0: free) | request id, subject, model
    casualties.json    the newest ones, the oldest of them first
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from models.files import write_atomic
from service.telemetry.counters import map_shared

__all__ = [
    "Casualties",
    "Casualty",
    "HeldOff",
    "Note",
    "Notes",
    "read_notes",
    "who_is_held_off",
]

_SLOT = 256
_SLOTS = 512
_SIZE = _SLOT * _SLOTS
_SEPARATOR = "\n"
# Kept; more than any rule below looks at.
_KEPT = 64
# So many within so long hold a caller or a model off, until they are longer ago.
HELD_OFF_AFTER = 3
HELD_OFF_S = 600.0


@dataclass(frozen=True)
class Note:
    """A run that was under way.

    Attributes:
        request: its id; empty for a model's first runs, which nobody asked for.
        subject: the caller's pseudonym.
        model: the full tag.
    """

    request: str
    subject: str
    model: str


@dataclass(frozen=True)
class Casualty:
    """A worker that ended by a signal.

    Attributes:
        time: Unix seconds.
        pid: of the worker.
        signal: its name, like "SIGSEGV".
        notes: of what it ran.
    """

    time: float
    pid: int
    signal: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class HeldOff:
    """Who may not run anything now.

    Attributes:
        subjects: pseudonyms of callers.
        models: full tags.
    """

    subjects: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()


class Notes:
    """This worker's notes; threads may share them.

    >>> notes = Notes()
    >>> notes.end(notes.begin([notes.text("1f", "ab", "toy:1.0.0")]))
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Begin with none.

        Args:
            folder: the server's; None if nobody would read them.
        """
        path = None if folder is None else _path(folder, os.getpid())
        self._view = memoryview(map_shared(path, _SIZE))
        self._free = list(range(0, _SIZE, _SLOT))

    @staticmethod
    def text(request: str, subject: str, model: str) -> bytes:
        """A note, to be used for one run or several."""
        return _SEPARATOR.join((request, subject, model)).encode()[: _SLOT - 1]

    def begin(self, texts: Sequence[bytes]) -> list[int]:
        """A run of these begins; returns their slots.

        Beyond 512 at once they are not noted.
        """
        slots = []
        for text in texts:
            try:
                slot = self._free.pop()
            except IndexError:
                break
            # The length comes last: a note that is seen is whole.
            self._view[slot + 1 : slot + 1 + len(text)] = text
            self._view[slot] = len(text)
            slots.append(slot)
        return slots

    def end(self, slots: Sequence[int]) -> None:
        """It is over."""
        for slot in slots:
            self._view[slot] = 0
            self._free.append(slot)


def read_notes(folder: Path, pid: int) -> tuple[Note, ...]:
    """What a worker that is gone was running, and take its notes away."""
    path = _path(folder, pid)
    try:
        data = path.read_bytes()
    except OSError:
        return ()
    path.unlink(missing_ok=True)
    found = []
    for start in range(0, min(len(data), _SIZE), _SLOT):
        text = data[start + 1 : start + 1 + data[start]].decode(errors="replace")
        parts = text.split(_SEPARATOR)
        if len(parts) == 3:
            found.append(Note(*parts))
    return tuple(found)


class Casualties:
    """The list of a server's casualties: the parent adds, every worker looks."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "casualties.json"
        self._stamp: tuple[int, int] | None = None
        self._known: tuple[Casualty, ...] = ()

    def add(self, casualty: Casualty) -> None:
        """Write one down.

        Raises:
            OSError: it cannot be written.
        """
        if self._path is not None:
            newest = (*self.all(), casualty)[-_KEPT:]
            write_atomic(self._path, orjson.dumps([asdict(item) for item in newest]))

    def all(self) -> tuple[Casualty, ...]:
        """All that are kept, read again when there are more."""
        if self._path is None:
            return ()
        with contextlib.suppress(OSError):  # there has not been any
            status = os.stat(self._path)
            stamp = status.st_ino, status.st_mtime_ns
            if stamp != self._stamp:
                items = orjson.loads(self._path.read_bytes())
                self._known, self._stamp = tuple(map(_casualty, items)), stamp
        return self._known


def who_is_held_off(casualties: Iterable[Casualty], *, now: float) -> HeldOff:
    """Hold off who was there when several workers ended.

    Callers first: a model is held off for the casualties that no caller who is held off
    was part of. One who always runs beside such a caller waits with that one.

    >>> run = Note("1f", "ab", "toy:1.0.0")
    >>> crash = Casualty(0.0, 7, "SIGFPE", (run,))
    >>> sorted(who_is_held_off([crash] * 3, now=9.0).subjects)
    ['ab']
    >>> who_is_held_off([crash] * 3, now=900.0).subjects
    frozenset()

    Args:
        casualties: in any order.
        now: Unix seconds.
    """
    recent = [one.notes for one in casualties if now - one.time < HELD_OFF_S]
    subjects = _often([{n.subject for n in notes} - {""} for notes in recent])
    left = [notes for notes in recent if subjects.isdisjoint(n.subject for n in notes)]
    return HeldOff(subjects, _often([{note.model for note in notes} for notes in left]))


def _often(names: Sequence[set[str]]) -> frozenset[str]:
    counted = Counter(name for some in names for name in some)
    return frozenset(name for name, n in counted.items() if n >= HELD_OFF_AFTER)


def _casualty(item: Mapping[str, object]) -> Casualty:
    notes = tuple(Note(**note) for note in item["notes"])  # type: ignore[attr-defined]
    return Casualty(**{**item, "notes": notes})  # type: ignore[arg-type]


def _path(folder: Path, pid: int) -> Path:
    return folder / f"worker-{pid}.notes"
