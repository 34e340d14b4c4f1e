"""Held-out rows from a source, for a model that says little of what it takes, or much.

A matrix of features and an array of classes, under one of the usual pairs of names; or
columns: one with the class, and features, found by name where the model, or whoever
asks, names them. Where a model predicts a number, the number stands for the class.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import cells
from models.data.columns import Table, numbers
from models.data.datasets import AnyDataset, TabularDataset
from models.data.readers import read_table
from models.data.sources import feature_values, groups
from models.errors import DatasetError
from models.manifest import Column

__all__ = [
    "LABEL_COLUMNS",
    "Holdout",
    "Predictions",
    "Roles",
    "class_column",
    "distinct",
    "feature_columns",
    "holdout_of",
    "load_holdout",
    "load_predictions",
    "matrix_of",
]

_MAX_GROUPS = 50
_FEATURES = ("x", "X", "x_test", "X_test", "features", "images", "data")
_LABELS = ("y", "Y", "y_test", "Y_test", "labels", "label", "target", "targets")
LABEL_COLUMNS = ("label", "target", "class", "y")
_TRUTH_COLUMNS = ("truth", *LABEL_COLUMNS)


@dataclass(frozen=True, eq=False)
class Holdout:
    """Rows with their classes.

    Attributes:
        name: of the file or data set.
        features: ``(n, …)``, numbers; NaN where a value is missing.
        labels: ``(n,)``, the truth: classes, as whole numbers or text; or float64
            where one has a fraction, which no class has.
        columns: names of the features of tables, otherwise none.
        classes: names in the order of the labels where the source says so.
        groups: by sensitive column: each row's value, as text ``(n,)``.
        texts: by column of texts: its distinct ones, whose places the features hold.
        beside: further columns that were asked for, by name: numbers ``(n,)``.
    """

    name: str
    features: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict, repr=False)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    beside: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Digest of the rows: shape and type, features, labels."""
        state = hashlib.sha256()
        head = f"{self.features.shape} {self.features.dtype.str} {self.columns}\n"
        state.update(head.encode())
        state.update(np.ascontiguousarray(self.features).tobytes())
        for values in (self.labels, *self.groups.values(), *self.beside.values()):
            state.update("\n".join(map(str, values.tolist())).encode())
        for name, texts in self.texts.items():
            state.update(repr((name, texts)).encode())
        return state.hexdigest()

    def arranged(self, names: Sequence[str]) -> Holdout:
        """The same rows with their features in the order of a model's names.

        Features without names, and a model without any, are taken as they stand.

        Raises:
            DatasetError: other features than the model's.
        """
        if not names or not self.columns or self.columns == tuple(names):
            return self
        places = {name: place for place, name in enumerate(self.columns)}
        held = Table(self.name, dict.fromkeys(self.columns, self.labels))
        held.require(names)
        order = [places[name] for name in names]
        return replace(self, features=self.features[:, order], columns=tuple(names))


