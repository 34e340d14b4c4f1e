"""One part of a job: its rows read, run and written, in whatever process.

What a part gives waits under a name of its own until the job has booked and recorded
it; only then it gets its place.
"""

from __future__ import annotations

import csv
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnxruntime as ort

from sealgate.errors import ProfileError, TensorError
from sealgate.long_tables import Frame, open_table
from sealgate.output import named_outputs
from sealgate.protocol.datatypes import numbers
from sealgate.protocol.tensors import Array
from security.admission.gate import Admission
from security.admission.loaded import LoadedModel
from security.batch.plan import Part, read_arrays, row_specs
from security.batch.writing import forced, open_writer
from security.errors import BatchError, InferenceFailedError
from security.settings.runtime import RuntimeSettings

__all__ = ["WAITING", "Done", "Task", "Worker", "describe"]

BATCH_ROWS = 16_384
# What a file that waits is called: readers of folders pass it over.
WAITING = ".waiting-"
# What a row may be refused for by itself.
_OF_ROWS = (TensorError, ProfileError, InferenceFailedError)


@dataclass(frozen=True)
class Task:
    """What all parts of a job have in common.

    Attributes:
        name: of the job; another one has another.
        admission: the model, and what admitted it.
        runtime: how it is run.
        folder: where parts are written.
        kind: of `writing.KINDS`.
        columns: that are read; None for all.
        keep: those that go with the answers.
        skip: leave out rows that are refused, and say which, instead of ending.
        bits: count what answers tell.
    """

    name: str
    admission: Admission = field(repr=False)
    runtime: RuntimeSettings
    folder: Path
    kind: str
    columns: tuple[str, ...] | None
    keep: tuple[str, ...]
    skip: bool
    bits: bool


@dataclass(frozen=True)
class Done:
    """What a part gave.

    Attributes:
        number: of the part.
        rows: that were answered.
        skipped: that were refused.
        bits: that the answers tell at most.
        size: bytes of the answers' file.
        sha256: of that file; empty where there is none.
        columns: names of the answers' columns.
        seconds: that it took.
        answers, refused: names of the files that wait; empty for none.
    """

    number: int
    rows: int
    skipped: int
    bits: float
    size: int
    sha256: str
    columns: tuple[str, ...]
    seconds: float
    answers: str = ""
    refused: str = ""


def describe(admission: Admission) -> dict[str, Any]:
    """A model's metadata, as far as rows are read and answers are named by it."""
    manifest = admission.bundle.manifest
    return {
        "name": manifest.name,
        "inputs": [tensor.described() for tensor in manifest.inputs],
        "outputs": [tensor.described() for tensor in manifest.served],
    }


class Worker:
    """Does parts of one job; the model is loaded once."""

    def __init__(self, task: Task) -> None:
        """Load the model.

        Raises:
            AdmissionRefused, SettingsError: as `LoadedModel`.
            BatchError: it takes no rows.
        """
        self.task = task
        self._model = LoadedModel(task.admission, task.runtime)
        self._metadata = describe(task.admission)
        self._specs = row_specs(self._metadata)
        self._names = self._model.release.names
        self._options = ort.RunOptions()
        self._hidden = frozenset() if task.columns is not None else frozenset(task.keep)
        one = any(spec.shape[:1] == (1,) for spec in self._model.input_specs)
        self._most = 1 if one else self._model.manifest.max_rows

    def do(self, part: Part) -> Done:
        """Read, run and write a part.

        Raises:
            BatchError: a row is refused, or the model does not answer by rows; names
                the file, and the row where it is one.
            ProfileError: the file cannot be read.
        """
        began = time.monotonic()
        token = f"{WAITING}{part.number:06d}-{secrets.token_hex(4)}"
        answers, refused = (self.task.folder / f"{token}{end}" for end in ("", ".bad"))
        bad = _Refused(refused)
        rows, bits = 0, 0.0
        columns: tuple[str, ...] = ()
        try:
            with closing(open_writer(answers, self.task.kind)) as writer, closing(bad):
                for good, outputs in self._all(part, bad):
                    rows += len(good)
                    if self.task.bits:
                        bits += self._model.release.told(outputs.items())
                    table = self._table(good, outputs)
                    columns = tuple(table)
                    writer.write(table)
            size, digest = forced(answers) if rows else (0, "")
            if rows + bad.count != part.place.rows:
                raise BatchError(f"{part.source.name}: has not the rows that it says")
        except BaseException:
            answers.unlink(missing_ok=True)
            refused.unlink(missing_ok=True)
            raise
        if not rows:
            answers.unlink(missing_ok=True)
        return Done(
            part.number,
            rows,
            bad.count,
            bits,
            size,
            digest,
            columns,
            time.monotonic() - began,
            answers.name if rows else "",
            refused.name if bad.count else "",
        )

    def _all(
        self, part: Part, bad: _Refused
    ) -> Iterator[tuple[Frame, dict[str, Array]]]:
        part.source.check()
        table = open_table(part.source.path, self._metadata)
        with closing(table.read(part.place, self.task.columns, BATCH_ROWS)) as frames:
            for frame in frames:
                yield from self._answered(frame, part, bad)

    def _answered(
        self, frame: Frame, part: Part, bad: _Refused
    ) -> Iterator[tuple[Frame, dict[str, Array]]]:
        """Rows with their answers; halves of them where one is refused."""
        try:
            yield frame, self._run(frame)
        except _OF_ROWS as error:
            if not self.task.skip:
                raise BatchError(self._refusal(frame, part, error)) from None
            if len(frame) == 1:
                bad.add(part.source.name, frame.row(0), str(error))
                return
            half = len(frame) // 2
            for piece in (frame.part(0, half), frame.part(half, len(frame))):
                yield from self._answered(piece, part, bad)

    def _refusal(self, frame: Frame, part: Part, error: Exception) -> str:
        where = ""
        if isinstance(error, InferenceFailedError):
            where = f", {frame.row(0)} to {frame.row(len(frame) - 1)}"
        return f"{part.source.name}{where}: {error}"

    def _run(self, frame: Frame) -> dict[str, Array]:
        frame.check()
        inputs = read_arrays(frame, self._metadata, self._specs, self._hidden)
        rows, parts = len(frame), []
        for start in range(0, rows, self._most):
            some = {n: a[start : start + self._most] for n, a in inputs.items()}
            parts.append(self._model.run(some, self._names, self._options))
        found: dict[str, Array] = {}
        for place, name in enumerate(self._names):
            arrays = [part[place] for part in parts]
            array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            if not array.ndim or len(array) != rows:
                raise BatchError(f'output "{name}": not a row for each row of input')
            found[name] = numbers(array)
        return found

    def _table(
        self, frame: Frame, outputs: Mapping[str, Array]
    ) -> dict[str, Sequence[Any]]:
        kept = {name: frame.raw(name) for name in self.task.keep}
        return named_outputs(outputs, self._metadata, kept)


class _Refused:
    """The list of a part's rows that are refused: a file, once there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.count = 0

    def add(self, *cells: str) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
        csv.writer(self._file, lineterminator="\n").writerow(cells)
        self.count += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
