"""Numbers that all workers of a server count, in files that survive a worker.

Each worker adds to a file of its own that is mapped into its memory, so counting is an
addition and nothing is lost when a worker is killed. Whoever reads adds all files up.
A worker that takes a dead one's place goes on with its file: there are never more files
than there were workers at once, and no counter ever falls.

A file is a table of records, one per series::

    length of the key (2 bytes) | key, JSON [family, label, …] | values (float64 each)

The length is written last: a record that is seen is whole.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import orjson

__all__ = [
    "MAX_SERIES",
    "MAX_VALUES",
    "Counters",
    "Key",
    "Values",
    "map_shared",
    "read_counters",
]

# Of one worker. Labels are bounded; this holds should one of them not be.
MAX_SERIES = 2048
MAX_VALUES = 24

_RECORD = 1024
_VALUES_AT = _RECORD - 8 * MAX_VALUES
_MAX_KEY = _VALUES_AT - 2
_SIZE = MAX_SERIES * _RECORD
_PATTERN = "worker-*.counters"

Key = tuple[str, ...]
Values: TypeAlias = "memoryview[float]"


class Counters:
    """One worker's table.

    Attributes:
        folder: where the tables of all workers are; None if there is only this one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Open this process's table, or take over one whose process is gone."""
        self.folder = folder
        self._known: dict[Key, Values] = {}
        path = None if folder is None else _own_path(folder)
        self._view = memoryview(map_shared(path, _SIZE))
        for key, offset in _records(self._view):
            self._known[key] = self._values(offset)

    def values(self, key: Key) -> Values:
        """The `MAX_VALUES` numbers of a series, to be added to.

        Beyond `MAX_SERIES`, or with a key that is too long, they are counted nowhere.
        """
        known = self._known.get(key)
        return self._add(key) if known is None else known

    def items(self) -> Iterator[tuple[Key, Values]]:
        """All series of this worker."""
        return iter(list(self._known.items()))

    def read(self) -> Iterator[tuple[Key, list[float]]]:
        """All series of all workers."""
        if self.folder is not None:
            yield from read_counters(self.folder)
            return
        for key, values in self.items():
            yield key, list(values)

    def _add(self, key: Key) -> Values:
        text = orjson.dumps(key)
        place = len(self._known)
        if place >= MAX_SERIES or len(text) > _MAX_KEY:
            return memoryview(bytearray(8 * MAX_VALUES)).cast("d")
        offset = place * _RECORD
        self._view[offset + 2 : offset + 2 + len(text)] = text
        self._view[offset : offset + 2] = len(text).to_bytes(2, "little")
        return self._known.setdefault(key, self._values(offset))

    def _values(self, offset: int) -> Values:
        return self._view[offset + _VALUES_AT : offset + _RECORD].cast("d")


def read_counters(folder: Path) -> Iterator[tuple[Key, list[float]]]:
    """All series in the tables of a folder."""
    for path in sorted(folder.glob(_PATTERN)):
        try:
            data = memoryview(path.read_bytes())
        except FileNotFoundError:  # taken over since
            continue
        if len(data) == _SIZE:
            for key, offset in _records(data):
                values = data[offset + _VALUES_AT : offset + _RECORD].cast("d")
                yield key, list(values)


def _records(view: memoryview) -> Iterator[tuple[Key, int]]:
    for offset in range(0, _SIZE, _RECORD):
        length = int.from_bytes(view[offset : offset + 2], "little")
        if not 0 < length <= _MAX_KEY:
            return
        yield tuple(orjson.loads(view[offset + 2 : offset + 2 + length])), offset


def map_shared(path: Path | None, size: int) -> mmap.mmap:
    """So many bytes of a file that outlives this process; or of none."""
    if path is None:
        return mmap.mmap(-1, size)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _own_path(folder: Path) -> Path:
    path = folder / f"worker-{os.getpid()}.counters"
    _take_over(folder, path)
    return path


def _take_over(folder: Path, path: Path) -> None:
    """Rename a dead worker's table to ours: readers see it once, before and after."""
    for other in sorted(folder.glob(_PATTERN)):
        pid = int(other.stem.partition("-")[2])
        if path.exists() or (pid != os.getpid() and _alive(pid)):
            continue
        try:
            other.rename(path)
        except FileNotFoundError:  # another worker was faster
            continue


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
