"""The space that attacks move in: ranges, units, and what may be changed at all.

An attack works on ``z``: each column shifted and divided by its scale, so that a radius
means the same everywhere. What is asked of the model is always a raw row, in the type
that the model takes, made by `Space.repair`: inside its ball, its ranges and every
rule, measured on the very numbers that are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Column
from security.assessment.targets.dataconfig import ColumnRules, DataConfig
from security.assessment.targets.texts import Texts
from security.errors import AssessmentError

__all__ = ["Space", "build_space"]

Floats = NDArray[np.float64]
Rows = NDArray[Any]
Mask = NDArray[np.bool_]
Radius = float | Floats

# Float columns with fewer distinct values than this in all rows look like categories.
_L2_SHRINK = 1 - 1e-7
_HAIR = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class Space:
    """The raw columns of a model, and how an attacker may move in them.

    Attributes:
        low, high: float64 ``(d,)``, each column's range.
        scale: ``(d,)``, raw units of a radius of 1.
        dtype: of the model's input.
        integer: ``(d,)``, columns of whole numbers.
        rules: per column, from the data configuration or by default.
        ranges_from: "configuration", "manifest", "unit box" or "data".
        units: "range" or "raw".
        table: whether columns are features of a table, not pixels.
        max_cost: as in the data configuration.
        single: ``(d,)``, columns that the model takes in single precision where the
            rows are in double; None for none.
    """

    low: Floats
    high: Floats
    scale: Floats
    dtype: np.dtype[Any]
    integer: Mask
    rules: tuple[ColumnRules, ...] = field(repr=False)
    ranges_from: str
    units: str
    table: bool
    max_cost: float | None = None
    single: Mask | None = None

    @property
    def held(self) -> Mask:
        """``(d,)``: columns that no ball of radius below 1 lets change."""
        return np.array(
            [
                rule.change == "never" or rule.kind == "category" or bool(rule.group)
                for rule in self.rules
            ],
            dtype=bool,
        )

    def to_z(self, rows: Rows) -> Floats:
        """Raw rows to attack coordinates; what is missing goes to the middle."""
        values = np.asarray(rows, dtype=np.float64)
        middle = (self.low + self.high) / 2
        filled = np.where(np.isfinite(values), values, middle)
        return np.asarray((filled - self.low) / self.scale)

    def to_raw(self, z: Floats) -> Floats:
        """Attack coordinates to raw values, in float64."""
        return np.asarray(self.low + np.asarray(z, np.float64) * self.scale)

    def limits(self, start: Rows, radius: Radius = np.inf) -> tuple[Floats, Floats]:
        """Raw bounds ``(n, d)`` of what each column may become within a radius.

        A row's own value is always allowed, even where it lies outside the range.
        The radius is one for all rows, or one for each ``(n,)``.
        """
        own = np.asarray(start, dtype=np.float64)
        known = np.isfinite(own)
        own = np.where(known, own, self.low)
        reach = np.reshape(radius, (-1, 1)) * self.scale
        low = np.minimum(own, np.maximum(self.low, own - reach))
        high = np.maximum(own, np.minimum(self.high, own + reach))
        up = np.array([rule.change == "up" for rule in self.rules])
        down = np.array([rule.change == "down" for rule in self.rules])
        fixed = self.held | ~known
        low = np.where(fixed | up, own, low)
        high = np.where(fixed | down, own, high)
        whole = self.integer & (own == np.round(own))
        low = np.where(whole, np.ceil(low), low)
        high = np.where(whole, np.floor(high), high)
        return low, high

    def repair(self, z: Floats, start: Rows, norm: str, radius: Radius) -> Rows:
        """The closest rows that may be sent, in the model's own type.

        Args:
            z: candidates ``(n, d)``; not-a-number becomes the row's own value.
            start: the rows they come from, in the model's type.
            norm: "linf" or "l2".
            radius: of the ball, or of each row's ``(n,)``; infinity is the whole range.
        """
        own = np.asarray(start, dtype=np.float64)
        low, high = self.limits(start, radius)
        raw = self.to_raw(z)
        raw = np.where(np.isfinite(raw), raw, np.where(np.isfinite(own), own, low))
        raw = np.clip(raw, low, high)
        if norm == "l2" and np.isfinite(radius).all():
            raw = self._into_l2(raw, own, radius)
        raw = np.where(self.integer, self._whole(raw, own), raw)
        raw = np.clip(raw, low, high)
        raw = np.where(np.isfinite(own), raw, own)
        made = self._cast(raw, own, low, high)
        if np.isfinite(radius).all() and self.dtype.kind == "f":
            reach = np.broadcast_to(radius, len(made))
            out = self.distance(made, start, norm) > reach
            near = reach[out][:, None]
            made[out] = self._drawn_in(made[out], raw[out], own[out], near)
        return made

    def distance(self, rows: Rows, start: Rows, norm: str) -> Floats:
        """How far rows are from their start, in units of the radius, ``(n,)``."""
        with np.errstate(invalid="ignore"):
            moved = np.asarray(rows, np.float64) - np.asarray(start, np.float64)
        moved = np.where(np.isfinite(np.asarray(start, np.float64)), moved, 0.0)
        steps = np.abs(moved) / self.scale
        if norm == "linf":
            return np.asarray(steps.max(axis=1))
        return np.asarray(np.sqrt((steps**2).sum(axis=1)))

    def allowed(self, rows: Rows, start: Rows, *, categories: bool = False) -> Mask:
        """Which rows keep every rule, ``(n,)``: ranges, directions, whole numbers.

        Args:
            rows: candidates, in the model's type.
            start: the rows they come from.
            categories: let categories and one-hot groups change, as cost attacks do.
        """
        new, own = np.asarray(rows, np.float64), np.asarray(start, np.float64)
        same = (new == own) | (np.isnan(new) & np.isnan(own))
        low, high = self.limits(start)
        inside = (new >= low) & (new <= high)
        whole = ~self.integer | (new == np.round(new))
        fits = same | (inside & whole & np.isfinite(own))
        if categories:
            free = [
                _category_fits(rule, new[:, i]) for i, rule in enumerate(self.rules)
            ]
            fits |= np.stack(free, axis=1)
            return np.asarray(fits.all(axis=1) & self._groups_hold(new, own))
        return np.asarray(fits.all(axis=1))

    def groups(self) -> Mapping[str, list[int]]:
        """Columns of each one-hot group."""
        names = [rule.group for rule in self.rules]
        return {
            name: [place for place, own in enumerate(names) if own == name]
            for name in dict.fromkeys(names)
            if name is not None
        }

    def _groups_hold(self, new: Floats, own: Floats) -> Mask:
        good = np.ones(len(new), dtype=bool)
        for places in self.groups().values():
            part = new[:, places]
            hot = (np.sort(part, axis=1)[:, -1] == 1) & (part.sum(axis=1) == 1)
            good &= hot | (part == own[:, places]).all(axis=1)
        return good

    def _whole(self, raw: Floats, own: Floats) -> Floats:
        """Whole numbers, away from where the row was: small steps shall count."""
        away = np.where(raw >= own, np.floor(raw), np.ceil(raw))
        near = np.round(raw)
        return np.where(np.isfinite(own) & (near == np.round(own)), away, near)

    def _into_l2(self, raw: Floats, own: Floats, radius: Radius) -> Floats:
        moved = np.where(np.isfinite(own), raw - own, 0.0)
        length = np.sqrt(((moved / self.scale) ** 2).sum(axis=1, keepdims=True))
        reach = np.reshape(radius, (-1, 1)) * _L2_SHRINK
        share = np.minimum(1.0, reach / np.maximum(length, 1e-300))
        return np.where(np.isfinite(own), own + moved * share, own)

    def _drawn_in(self, made: Rows, raw: Floats, own: Floats, radius: Floats) -> Rows:
        """Rows that rounding put out of their ball: back by one step of their type.

        Without it corners of double precision, and a third of the surface in L2, would
        count for nothing, and the model as robust.
        """
        moved = np.abs(made - own)
        farther = (moved > np.abs(raw - own)) | (moved / self.scale > radius)
        back = np.nextafter(made, own.astype(self.dtype), dtype=self.dtype)
        if self.dtype == np.float64:  # a step near 0 is finer than the ball's own ulp
            back = own + (made - own) * _HAIR
        if self.single is not None:
            near = np.nextafter(made.astype(np.float32), own.astype(np.float32))
            back = np.where(self.single, near, back)
        return np.asarray(np.where(farther, back, made), dtype=self.dtype)

    def _cast(self, raw: Floats, own: Floats, low: Floats, high: Floats) -> Rows:
        """To the model's type; towards the row where rounding leaves the bounds."""
        if self.dtype.kind in "iu":
            return raw.astype(self.dtype)
        with np.errstate(over="ignore"):
            rows = raw.astype(self.dtype)
        exact = rows.astype(np.float64)
        outside = (exact < low) | (exact > high)
        inward = np.nextafter(rows, own.astype(self.dtype), dtype=self.dtype)
        rows = np.where(outside, inward, rows)
        if self.single is not None:
            near, home = rows.astype(np.float32), own.astype(np.float32)
            outside = (near < low) | (near > high)
            near = np.where(outside, np.nextafter(near, home), near)
            rows = np.where(self.single, near, rows)
        return np.asarray(rows, dtype=self.dtype)