@dataclass(frozen=True, eq=False)
class Predictions(Holdout):
    """Rows with their classes and with what a model said of them.

    Attributes:
        name, labels, groups: as of `Holdout`.
        features: ``(n, k)``, the scores: one of the positive class, or one per class;
            without any, ``k`` is 0.
        columns: names of the scores.
        decided: ``(n,)``, the classes that the model gave, like the labels.
        probabilities: whether the scores are stated to be that.
    """

    decided: NDArray[Any] = field(kw_only=True, repr=False)
    probabilities: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the rows, and of what was said of them."""
        said = "\n".join([str(self.probabilities), *map(str, self.decided.tolist())])
        return hashlib.sha256(f"{super().sha256}\n{said}".encode()).hexdigest()


def holdout_of(rows: AnyDataset) -> Holdout:
    """The rows of a data set."""
    columns = rows.columns if isinstance(rows, TabularDataset) else ()
    return Holdout(
        rows.name,
        rows.features,
        rows.labels,
        columns=tuple(column.name for column in columns),
        classes=rows.classes,
        groups=dict(rows.sensitive),
    )


@dataclass(frozen=True)
class Roles:
    """What columns of a source are for.

    Attributes:
        label: the column with the class, or None to look for a usual name.
        sensitive: columns, or arrays, whose values make groups.
        kept: sensitive columns that the model reads all the same.
        columns: the features, as the model's manifest has them; none if it has none.
        features: their names, where only those are known; none for all other columns.
        text: features that are texts; numbers are all others.
        drop: columns that are not used.
        beside: columns of numbers that are read, and are no features.
        missing: cells that mean a missing value.
        prediction: of a file of predictions, the class that the model gave.
        scores: its scores, that are no probabilities.
        probabilities: its scores that are.
    """

    label: str | None = None
    sensitive: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    features: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)
    prediction: str = "prediction"
    scores: tuple[str, ...] = ()
    probabilities: tuple[str, ...] = ()


def load_holdout(
    source: str | Path, roles: Roles = Roles(), *, base: Path = Path()
) -> Holdout:
    """Read held-out rows.

    Args:
        source: as of `models.data.readers.read_table`.
        roles: what its columns are for.
        base: the folder that relative paths start from.

    Raises:
        DatasetError: unreadable, not rows with classes, or other columns than the
            model's.
    """
    table = read_table(str(source), base=base)
    _check_sensitive(table, roles)
    name = _matrix_name(table)
    holdout = _columns(table, roles) if name is None else _matrix(table, roles, name)
    _check(holdout)
    return holdout


def load_predictions(
    source: str | Path, roles: Roles = Roles(), *, base: Path = Path()
) -> Predictions:
    """Read a model's predictions, beside the classes that the rows have.

    The columns that roles do not name are ``truth`` (or a usual name), ``prediction``
    and, if there is one, ``probability`` or ``score``.

    Args:
        source: as of `load_holdout`.
        roles: what its columns are for; others are not read.
        base: as of `load_holdout`.

    Raises:
        DatasetError: unreadable, or without classes, predictions or a stated column.
    """
    table = read_table(str(source), base=base)
    _check_sensitive(table, roles)
    label = _label_column(table, roles.label, _TRUTH_COLUMNS)
    names, sure = _score_columns(table, roles)
    wanted = [label, roles.prediction, *names]
    table.require(wanted, also=[*table.arrays])
    if len(set(wanted)) < len(wanted):
        raise DatasetError(f"{table.where}: one column has two roles")
    if not table.rows:
        raise DatasetError(f"{table.where}: there are no rows")
    scores = [_score(table, name, sure=sure) for name in names]
    predictions = Predictions(
        table.where,
        np.stack(scores, 1) if scores else np.empty((table.rows, 0)),
        class_column(table, label),
        columns=names,
        groups=_groups(table, roles),
        decided=class_column(table, roles.prediction),
        probabilities=sure,
    )
    _check_groups(predictions)
    return predictions


def _score_columns(table: Table, roles: Roles) -> tuple[tuple[str, ...], bool]:
    """Which columns have scores, and whether they are stated to be probabilities."""
    if roles.scores and roles.probabilities:
        raise DatasetError(f"{table.where}: scores are probabilities, or are not")
    if roles.scores or roles.probabilities:
        return roles.probabilities or roles.scores, bool(roles.probabilities)
    named = [name for name in ("probability", "score") if name in table.arrays]
    return tuple(named[:1]), named[:1] == ["probability"]


def _score(table: Table, name: str, *, sure: bool) -> NDArray[np.float64]:
    values = numbers(table, name)
    if sure:
        table.refuse(name, (values < 0) | (values > 1), "is no probability")
    return values


def _check_sensitive(table: Table, roles: Roles) -> None:
    for name in roles.sensitive:
        if name not in table.arrays:
            raise DatasetError(f"{table.where}: there is no sensitive column {name!r}")


def matrix_of(table: Table) -> NDArray[Any] | None:
    """Features of an archive as they lie there, or None where columns are.

    Raises:
        DatasetError: they are no numbers.
    """
    name = _matrix_name(table)
    if name is None:
        return None
    features = np.asarray(table.arrays[name])
    _check_numbers(table.where, features)
    return features


def _matrix_name(table: Table) -> str | None:
    given = [item for item in _FEATURES if item in table.arrays]
    many = [item for item in given if table.arrays[item].ndim > 1]
    return many[0] if many else None


def _matrix(table: Table, roles: Roles, name: str) -> Holdout:
    # An archive may hold two pairs: classes of test rows go with test rows.
    test = name.endswith("_test")
    usual = sorted(_LABELS, key=lambda item: item.endswith("_test") != test)
    wanted = usual if roles.label is None else [roles.label]
    label = next((item for item in wanted if item in table.arrays), None)
    if label is None:
        raise DatasetError(
            f"{table.where}: holds {', '.join(table.arrays)[:100]}; "
            f"expected features as 'x' and classes as {wanted[0]!r}"
        )
    rows, labels = table.arrays[name], class_column(table, label)
    return Holdout(
        table.where,
        rows,
        labels,
        groups=_groups(table, roles),
        beside=_beside(table, roles),
    )


def _columns(table: Table, roles: Roles) -> Holdout:
    label = _label_column(table, roles.label)
    beside = {label, *roles.drop, *roles.beside}
    beside |= set(roles.sensitive) - set(roles.kept)
    names = [column.name for column in roles.columns] or list(roles.features)
    if not names:
        names = [name for name in table.arrays if name not in beside]
    table.require([*names, label], also=[*roles.sensitive, *roles.drop, *roles.beside])
    texts = {name: distinct(table, name) for name in names if name in roles.text}
    return Holdout(
        table.where,
        feature_columns(table, names, roles, texts),
        class_column(table, label),
        columns=tuple(names),
        groups=_groups(table, roles),
        texts=texts,
        beside=_beside(table, roles),
    )


def distinct(table: Table, name: str) -> tuple[str, ...]:
    """A column's texts, each once; what is missing is an empty one."""
    return tuple(sorted(set(_texts(table, name))))


