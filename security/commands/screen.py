"""What commands say to people: in colour on a terminal, plain everywhere else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
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


class Screen:
    """Standard output.

    Colours are left out where it is no terminal, unless FORCE_COLOR is set, where
    NO_COLOR is set (https://no-color.org), and where ``color`` is false.
    """

    def __init__(self, *, color: bool = True) -> None:
        self._color = color and _has_colors()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of texts; a pair is a text and its kind, which has a colour."""
        print(*map(self._shown, parts), sep="")

    def _shown(self, part: str | tuple[str, str]) -> str:
        text, kind = (part, "") if isinstance(part, str) else part
        style = _STYLES.get(kind) if self._color else None
        shown = _printable(text)
        return shown if style is None else f"\x1b[{style}m{shown}\x1b[0m"

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
