"""Files and callables to data sets, under a schema that is public.

Nothing is learnt from the rows: ranges, categories and classes come from the schema,
and what does not fit it is refused, with the place of the first misfit, before any
budget is spent. A source is read within bounds, and never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import identity
from models.data.columns import Table, codes, numbers, texts
from models.data.datasets import AnyDataset, ImageDataset, TabularDataset
from models.data.readers import MAX_BYTES, CsvFormat, read_table
from models.data.targets import Target
from models.errors import DatasetError
from models.manifest import Column

__all__ = [
    "ImageSchema",
    "Schema",
    "feature_values",
    "groups",
    "load_source",
    "rows_of",
    "source_faults",
]

# What a sensitive column's empty cells are called; one that no cell says.
_UNKNOWN = ("missing", "missing (no value)", "missing (an empty cell)")


@dataclass(frozen=True)
class ImageSchema:
    """What is publicly known of images.

    Attributes:
        shape: channels, height, width.
        low, high: a pixel's range.
        mean, std: of pixels scaled to [0, 1], from public data.
    """

    shape: tuple[int, int, int]
    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Schema:
    """What is publicly known of a source, and the role of each of its columns.

    Attributes:
        name: of the data set.
        label: the column of classes, or of the number that is predicted.
        classes: their names; none of a number.
        aliases: other spellings of a class, to its name.
        columns: features with ranges or categories; none for images.
        image: for images.
        identifier: unique per row, dropped.
        unit: whose row it is.
        max_rows_per_unit: further rows are left out; 0 for no bound.
        sensitive: kept beside the features.
        drop: not used.
        missing: cells that mean a missing value.
        personal: whether a row is about a person.
        csv: how a CSV file is written.
        identity: the version of what makes two rows one, of `models.data.identity`.
        target: what is known of the number; None with classes.
    """

    name: str
    label: str
    classes: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    image: ImageSchema | None = None
    identifier: str = ""
    unit: str = ""
    max_rows_per_unit: int = 0
    sensitive: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    personal: bool = True
    csv: CsvFormat = field(default_factory=CsvFormat)
    identity: int = identity.CURRENT
    target: Target | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of every column that must be there, each once."""
        features = ("images",) if self.image else [item.name for item in self.columns]
        single = filter(None, (self.label, self.identifier, self.unit))
        return tuple(dict.fromkeys([*features, *single, *self.sensitive, *self.drop]))


def load_source(source: str, schema: Schema, base: Path) -> AnyDataset:
    """Read a source and check every value of it against its schema.

    Args:
        source: a path, from ``base``, or ``python:package.module:function``.
        schema: what the values must be.
        base: a folder.

    Raises:
        DatasetError: unreadable, or a value that the schema does not allow; names the
            column and the row.
    """
    table = read_table(source, base=base, layout=schema.csv)
    _check_columns(table, schema)
    labels = _labels(table, schema)
    features = _features(table, schema)
    if len(features) != len(labels):
        raise DatasetError(f"{table.where}: {len(features)} rows, {len(labels)} labels")
    if schema.identifier:
        _check_unique(table, schema.identifier)
    dataset = _dataset(table, schema, features, labels)
    return _bounded(dataset, schema.max_rows_per_unit)


