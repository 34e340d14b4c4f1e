"""TOML to frozen dataclasses: closed tables, typed values, every mistake with its line.

What a section may hold is read from its dataclass, so that a new key is one new field.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from sealgate.errors import SealgateError
from security.admission.toml_lines import Notes, syntax_line

__all__ = [
    "TODO",
    "Found",
    "Rules",
    "hint",
    "placed",
    "read_object",
    "read_sections",
    "sections_of",
]

MAX_CONFIG_BYTES = 1 << 20
MAX_ITEMS = 20_000
# How `init` marks what a person has to fill in, with the reason.
TODO = "TODO: "

Path = tuple[str | int, ...]
Found = tuple[Path, str]
Rules = Iterable[Found]
_Root = TypeVar("_Root")


class _Faults(Exception):  # noqa: N818  (caught here)
    """Values that are not what they must be, each with its path."""

    def __init__(self, *found: Found) -> None:
        self.found = found
        super().__init__(found)


def read_sections(
    data: bytes,
    kind: type[_Root],
    rules: Callable[[_Root], Rules],
    *,
    where: str,
    error: type[SealgateError],
    parts: Mapping[str, Callable[[Any], Rules]] = types.MappingProxyType({}),
    max_bytes: int = MAX_CONFIG_BYTES,
) -> _Root:
    """Read a document into a dataclass of dataclasses.

    Args:
        data: TOML.
        kind: whose fields are the sections; one that starts with ``_`` is not read.
        rules: what values break that types cannot refuse.
        where: what error messages call the document.
        error: what is raised.
        parts: the rules of single sections, for those that can be read where others
            cannot.
        max_bytes: of the document.

    Raises:
        SealgateError: as ``error``: not TOML, an unknown or missing key, a wrong type,
            or a value out of range: ``where:line: key: what``, and how many more.
    """
    found = sections_of(
        data, kind, rules, where=where, parts=parts, max_bytes=max_bytes
    )
    root, mistakes = found
    if root is None or mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise error(f"{mistakes[0]}{more}")
    return root


def sections_of(
    data: bytes,
    kind: type[_Root],
    rules: Callable[[_Root], Rules],
    *,
    where: str,
    parts: Mapping[str, Callable[[Any], Rules]] = types.MappingProxyType({}),
    max_bytes: int = MAX_CONFIG_BYTES,
) -> tuple[_Root | None, list[str]]:
    """As `read_sections`, with every mistake, in the order of their lines.

    Args:
        data: TOML.
        kind: as there.
        rules: as there.
        where: as there.
        parts: as there.
        max_bytes: as there.

    Returns:
        What was read, None where it could not be, and the mistakes.
    """
    if len(data) > max_bytes:
        return None, [f"{where}: more than {max_bytes} bytes"]
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        line, reason = syntax_line(fault, data)
        return None, [f"{where}:{line}: not TOML: {reason}"]
    given, found = _fields(kind, document, ())
    root = None if found else kind(**given)
    if root is not None:
        found = list(rules(root))
    else:
        for name in (name for name in parts if name in given):
            found += parts[name](given[name])
    return root, placed(found, text, where=where)


def placed(found: Rules, text: str, *, where: str) -> list[str]:
    """Mistakes in a document as ``where:line: what``, in the order of their lines."""
    notes = Notes()
    for path, message in dict.fromkeys(found):
        notes.add(path, message)
    return [f"{where}:{line}: {message}" for line, message in notes.by_line(text)]


def read_object(
    value: Any,
    kind: type[_Root],
    rules: Callable[[_Root], Rules],
    *,
    where: str,
    error: type[SealgateError],
) -> _Root:
    """Read JSON values into a dataclass of dataclasses, as `read_sections` does TOML.

    Raises:
        SealgateError: as ``error``: an unknown or missing key, a wrong type, or a value
            out of range.
    """
    try:
        root: _Root = _table(kind, value, ())
    except _Faults as faults:
        raise error(f"{where}: {faults.found[0][1]}") from None
    for _, message in rules(root):
        raise error(f"{where}: {message}")
    return root


def hint(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing.

    >>> hint("epsilom", ["delta", "epsilon"])
    "; did you mean 'epsilon'?"
    """
    close = _closest(name, known)
    return f"; did you mean {close!r}?" if close else ""


