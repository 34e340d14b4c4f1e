"""Which rows are in which part of a job, and what the job is about.

Parts follow from the files alone: who does them, and when, changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealgate.convert import columns_of, to_arrays
from sealgate.errors import SealgateError
from sealgate.long_tables import Frame, LongTable, Place, open_table
from sealgate.protocol.tensors import Array, TensorSpec, datatype_of
from sealgate.tables import named_columns
from security.errors import BatchError

__all__ = ["Part", "Plan", "Source", "make_plan", "read_arrays", "row_specs"]

MAX_FILES = 1 << 16
MAX_COLUMNS = 10_000
MAX_PARTS = 1 << 20
_KINDS = (".csv", ".parquet")


@dataclass(frozen=True)
class Source:
    """A file of the input.

    Attributes:
        path: where it is.
        name: below what was named.
        size: bytes.
        mtime_ns: when it was written.
        sha256: `LongTable.sha256`.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int
    sha256: str

    def check(self) -> None:
        """Refuse a file that is not as it was.

        Raises:
            BatchError: it was changed, or is gone.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise BatchError(f"{self.name}: {error.strerror}") from None
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise BatchError(f"{self.name}: was changed since the job began")

    def to_object(self) -> dict[str, Any]:
        """What tells it from another file; not where it is."""
        names = ("name", "size", "mtime_ns", "sha256")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes:
        number: from 0, in the order of the input.
        source: the file.
        place: of the rows in it.
    """

    number: int
    source: Source
    place: Place


@dataclass(frozen=True)
class Plan:
    """The work of a job.

    Attributes:
        sources: the files.
        parts: all of it.
        columns: that are read; None for all, for a model that names none.
        ignored: columns of the first file that neither the model nor `--keep` names.
    """

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    columns: tuple[str, ...] | None
    ignored: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.place.rows for part in self.parts)


def make_plan(
    path: Path, metadata: Mapping[str, Any], *, keep: Sequence[str], part_rows: int
) -> Plan:
    """Look at the input, without a value of it.

    Args:
        path: a .csv or .parquet file, or a folder of such files.
        metadata: the model's.
        keep: columns that go with the answers.
        part_rows: of a part at least, but for the last one of a file; of CSV exactly.

    Raises:
        ProfileError: a file cannot be read.
        BatchError: no rows, too many files, or a column is missing or cannot be what
            the model takes, names it; or files differ in columns that have no names
            for the model.
    """
    sources: list[Source] = []
    parts: list[Part] = []
    named: list[str] | None = None
    taken: list[str] = []
    ignored: list[str] = []
    for file in _files(path):
        table = open_table(file, metadata)
        own = named_columns(table.columns, metadata)
        if not sources:
            named = own
            taken = _but(table.columns, keep)
            known = {*(own if own is not None else table.columns), *keep}
            ignored = [name for name in table.columns if name not in known]
        if named is None and _but(table.columns, keep) != taken:
            raise BatchError(
                f"{file}: other columns than {sources[0].name}, or in another order, "
                "and the model takes them as they come"
            )
        _check_columns(file, table, metadata, named, keep)
        source = _source(path, file, table)
        sources.append(source)
        for place in table.places(part_rows):
            parts.append(Part(len(parts), source, place))
            if len(parts) > MAX_PARTS:
                raise BatchError(f"more than {MAX_PARTS} parts: give --part-rows more")
    if not parts:
        raise BatchError(f"{path}: no rows")
    columns = None if named is None else tuple(dict.fromkeys([*named, *keep]))
    return Plan(tuple(sources), tuple(parts), columns, tuple(ignored))


def read_arrays(
    frame: Frame,
    metadata: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    hidden: frozenset[str] = frozenset(),
) -> dict[str, Array]:
    """Rows of a table as the model takes them: what the client would send.

    Args:
        frame: the rows, checked.
        metadata: the model's.
        specs: of its inputs, for any number of rows.
        hidden: columns that are not for a model that takes all.

    Raises:
        TensorError, ProfileError: a cell, a row or a column is not what the model
            takes; names it.
        BatchError: all of them together are not.
    """
    shown = _Shown(frame, hidden) if hidden else frame
    arrays = to_arrays(shown, metadata, row=frame.row)
    for spec in specs:
        array = arrays[spec.name]
        datatype = datatype_of(spec.name, array)
        if not spec.accepts(datatype, array.shape):
            got = f"{datatype}[{','.join(map(str, array.shape))}]"
            raise BatchError(f'input "{spec.name}": expected {spec}, got {got}')
    return arrays


def row_specs(metadata: Mapping[str, Any]) -> list[TensorSpec]:
    """What a model takes, for any number of rows.

    Raises:
        BatchError: it takes no rows, or several at a time and no other number.
    """
    for tensor in metadata["inputs"]:
        if tensor["shape"][:1] not in ([-1], [1]):
            raise BatchError(
                f'input "{tensor["name"]}": the model takes no rows one by one, but '
                f"{tensor['datatype']}{tensor['shape']}"
            )
    return [
        TensorSpec(t["name"], t["datatype"], (-1, *t["shape"][1:]))
        for t in metadata["inputs"]
    ]


class _Shown:
    """A table without some of its columns."""

    def __init__(self, frame: Frame, hidden: frozenset[str]) -> None:
        self._frame = frame
        self._all = frame.columns
        self.columns = [name for name in frame.columns if name not in hidden]

    def __getitem__(self, name: str) -> Any:
        return self._frame[name]

    def to_numpy(self) -> Array:
        places = [self._all.index(name) for name in self.columns]
        found: Array = self._frame.to_numpy()[:, places]
        return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    names = sorted(
        name
        for name in os.listdir(path)
        if not name.startswith((".", "_")) and (path / name).is_file()
    )
    files = [path / name for name in names]
    if not files or len(files) > MAX_FILES:
        raise BatchError(f"{path}: expected 1 to {MAX_FILES} files of rows")
    other = [file.name for file in files if file.suffix.lower() not in _KINDS]
    if other or len({file.suffix.lower() for file in files}) > 1:
        what = other[0] if other else "both kinds"
        raise BatchError(f"{path}: expected .csv or .parquet files, found {what}")
    return files


def _but(columns: Sequence[str], keep: Sequence[str]) -> list[str]:
    return [name for name in columns if name not in keep]


def _source(path: Path, file: Path, table: LongTable) -> Source:
    status = file.stat()
    name = file.name if file == path else file.relative_to(path).as_posix()
    return Source(
        file.absolute(), name, status.st_size, status.st_mtime_ns, table.sha256()
    )


def _check_columns(
    file: Path,
    table: LongTable,
    metadata: Mapping[str, Any],
    named: list[str] | None,
    keep: Sequence[str],
) -> None:
    """Refuse a file whose columns no row could make up for."""
    if len(table.columns) > MAX_COLUMNS:
        raise BatchError(f"{file}: more than {MAX_COLUMNS} columns")
    inputs = metadata["inputs"]
    if named is None and len(inputs) > 1:
        unnamed = (t["name"] for t in inputs if not columns_of(t))
        named = [name for name in unnamed if name not in table.columns]
    for name in [*(named or ()), *keep]:
        if name not in table.columns:
            raise BatchError(f'{file}: column "{name}" is missing')
    hidden = frozenset(keep) if named is None else frozenset()
    try:
        read_arrays(table.none(), metadata, row_specs(metadata), hidden)
    except SealgateError as error:
        raise BatchError(f"{file}: {error}") from None
