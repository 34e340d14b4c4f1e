"""`python -m security` without a process of its own: imports are paid for once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from security.commands import main
from tests.support.servers import environment


def security_code(
    home: Path, *arguments: str, extra: Mapping[str, str] | None = None
) -> int:
    """The exit code of a command, with the state of a deployment under ``home``."""
    with mock.patch.dict(os.environ, environment(home, extra), clear=True):
        return main(arguments)
