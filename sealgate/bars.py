"""Explanations as bar charts: on a terminal, and as a page that loads nothing.

What contributed most comes first; bars to the right speak for what was answered, bars
to the left against it. The page has neither scripts nor styles from elsewhere, and its
own policy forbids them; every text in it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sealgate.explanation import Array, Explanation

__all__ = ["cells_of", "explanation_page", "format_explanation"]

_HALF = 20  # characters of the longest bar
_QUANTITIES = {"log_odds": "log-odds", "score": "score"}
_METHODS = {
    "trees": "exact, by the trees' own numbers",
    "additive": "exact: columns do not interact",
    "permutations": "sampled: permutations, \N{PLUS-MINUS SIGN} standard error",
    "local": "slopes of a linear model of what is answered nearby",
}
_STYLE = """
:root { color-scheme: light dark; --for: #0b6bcb; --against: #c0392b; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
text { fill: currentColor; } .for { fill: var(--for); }
.against { fill: var(--against); }
.error { stroke: currentColor; } .axis { stroke: var(--line); }
@media (prefers-color-scheme: dark) { :root { --for: #5aa9f0; --against: #ef7b6c; } }
"""
_LINE, _WIDTH, _NAMES, _NUMBERS = 22, 900, 330, 120


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
        row: which.
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
        number = f"{value:+10.4g}" + (
            "" if found.exact else f" {_error(found, error):<9}"
        )
        lines.append(f"  {own} {number} {left:>{_HALF}}|{right}".rstrip())
    return "\n".join(lines)


def explanation_page(
    model: str,
    found: Explanation,
    rows: Sequence[tuple[int, Sequence[str]]],
    *,
    top: int,
) -> str:
    """A whole HTML document, in light or dark.

    Args:
        model: its name.
        found: all of it.
        rows: which to show, and what each holds.
        top: columns to show of each; the others are added up.
    """
    title = f"Why {model} answered so"
    charts = "\n".join(_section(found, row, cells, top) for row, cells in rows)
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(_explained(found))}</p>\n{charts}\n"
        "</body>\n</html>\n"
    )


def _explained(found: Explanation) -> str:
    quantity = _QUANTITIES.get(found.quantity, found.quantity)
    if found.method == "local":
        return (
            f"Each bar is what the {quantity} would change over a column's whole "
            "public range, or for having this category and no other, if nearby answers "
            "went on as they begin. The bars do not add up to the answer."
        )
    return (
        f"Each bar is a column's Shapley value: its part of the difference between the "
        f"{quantity} of the row and that of a public reference. The bars add up to it. "
        "They say what this model rests on, not what causes what in the world."
    )


def _said(found: Explanation, row: int) -> str:
    """What is explained of a row, in one line."""
    label = found.label(row)
    quantity = _QUANTITIES.get(found.quantity, found.quantity)
    about = f" of {label}" if label else ""
    against = f"reference {found.references[row]:.4g}"
    if found.fits is not None:
        against = f"R squared nearby {found.fits[row]:.3f}"
    method = _METHODS.get(found.method, found.method)
    return f"row {row}: {quantity}{about} {found.values[row]:.4g} ({against}); {method}"


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


def _error(found: Explanation, error: float) -> str:
    known = error == error and not found.exact  # noqa: PLR0124  (NaN)
    return f"\N{PLUS-MINUS SIGN} {error:.2g}" if known else ""


def _section(found: Explanation, row: int, cells: Sequence[str], top: int) -> str:
    entries = list(_entries(found, row, cells, top))
    longest = max((abs(entry[2]) for entry in entries), default=0.0) or 1.0
    middle = (_WIDTH - _NAMES - 2 * _NUMBERS) / 2
    axis = _NAMES + _NUMBERS + middle
    height = _LINE * len(entries)
    bars = "\n".join(
        _bar(found, entry, place * _LINE, axis=axis, scale=middle / longest)
        for place, entry in enumerate(entries)
    )
    return (
        f"<h2>{escape(_said(found, row))}</h2>\n"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="contributions to row {row}">\n'
        f'<line class="axis" x1="{axis}" x2="{axis}" y1="0" y2="{height}"/>\n'
        f"{bars}\n</svg>"
    )


def _bar(
    found: Explanation,
    entry: tuple[str, str, float, float],
    y: float,
    *,
    axis: float,
    scale: float,
) -> str:
    name, cell, value, error = entry
    length = abs(value) * scale
    start = axis if value >= 0 else axis - length
    kind = "for" if value >= 0 else "against"
    base = y + 15
    end = axis + value * scale
    at, side = (end + 6, "start") if value >= 0 else (end - 6, "end")
    text = f"{name[:36]} = {cell}" if cell else name
    whisker = ""
    if _error(found, error):
        reach = error * scale
        whisker = (
            f'<line class="error" x1="{end - reach:.1f}" x2="{end + reach:.1f}" '
            f'y1="{y + 11}" y2="{y + 11}"/>'
        )
        at += reach if value >= 0 else -reach
    return (
        f'<text x="{_NAMES}" y="{base}" text-anchor="end">{escape(text)}</text>'
        f'<rect class="{kind}" x="{start:.1f}" y="{y + 4}" width="{length:.1f}" '
        f'height="14"/>{whisker}'
        f'<text x="{at:.1f}" y="{base}" text-anchor="{side}">{value:+.4g}</text>'
    )
