"""What commands say to people: colours and tables on a terminal, elsewhere lines."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from security.assessment.results.result import ScanFinding

__all__ = ["Screen", "add_color", "show_findings", "show_page"]

# Select Graphic Rendition (ECMA-48, 8.3.117): bold, dim, and colours from 31 on.
_STYLES = {
    "error": "1;31",
    "warning": "33",
    "note": "36",
    "refuse": "1;31",
    "allow": "32",
    "misses": "1;31",
    "meets": "32",
    "head": "1",
    "quiet": "2",
}


def add_color(parser: argparse.ArgumentParser) -> None:
    """Add --no-color."""
    parser.add_argument(
        "--no-color",
        action="store_true",
        help="no colours, as without a terminal or with NO_COLOR",
    )


# Name, value, its interval's ends, its sample.
Figure = tuple[str, float, float, float, int | None]

_BAR_CELLS = 20
# Of a line of the table, without name and bar.
_FIGURES_WIDTH = 52


class Screen:
    """Standard output.

    Colours are left out where it is no terminal, unless FORCE_COLOR is set, where
    NO_COLOR is set (https://no-color.org), and where ``color`` is false.
    """

    def __init__(self, *, color: bool = True) -> None:
        self._color = color and _has_colors()
        self._terminal = sys.stdout.isatty()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of texts; a pair is a text and its kind, which has a colour."""
        print(*map(self._shown, parts), sep="")

    def _shown(self, part: str | tuple[str, str]) -> str:
        text, kind = (part, "") if isinstance(part, str) else part
        style = _STYLES.get(kind) if self._color else None
        shown = _printable(text)
        return shown if style is None else f"\x1b[{style}m{shown}\x1b[0m"

    def figures(self, rows: Sequence[Figure]) -> None:
        """Print figures with intervals: a table on a terminal, elsewhere lines."""
        if not self._terminal:
            for name, value, low, high, n in rows:
                self.line(f"{'':<12}{name} {value:.3f} [{low:.3f}, {high:.3f}], n={n}")
            return
        width = max((len(name) for name, *_ in rows), default=0)
        room = shutil.get_terminal_size().columns - width - _FIGURES_WIDTH
        for name, value, low, high, n in rows:
            interval = f"[{low:.3f}, {high:.3f}]"
            self.line(
                f"{'':<12}{name:<{width}}  ",
                (_bar(value) if room >= _BAR_CELLS + 2 else "", "note"),
                f"{value:>8.3f}  {interval:<18}",
                (f"n={n}", "quiet"),
            )

    def finding(self, severity: str, text: str, *more: str) -> None:
        """Print a finding, and below it what explains it and what to do."""
        self.line((f"{severity:<12}", severity), text)
        for item in filter(None, more):
            self.line(" " * 12, (item, "quiet"))


def show_findings(screen: Screen, findings: Iterable[ScanFinding]) -> None:
    """Print what an assessment found, and what to do about each; once for each rule."""
    from security.assessment.results.report import rule_facts  # noqa: PLC0415  (slow)

    told = set()
    for finding in findings:
        place = f" ({finding.where})" if finding.where else ""
        remedy = "" if finding.rule in told else rule_facts(finding.rule)["remedy"]
        told.add(finding.rule)
        screen.finding(
            finding.severity, f"{finding.rule}{place}: {finding.message}", remedy
        )


def _bar(share: float) -> str:
    """A share from 0 to 1 as a bar; blank for what is none.

    >>> len(_bar(0.25)), len(_bar(-1.0))
    (20, 20)
    """
    if not 0 <= share <= 1:
        return " " * _BAR_CELLS
    full, empty = "█░" if _is_unicode() else "#."
    cells = round(share * _BAR_CELLS)
    return full * cells + empty * (_BAR_CELLS - cells)


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _has_colors() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _printable(text: str) -> str:
    r"""A text of a stranger's: what would move the cursor or end the line is replaced.

    >>> _printable("a\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def show_page(path: Path) -> None:
    """Open a page in the browser of whoever sits here; say so where there is none."""
    import webbrowser  # noqa: PLC0415  (few commands that few people run)

    if not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser was found to open {path}", file=sys.stderr)
