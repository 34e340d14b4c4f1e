"""The data configuration: what an attacker may change in a row, and at which cost.

A TOML file. Everything in it is optional::

    label = "outcome"                  # the CSV or Parquet column with the class
    classes = ["rejected", "granted"]  # in the order of the model's scores
    positive = "granted"               # the class that people want, for fairness
    features = ["age", "income"]       # the model's columns, in its own order
    text = ["review"]                  # features that are texts
    drop = ["id"]                      # columns that are not used
    missing = ["", "NA"]               # cells without a value; without this: empty ones
    sensitive = ["sex"]                # groups; features only where in columns
    infer = ["income"]                 # features that answers must not give away
    prediction = "said"                # of `scan --predictions`: the class given,
    probabilities = ["p"]              # of `positive`, or one per class; or
    scores = ["s"]                     # scores that are no probabilities
    units = "range"                    # radii are shares of each range; or "raw"
    low = 0.0                          # range of every column without its own
    high = 1.0
    max_cost = 3.0                     # what an attacker spends per row, at most
    tolerance = 5.0                    # a predicted number may move by this, at most
    edits = 3                          # characters of a text that an attacker changes

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
    name = "city"
    texts = ["Bonn", "Ulm"]            # of a column of texts: what it may become

    [[columns]]
    name = "colour=red"                # one-hot: of a group, exactly one column is 1
    group = "colour"
    cost = 0.5
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular
from security.config_reader import Rules, read_sections
from security.errors import AssessmentError

__all__ = [
    "ColumnRules",
    "DataConfig",
    "broken",
    "load_data_config",
    "parse_data_config",
]

MAX_CONFIG_BYTES = 4 << 20  # one-hot tables have thousands of columns

KINDS = ("number", "integer", "category")
CHANGES = ("both", "up", "down", "never")
UNITS = ("range", "raw")
_MAX_EDITS = 50


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
        texts: of a column of texts: those that it may become, if they are few.
        group: of one-hot columns that change together, or None.
    """

    name: str
    low: float | None = None
    high: float | None = None
    kind: str = "number"
    change: str = "both"
    cost: float = 1.0
    values: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
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
        text: features that are texts, where no manifest says so.
        drop: columns of the data that are not used.
        missing: cells that mean a missing value.
        infer: features that attribute inference guesses, beside the sensitive ones.
        prediction: in a file of predictions, the column with the class given.
        probabilities, scores: its columns with the one or the other.
        units: "range" or "raw": what a radius of 1 means.
        low, high: the range of columns without one of their own, or None.
        max_cost: what an attacker spends per row, or None.
        tolerance: by how much a predicted number may move, in its unit, or None.
        edits: how many characters of a text an attacker changes, or None.
        columns: their rules.
    """

    label: str | None = None
    classes: tuple[str, ...] = ()
    positive: str | None = None
    sensitive: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)
    infer: tuple[str, ...] = ()
    prediction: str = "prediction"
    probabilities: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    units: str = "range"
    low: float | None = None
    high: float | None = None
    max_cost: float | None = None
    tolerance: float | None = None
    edits: int | None = None
    columns: tuple[ColumnRules, ...] = ()

    @property
    def rules(self) -> Mapping[str, ColumnRules]:
        """The columns' rules by name."""
        return {column.name: column for column in self.columns}


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
    return read_sections(
        data,
        DataConfig,
        broken,
        where=name,
        error=AssessmentError,
        max_bytes=MAX_CONFIG_BYTES,
    )


def broken(config: DataConfig) -> Rules:
    """The rules that values break."""
    for passed, key, message in _rules(config):
        if not passed:
            yield (key,), f"{key}: {message}"


def _rules(config: DataConfig) -> Iterable[tuple[bool, str, str]]:
    """Every rule on values: whether it holds, of which key, and what to say if not."""
    yield config.units in UNITS, "units", f"expected one of {', '.join(UNITS)}"
    yield config.max_cost is None or config.max_cost > 0, "max_cost", "must be positive"
    near = config.tolerance is None or config.tolerance > 0
    yield near, "tolerance", "must be positive"
    few = config.edits is None or 0 < config.edits <= _MAX_EDITS
    yield few, "edits", f"must be from 1 to {_MAX_EDITS}"
    for passed, message in _range_rules(config.low, config.high):
        yield passed, "low", message
    once = not (config.scores and config.probabilities)
    yield once, "scores", "they are probabilities, or are not: name one kind"
    for key in ("classes", "sensitive", "features", "text", "drop", "infer"):
        yield "" not in getattr(config, key), key, "an empty name"
    known = [column.name for column in config.columns]
    yield len(set(known)) == len(known), "columns", "a column is configured twice"
    for column in config.columns:
        for passed, message in _column_rules(column):
            yield passed, "columns", f"{column.name!r}: {message}"


def _column_rules(column: ColumnRules) -> Iterable[tuple[bool, str]]:
    yield column.kind in KINDS, f"kind: expected one of {', '.join(KINDS)}"
    yield column.change in CHANGES, f"change: expected one of {', '.join(CHANGES)}"
    yield column.cost >= 0, "cost: must not be negative"
    category = column.kind == "category"
    yield category == bool(column.values), "a category, and only one, has values"
    yield from _range_rules(column.low, column.high)


def _range_rules(low: float | None, high: float | None) -> Iterable[tuple[bool, str]]:
    yield (low is None) == (high is None), "low and high go together"
    ordered = low is None or high is None or low < high
    yield ordered, "low must be below high"
