"""Which version is installed, and `--version` of both commands."""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import NoReturn

__all__ = ["PrintVersion", "installed_version"]


def installed_version() -> str:
    """The version of this package; "" where it is used without being installed."""
    try:
        return importlib.metadata.version("sealgate")
    except importlib.metadata.PackageNotFoundError:
        return ""


class PrintVersion(argparse.Action):
    """Looked up when it is asked for: that takes longer than the rest of the start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the command's name and the version, and end."""
        print(f"{parser.prog} {installed_version() or '(not installed)'}")
        parser.exit()
