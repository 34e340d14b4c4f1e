"""Commands without a process of their own: imports are paid for once."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
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
    return ended(main, arguments, environment(home, extra), cwd=ROOT)


def ended(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    variables: Mapping[str, str],
    *,
    cwd: Path,
) -> subprocess.CompletedProcess[str]:
    """What a process of this command would give, with these variables and no others."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with (
        warnings.catch_warnings(),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, variables, clear=True),
    ):
        # Of the libraries: a process of its own would not show them.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    said = []
    for stream in (out, err):
        stream.seek(0)
        said.append(stream.read())
    return subprocess.CompletedProcess(list(arguments), code, *said)