def _places(table: Table, name: str, known: tuple[str, ...]) -> NDArray[np.float64]:
    places = {text: place for place, text in enumerate(known)}
    return np.array([places[text] for text in _texts(table, name)], np.float64)


def _texts(table: Table, name: str) -> list[str]:
    found = cells.cells_of(table.column(name))
    return ["" if cells.is_null(cell) else str(cell) for cell in found]


def _beside(table: Table, roles: Roles) -> dict[str, NDArray[np.float64]]:
    missing = [name for name in roles.beside if name not in table.arrays]
    if missing:
        raise DatasetError(f"{table.where}: there is no column {missing[0]!r}")
    return {name: numbers(table, name) for name in roles.beside}


def feature_columns(
    table: Table,
    names: Sequence[str],
    roles: Roles,
    texts: Mapping[str, tuple[str, ...]] | None = None,
) -> NDArray[np.float64]:
    """Columns of a table as features ``(n, d)``, under what roles say of them.

    Args:
        table: what is read.
        names: of the columns, in this order.
        roles: what they are for.
        texts: of columns of texts, each text once: their values are places in that.

    Raises:
        DatasetError: there are no rows, or a cell is no value of its column.
    """
    if not (names and table.rows):
        raise DatasetError(f"{table.where}: there are no rows")
    known = {column.name: column for column in roles.columns}
    missing, texts = frozenset(roles.missing), texts or {}
    values = [
        _places(table, name, texts[name])
        if name in texts
        else _feature(table, name, known.get(name), missing)
        for name in names
    ]
    return np.stack(values, 1)


