"""The data configuration: what an attacker may change in a row, and at which cost.

A TOML file. Everything in it is optional::

    label = "outcome"                  # the CSV or Parquet column with the class
    classes = ["rejected", "granted"]  # in the order of the model's scores
    positive = "granted"               # the class that people want, for fairness
    features = ["age", "income"]       # the model's columns, in its own order
    drop = ["id"]                      # columns that are not used
    missing = ["", "NA"]               # cells without a value; without this: empty ones
    sensitive = ["sex"]                # groups; features only where in columns
    infer = ["income"]                 # features that answers must not give away
    units = "range"                    # radii are shares of each range; or "raw"
    low = 0.0                          # range of every column without its own
    high = 1.0
    max_cost = 3.0                     # what an attacker spends per row, at most

    [[columns]]
    name = "income"
    low = 0
    high = 200_000
    kind = "integer"                   # number, integer or category
    change = "up"                      # both, up, down or never
    cost = 2.0                         # for crossing the whole range once

    [[columns]]
    name = "region"
    kind = "category"
    values = [0, 1, 2]
    cost = 0.5                         # for any change

    [[columns]]
    name = "colour=red"                # one-hot: of a group, exactly one column is 1
    group = "colour"
    cost = 0.5
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from security.errors import AssessmentError

__all__ = ["ColumnRules", "DataConfig", "load_data_config", "parse_data_config"]

MAX_CONFIG_BYTES = 4 << 20

KINDS = ("number", "integer", "category")
CHANGES = ("both", "up", "down", "never")
UNITS = ("range", "raw")


@dataclass(frozen=True)
class ColumnRules:
    """What may be done to one column.

    Attributes:
        name: of the column.
        low, high: its range, None where nothing is stated.
        kind: "number", "integer" or "category".
        change: "both", "up", "down" or "never".
        cost: of crossing the whole range, or of any change of a category. Not negative.
        values: a category's values; empty for other kinds.
        group: of one-hot columns that change together, or None.
    """

    name: str
    low: float | None = None
    high: float | None = None
    kind: str = "number"
    change: str = "both"
    cost: float = 1.0
    values: tuple[float, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """A parsed data configuration; the default says nothing.

    Attributes:
        label: the column with the class, or None.
        classes: names in the order of the model's scores, or none.
        positive: the class that fairness is about, or None.
        sensitive: columns that make groups; features only where ``columns`` has them.
        features: names of the model's columns in its order, where no manifest has them.
        drop: columns of the data that are not used.
        missing: cells that mean a missing value.
        infer: features that attribute inference guesses, beside the sensitive ones.
        units: "range" or "raw": what a radius of 1 means.
        low, high: the range of columns without one of their own, or None.
        max_cost: what an attacker spends per row, or None.
        columns: rules by name of the column.
    """

    label: str | None = None
    classes: tuple[str, ...] = ()
    positive: str | None = None
    sensitive: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)
    infer: tuple[str, ...] = ()
    units: str = "range"
    low: float | None = None
    high: float | None = None
    max_cost: float | None = None
    columns: Mapping[str, ColumnRules] = field(default_factory=dict)


def load_data_config(path: Path) -> DataConfig:
    """Read a data configuration.

    Raises:
        AssessmentError: unreadable or malformed; the message names the place.
    """
    try:
        data = read_regular(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
    except BundleError as error:
        raise AssessmentError(str(error)) from None
    return parse_data_config(data, path.name)


def parse_data_config(data: bytes, name: str = "data configuration") -> DataConfig:
    """Parse and validate.

    Raises:
        AssessmentError: malformed; the message names the place.

    >>> parse_data_config(b'classes = ["no", "yes"]').classes
    ('no', 'yes')
    """
    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AssessmentError(f"{name}: not TOML: {error}") from None
    table = _Table(value, name)
    columns = [_column(_Table(item, where)) for item, where in table.tables("columns")]
    config = DataConfig(
        label=table.text("label"),
        classes=table.texts("classes"),
        positive=table.text("positive"),
        sensitive=table.texts("sensitive"),
        features=table.texts("features"),
        drop=table.texts("drop"),
        missing=table.texts("missing", empty=True) or ("",),
        infer=table.texts("infer"),
        units=table.choice("units", UNITS) or "range",
        low=table.number("low"),
        high=table.number("high"),
        max_cost=table.number("max_cost"),
        columns={column.name: column for column in columns},
    )
    table.done()
    _check_range(config.low, config.high, name)
    if len(config.columns) != len(columns):
        raise AssessmentError(f"{name}: a column is configured twice")
    if config.max_cost is not None and config.max_cost <= 0:
        raise AssessmentError(f"{name}.max_cost: must be positive")
    return config


def _column(table: _Table) -> ColumnRules:
    name = table.text("name")
    if name is None:
        raise AssessmentError(f"{table.where}: missing name")
    cost = table.number("cost")
    column = ColumnRules(
        name=name,
        low=table.number("low"),
        high=table.number("high"),
        kind=table.choice("kind", KINDS) or "number",
        change=table.choice("change", CHANGES) or "both",
        cost=1.0 if cost is None else cost,
        values=table.numbers("values"),
        group=table.text("group"),
    )
    table.done()
    _check_range(column.low, column.high, table.where)
    if column.cost < 0:
        raise AssessmentError(f"{table.where}.cost: must not be negative")
    if (column.kind == "category") != bool(column.values):
        raise AssessmentError(f"{table.where}: a category, and only one, has values")
    return column


def _check_range(low: float | None, high: float | None, where: str) -> None:
    if (low is None) != (high is None):
        raise AssessmentError(f"{where}: low and high go together")
    if low is not None and high is not None and not low < high:
        raise AssessmentError(f"{where}: low must be below high")


class _Table:
    """Takes typed values out of a TOML table; `done` refuses what was not taken."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise AssessmentError(f"{where}: expected a table")
        self.where = where
        self._left = dict(value)
        self._taken: list[str] = []

    def done(self) -> None:
        for name in self._left:
            close = difflib.get_close_matches(name, self._taken, n=1)
            hint = f"; did you mean {close[0]!r}" if close else ""
            raise AssessmentError(f"{self.where}: unknown key {name!r}{hint}")

    def text(self, name: str) -> str | None:
        value = self._take(name)
        if value is not None and not (isinstance(value, str) and value):
            raise AssessmentError(f"{self.where}.{name}: expected text")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            raise AssessmentError(
                f"{self.where}.{name}: expected one of {', '.join(choices)}"
            )
        return value

    def number(self, name: str) -> float | None:
        value = self._take(name)
        return None if value is None else _number(value, f"{self.where}.{name}")

    def numbers(self, name: str) -> tuple[float, ...]:
        where = f"{self.where}.{name}"
        return tuple(_number(item, where) for item in self._list(name))

    def texts(self, name: str, *, empty: bool = False) -> tuple[str, ...]:
        values = self._list(name)
        if not all(isinstance(item, str) and (item or empty) for item in values):
            raise AssessmentError(f"{self.where}.{name}: expected texts")
        return tuple(values)

    def tables(self, name: str) -> list[tuple[Any, str]]:
        return [
            (item, f"{self.where}.{name}[{index}]")
            for index, item in enumerate(self._list(name))
        ]

    def _list(self, name: str) -> list[Any]:
        value = self._take(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise AssessmentError(f"{self.where}.{name}: expected an array")
        return value

    def _take(self, name: str) -> Any:
        self._taken.append(name)
        return self._left.pop(name, None)


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise AssessmentError(f"{where}: expected a finite number")
    return float(value)
