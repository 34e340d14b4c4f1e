"""How a field of a report is held to another place that says the same. No I/O."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Found", "differ", "number"]

# Contradictions, in words.
Found = Iterator[str]


def differ(kind: str, stated: Mapping[str, Any], wanted: Mapping[str, Any]) -> Found:
    """What is not as wanted among the conditions of a report, which may be hostile."""
    for name, value in wanted.items():
        given = stated.get(name)
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            yield f"{kind}: {name} is {given!r}, where {value!r} must stand"


def number(value: object) -> float:
    """NaN, which compares false, for what is no number that a double holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.nan
