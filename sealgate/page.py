"""The frame of every HTML page that Sealgate writes: one look, light, dark, on paper.

A page loads nothing. Its own policy allows `charts.css` and `page.css` as one, and
`page.js`, by their hashes, and pictures that stand in it, nothing else (Content
Security Policy Level 3). The script adds a field that filters long tables; without it
the page says all the same.

Texts are escaped here; what is called *markup* was made by this module, by
`sealgate.charts`, or by a template engine that escapes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["contents", "filtered", "number", "page", "table"]

# With fewer rows than this a table is read faster than a word is typed.
_FILTERED = 20
# Classes of charts.css, from nothing to as dark as text on it can be read.
_SHADES = 8


def page(title: str, main: str, *, nav: str = "") -> bytes:
    """A whole document.

    Args:
        title: text.
        main: markup of what the page says.
        nav: markup, of `contents`.
    """
    charts, frame, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("charts.css", "page.css", "page.js")
    )
    style = charts + frame
    policy = (
        f"default-src 'none'; style-src {_source(style)}; "
        f"script-src {_source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{nav}<main>\n{main}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
    return text.encode()


def _source(content: str) -> str:
    """The only content that a directive allows (CSP Level 3, section 2.3.1)."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def contents(entries: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]) -> str:
    """Markup of the page's contents.

    Args:
        entries: of each part its id, its title, and ids and titles of its own parts.
    """
    lines = []
    for anchor, title, parts in entries:
        inner = "".join(f"<li>{_link(*part)}</li>" for part in parts)
        inner = f"<ol>{inner}</ol>" if inner else ""
        lines.append(f"<li>{_link(anchor, title)}{inner}</li>")
    return f'<nav aria-label="contents"><ol>{"".join(lines)}</ol></nav>\n'


def _link(anchor: str, title: str) -> str:
    return f'<a href="#{escape(anchor)}">{escape(title)}</a>'


def table(
    columns: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    *,
    name: str = "",
    matrix: bool = False,
) -> str:
    """Markup of a table, which scrolls sideways by itself where it is too wide.

    Numbers are written as `number` does. A long one gets a field to filter its rows.

    Args:
        columns: their titles.
        rows: of cells.
        name: of the table, for who does not see it.
        matrix: the first column names rows, the others are counts, and cell ``(i, i)``
            is what is right: cells are shaded by their share of the row.
    """
    numeric = [
        bool(rows) and all(_is_number(row[i]) for row in rows if i < len(row))
        for i in range(len(columns))
    ]
    head = "".join(
        f"<th{' class=n' if kind else ''}>{escape(str(title))}</th>"
        for title, kind in zip(columns, numeric, strict=True)
    )
    body = [
        _matrix_row(row, place) if matrix else "".join(map(_cell, row))
        for place, row in enumerate(rows)
    ]
    attributes = ' class="matrix"' if matrix else filtered(len(rows), name)
    lines = "\n".join(f"<tr>{line}</tr>" for line in body)
    return (
        f'<div class="wide"><table{attributes}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def filtered(count: int, name: str) -> str:
    """The attribute of a table, or of a box of articles, that makes it a filtered one.

    Args:
        count: how many there are to filter; of few there is nothing to be filtered.
        name: what they are.
    """
    return f' data-filter="{escape(name or "rows")}"' if count > _FILTERED else ""


def number(value: float) -> str:
    """A number for people: whole ones with their thousands, others to about 3 places.

    >>> number(1234), number(0.12345), number(0.0012345), number(267588.41)
    ('1,234', '0.123', '0.00123', '267,588.4')
    """
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value:,.1f}"
    return f"{value:,.3f}" if 1e-2 <= abs(value) < 1e3 else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if _is_number(value):
        return f'<td class="n">{number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def _matrix_row(row: Sequence[Any], place: int) -> str:
    """A row of a confusion matrix: each cell by its share, errors in another colour."""
    total = sum(row[1:]) or 1
    cells = [f'<th scope="row">{escape(str(row[0]))}</th>']
    for column, count in enumerate(row[1:]):
        # The root shows a single error among many that are right.
        shade = round(_SHADES * (count / total) ** 0.5)
        colour = "right" if column == place else "wrong"
        cells.append(f'<td class="{colour} m{shade}">{number(count)}</td>')
    return "".join(cells)
