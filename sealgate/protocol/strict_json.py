"""JSON as RFC 8259 means it, within bounds: for documents that are signed or trusted.

Python's parser takes duplicate keys, NaN, infinities and unbounded depth. Each of them
has let two readers see two different documents, so here each is an error. So are half
surrogate pairs: they are not characters, and cannot be written as UTF-8 again.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sealgate.errors import JsonError

__all__ = ["dumps", "loads", "loads_object"]


def loads(data: bytes, *, max_bytes: int, max_depth: int = 32) -> Any:
    """Parse one JSON document.

    Args:
        data: UTF-8 text, possibly hostile.
        max_bytes: refuse longer documents before parsing.
        max_depth: refuse deeper nesting of arrays and objects.

    Raises:
        JsonError: too long, too deep, not UTF-8, not JSON, a duplicate key, NaN,
            an infinity, an integer of thousands of digits, or half a surrogate pair.

    >>> loads(b'{"a": [1, 2]}', max_bytes=100)
    {'a': [1, 2]}
    """
    if len(data) > max_bytes:
        raise JsonError(f"document has {len(data)} bytes, at most {max_bytes} allowed")
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, int() limits
        raise JsonError(f"not JSON: {_first_line(error)}") from None
    # No document is nested deeper than it has opening brackets, in texts or not.
    if text.count("{") + text.count("[") > max_depth:
        _check_depth(value, max_depth)
    if "\\u" in text:  # only an escape can spell half a surrogate pair
        dumps(value)
    return value


def loads_object(data: bytes, *, max_bytes: int, max_depth: int = 32) -> dict[str, Any]:
    """Parse a JSON document whose top level must be an object.

    Raises:
        JsonError: as `loads`, or the top level is something else.
    """
    value = loads(data, max_bytes=max_bytes, max_depth=max_depth)
    if not isinstance(value, dict):
        raise JsonError("top level is not an object")
    return value


def dumps(value: Any) -> bytes:
    """Serialize with sorted keys and no white space, so equal values give equal bytes.

    >>> dumps({"b": 1, "a": None})
    b'{"a":null,"b":1}'
    """
    try:
        text = json.dumps(
            value,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise JsonError("half a surrogate pair is not a character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise JsonError(f"cannot be written as JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise JsonError("an object repeats a key")
    return result


def _constant(name: str) -> float:
    raise JsonError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError("a number is too large for a double")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
)


def _check_depth(value: Any, max_depth: int) -> None:
    level = _children([value])
    for _ in range(max_depth):
        level = [child for item in level for child in _children(item)]
    if level:
        raise JsonError(f"nested more than {max_depth} levels deep")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [v for v in item.values() if isinstance(v, dict | list)]
    if isinstance(item, list):
        return [v for v in item if isinstance(v, dict | list)]
    return []


def _first_line(error: Exception) -> str:
    # UnicodeDecodeError carries the whole document in its repr; its reason does not.
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start}"
    return str(error).splitlines()[0]
