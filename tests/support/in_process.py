"""`python -m security` without a process of its own: imports are paid for once."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from security.commands import main
from tests.support.servers import ROOT, environment


def security_code(
    home: Path, *arguments: str, extra: Mapping[str, str] | None = None
) -> int:
    """The exit code of a command, with the state of a deployment under ``home``."""
    with mock.patch.dict(os.environ, environment(home, extra), clear=True):
        return main(arguments)


def security_result(
    home: Path, *arguments: str, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The end of a command that is run in the project's folder, as of a process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        # Of the libraries: a process of its own would not show them.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            code = security_code(home, *arguments, extra=extra)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(
        list(arguments), code, out.getvalue(), err.getvalue()
    )