def _closest(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _table(kind: type[Any], value: Any, path: Path) -> Any:
    given, found = _fields(kind, value, path)
    if found:
        raise _Faults(*found)
    return kind(**given)


def _fields(kind: type[Any], value: Any, path: Path) -> tuple[dict[str, Any], Any]:
    """The values of a table that can be read, and what is wrong with the others."""
    if not isinstance(value, dict):
        return {}, [(path, f"{_name(path)}: expected a table")]
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.name[0] != "_"}
    unknown = {key: _closest(key, known) for key in value if key not in known}
    prefix = f"{_name(path)}: " if path else ""
    found = [
        ((*path, key), f"{prefix}unknown key {key!r}{hint(key, known)}")
        for key in unknown
    ]
    given = {}
    missing = []
    for name, item in known.items():
        if name in unknown.values():
            continue  # it is there, misspelt
        optional = is_dataclass(hints[name]) and not path
        try:
            if name in value:
                given[name] = _value(hints[name], value[name], (*path, name))
            elif optional:
                table = typing.cast("type[Any]", hints[name])
                given[name] = _table(table, {}, (*path, name))
            elif item.default is MISSING and item.default_factory is MISSING:
                missing.append(name)
        except _Faults as faults:
            found += faults.found
    if missing:
        found.append((path, f"{_name(path)}: missing {', '.join(missing)}"))
    return given, found


def _value(kind: Any, value: Any, path: Path) -> Any:
    if isinstance(value, str) and value.startswith(TODO):
        raise _Faults((path, f"{_name(path)}: {value}"))
    if isinstance(kind, types.UnionType):  # X | None: TOML has no null, so X
        kinds = [item for item in typing.get_args(kind) if item is not type(None)]
        kind = type(value) if type(value) in kinds else kinds[0]
    if is_dataclass(kind):
        return _table(typing.cast("type[Any]", kind), value, path)
    if typing.get_origin(kind) is tuple:
        return _sequence(typing.get_args(kind)[0], value, path)
    if typing.get_origin(kind) is Mapping or kind is Mapping:
        return _mapping(value, path)
    return _scalar(kind, value, path)


def _scalar(kind: Any, value: Any, path: Path) -> Any:
    if kind is float:
        number = _float(value)
        if number is None:
            raise _Faults((path, f"{_name(path)}: expected a finite number"))
        return number
    if type(value) is not kind:
        expected = {str: "a string", int: "an integer", bool: "true or false"}[kind]
        raise _Faults((path, f"{_name(path)}: expected {expected}"))
    return value


def _sequence(kind: Any, value: Any, path: Path) -> tuple[Any, ...]:
    names = {int: "integers", str: "strings", float: "numbers"}
    expected = f"{_name(path)}: expected a list of {names.get(kind, 'tables')}"
    if not isinstance(value, list):
        raise _Faults((path, expected))
    if len(value) > MAX_ITEMS:
        raise _Faults((path, f"{_name(path)}: more than {MAX_ITEMS} items"))
    if kind in names and kind is not float and any(type(v) is not kind for v in value):
        raise _Faults((path, expected))
    found: list[Found] = []
    read = []
    for index, item in enumerate(value):
        try:
            read.append(_value(kind, item, (*path, index)))
        except _Faults as faults:
            found += faults.found
    if found:
        raise _Faults(*found)
    return tuple(read)


def _mapping(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or any(type(v) is not str for v in value.values()):
        raise _Faults((path, f"{_name(path)}: expected a table of strings"))
    return dict(value)


def _float(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _name(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
