"""A first configuration of a table, with the reason for every value that it lacks.

Of private rows nothing is used but the header and how many there are, which the
evidence states anyway, rounded. Ranges, categories and classes must be known without
the rows: they are marked with `security.config_reader.TODO`, which no training accepts.
Of public rows they are what the rows have.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.data import cells
from models.data.columns import Table
from security.config_reader import TODO
from security.errors import TrainingError

__all__ = ["Asked", "draft", "model_name", "quoted", "range_of"]

# What programs write into a numeric column where there is no value.
_MARKS = frozenset(
    {"", "?", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", "-"}
)
_ALWAYS = ("", "?")  # these are missing in columns of texts, too
_MAX_CATEGORIES = 50
_MAX_CLASSES = 50
_IDENTIFIER = re.compile(r"(?:.*[_ .-])?(?:id|uuid|index|key|rowid)", re.IGNORECASE)
# Held-out rows that figures need to rest on: a policy asks for a hundred.
_HELD_OUT = 140
_DIGITS = 3  # of a range, rounded outwards

_RANGE = "it can be, by its definition: private rows must not tell it"
_CLASSES = "the classes' names, at least two, known without the rows"


@dataclass(frozen=True)
class Asked:
    """What a person said of the data.

    Attributes:
        source: the data, from where the configuration will be.
        label: the column with the classes.
        person: the column that says whose each row is, or "".
        public: whether the rows are public, so that ranges may come from them.
        delimiter: of a CSV file.
    """

    source: str
    label: str
    person: str = ""
    public: bool = False
    delimiter: str = ","


@dataclass(frozen=True)
class _Recipe:
    """Settings that did well on data of such a size; see docs/training.md."""

    why: str
    holdout: float
    model: tuple[str, ...]
    privacy: tuple[str, ...]
    optimizer: tuple[str, ...]


def draft(table: Table, asked: Asked) -> str:
    """The configuration's text.

    Raises:
        TrainingError: a column that was named is not there, or of public rows, the
            label has more values than a classifier has classes.
    """
    for name in filter(None, (asked.label, asked.person)):
        if name not in table.arrays:
            raise TrainingError(
                f"{table.where}: no column {name!r}; it has {', '.join(table.arrays)}"
            )
    owners = table.rows
    if asked.person:
        owners = len({*cells.plain_texts(table.column(asked.person)).tolist()})
    name = model_name(asked.source)
    recipe = _recipe(owners, public=asked.public)
    columns = [_column(table, title, asked) for title in _features(table, asked)]
    lines = [
        *_head(asked, recipe, name),
        *_data(table, asked, recipe, name),
        *_dropped(columns),
        "",
        "[privacy]",
        *recipe.privacy,
        "",
        "[optimizer]",
        *recipe.optimizer,
        "",
        "# For people: the model card quotes it.",
        "[use]",
        '# intended = "…"',
        '# out_of_scope = "…"',
        "",
        *_columns_head(asked),
        *(line for column in columns for line in column.lines),
    ]
    return "\n".join(lines) + "\n"


def model_name(source: str) -> str:
    """A model's name, from the name of a file.

    >>> model_name("data/Credit risk (2026).csv")
    'Credit-risk-2026'
    """
    stem = re.split(r"[/\\]", source)[-1].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:63] or "model"


def quoted(text: str) -> str:
    """A text as a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def range_of(values: Sequence[float]) -> tuple[str, str]:
    """The least and the largest of numbers, rounded outwards, as TOML.

    >>> range_of([0.12345, 17, 98.76])
    ('0.123', '98.8')
    """
    low, high = min(values), max(values)
    return _outwards(low, math.floor), _outwards(high, math.ceil)


def _outwards(value: float, way: Any) -> str:
    if value.is_integer() or not value:
        return str(int(value)) if abs(value) < 1e15 else repr(value)
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - _DIGITS + 1)
    return f"{way(value / unit) * unit:.{_DIGITS}g}"


def _head(asked: Asked, recipe: _Recipe, name: str) -> Iterator[str]:
    yield f"# Training on {asked.source}, as the command `init` proposes it."
    yield "#"
    yield "# All of it is public and goes into the evidence. What lacks is marked TODO:"
    yield "# `check` on this file lists what is left, with lines."
    yield ""
    yield "[model]"
    yield f"name = {quoted(name)}"
    yield 'version = "1.0.0"'
    yield f"# {recipe.why}"
    yield from recipe.model


