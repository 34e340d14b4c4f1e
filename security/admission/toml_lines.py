"""On which line a TOML document has each of its keys, and tables that remember it.

`tomllib` says where a document breaks TOML's rules, not where a value broke ours. The
scan here is for documents that `tomllib` has read: it finds keys, and skips the rest.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from bisect import bisect_right
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["Notes", "Table", "key_lines", "syntax_line"]

Path = tuple[str | int, ...]

_SIMPLE = r"\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|[A-Za-z0-9_-]+"
_KEY = re.compile(rf"(?:{_SIMPLE})(?:[ \t]*\.[ \t]*(?:{_SIMPLE}))*")
_BLANK = re.compile(r"(?:[ \t\n,]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r"|\"(?:\\.|[^\"\\\n])*\""
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")
_DEEP = re.compile(r"[\[{](?:[^\[\]{}]*[\[{]){50}")
_LONG = re.compile(r"[0-9_]{4300}")


def key_lines(text: str) -> dict[Path, int]:
    r"""The line of every key, table and array element of a valid TOML document.

    Args:
        text: what `tomllib` accepted.

    Returns:
        Lines, from 1, by path; elements of arrays have their index in the path.

    >>> key_lines('a = 1\n[b]\nc = { d = 2 }\n')[("b", "c", "d")]
    3
    """
    scan = _Scan(text.replace("\r\n", "\n"))
    scan.document()
    return scan.lines


def syntax_line(error: Exception, data: bytes) -> tuple[int, str]:
    """The line of what `tomllib` refused, and the reason.

    >>> syntax_line(tomllib.TOMLDecodeError("Invalid value (at line 2, column 3)"), b"")
    (2, 'invalid value (column 3)')
    """
    if isinstance(error, UnicodeDecodeError):
        return data.count(b"\n", 0, error.start) + 1, "not UTF-8"
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if isinstance(error, RecursionError):
        return _line_of(_DEEP, text), "nested too deeply"
    reason = str(error).splitlines()[0]
    reason = reason[:1].lower() + reason[1:]
    if place := re.search(r" \(at line (\d+), column (\d+)\)$", reason):
        return int(place[1]), f"{reason[: place.start()]} (column {place[2]})"
    if reason.endswith(" (at end of document)"):
        return text.rstrip("\n").count("\n") + 1, reason
    return _line_of(_LONG, text), reason


class Notes:
    """Mistakes found so far in a document."""

    def __init__(self) -> None:
        self._found: list[tuple[Path, str]] = []

    def add(self, path: Path, message: str) -> None:
        """Note a mistake in the value at a path."""
        self._found.append((path, message))

    def by_line(self, text: str) -> list[tuple[int, str]]:
        """The mistakes, each with the line of the nearest key that the text has."""
        if not self._found:
            return []
        lines = key_lines(text)
        found = [(_nearest(lines, path), message) for path, message in self._found]
        return sorted(found, key=lambda item: item[0])


class Table:
    """A TOML table whose values are taken by type; what is wrong goes to the notes.

    Attributes:
        where: how messages name the table.
        path: of the table in its document.
    """

    def __init__(self, value: Any, path: Path, where: str, notes: Notes) -> None:
        self.where, self.path, self.notes = where, path, notes
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self.notes.add(path, f"{where}: expected a table")

    def note(self, message: str, key: str | None = None) -> None:
        """Note a mistake in this table, on the line of one of its keys if given."""
        path = self.path if key is None else (*self.path, key)
        self.notes.add(path, f"{self.where}: {message}")

    def close(self, known: Collection[str]) -> None:
        """Refuse every key that is not known, and say which one was likely meant."""
        for key in self.values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                self.note(f"unknown key {key!r}{hint}", key)

    def table(self, key: str, where: str) -> Table:
        """A table inside; an empty one if there is none."""
        return Table(self.values.get(key, {}), (*self.path, key), where, self.notes)

    def tables(self, key: str) -> list[Table]:
        """An array of tables."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            self.note(f"{key} must be an array of tables", key)
            return []
        return [
            Table(item, (*self.path, key, index), f"[[{key}]] {index + 1}", self.notes)
            for index, item in enumerate(value)
        ]

    def count(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds."""
        value = self.values.get(key, default)
        if type(value) is int and low <= value <= high:
            return value
        self.note(f"{key} must be {low} to {high}", key)
        return low

    def number(self, key: str) -> float | None:
        """A finite number, or None if there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        # By comparison: math.isfinite() fails on an integer beyond a double.
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        self.note(f"{key} must be a finite number", key)
        return None

    def choices(self, key: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
        """A list, not empty, of different names out of some."""
        value = self.values.get(key)
        if (
            isinstance(value, list)
            and value
            and all(isinstance(item, str) and item in known for item in value)
            and len(set(value)) == len(value)
        ):
            return tuple(value)
        self.note(f"{key} must name {what} of {', '.join(known)}, each once", key)
        return ()


class _Scan:
    """A pass over a valid document; `at` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.lines: dict[Path, int] = {}
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self._counts: dict[Path, int] = {}

    def document(self) -> None:
        prefix: Path = ()
        while self._skip() < len(self.text):
            if self.text[self.at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)

    def _header(self) -> Path:
        """``[table]`` or ``[[array of tables]]``; returns the path of what follows."""
        double = self.text.startswith("[[", self.at)
        start, self.at = self.at, self.at + 1 + double
        path: Path = ()
        *parents, last = self._key()
        for name in parents:
            path = self._latest((*path, name), start)
        path = (*path, last)
        if double:
            self._counts[path] = self._counts.get(path, 0) + 1
        path = self._latest(path, start)
        self.lines[path] = self._line(start)
        self._skip(r"[ \t\]]*")
        return path

    def _latest(self, path: Path, start: int) -> Path:
        """Into the last table of an array of tables, if that is what the path names."""
        self._mark(path, start)
        if path in self._counts:
            path = (*path, self._counts[path] - 1)
            self._mark(path, start)
        return path

    def _pair(self, prefix: Path) -> None:
        start = self.at
        path = prefix
        for name in self._key():
            path = (*path, name)
            self._mark(path, start)
        self._skip(r"[ \t]*=[ \t]*")
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self.at += 1
            while self.text[self._skip()] != "}":
                self._pair(path)
            self.at += 1
        else:
            pattern = _STRING if opening in "\"'" else _SCALAR
            self._skip(pattern)

    def _array(self, path: Path) -> None:
        self.at, index = self.at + 1, 0
        while self.text[self._skip()] != "]":
            self._mark((*path, index), self.at)
            self._value((*path, index))
            index += 1
        self.at += 1

    def _key(self) -> list[str]:
        """The parts of a dotted key, unquoted by `tomllib` itself."""
        self._skip(r"[ \t]*")
        start = self.at
        self._skip(_KEY)
        value: Any = tomllib.loads(f"{self.text[start : self.at]} = 0")
        names: list[str] = []
        while isinstance(value, dict):
            ((name, value),) = value.items()
            names.append(name)
        return names

    def _mark(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, self._line(at))

    def _line(self, at: int) -> int:
        return bisect_right(self._starts, at)

    def _skip(self, pattern: str | re.Pattern[str] = _BLANK) -> int:
        match = re.compile(pattern).match(self.text, self.at)
        self.at = self.at if match is None else match.end()
        return self.at


def _nearest(lines: Mapping[Path, int], path: Path) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _line_of(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return 1 if match is None else text.count("\n", 0, match.start()) + 1
