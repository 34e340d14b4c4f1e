"""What several tables of service.toml are held to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from security.errors import SettingsError

__all__ = ["check_failure_mode", "check_positive", "check_store"]

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
    if store != "local" and not store.startswith(("redis://", "rediss://")):
        raise SettingsError(f"{where}: local, or a redis:// URL")


def check_failure_mode(mode: str, where: str) -> None:
    """Refuse what is no answer to a store or a log that is away.

    Raises:
        SettingsError: names the key.
    """
    if mode not in _FAILURE_MODES:
        raise SettingsError(f"{where}: one of {', '.join(_FAILURE_MODES)}")
