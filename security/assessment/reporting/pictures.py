"""Charts and small images as SVG, drawn with the page's own colours.

A picture made elsewhere keeps its colours in the dark and its resolution on paper;
these are text, take their colours from the page's style sheet (classes ``s0`` to
``s5``), and need nothing that would have to be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["interval_bar", "line_chart", "pixels"]

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 42
_COLOURS = 6


@dataclass(frozen=True)
class _Axis:
    """One axis: values to pixels.

    Attributes:
        low, high: its ends, in values.
        first, last: where they are, in pixels.
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
        parts.append(_line(item["points"], across, up, index % _COLOURS))
    title = escape(str(chart["title"]))
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title}">{"".join(parts)}</svg>'
        f"<figcaption>{title}{_legend(series)}</figcaption></figure>"
    )


def interval_bar(value: float, low: float, high: float) -> str:
    """A share between 0 and 1 as a dot on a line, its interval as a bar."""

    def at(number: float) -> float:
        return round(2 + 116 * min(max(number, 0.0), 1.0), 1)

    width = max(1.0, round(at(high) - at(low), 1))
    return (
        '<svg class="bar" viewBox="0 0 120 14" aria-hidden="true">'
        '<line class="axis" x1="2" x2="118" y1="7" y2="7"/>'
        f'<rect class="interval" x="{at(low)}" y="4" width="{width}" height="6"/>'
        f'<circle class="dot" cx="{at(value)}" cy="7" r="3.5"/></svg>'
    )


def pixels(values: Sequence[Sequence[float]], *, label: str) -> str:
    """A grey or colour image, a rectangle per pixel.

    Args:
        values: rows of pixels, each a number from 0 (black) to 1 (white), or three.
        label: what it shows.
    """
    height, width = len(values), len(values[0]) if values else 0
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="{_colour(pixel)}"/>'
        for y, row in enumerate(values)
        for x, pixel in enumerate(row)
    )
    return (
        f'<svg class="pixels" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" shape-rendering="crispEdges">{cells}</svg>'
    )


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
        y, text = up(tick), _number(tick)
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
            f"{_number(tick)}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(12 {_HEIGHT / 2 - 16}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _line(
    points: Sequence[Sequence[float]], across: _Axis, up: _Axis, colour: int
) -> str:
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
    return f'{band}<polyline class="line s{colour}" points="{path}"/>{dots}'


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
        keys.append(f'<span class="key s{index % _COLOURS}">{name}</span>')
    return f"<br>{' '.join(keys)}"


def _colour(pixel: Any) -> str:
    channels = list(pixel) if isinstance(pixel, Sequence) else [pixel] * 3
    return "#" + "".join(f"{round(255 * min(max(c, 0.0), 1.0)):02x}" for c in channels)


def _step(span: float) -> float:
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(unit * n for n in (1, 2, 5, 10) if unit * n >= raw)


def _number(value: float) -> str:
    return f"{value:.3g}"