def _data(table: Table, asked: Asked, recipe: _Recipe, name: str) -> Iterator[str]:
    yield ""
    yield "[data]"
    if not asked.public:
        yield "# The privacy ledger adds up under this name: keep it for these people."
    yield f"name = {quoted(name)}"
    yield f"source = {quoted(asked.source)}"
    if asked.delimiter != ",":
        yield f"delimiter = {quoted(asked.delimiter)}"
    yield "# Decides which rows are held out, for good. Any text, never to be changed."
    yield f"split_key = {quoted(f'{name}-split')}"
    yield f"holdout = {recipe.holdout:g}"
    yield f"label = {quoted(asked.label)}"
    yield f"classes = {_classes(table, asked)}"
    yield f"personal = {str(not asked.public).lower()}"
    if asked.person:
        yield "# Whose each row is: all rows of one person are protected together."
        yield f"unit = {quoted(asked.person)}"
    elif not asked.public:
        yield "# Each row is protected by itself. If one may have several, say whose:"
        yield '# unit = "COLUMN"'
    if not asked.public:
        yield '# Cells that mean a missing value; none, if not said: missing = [""]'
        yield '# Columns that make groups, to measure fairness: sensitive = ["COLUMN"]'
    elif marks := _missing(table, asked):
        yield f"missing = [{', '.join(map(quoted, marks))}]"


def _classes(table: Table, asked: Asked) -> str:
    if not asked.public:
        return f"[{quoted(TODO + _CLASSES)}]"
    names = {*cells.plain_texts(table.column(asked.label)).tolist()} - {""}
    if len(names) > _MAX_CLASSES:
        raise TrainingError(
            f"{table.where}: {asked.label!r} has {len(names)} different values: a "
            f"classifier is trained on at most {_MAX_CLASSES}. To predict a number, "
            "write data.task = 'regression' and its target: docs/training.md"
        )
    return f"[{', '.join(map(quoted, sorted(names, key=_by_value)))}]"


def _by_value(name: str) -> tuple[bool, float, str]:
    value = cells.written_number(name)
    return value is None, value or 0.0, name


@dataclass(frozen=True)
class _Column:
    """What is said of a column: as a feature, or why it is left out."""

    name: str
    lines: tuple[str, ...] = ()
    dropped: str = ""


def _features(table: Table, asked: Asked) -> list[str]:
    return [name for name in table.arrays if name not in (asked.label, asked.person)]


def _column(table: Table, name: str, asked: Asked) -> _Column:
    head = ("[[data.columns]]", f"name = {quoted(name)}")
    if not asked.public:
        ends = (f"{end} = {quoted(f'{TODO}{word} {_RANGE}')}" for end, word in _ENDS)
        return _Column(name, (*head, *ends))
    listed = cells.cells_of(table.column(name))
    known = {cell for cell in listed if not cells.is_null(cell)}
    numbers = _numbers(known)
    if numbers is None:
        names = {cells.canonical(cell) for cell in known} - {*_ALWAYS}
        if not 2 <= len(names) <= _MAX_CATEGORIES:
            return _Column(name, dropped=f"{len(names)} different texts")
        shown = ", ".join(map(quoted, sorted(names, key=_by_value)))
        return _Column(name, (*head, f"categories = [{shown}]"))
    if len(numbers) < 2:
        return _Column(name, dropped="the same in every row")
    if _IDENTIFIER.fullmatch(name) and len(numbers) == len(listed):
        return _Column(name, dropped="another number in each row, as an identifier has")
    low, high = range_of(numbers)
    return _Column(name, (*head, f"low = {low}", f"high = {high}"))


_ENDS = (("low", "the least"), ("high", "the most"))


def _numbers(known: set[Any]) -> list[float] | None:
    """The numbers of a column that has nothing but numbers and marks for none."""
    read = [cells.number(cell) for cell in known if cell not in _MARKS]
    numbers = [value for value in read if value is not None and math.isfinite(value)]
    return sorted({*numbers}) if numbers and len(numbers) == len(read) else None


