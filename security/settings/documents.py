"""TOML that the operator names: read within bounds, with one message for each fault."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from security.errors import SettingsError

__all__ = ["parse_toml", "read_toml"]

MAX_TOML_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file of at most 1 MiB.

    Raises:
        SettingsError: missing, no regular file, too large, or as `parse_toml`.
    """
    try:
        data = read_regular(path, max_bytes=MAX_TOML_BYTES, follow_links=True)
    except BundleError as error:
        raise SettingsError(f"{path}: {str(error).partition(': ')[2]}") from None
    return parse_toml(data, str(path))


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """Parse a document.

    Raises:
        SettingsError: not TOML or UTF-8, nested too deeply, or an integer of thousands
            of digits. The message begins with ``where``.
    """
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise SettingsError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise SettingsError(f"{where}: {' '.join(str(error).split())}") from None
