"""What several tables of service.toml are held to."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from security.errors import SettingsError
from security.stores.places import parse_place

__all__ = [
    "check_failure_mode",
    "check_positive",
    "check_store",
    "fits",
    "refuse_unknown",
]

_FAILURE_MODES = ("refuse", "serve")


def check_positive(table: Any, where: str, names: Iterable[str]) -> None:
    """Refuse bounds that at zero would bound nothing or let nothing through.

    Raises:
        SettingsError: names the key.
    """
    for name in names:
        # NaN, which TOML can spell, fails this comparison too.
        if not 0 < getattr(table, name) < math.inf:
            raise SettingsError(f"{where}.{name}: must be positive and finite")


def check_store(store: str, where: str) -> None:
    """Refuse a store that is neither local nor Redis.

    Raises:
        SettingsError: names the key, not the value: a URL that was mistyped may hold
            a password.
    """
    if store != "local":
        try:
            parse_place(store)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}") from None


def check_failure_mode(mode: str, where: str) -> None:
    """Refuse what is no answer to a store or a log that is away.

    Raises:
        SettingsError: names the key.
    """
    if mode not in _FAILURE_MODES:
        raise SettingsError(f"{where}: one of {', '.join(_FAILURE_MODES)}")


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that mean nothing: a setting that silently does not apply is a hole.

    Raises:
        SettingsError: names the first one, and what may have been meant.
    """
    names = set(known)
    for name in sorted(set(given) - names):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(f"{where}: unknown key {name!r}{hint}")


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of several, or begins as one that ends in a star says."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )
