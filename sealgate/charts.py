"""Charts as SVG, drawn with the colours of the page that they stand in.

A picture made elsewhere keeps its colours in the dark and its resolution on paper;
these are text, take their colours from `sealgate.page` (classes ``s0`` to ``s5``), and
need nothing that would have to be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sealgate.page import filtered, number

__all__ = ["Bar", "bars", "interval_bar", "line_chart"]

# As wide as a phone: there, too, text has the size that is written here.
_WIDTH, _HEIGHT = 380, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 42
_COLOURS = 6


@dataclass(frozen=True)
class _Axis:
    """One axis: values to places.

    Attributes:
        low, high: its ends, in values.
        first, last: where they are, in pixels or percent.
        log: logarithmic.
    """

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low)
        return round(self.first + share * (self.last - self.first), 1)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.log10(self.low), math.log10(self.high)
            return [10.0**n for n in range(math.ceil(first), math.floor(last) + 1)]
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 10) for n in range(first, last + 1)]


def line_chart(chart: Mapping[str, Any]) -> str:
    """A chart of lines, with bands where points have intervals.

    Args:
        chart: ``title``, ``x`` and ``y`` (labels), ``series`` (each ``name`` and
            ``points``, of ``[x, y]`` or ``[x, y, low, high]``), and optionally
            ``log_x``, ``log_y``, ``y_low``, ``y_high``, ``diagonal`` (the line of
            chance).
    """
    series = [item for item in chart["series"] if item["points"]]
    if not series:
        return ""
    across = _axis(series, 0, bool(chart.get("log_x")), _LEFT, _WIDTH - _RIGHT)
    up = _axis(
        series, 1, bool(chart.get("log_y")), _HEIGHT - _BOTTOM, _TOP,
        ends=(chart.get("y_low"), chart.get("y_high")),
    )  # fmt: skip
    parts = [_grid(across, up, str(chart["x"]), str(chart["y"]))]
    if chart.get("diagonal"):
        parts.append(_diagonal(across, up))
    for index, item in enumerate(series):
        parts.append(_line(item["points"], across, up, index))
    title = escape(str(chart["title"]))
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title}">{"".join(parts)}</svg>'
        f"<figcaption>{title}{_legend(series)}</figcaption></figure>"
    )


def interval_bar(
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    ends: tuple[float, float] = (0.0, 1.0),
    colour: int = 0,
) -> str:
    """A bar from zero to a value, and a whisker over its interval; as wide as styled.

    Args:
        value: the figure.
        low: of its interval, if it has one.
        high: of its interval.
        ends: of the axis, which holds zero.
        colour: from 0; they come again after the sixth.
    """
    axis = _Axis(*ends, 0.0, 100.0)
    zero, here = axis(0.0), axis(value)
    whisker = ""
    if low is not None and high is not None:
        left, right = axis(low), axis(high)
        lines = (_vertical(left, 6, 12), _vertical(right, 6, 12))
        across = f'<line x1="{left}%" x2="{right}%" y1="9" y2="9"/>'
        whisker = f'<g class="whisker">{"".join(lines)}{across}</g>'
    return (
        f'<svg class="bar s{colour % _COLOURS}" aria-hidden="true">'
        f'<g class="axis">{_vertical(zero, 0, 18)}</g>'
        f'<rect x="{min(zero, here)}%" y="4" width="{round(abs(here - zero), 1)}%" '
        f'height="10"/>{whisker}<circle cx="{here}%" cy="9" r="3"/></svg>'
    )


def _vertical(across: float, top: int, bottom: int) -> str:
    return f'<line x1="{across}%" x2="{across}%" y1="{top}" y2="{bottom}"/>'


@dataclass(frozen=True)
class Bar:
    """One bar of `bars`.

    Attributes:
        name: what it is of.
        value: its length.
        low, high, level: its interval, and that interval's confidence from 0 to 1.
        n: its sample.
        anchor: the row's id, or "".
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n: float | None = None
    anchor: str = ""


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    first: str,
    name: str = "",
    ends: tuple[float, float] | None = None,
) -> str:
    """Markup of a table of bars in groups, on one axis, each beside its figures.

    Text stays text, so that a long name wraps, is found and is read aloud. Where groups
    have the same bars, each bar has its colour.

    Args:
        groups: titles ("" for none) and their bars.
        first: title of the column of names.
        name: of the table, for who does not see it.
        ends: of the axis; what lies outside, or has no interval, is not drawn. Without
            them all bars are.
    """
    shown = [item for _, items in groups for item in items]
    drawn = [item for item in shown if ends is None or _within(item, ends)]
    axis = ends or _ends(shown)
    names = list(dict.fromkeys(item.name for item in shown))
    # Where all groups have much the same bars, each bar has its colour.
    alike = len(groups) > 1 and len(names) == max(len(items) for _, items in groups)
    levels = {item.level for item in shown if item.level is not None}
    level = f"{100 * levels.pop():.4g}% " if len(levels) == 1 else ""
    scale = "".join(f"<span>{number(end)}</span>" for end in axis)
    heads = [escape(first), f'<div class="ends">{scale}</div>' if drawn else ""]
    heads += [f"value [{level}interval]" if levels or level else "value"]
    heads += ["n"] if any(item.n is not None for item in shown) else []

    def row(bar: Bar) -> str:
        colour = alike * names.index(bar.name)
        picture = interval_bar(bar.value, bar.low, bar.high, ends=axis, colour=colour)
        said = _said(bar, level=not level)
        cells = [escape(bar.name), picture if bar in drawn else "", said]
        cells += ["" if bar.n is None else number(bar.n)]
        anchor = f' id="{escape(bar.anchor)}"' if bar.anchor else ""
        inner = "".join(f"<td>{cell}</td>" for cell in cells[: len(heads)])
        return f"<tr{anchor}>{inner}</tr>"

    parts = []
    for title, items in groups:
        head = f'<th scope="rowgroup" colspan="{len(heads)}">{escape(title)}</th>'
        head = f'<tr class="head">{head}</tr>' if title else ""
        parts.append(f"<tbody>{head}{''.join(map(row, items))}</tbody>")
    return (
        f'<div class="wide"><table class="bars"{filtered(len(shown), name)}><thead><tr>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}"
        f"</tr></thead>{''.join(parts)}</table></div>"
    )