def build_space(
    rows: Rows,
    dtype: str,
    *,
    table: bool,
    columns: Sequence[Column] = (),
    bounds: tuple[float, float] | None = None,
    names: Sequence[str] = (),
    config: DataConfig = DataConfig(),
    types: Sequence[str] | NDArray[np.str_] = (),
    texts: Texts | None = None,
) -> Space:
    """The space of some rows.

    Ranges come from the data configuration; then from the manifest; then are
    0 to 1 where all rows are; then are the data's own, which a finding says.

    Args:
        rows: ``(n, d)``, in the model's type.
        dtype: the model's.
        table: whether columns are features, not pixels.
        columns: of the manifest, or none.
        bounds: of every value, by the manifest, or None.
        names: of the data's columns, or none.
        config: the data configuration.
        types: of each column, where several inputs lie side by side; or none.
        texts: that columns of type "str" hold the places of.

    Raises:
        AssessmentError: the configuration names a column that is not there, or a row
            breaks its rules.
    """
    width = rows.shape[1]
    if columns and len(columns) != width:
        raise AssessmentError(f"the model has {len(columns)} columns, the data {width}")
    known = [item.name for item in columns] or list(names)
    known = known if len(known) == width else [f"[{i}]" for i in range(width)]
    missing = sorted(set(config.rules) - set(known))
    if missing:
        raise AssessmentError(f"the data configuration's {missing[0]!r} is no column")
    stated = {**_coded_rules(columns), **config.rules}
    rules = tuple(stated.get(name) or ColumnRules(name) for name in known)
    rules = _text_rules(rows, rules, types, texts or Texts())
    low, high, source = _ranges(rows, rules, columns, bounds, config=config)
    kind = np.dtype(dtype)
    integer = np.array([rule.kind == "integer" for rule in rules])
    if kind.kind in "iu":
        integer = np.ones(width, dtype=bool)
    if len(types):
        integer |= np.array([np.dtype(item).kind in "iu" for item in types])
    space = Space(
        low=low,
        high=high,
        scale=np.ones(width) if config.units == "raw" else high - low,
        dtype=kind,
        integer=integer,
        rules=rules,
        ranges_from=source,
        units=config.units,
        table=table,
        max_cost=config.max_cost,
        single=np.isin(types, ["float32"])
        if dtype == "float64" and len(types)
        else None,
    )
    _check_rows(space, np.asarray(rows, np.float64))
    return space