def source_faults(
    source: str, schema: Schema, base: Path
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Everything for which `load_source` would refuse a source, not only the first.

    Yields:
        Where in the schema the reason is, by its attributes, and the message.
    """
    try:
        table = read_table(source, base=base, layout=schema.csv)
        _spread(table, schema)
    except DatasetError as error:
        yield ("source",), str(error)
        return
    roles = list(_checks(table, schema))
    steps = [(path, partial(_one, table, name, check)) for path, name, check in roles]
    steps.append((("source",), partial(table.require, (), also=schema.roles)))
    for path, step in steps:
        try:
            step()
        except DatasetError as error:
            yield path, str(error)


def _one(table: Table, name: str, check: Callable[[], Any]) -> None:
    table.require([name], also=table.arrays)
    check()


def _checks(
    table: Table, schema: Schema
) -> Iterator[tuple[tuple[str | int, ...], str, Callable[[], Any]]]:
    """What `load_source` demands of each column: where that is said, and which."""
    missing, check = frozenset(schema.missing), partial[Any]
    yield ("label",), schema.label, lambda: _labels(table, schema)
    if schema.image is not None:
        yield ("image",), "images", check(_pixels, table, schema.image)
    for index, column in enumerate(schema.columns):
        step = check(_feature, table, column, missing)
        yield ("columns", index), column.name, step
    if schema.identifier:
        unique = check(_check_unique, table, schema.identifier)
        yield ("identifier",), schema.identifier, unique
    if schema.unit:
        owned = check(identity.owners, table, schema.unit, missing)
        yield ("unit",), schema.unit, owned
    for name in schema.sensitive:
        yield ("sensitive",), name, check(groups, table, name, missing)
    for name in schema.drop:
        yield ("drop",), name, lambda: None


def _dataset(
    table: Table, schema: Schema, features: NDArray[Any], labels: NDArray[Any]
) -> AnyDataset:
    missing = frozenset(schema.missing)
    sensitive = {name: groups(table, name, missing) for name in schema.sensitive}
    common: dict[str, Any] = {
        "name": schema.name,
        "features": features,
        "labels": labels,
        "classes": schema.classes,
        "personal": schema.personal,
        "sensitive": sensitive,
    }
    if schema.unit:
        common["units"] = identity.owners(table, schema.unit, missing)
        if schema.identity == 1:
            common["units"] = identity.written(table.column(schema.unit))
    elif schema.identity != 1:
        common["keys"] = identity.row_keys(features, list(sensitive.values()))
    elif schema.image is None:
        skipped = (schema.label, schema.identifier)
        columns = [name for name in schema.roles if name not in skipped]
        common["keys"] = identity.written_keys(table, columns)
    if schema.image is None:
        return TabularDataset(columns=schema.columns, target=schema.target, **common)
    image = schema.image
    bounds = (image.low, image.high)
    return ImageDataset(bounds=bounds, mean=image.mean, std=image.std, **common)


def groups(table: Table, name: str, missing: frozenset[str]) -> NDArray[np.str_]:
    """A sensitive column: who has no value is of a group of their own.

    Raises:
        DatasetError: more than one axis.
    """
    names = texts(table, name, missing=missing)
    absent = names == ""
    if not absent.any():
        return names
    taken = set(names.tolist())
    unknown = next(item for item in _UNKNOWN if item not in taken)
    return np.where(absent, unknown, names).astype(np.str_)


def _check_columns(table: Table, schema: Schema) -> None:
    """Every column has a role, and every role its column."""
    _spread(table, schema)
    table.require(schema.roles)
    if table.rows == 0:
        raise DatasetError(f"{table.where}: no rows")


def _spread(table: Table, schema: Schema) -> None:
    """A matrix of features becomes their columns."""
    named = "features" in table.arrays and "features" not in schema.roles
    if named and schema.columns:
        table.spread("features", [column.name for column in schema.columns])


def _labels(table: Table, schema: Schema) -> NDArray[Any]:
    """Classes, int64; or of a regression the numbers, float64, none of them missing."""
    if schema.target is not None:
        given = numbers(table, schema.label)
        shares = schema.target.shares(given)
        if len(shares) and (shares == shares[0]).all():
            raise DatasetError(
                f"{table.where}: every row has the same target, in its public range"
            )
        return given
    known = {name: code for code, name in enumerate(schema.classes)}
    known |= {alias: known[name] for alias, name in schema.aliases.items()}
    values = codes(table, schema.label, known, what="class")
    if len(np.unique(values)) < 2:
        raise DatasetError(f"{table.where}: every row has the same class")
    return values.astype(np.int64)


def _features(table: Table, schema: Schema) -> NDArray[Any]:
    if schema.image is not None:
        return _pixels(table, schema.image)
    missing = frozenset(schema.missing)
    found = [_feature(table, column, missing) for column in schema.columns]
    return np.stack(found, axis=1)


def _feature(
    table: Table, column: Column, missing: frozenset[str]
) -> NDArray[np.float64]:
    values = feature_values(table, column, missing)
    _check_varies(table, column.name, values)
    return values


def feature_values(
    table: Table, column: Column, missing: frozenset[str]
) -> NDArray[np.float64]:
    """A declared feature: its numbers, or the codes of its categories.

    Raises:
        DatasetError: a cell that is neither, nor missing.
    """
    if not column.categories:
        return numbers(table, column.name, missing=missing)
    known = {name: code for code, name in enumerate(column.categories)}
    return codes(table, column.name, known, missing=missing, what="category")


def rows_of(
    file: str,
    columns: Sequence[Column],
    *,
    missing: frozenset[str] = frozenset(),
    max_bytes: int = MAX_BYTES,
) -> NDArray[np.float64]:
    """Rows of a model's columns, found in a table by name.

    Args:
        file: of the table; in the working directory, where its path is relative.
        columns: of the model, with names.
        missing: cells that mean a missing value, which is NaN.
        max_bytes: of the file.

    Raises:
        DatasetError: it cannot be read, lacks a column, or a cell is neither a number
            nor a category.
    """
    table = read_table(file, base=Path(), max_bytes=max_bytes)
    table.require([column.name for column in columns], also=table.arrays)
    return np.stack([feature_values(table, c, missing) for c in columns], 1)


def _pixels(table: Table, image: ImageSchema) -> NDArray[Any]:
    pixels = table.arrays["images"]
    channels, height, width = image.shape
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.shape[1:] != (channels, height, width):
        raise DatasetError(
            f"{table.where}: images have shape {pixels.shape[1:]}, not {image.shape}"
        )
    if pixels.dtype.kind not in "uif":
        raise DatasetError(f"{table.where}: pixels of type {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise DatasetError(f"{table.where}: a pixel is not finite")
    if pixels.size and pixels.min() == pixels.max():
        raise DatasetError(f"{table.where}: every pixel has the same value")
    return np.ascontiguousarray(pixels)


def _check_varies(table: Table, name: str, values: NDArray[np.float64]) -> None:
    present = values[~np.isnan(values)]
    if not len(present):
        raise DatasetError(f"{table.where}: column {name!r} has no value at all")
    if (present == present[0]).all() and len(present) == len(values):
        raise DatasetError(f"{table.where}: column {name!r} is constant: drop it")


def _check_unique(table: Table, name: str) -> None:
    values = texts(table, name)
    _, first, counts = np.unique(values, return_index=True, return_counts=True)
    if (counts > 1).any():
        at = int(first[counts > 1].min())
        again = int(np.flatnonzero(values == values[at])[1])
        raise DatasetError(
            f"{table.where}: identifier {name!r} of {table.place(at)} is also that of "
            f"{table.place(again)}; if one owner may have several rows, it is the unit"
        )


def _bounded(dataset: AnyDataset, most: int) -> AnyDataset:
    """The first rows of each unit; which they are depends on that unit alone."""
    if most == 0 or dataset.units is None:
        return dataset
    order = np.argsort(dataset.units, kind="stable")
    names = dataset.units[order]
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return dataset.take(np.sort(order[rank < most]))
