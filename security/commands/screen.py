"""What commands say to people: in colour on a terminal, plain everywhere else."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from security.assessment.results.result import ScanFinding

__all__ = ["Screen", "add_color", "show_findings"]

_STYLES = {
    "error": "bold red",
    "warning": "yellow",
    "note": "cyan",
    "refuse": "bold red",
    "allow": "green",
    "misses": "bold red",
    "meets": "green",
    "head": "bold",
    "quiet": "dim",
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

    Colours are left out where it is no terminal, where NO_COLOR is set
    (https://no-color.org), and where ``color`` is false.
    """

    def __init__(self, *, color: bool = True) -> None:
        from rich.console import Console  # noqa: PLC0415  (a tenth of a second)

        console = Console(highlight=False, markup=False, emoji=False)
        plain = not color or console.no_color
        self._console = Console(
            color_system=None if plain else "auto",
            highlight=False,
            markup=False,
            emoji=False,
        )

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of texts; a pair is a text and its kind, which has a colour."""
        from rich.text import Text  # noqa: PLC0415  (as above)

        shown = Text()
        for part in parts:
            text, kind = (part, "") if isinstance(part, str) else part
            shown.append(_printable(text), _STYLES.get(kind, ""))
        self._console.print(shown, soft_wrap=True)

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


def _printable(text: str) -> str:
    r"""A text of a stranger's: what would move the cursor or end the line is replaced.

    >>> _printable("a\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(char if char.isprintable() else "?" for char in text)