def _coded_rules(columns: Sequence[Column]) -> dict[str, ColumnRules]:
    """Columns of codes, as a manifest states them: between two codes is no category."""
    return {
        item.name: ColumnRules(
            item.name,
            kind="category",
            values=tuple(float(code) for code in range(len(item.categories))),
        )
        for item in columns
        if item.categories
    }


def _text_rules(
    rows: Rows,
    rules: tuple[ColumnRules, ...],
    types: Sequence[str] | NDArray[np.str_],
    texts: Texts,
) -> tuple[ColumnRules, ...]:
    """Columns of texts: categories that are declared, or texts that no radius moves."""
    found = list(rules)
    for place, kind in enumerate(types):
        if kind != "str":
            continue
        seen = {float(value) for value in rows[:, place]}
        declared = {float(texts.place(text)) for text in rules[place].texts}
        found[place] = replace(
            rules[place],
            kind="category",
            values=tuple(sorted(declared or seen)),
            change=rules[place].change if declared else "never",
        )
    return tuple(found)


def _ranges(
    rows: Rows,
    rules: Sequence[ColumnRules],
    columns: Sequence[Column],
    bounds: tuple[float, float] | None,
    *,
    config: DataConfig,
) -> tuple[Floats, Floats, str]:
    base_low, base_high, source = _base_ranges(rows, columns, bounds, config=config)
    stated = [_stated(rule) for rule in rules]
    low = np.array([own if s is None else s[0] for s, own in zip(stated, base_low)])
    high = np.array([own if s is None else s[1] for s, own in zip(stated, base_high)])
    if all(item is not None for item in stated):
        source = "configuration"
    return low, high, source


