"""Records of the audit log as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from security.audit.query import shown_time
from security.audit.records import Record
from security.commands.screen import Screen

__all__ = ["Table"]

# Title and width of each column, right-aligned where negative; the last one is open.
_COLUMNS = {
    "TIME (UTC)": 19,
    "ACTION": 12,
    "OUTCOME": 7,
    "STATUS": -6,
    "MODEL": 24,
    "ROWS": -6,
    "MS": -8,
    "CLIENT": 16,
    "SUBJECT": 8,
    "REASON": 0,
}


class Table:
    """Prints records as rows, under a head; widths are fixed, so that rows may follow.

    Ids, sizes and hashes are left to JSON lines.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._begun = False

    def show(self, records: Iterable[Record]) -> None:
        """Print rows."""
        for record in records:
            if not self._begun:
                self._begun = True
                self._screen.line((_row(dict.fromkeys(_COLUMNS)), "head"))
            self._row(record.fields)

    def _row(self, fields: Mapping[str, Any]) -> None:
        count, latency_us = fields.get("count"), fields.get("latency_us")
        reason = str(fields.get("reason") or "")
        if type(count) is int and count > 1:
            reason = f"{reason} (x{count})".strip()
        cells = {
            "TIME (UTC)": (shown_time(fields) or "")[:19].replace("T", " "),
            "ACTION": fields.get("action"),
            "OUTCOME": fields.get("outcome"),
            "STATUS": fields.get("status"),
            "MODEL": fields.get("model"),
            "ROWS": fields.get("rows"),
            "MS": f"{latency_us / 1000:.1f}" if type(latency_us) is int else None,
            "CLIENT": fields.get("client"),
            "SUBJECT": str(fields.get("subject") or "")[:8],
            "REASON": reason,
        }
        refused = fields.get("outcome") == "refuse"
        self._screen.line((_row(cells), "refuse" if refused else ""))


def _row(cells: Mapping[str, Any]) -> str:
    """A line; without values, of the titles."""
    titles = all(value is None for value in cells.values())
    parts = []
    for name, width in _COLUMNS.items():
        value = name if titles else cells[name]
        text = "" if value is None else str(value)
        room = abs(width) or len(text)
        text = text if len(text) <= room else f"{text[: room - 1]}…"
        parts.append(f"{text:>{room}}" if width < 0 else f"{text:<{room}}")
    return "  ".join(parts).rstrip()
