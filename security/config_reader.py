"""TOML to frozen dataclasses: closed tables, typed values, every mistake with its line.

What a section may hold is read from its dataclass, so that a new key is one new field.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from sealgate.errors import SealgateError
from security.admission.toml_lines import Notes, syntax_line

__all__ = ["Mistake", "hint", "read_object", "read_sections"]

MAX_CONFIG_BYTES = 1 << 20
MAX_ITEMS = 20_000

Path = tuple[str | int, ...]
_Root = TypeVar("_Root")


class Mistake(Exception):  # noqa: N818  (caught here)
    """A value that is not what it must be.

    Attributes:
        path: of the value in the document.
    """

    def __init__(self, path: Path, message: str) -> None:
        self.path = path
        super().__init__(message)


def read_sections(
    data: bytes,
    kind: type[_Root],
    rules: typing.Callable[[_Root], None],
    *,
    where: str,
    error: type[SealgateError],
    max_bytes: int = MAX_CONFIG_BYTES,
) -> _Root:
    """Read a document into a dataclass of dataclasses.

    Args:
        data: TOML.
        kind: whose fields are the sections; one that starts with ``_`` is not read.
        rules: raises `Mistake` for values that types cannot refuse.
        where: what error messages call the document.
        error: what is raised.
        max_bytes: of the document.

    Raises:
        SealgateError: as ``error``: not TOML, an unknown or missing key, a wrong type,
            or a value out of range: ``where:line: key: what``.
    """
    if len(data) > max_bytes:
        raise error(f"{where}: more than {max_bytes} bytes")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        line, reason = syntax_line(fault, data)
        raise error(f"{where}:{line}: not TOML: {reason}") from None
    try:
        root: _Root = _table(kind, document, (), present=True)
        rules(root)
    except Mistake as mistake:
        notes = Notes()
        notes.add(mistake.path, str(mistake))
        ((line, message),) = notes.by_line(text)
        raise error(f"{where}:{line}: {message}") from None
    return root


def read_object(
    value: Any,
    kind: type[_Root],
    rules: typing.Callable[[_Root], None],
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
        root: _Root = _table(kind, value, (), present=True)
        rules(root)
    except Mistake as mistake:
        raise error(f"{where}: {mistake}") from None
    return root


def hint(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing.

    >>> hint("epsilom", ["delta", "epsilon"])
    "; did you mean 'epsilon'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _table(kind: type[Any], value: Any, path: Path, *, present: bool) -> Any:
    if not isinstance(value, dict):
        raise Mistake(path, f"{_name(path)}: expected a table")
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.name[0] != "_"}
    for key in value:
        if key not in known:
            prefix = f"{_name(path)}: " if path else ""
            message = f"{prefix}unknown key {key!r}{hint(key, known)}"
            raise Mistake((*path, key), message)
    given = {}
    missing = []
    for name, item in known.items():
        inner = (*path, name)
        if name in value:
            given[name] = _value(hints[name], value[name], inner)
        elif is_dataclass(hints[name]) and not path:
            given[name] = _table(
                typing.cast("type[Any]", hints[name]), {}, inner, present=False
            )
        elif item.default is MISSING and item.default_factory is MISSING:
            missing.append(name)
    if missing:
        raise Mistake(path, f"{_name(path)}: missing {', '.join(missing)}")
    return kind(**given)


def _value(kind: Any, value: Any, path: Path) -> Any:
    if isinstance(kind, types.UnionType):  # X | None: TOML has no null, so X
        kinds = [item for item in typing.get_args(kind) if item is not type(None)]
        kind = type(value) if type(value) in kinds else kinds[0]
    if is_dataclass(kind):
        return _table(typing.cast("type[Any]", kind), value, path, present=True)
    if typing.get_origin(kind) is tuple:
        return _sequence(typing.get_args(kind)[0], value, path)
    if typing.get_origin(kind) is Mapping or kind is Mapping:
        return _mapping(value, path)
    return _scalar(kind, value, path)


def _scalar(kind: Any, value: Any, path: Path) -> Any:
    if kind is float:
        number = _float(value)
        if number is None:
            raise Mistake(path, f"{_name(path)}: expected a finite number")
        return number
    if type(value) is not kind:
        expected = {str: "a string", int: "an integer", bool: "true or false"}[kind]
        raise Mistake(path, f"{_name(path)}: expected {expected}")
    return value


def _sequence(kind: Any, value: Any, path: Path) -> tuple[Any, ...]:
    names = {int: "integers", str: "strings", float: "numbers"}
    expected = f"{_name(path)}: expected a list of {names.get(kind, 'tables')}"
    if not isinstance(value, list):
        raise Mistake(path, expected)
    if len(value) > MAX_ITEMS:
        raise Mistake(path, f"{_name(path)}: more than {MAX_ITEMS} items")
    if kind in names and kind is not float and any(type(v) is not kind for v in value):
        raise Mistake(path, expected)
    return tuple(_value(kind, v, (*path, i)) for i, v in enumerate(value))


def _mapping(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or any(type(v) is not str for v in value.values()):
        raise Mistake(path, f"{_name(path)}: expected a table of strings")
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
