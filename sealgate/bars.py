"""Explanations as bar charts: on a terminal, and as a page that loads nothing.

What contributed most comes first; bars to the right speak for what was answered, bars
to the left against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sealgate.charts import Bar, bars
from sealgate.explanation import Array, Explanation
from sealgate.page import contents, page

__all__ = ["cells_of", "explanation_page", "format_explanation"]

_HALF = 20  # characters of the longest bar
_QUANTITIES = {"log_odds": "log-odds", "score": "score"}
_METHODS = {
    "trees": "exact, by the trees' own numbers",
    "additive": "exact: columns do not interact",
    "permutations": "sampled: permutations, \N{PLUS-MINUS SIGN} standard error",
    "local": "slopes of a linear model of what is answered nearby",
}


def cells_of(
    arrays: Mapping[str, Array], metadata: Mapping[str, Any], row: int
) -> list[str]:
    """What a row holds, column by column; categories by their names."""
    cells: list[str] = []
    for tensor in metadata["inputs"]:
        values = np.asarray(arrays[tensor["name"]])[row].reshape(-1).tolist()
        columns = tensor.get("parameters", {}).get("columns") or [{}] * len(values)
        cells += [_cell(value, column) for value, column in zip(values, columns)]
    return cells


def format_explanation(
    found: Explanation, row: int, cells: Sequence[str], *, top: int, ascii_only: bool
) -> str:
    """One row's chart for a terminal.

    Args:
        found: all of it.
        row: which of its rows.
        cells: what it holds, of `cells_of`.
        top: columns to show; the others are added up.
        ascii_only: the terminal has no block characters.
    """
    block = "#" if ascii_only else "\N{FULL BLOCK}"
    lines = [_said(found, row)]
    entries = list(_entries(found, row, cells, top))
    longest = max((abs(value) for *_, value, _ in entries), default=0.0) or 1.0
    widths = [max(map(len, texts)) for texts in zip(*[entry[:2] for entry in entries])]
    for name, cell, value, error in entries:
        bar = block * round(_HALF * abs(value) / longest)
        left, right = (bar, "") if value < 0 else ("", bar)
        own = f"{name:<{widths[0]}}  {cell:>{widths[1]}}"
        known = _has_error(found, error)
        within = f"\N{PLUS-MINUS SIGN} {error:.2g}" if known else ""
        number = f"{value:+10.4g}" + ("" if found.exact else f" {within:<9}")
        lines.append(f"  {own} {number} {left:>{_HALF}}|{right}".rstrip())
    return "\n".join(lines)


def explanation_page(
    model: str,
    found: Explanation,
    rows: Sequence[tuple[int, Sequence[str]]],
    *,
    top: int,
) -> bytes:
    """A whole HTML document.

    Args:
        model: its name.
        found: all of it.
        rows: of each of its rows the number by which it is known, and what it holds.
        top: columns to show of each; the others are added up.
    """
    title = f"Why {model} answered so"
    sections = [
        _section(found, place, number, cells, top)
        for place, (number, cells) in enumerate(rows)
    ]
    links = [(f"row-{number}", f"Row {number}", ()) for number, _ in rows]
    return page(
        title,
        "\n".join([f"<h1>{escape(title)}</h1>", _explained(found), *sections]),
        nav=contents(links) if len(links) > 1 else "",
    )


def _explained(found: Explanation) -> str:
    """Markup of what the bars are."""
    quantity = _QUANTITIES.get(found.quantity, found.quantity)
    if found.method == "local":
        text = (
            f"Each bar is what the {quantity} would change over a column's whole "
            "public range, or for having this category and no other, if nearby answers "
            "went on as they begin. The bars do not add up to the answer."
        )
    else:
        text = (
            "Each bar is a column's Shapley value: its part of the difference between "
            f"the {quantity} of the row and that of a public reference. The bars add "
            "up to it. They say what this model rests on, not what causes what in the "
            "world."
        )
    if not found.exact:
        text += " Intervals are one standard error to either side."
    return f"<p>{escape(text)}</p>"


def _said(found: Explanation, row: int) -> str:
    """What is explained of a row, in one line."""
    label = found.label(row)
    quantity = _QUANTITIES.get(found.quantity, found.quantity)
    about = f" of {label}" if label else ""
    against = f"reference {found.references[row]:.4g}"
    if found.fits is not None:
        against = f"R squared nearby {found.fits[row]:.3f}"
    method = _METHODS.get(found.method, found.method)
    return f"{quantity}{about} {found.values[row]:.4g} ({against}); {method}"


def _entries(
    found: Explanation, row: int, cells: Sequence[str], top: int
) -> Iterator[tuple[str, str, float, float]]:
    """Name, cell, attribution and error; at last what all others add up to."""
    order = np.argsort(-np.abs(found.attributions[row]), kind="stable")
    for place in order[:top].tolist():
        yield (
            found.columns[place],
            cells[place],
            float(found.attributions[row, place]),
            float(found.errors[row, place]),
        )
    rest = order[top:]
    if len(rest) and found.method != "local":
        total = float(found.attributions[row, rest].sum())
        yield f"{len(rest)} others", "", total, float("nan")


def _cell(value: Any, column: Mapping[str, Any]) -> str:
    names = column.get("categories") or ()
    if names and value == value and 0 <= value < len(names):  # noqa: PLR0124  (NaN)
        return str(names[int(value)])[:24]
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _has_error(found: Explanation, error: float) -> bool:
    return not found.exact and math.isfinite(error)


def _section(
    found: Explanation, row: int, number: int, cells: Sequence[str], top: int
) -> str:
    shown = []
    for name, cell, value, error in _entries(found, row, cells, top):
        text = f"{name} = {cell}" if cell else name
        reach = error if _has_error(found, error) else None
        ends = (None, None) if reach is None else (value - reach, value + reach)
        shown.append(Bar(text, value, *ends))
    return (
        f'<h2 id="row-{number}">Row {number}</h2>\n'
        f"<p>{escape(_said(found, row))}</p>\n"
        '<div class="large">'
        f"{bars([('', shown)], first='column', name='columns')}</div>"
    )
