"""What an endpoint was asked, and what it answered, on disk while a scan goes on.

A scan that is killed in the middle of a unit of work begins that unit anew, with the
same questions. Answers that it already has are taken from here: no question is asked
twice, and a budget of queries holds over all runs of a scan. Each answer is used once,
so that asking again on purpose, to see whether answers vary, asks the endpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.files import write_atomic
from security.errors import AssessmentError

__all__ = ["Journal"]

Row = Mapping[str, NDArray[Any]]
_COUNT = "asked.json"
_LENGTH_BYTES = 8
_ROWS = "_rows"


class Journal:
    """The questions of one scan of one endpoint.

    Attributes:
        asked: rows sent so far, over all runs. A row counts when it is sent, whether
            or not its answer arrives.
    """

    def __init__(
        self, folder: Path | None = None, scan: Mapping[str, Any] | None = None
    ) -> None:
        """Go on with a folder's journal, or begin one.

        Args:
            folder: where to keep it; None keeps nothing.
            scan: what is scanned and how, JSON: another scan's journal is refused.

        Raises:
            AssessmentError: the folder holds another scan's journal.
        """
        self._folder = folder
        text = json.dumps(scan or {}, sort_keys=True, default=str)
        self._scan = hashlib.sha256(text.encode()).hexdigest()
        self.asked = self._read_count()
        self._path: Path | None = None
        self._known: dict[bytes, deque[Row]] = {}

    def begin(self, unit: str) -> None:
        """The questions that follow belong to a unit of work: load its answers."""
        self._known = defaultdict(deque)
        if self._folder is None:
            return
        name = hashlib.sha256(unit.encode()).hexdigest()[:16]
        self._path = self._folder / f"asked-{name}.journal"
        for rows, outputs in _records(self._path):
            for place, key in enumerate(rows):
                row = {name: values[place] for name, values in outputs.items()}
                self._known[bytes(key)].append(row)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Questions that belong to no unit, because all of them use the answers."""
        before = self._path, self._known
        self.begin(name)
        try:
            yield
        finally:
            self._path, self._known = before

    def end(self) -> None:
        """The unit's result is kept elsewhere: forget its answers."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def take(self, rows: NDArray[Any]) -> list[Row | None]:
        """What is known about each row, used up; None where it must be asked."""
        known = [self._known.get(key) for key in map(_key, rows)]
        return [queue.popleft() if queue else None for queue in known]

    def spend(self, rows: int) -> None:
        """Count rows that are about to be sent; negative, that were refused unread."""
        self.asked += rows
        if self._folder is not None:
            value = {"scan": self._scan, "rows": self.asked}
            write_atomic(self._folder / _COUNT, json.dumps(value).encode())

    def keep(self, rows: NDArray[Any], outputs: Row) -> None:
        """Write answers down, before anything is done with them."""
        if self._path is None:
            return
        keys = np.frombuffer(b"".join(map(_key, rows)), np.uint8).reshape(len(rows), -1)
        buffer = io.BytesIO()
        np.savez(buffer, **{**outputs, _ROWS: keys})  # type: ignore[arg-type]  # as in store.py
        data = buffer.getvalue()
        with self._path.open("ab") as file:
            file.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    def _read_count(self) -> int:
        if self._folder is None:
            return 0
        path = self._folder / _COUNT
        if not path.exists():
            return 0
        try:
            value = json.loads(path.read_bytes())
            scan, rows = value["scan"], int(value["rows"])
        except (OSError, ValueError, TypeError, KeyError):
            # What was asked is not known any more: no budget can be kept.
            raise AssessmentError(f"{path} is damaged; choose another --out") from None
        if scan != self._scan:
            raise AssessmentError(
                f"{self._folder.parent} holds an unfinished scan of another target, "
                "data or options; finish it, or remove it, or choose another --out"
            )
        return rows


def _key(row: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()[:16]


def _records(path: Path) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any]]]:
    """Whole records; the last one may have been cut by a kill, and is dropped."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    start = 0
    while len(data) - start >= _LENGTH_BYTES:
        first = start + _LENGTH_BYTES
        end = first + int.from_bytes(data[start:first], "big")
        if end > len(data):
            break
        try:
            with np.load(io.BytesIO(data[first:end]), allow_pickle=False) as file:
                outputs = {name: file[name] for name in file}
            rows = outputs.pop(_ROWS)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            break  # damaged: what follows is asked again
        yield rows, outputs
        start = end
    if start < len(data):
        # What is appended next must follow a whole record.
        write_atomic(path, data[:start])
