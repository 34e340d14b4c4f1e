"""What a scan found, and anything else, as figures that a notebook shows.

They are drawn by `sealgate.charts` and `sealgate.page`, as in scan.html: a notebook and
the page show the same. Letters and lines take the colours of what is around them, so
that they can be read in the light and in the dark.

>>> scan = read_scan(Path("scan/scan.json"))  # doctest: +SKIP
>>> of_check(scan, "evasion")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from models.files import write_atomic
from sealgate.charts import Bar, bars, line_chart
from sealgate.page import page
from sealgate.page import table as table_markup
from security.assessment.reporting.comparison import Comparison
from security.assessment.reporting.grouped import grouped
from security.assessment.reporting.rows import row_tables
from security.assessment.reporting.words import title_of, words
from security.assessment.results.report import read_scan
from security.errors import AssessmentError

__all__ = ["Figure", "lines", "of_check", "of_comparison", "read_scan", "table"]

Json = Mapping[str, Any]

# The page's names for colours, from what surrounds the figure; the six of the series
# can be told apart on white and on black.
_COLOURS = (
    "--page: transparent; --text: currentColor;"
    "--quiet: color-mix(in srgb, currentColor 70%, transparent);"
    "--rule: color-mix(in srgb, currentColor 20%, transparent);"
    "--s0: #2f7fd6; --s1: #d6483f; --s2: #2b9348; --s3: #8f5ee0; --s4: #b7791f;"
    "--s5: #7a8490;"
)


@dataclass(frozen=True)
class Figure:
    """A chart, bars or a table.

    Attributes:
        title: text.
        markup: of `sealgate.charts` or `sealgate.page`, which escape.
    """

    title: str
    markup: str

    def _repr_html_(self) -> str:
        """What a notebook shows; its style holds for the figure alone."""
        style = files("sealgate").joinpath("charts.css").read_text(encoding="utf-8")
        return (
            f"<style>.sealgate {{ {_COLOURS} {style} }}</style>"
            f'<div class="sealgate"><div class="charts">{self.markup}</div></div>'
        )

    def save(self, path: Path) -> None:
        """Write it as an HTML page that loads nothing.

        Raises:
            BundleError: the file cannot be written.
        """
        title = f"<h1>{escape(self.title)}</h1>"
        body = f'{title}<div class="charts">{self.markup}</div>'
        write_atomic(path, page(self.title, body))


def lines(
    title: str,
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    x: str,
    y: str,
    **more: Any,
) -> Figure:
    """A chart of lines.

    Args:
        title: below it.
        series: by name, points ``[x, y]``, or ``[x, y, low, high]`` for a band.
        x: label of the axis across.
        y: label of the axis up.
        more: as of `sealgate.charts.line_chart`: ``log_x``, ``y_low``, ….

    Raises:
        ValueError: there is no point.
    """
    named = [{"name": name, "points": points} for name, points in series.items()]
    if not any(item["points"] for item in named):
        raise ValueError(f"{title}: no point to draw")
    chart = {"title": title, "x": x, "y": y, "series": named, **more}
    return Figure(title, line_chart(chart))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Figure:
    """A table; numbers as the pages write them."""
    return _table({"title": title, "columns": columns, "rows": list(rows)})


def of_check(scan: Json, check: str, *, most_rows: int = 10) -> list[Figure]:
    """What scan.html draws of one check: charts, bars, tables, the worst rows.

    Args:
        scan: of `read_scan`.
        check: its name, like "evasion".
        most_rows: of the tables that have a row of each row asked, the worst first.

    Raises:
        AssessmentError: the scan did not do that check; says which it did.
    """
    done = {item["check"]: item for item in scan["results"] if item["details"]}
    if check not in done:
        known = ", ".join(sorted(done)) or "none"
        raise AssessmentError(f"{check}: not done in this scan; done: {known}")
    classes = scan["target"].get("classes", ())
    return list(_figures(done[check], classes, most_rows))


def _figures(result: Json, classes: Sequence[str], most_rows: int) -> Iterator[Figure]:
    details, title = result["details"], title_of(result["check"])
    for chart in details.get("charts", ()):
        yield Figure(str(chart["title"]), line_chart(chart))
    alone, groups = grouped(result)
    if alone:
        yield Figure(title, bars([("", alone)], first="figure", ends=(0.0, 1.0)))
    for name, first, items in groups:
        yield Figure(f"{title}: {name}", bars(items, first=first, name=name))
    for item in details.get("tables", ()):
        if item["rows"]:
            yield _table(item)
    for item in row_tables(details, classes):
        yield _table({**item, "rows": item["rows"][:most_rows]})


def _table(item: Json) -> Figure:
    title = str(item["title"])
    made = table_markup(
        item["columns"], item["rows"], name=title, matrix=bool(item.get("matrix"))
    )
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return Figure(title, f"<figure>{caption}{made}</figure>")


def of_comparison(found: Comparison, *, everything: bool = False) -> Figure:
    """Two scans beside each other, a group of two bars for each metric.

    Args:
        found: of `security.assessment.reporting.comparison.compare`.
        everything: also metrics that stayed the same.
    """
    groups = [
        (
            f"{words(change.check)}: {words(change.metric)}, {change.direction}",
            [Bar("before", change.before), Bar("after", change.after)],
        )
        for change in found.changes
        if everything or change.direction != "same"
    ]
    title = "before and after"
    if not groups:
        return Figure(title, "<p>No metric differs by more than chance.</p>")
    return Figure(title, bars(groups, first="scan", name=title))