def _ends(shown: Sequence[Bar]) -> tuple[float, float]:
    """Of one axis for all: 0 to 1 for shares, else round numbers with 0 among them."""
    values = [v for b in shown for v in (b.value, b.low, b.high) if v is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    if low >= 0 and 0.3 < high <= 1:
        return 0.0, 1.0
    step = _step(high - low or 1.0)
    # A hair beyond a round number is drawn at it.
    down, up = math.floor(low / step + 0.02), math.ceil(high / step - 0.02)
    return round(step * down, 10), round(step * (up or not down), 10)


def _within(bar: Bar, ends: tuple[float, float]) -> bool:
    return (
        bar.low is not None
        and bar.high is not None
        and (ends[0] <= bar.low and bar.high <= ends[1])
    )


def _said(bar: Bar, *, level: bool) -> str:
    """Markup of a bar's value and interval, and of its level where they differ."""
    if bar.low is None or bar.high is None:
        return number(bar.value)
    own = f" ({100 * bar.level:.4g}%)" if level and bar.level is not None else ""
    interval = f"[{number(bar.low)}, {number(bar.high)}]{own}"
    return f'{number(bar.value)} <span class="interval">{interval}</span>'


def _axis(
    series: Sequence[Mapping[str, Any]],
    place: int,
    log: bool,
    first: float,
    last: float,
    *,
    ends: tuple[float | None, float | None] = (None, None),
) -> _Axis:
    values = [point[place] for item in series for point in item["points"]]
    if place == 1:
        values += [end for item in series for p in item["points"] for end in p[2:4]]
    if log:
        values = [value for value in values if value > 0] or [1.0]
    low = min(values) if ends[0] is None else ends[0]
    high = max(values) if ends[1] is None else ends[1]
    if log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
    if low == high:
        low, high = (low / 10, high * 10) if log else (low - 0.5, high + 0.5)
    return _Axis(low, high, first, last, log)


def _grid(across: _Axis, up: _Axis, x_label: str, y_label: str) -> str:
    parts, right = [], _WIDTH - _RIGHT
    for tick in up.ticks():
        y, text = up(tick), f"{tick:,g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
        )
    for tick in across.ticks():
        x = across(tick)
        # The last number would stick out of the picture.
        anchor = "end" if x > _WIDTH - _RIGHT - 12 else "middle"
        parts.append(
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">'
            f"{tick:,g}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(12 {_HEIGHT / 2 - 16}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _style(index: int) -> str:
    """The classes of a series: after the last colour they come again, dashed."""
    return f"s{index % _COLOURS}{' again' if index >= _COLOURS else ''}"


def _line(
    points: Sequence[Sequence[float]], across: _Axis, up: _Axis, index: int
) -> str:
    colour = index % _COLOURS
    shown = [p for p in points if not (across.log and p[0] <= 0)]
    shown = [p for p in shown if not (up.log and p[1] <= 0)]
    path = " ".join(f"{across(p[0])},{up(p[1])}" for p in shown)
    band = ""
    if shown and all(len(p) >= 4 for p in shown):
        edge = [f"{across(p[0])},{up(p[2])}" for p in shown]
        edge += [f"{across(p[0])},{up(p[3])}" for p in reversed(shown)]
        band = f'<polygon class="band s{colour}" points="{" ".join(edge)}"/>'
    dots = ""
    if len(shown) <= 16:
        dots = "".join(
            f'<circle class="s{colour}" cx="{across(p[0])}" cy="{up(p[1])}" r="2.6"/>'
            for p in shown
        )
    return f'{band}<polyline class="line {_style(index)}" points="{path}"/>{dots}'


def _diagonal(across: _Axis, up: _Axis) -> str:
    low, high = max(across.low, up.low), min(across.high, up.high)
    # On log axes too, equal rates are a straight line.
    return (
        f'<line class="chance" x1="{across(low)}" y1="{up(low)}" '
        f'x2="{across(high)}" y2="{up(high)}"/>'
    )


def _legend(series: Sequence[Mapping[str, Any]]) -> str:
    if len(series) == 1 and not series[0].get("name"):
        return ""
    keys = []
    for index, item in enumerate(series):
        name = escape(str(item.get("name", "")))
        line = f'<path class="line {_style(index)}" d="M0 4h16"/>'
        line = f'<svg viewBox="0 0 16 8" aria-hidden="true">{line}</svg>'
        keys.append(f'<span class="key">{line}{name}</span>')
    return f"<br>{' '.join(keys)}"


def _step(span: float) -> float:
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(unit * n for n in (1, 2, 5, 10) if unit * n >= raw)
