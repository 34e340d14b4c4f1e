"""What a model's author says that it answers about some rows, and those rows.

The answers are columns: ``prediction`` with the class that is decided; ``probability``
or ``score``, of the second of two classes, or ``probability:CLASS`` of each; ``value``
of a model that answers a number, or ``value:0``, ``value:1``, … of several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import cells
from models.data.columns import Table, numbers
from models.data.held_out import (
    LABEL_COLUMNS,
    Holdout,
    Roles,
    class_column,
    distinct,
    feature_columns,
    matrix_of,
)
from models.data.readers import read_table
from models.errors import DatasetError

__all__ = ["Answered", "load_answered"]

_KINDS = ("probability", "score", "value")


@dataclass(frozen=True, eq=False)
class Answered:
    """Rows with what the original answered about each.

    Attributes:
        name: of the file with the answers.
        rows: in the order of the answers; their labels mean nothing.
        classes: ``(n,)``, what it decided, whole numbers or texts; None if not said.
        kind: of its numbers: "probability", "score" or "value"; "" without any.
        numbers: by what they are of, a class or a place, "" for the only ones:
            ``(n,)``, finite.
        places: how messages call each row.
    """

    name: str
    rows: Holdout = field(repr=False)
    classes: NDArray[Any] | None = field(repr=False)
    kind: str
    numbers: Mapping[str, NDArray[np.float64]] = field(repr=False)
    places: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def sha256(self) -> str:
        """Digest of rows and answers."""
        features = self.rows.features
        state = hashlib.sha256(f"{features.shape} {self.kind}\n".encode())
        state.update(np.ascontiguousarray(features).tobytes())
        for name, texts in self.rows.texts.items():
            state.update(repr((name, texts)).encode())
        if self.classes is not None:
            state.update("\n".join(map(str, self.classes.tolist())).encode())
        for name, column in sorted(self.numbers.items()):
            state.update(f"\n{name}\n".encode() + column.tobytes())
        return state.hexdigest()


def load_answered(
    source: str | Path,
    rows: str | Path,
    roles: Roles = Roles(),
    *,
    classes: Sequence[str] = (),
    key: str | None = None,
    base: Path = Path(),
) -> Answered:
    """Read answers, and the rows that they are about.

    Args:
        source: of the answers, as of `models.data.readers.read_table`.
        rows: of the rows, likewise; a column with classes is not read.
        roles: what columns are for.
        classes: what ``roles.probabilities`` or ``roles.scores`` are of, in order.
        key: a column of both that says which row is which; None: by their order.
        base: the folder that relative paths start from.

    Raises:
        DatasetError: unreadable, no answers, a cell that is none, other columns than
            the model's, or rows and answers that do not fit each other.
    """
    table = read_table(str(source), base=base)
    kind, columns = _numbered(table, roles, classes)
    said = roles.prediction in table.arrays
    wanted = [*columns, *([roles.prediction] if said else []), *([key] if key else [])]
    if not (said or columns):
        raise DatasetError(
            f"{table.where}: no answers; name columns {roles.prediction!r}, "
            "'probability', 'score' or 'value'"
        )
    table.require(wanted, also=roles.drop)
    if not table.rows:
        raise DatasetError(f"{table.where}: there are no rows")
    beside = read_table(str(rows), base=base)
    order = _order(table, beside, key)
    return Answered(
        table.where,
        _rows(beside, roles, key, order),
        class_column(table, roles.prediction) if said else None,
        kind,
        {of: numbers(table, name) for name, of in columns.items()},
        [table.place(row) for row in range(table.rows)],
    )


def _numbered(
    table: Table, roles: Roles, classes: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """The kind of the answers that are numbers, and by column what each is of."""
    found = dict(_found(table, roles, classes))
    kinds = {kind for kind, _ in found.values()}
    if len(kinds) > 1:
        raise DatasetError(f"{table.where}: {' and '.join(sorted(kinds))}: name one")
    of = {name: which for name, (_, which) in found.items()}
    if len(set(of.values())) < len(of) or ("" in of.values() and len(of) > 1):
        raise DatasetError(f"{table.where}: two columns are of one class")
    return "".join(kinds), of


def _found(
    table: Table, roles: Roles, classes: Sequence[str]
) -> Iterator[tuple[str, tuple[str, str]]]:
    stated = roles.probabilities or roles.scores
    kind = "probability" if roles.probabilities else "score"
    if len(stated) > 1 and len(stated) != len(classes):
        raise DatasetError(f"{table.where}: state classes, one for each of its columns")
    of = classes if len(stated) > 1 else [""]
    yield from ((name, (kind, which)) for name, which in zip(stated, of))
    for name in table.arrays:
        kind, colon, which = name.partition(":")
        if kind in _KINDS and not stated and bool(which) == bool(colon):
            yield name, (kind, which)


def _order(table: Table, rows: Table, key: str | None) -> NDArray[np.int64]:
    """Which row each answer is about."""
    if key is None:
        if table.rows != rows.rows:
            raise DatasetError(
                f"{table.where} has {table.rows} rows, {rows.where} {rows.rows}; "
                "name a column that both have as --key"
            )
        return np.arange(table.rows)
    asked, known = _keys(table, key), _keys(rows, key)
    strange = [name for name in asked if name not in known]
    if strange:
        raise DatasetError(
            f"{table.where}: {len(strange)} rows are not in {rows.where}: "
            f"{key} {strange[0][:40]!r} is the first"
        )
    return np.array([known[name] for name in asked], dtype=np.int64)


def _keys(table: Table, key: str) -> dict[str, int]:
    if key not in table.arrays:
        raise DatasetError(f"{table.where}: no column {key!r}, the key")
    listed = [str(cell) for cell in cells.cells_of(table.column(key))]
    found = {name: row for row, name in enumerate(listed)}
    if len(found) < len(listed):
        raise DatasetError(f"{table.where}: column {key!r} names a row twice")
    return found


def _rows(
    table: Table, roles: Roles, key: str | None, order: NDArray[np.int64]
) -> Holdout:
    unknown, matrix = np.zeros(len(order)), matrix_of(table)
    if matrix is not None:
        return Holdout(table.where, matrix[order], unknown)
    usual = (name for name in LABEL_COLUMNS if name in table.arrays)
    label = roles.label or next(usual, None)
    beside = {*roles.drop, key, label, *roles.sensitive} - {*roles.kept, None}
    names = [column.name for column in roles.columns] or list(roles.features)
    if not names:
        names = [name for name in table.arrays if name not in beside]
    table.require(names, also=[name for name in beside if name])
    texts = {name: distinct(table, name) for name in names if name in roles.text}
    features = feature_columns(table, names, roles, texts)[order]
    return Holdout(table.where, features, unknown, columns=tuple(names), texts=texts)
