"""`--version` of both commands."""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import NoReturn

__all__ = ["PrintVersion"]


class PrintVersion(argparse.Action):
    """Looked up when it is asked for: that takes longer than the rest of the start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the command's name and the version, and end."""
        try:
            version = importlib.metadata.version("sealgate")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"{parser.prog} {version}")
        parser.exit()