def _stated(rule: ColumnRules) -> tuple[float, float] | None:
    """A column's range, as its rules say it."""
    if rule.low is not None and rule.high is not None:
        return rule.low, rule.high
    if rule.group is not None:
        return 0.0, 1.0
    if len(set(rule.values)) > 1:
        return min(rule.values), max(rule.values)
    return None


def _base_ranges(
    rows: Rows,
    columns: Sequence[Column],
    bounds: tuple[float, float] | None,
    *,
    config: DataConfig,
) -> tuple[Floats, Floats, str]:
    width = rows.shape[1]
    if config.low is not None and config.high is not None:
        return (
            np.full(width, config.low),
            np.full(width, config.high),
            "configuration",
        )
    if columns:
        lows = np.array([column.low for column in columns])
        return lows, np.array([column.high for column in columns]), "manifest"
    if bounds is not None:
        return np.full(width, bounds[0]), np.full(width, bounds[1]), "manifest"
    if rows.dtype.kind == "u" and rows.dtype.itemsize == 1:
        return np.zeros(width), np.full(width, 255.0), "unit box"
    values = np.where(np.isfinite(rows), np.asarray(rows, np.float64), np.nan)
    if np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        return np.zeros(width), np.ones(width), "unit box"
    empty = np.isnan(values).all(axis=0)
    values[:, empty] = 0.0
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    # A column that never varies has no range: one unit, or a radius means nothing.
    return low, np.where(high > low, high, low + 1.0), "data"


def _check_rows(space: Space, rows: Floats) -> None:
    for place, rule in enumerate(space.rules):
        own = rows[:, place]
        own = own[np.isfinite(own)]
        if rule.kind == "integer" and (own != np.round(own)).any():
            raise AssessmentError(f"column {rule.name!r} is integer, a row is not")
        if rule.kind == "category" and not np.isin(own, rule.values).all():
            raise AssessmentError(f"column {rule.name!r} has an unlisted value")
    for name, places in space.groups().items():
        part = rows[:, places]
        if len(places) < 2 or not (np.sort(part, axis=1)[:, -1] == 1).all():
            raise AssessmentError(f"group {name!r} is not one-hot in every row")


def _category_fits(rule: ColumnRules, values: Floats) -> Mask:
    if rule.change == "never":
        return np.zeros(len(values), dtype=bool)
    if rule.group:
        return np.asarray((values == 0) | (values == 1))
    return np.asarray(np.isin(values, rule.values) & (rule.kind == "category"))