def _missing(table: Table, asked: Asked) -> list[str]:
    """The marks for no value that public rows have."""
    found: set[str] = set()
    for name in _features(table, asked):
        listed = cells.cells_of(table.column(name))
        texts = {cell for cell in listed if isinstance(cell, str)}
        known = {cell for cell in listed if not cells.is_null(cell)}
        marks = _ALWAYS if _numbers(known) is None else _MARKS
        found |= texts & {*marks}
        found |= {""} if any(map(cells.is_null, listed)) else set()
    return sorted(found)


def _dropped(columns: Sequence[_Column]) -> Iterator[str]:
    left = [column for column in columns if column.dropped]
    if not left:
        return
    yield "# Columns that are not used. To use one, describe it below instead."
    yield "drop = ["
    for column in left:
        yield f"    {quoted(column.name)},  # {column.dropped}"
    yield "]"


def _columns_head(asked: Asked) -> Iterator[str]:
    yield "# Features, and what is publicly known of each: a range (beyond it, values"
    yield "# are clipped) or its categories."
    if asked.public:
        yield "# These are from the rows, which are public, rounded outwards."
        return
    yield '# A category has, in place of low and high:  categories = ["…", "…"]'
    yield "# A column that is not to be used goes into [data], with no entry here:"
    yield '# drop = ["COLUMN"], or identifier = "COLUMN" for one that names each row.'


def _recipe(owners: int, *, public: bool) -> _Recipe:
    """Settings by the number of those who are sampled, which is public, rounded."""
    share = _HELD_OUT / max(1, owners)
    holdout = float(f"{min(0.5, max(0.25 if owners < 5000 else 0.2, share)):.2g}")
    batch = _round((1 - holdout) * owners)
    return (_public_recipe if public else _private_recipe)(owners, holdout, batch)


def _round(count: float) -> int:
    """To one digit, downwards: no count of private rows.

    >>> _round(426), _round(0.75)
    (400, 1)
    """
    unit = 10 ** int(math.log10(max(1.0, count)))
    return max(1, int(count // unit) * unit)


def _private_recipe(owners: int, holdout: float, batch: int) -> _Recipe:
    few = owners < 5000
    rate = 1.0 if batch <= 50_000 else float(f"{30_000 / batch:.1g}")
    noisy = (
        ("max_grad_norm = 1.0", 'clipping = "automatic"')
        if few
        else ("max_grad_norm = 4.0",)
    )
    return _Recipe(
        why="With noise, the smallest network is the best one, unless rows are many.",
        holdout=holdout,
        model=('architecture = "linear"',),
        privacy=(
            "# What anyone can learn about one person is bounded by e^epsilon.",
            "epsilon = 3.0",
            "# Large batches and few steps; see the recipes in docs/training.md.",
            f"sampling_rate = {rate:g}",
            f"steps = {100 if few else 200}",
            *noisy,
            "# About as many as a step takes: round, not a count of private rows.",
            f"expected_batch = {max(1, int(batch * rate))}",
            "loss_share = 0.0",
        ),
        optimizer=("learning_rate = 4.0", "ema = 0.95")
        if few
        else ("learning_rate = 1.0", "momentum = 0.9", "ema = 0.9"),
    )


def _public_recipe(owners: int, holdout: float, batch: int) -> _Recipe:
    few = owners < 2000
    rate = 1.0 if batch <= 2000 else float(f"{2000 / batch:.2g}")
    return _Recipe(
        why="Few rows: linear. More carry a small network."
        if few
        else "Enough rows for a small network.",
        holdout=holdout,
        model=('architecture = "linear"',)
        if few
        else ('architecture = "mlp"', "hidden = [64]"),
        privacy=(
            "# The rows are public, so nothing protects them. For a guarantee:",
            '# mechanism = "dp_sgd", epsilon, max_grad_norm; see docs/training.md.',
            'mechanism = "none"',
            f"sampling_rate = {rate:g}",
            f"steps = {500 if few else 1500}",
            f"expected_batch = {max(1, int(batch * rate))}",
        ),
        optimizer=('kind = "adam"', f"learning_rate = {0.05 if few else 0.01}"),
    )
