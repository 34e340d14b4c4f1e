"""Files and callables to data sets, under a schema that is public.

Nothing is learnt from the rows: ranges, categories and classes come from the schema,
and what does not fit it is refused, with the place of the first misfit, before any
budget is spent. A source is read within bounds, and never unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.columns import Table, codes, numbers, texts
from models.data.datasets import AnyDataset, ImageDataset, TabularDataset
from models.data.readers import CsvFormat, read_arrays
from models.errors import DatasetError
from models.manifest import Column

__all__ = ["ImageSchema", "Schema", "load_source"]

MAX_FEATURES = 10_000


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
        label: the column of classes.
        classes: their names.
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
    table = read_arrays(source, base=base, layout=schema.csv)
    _check_columns(table, schema)
    labels = _labels(table, schema)
    features = _features(table, schema)
    if len(features) != len(labels):
        raise DatasetError(f"{table.where}: {len(features)} rows, {len(labels)} labels")
    if schema.identifier:
        _check_unique(table, schema.identifier)
    sensitive = {name: texts(table, name) for name in schema.sensitive}
    units = texts(table, schema.unit) if schema.unit else None
    dataset = _dataset(schema, features, labels, units, sensitive)
    if units is None and schema.image is None:
        dataset = replace(dataset, keys=_keys(table, schema))
    return _bounded(dataset, schema.max_rows_per_unit)


def _dataset(
    schema: Schema,
    features: NDArray[Any],
    labels: NDArray[np.int64],
    units: NDArray[np.str_] | None,
    sensitive: Mapping[str, NDArray[np.str_]],
) -> AnyDataset:
    common: dict[str, Any] = {
        "name": schema.name,
        "features": features,
        "labels": labels,
        "classes": schema.classes,
        "personal": schema.personal,
        "units": units,
        "sensitive": sensitive,
    }
    if schema.image is None:
        return TabularDataset(columns=schema.columns, **common)
    image = schema.image
    bounds = (image.low, image.high)
    return ImageDataset(bounds=bounds, mean=image.mean, std=image.std, **common)


def _keys(table: Table, schema: Schema) -> NDArray[np.bytes_]:
    """Digests of the whole rows, but for the label and what numbers the rows.

    Rows that agree in the features alone may be two people's; in every column, they
    count as one row that was copied.
    """
    names = [
        item for item in schema.roles if item not in (schema.label, schema.identifier)
    ]
    lines = zip(*(texts(table, name) for name in names))
    digests = [hashlib.sha256("\0".join(cells).encode()).hexdigest() for cells in lines]
    return np.array(digests, dtype="S64")


def _check_columns(table: Table, schema: Schema) -> None:
    """Every column has a role, and every role its column."""
    given = set(table.arrays)
    if "features" in given and schema.columns and "features" not in schema.roles:
        table.spread("features", [column.name for column in schema.columns])
        given = set(table.arrays)
    missing = [name for name in schema.roles if name not in given]
    if missing:
        raise DatasetError(
            f"{table.where}: no column {missing[0]!r}{table.hint(missing[0])}"
            + (f" (and {len(missing) - 1} more missing)" if missing[1:] else "")
        )
    unknown = sorted(given - set(schema.roles))
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise DatasetError(
            f"{table.where}: column {unknown[0]!r}{more} has no role: "
            "make it a feature, or list it in drop"
        )
    if table.rows == 0:
        raise DatasetError(f"{table.where}: no rows")


def _labels(table: Table, schema: Schema) -> NDArray[np.int64]:
    known = {name: code for code, name in enumerate(schema.classes)}
    known |= {alias: known[name] for alias, name in schema.aliases.items()}
    values = codes(table, schema.label, known, missing=frozenset(), what="class")
    if len(np.unique(values)) < 2:
        raise DatasetError(f"{table.where}: every row has the same class")
    return values.astype(np.int64)


def _features(table: Table, schema: Schema) -> NDArray[Any]:
    if schema.image is not None:
        return _pixels(table, schema.image)
    missing = frozenset(schema.missing)
    result = np.empty((table.rows, len(schema.columns)))
    for index, column in enumerate(schema.columns):
        known = {name: code for code, name in enumerate(column.categories)}
        values = (
            codes(table, column.name, known, missing=missing, what="category")
            if known
            else numbers(table, column.name, missing=missing)
        )
        _check_varies(table, column.name, values)
        result[:, index] = values
    return result


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
