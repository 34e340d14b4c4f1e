"""Which version is installed, and `--version` of both commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

__all__ = ["PrintVersion", "installed_version"]


def installed_version() -> str:
    """The version of this package; "" where it is used without being installed."""
    # It takes longer to import than all else that a command needs to refuse an option.
    import importlib.metadata  # noqa: PLC0415

    try:
        return importlib.metadata.version("sealgate")
    except importlib.metadata.PackageNotFoundError:
        return ""


class PrintVersion(argparse.Action):
    """Looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the command's name and the version, and end."""
        print(f"{parser.prog} {installed_version() or '(not installed)'}")
        parser.exit()