def _feature(
    table: Table, name: str, column: Column | None, missing: frozenset[str]
) -> NDArray[np.float64]:
    if column is None or not column.categories:
        return numbers(table, name, missing=missing)
    numeric = any(cells.number(item) is not None for item in column.categories)
    if not numeric and _all_numbers(table, name, missing):
        # Written as the model takes them: as codes, which no category looks like.
        values = numbers(table, name, missing=missing)
        known = np.isin(values, np.arange(len(column.categories))) | np.isnan(values)
        table.refuse(name, ~known, "is no declared category's code")
        return values
    return feature_values(table, column, missing)


def _all_numbers(table: Table, name: str, missing: frozenset[str]) -> bool:
    distinct = dict.fromkeys(cells.cells_of(table.column(name)))
    return all(cell in missing or cells.number(cell) is not None for cell in distinct)


def _groups(table: Table, roles: Roles) -> dict[str, NDArray[np.str_]]:
    missing = frozenset(roles.missing)
    return {name: groups(table, name, missing) for name in roles.sensitive}


def _label_column(
    table: Table, label: str | None, usual: tuple[str, ...] = LABEL_COLUMNS
) -> str:
    wanted = (label,) if label is not None else usual
    for name in wanted:
        if name in table.arrays:
            return name
    raise DatasetError(
        f"{table.where}: no column {' or '.join(map(repr, wanted))} with the class; "
        "name it as `label` in the data configuration"
    )


def class_column(table: Table, name: str) -> NDArray[Any]:
    """Classes: numbers where every cell is one, else texts as they are written.

    Whole numbers as int64; float64 where one has a fraction.

    Raises:
        DatasetError: a row has none.
    """
    if table.arrays[name].ndim != 1:
        shape = table.arrays[name].shape
        raise DatasetError(f"{table.where}: classes have shape {shape}, not (n,)")
    values = table.column(name)
    if values.dtype.kind in "iu":
        return values
    listed = cells.cells_of(values)
    distinct = dict.fromkeys(listed)
    _refuse_cells(table, name, listed, {None, ""} & set(distinct), "is no class")
    if not all(map(cells.is_plain_number, distinct)):
        return np.array([str(cell) for cell in listed], dtype=np.str_)
    known = {cell: cells.number(cell) for cell in distinct}
    broken = {c for c, item in known.items() if item is None or not math.isfinite(item)}
    _refuse_cells(table, name, listed, broken, "is no number")
    whole = all(_is_whole(item) for item in known.values())
    kind = np.int64 if whole else np.float64
    return np.array([known[cell] for cell in listed], dtype=kind)


def _refuse_cells(
    table: Table, name: str, listed: list[Any], bad: set[Any], reason: str
) -> None:
    if bad:
        marks = np.array([cell in bad for cell in listed], dtype=np.bool_)
        table.refuse(name, marks, reason)


def _is_whole(value: float | None) -> bool:
    """Whether a number can be a class: no fraction, and none that lost its end."""
    return value is not None and value.is_integer() and abs(value) < 1 << 53


def _check(holdout: Holdout) -> None:
    features, labels, name = holdout.features, holdout.labels, holdout.name
    _check_numbers(name, features)
    if len(features) != len(labels):
        raise DatasetError(
            f"{name}: {len(features)} rows of features, {len(labels)} classes"
        )
    _check_groups(holdout)
    if 0 in features.shape:
        raise DatasetError(f"{name}: there are no rows")


def _check_numbers(name: str, features: NDArray[Any]) -> None:
    if features.dtype.kind not in "biuf":
        raise DatasetError(f"{name}: features are not rows of numbers")


def _check_groups(holdout: Holdout) -> None:
    for group, values in holdout.groups.items():
        if len(np.unique(values)) > _MAX_GROUPS:
            raise DatasetError(
                f"{holdout.name}: sensitive column {group!r} has more than "
                f"{_MAX_GROUPS} values; put them into bands"
            )
