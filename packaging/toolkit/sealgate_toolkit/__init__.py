"""`sealgate-toolkit`: the operators' command, from its wheel.

The folders under ``rooms`` are the repository's, by the names that they have there.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]

ROOMS = Path(__file__).resolve().parent / "rooms"


def main() -> int:
    """Run the command; returns the exit code."""
    # Before all else: a folder or another package may be named `models`, too.
    sys.path.insert(0, str(ROOMS))
    from security.commands import main as command  # noqa: PLC0415  (it lies in rooms)

    return command(prog="sealgate-toolkit")
