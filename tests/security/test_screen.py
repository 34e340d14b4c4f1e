"""What commands show on a terminal, and that elsewhere it is plain lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT


def scanned(
    folder: Path, *, columns: int | None = None, **variables: str
) -> tuple[str, bytes]:
    """What `scan` prints of predictions; on a terminal of so many columns, if any."""
    truth = "".join(f"{i % 2},{(i % 2) if i % 5 else 1 - i % 2}\n" for i in range(60))
    (folder / "rows.csv").write_text("truth,prediction\n" + truth)
    command = [sys.executable, "-m", "security", "scan", "--jobs", "1"]
    command += ["--predictions", "rows.csv", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    environment.pop("NO_COLOR", None)
    if columns is None:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True
        )
        return done.stdout.decode(), done.stderr
    ours, theirs = pty.openpty()
    environment["COLUMNS"] = str(columns)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # so does a terminal end on Linux
        pass
    finally:
        os.close(ours)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return b"".join(parts).decode().replace("\r\n", "\n"), said


def test_a_terminal_gets_a_table_and_a_pipe_gets_lines(tmp_path: Path) -> None:
    plain, _ = scanned(tmp_path)
    assert "\x1b" not in plain
    assert "            accuracy 0.800 [" in plain
    shown, _ = scanned(tmp_path, columns=120)
    (line,) = [one for one in shown.splitlines() if " accuracy " in one]
    assert "█" * 16 + "░" * 4 in line
    assert "0.800" in line
    assert "\x1b[" in line
    # Values stand below each other.
    rows = [one for one in shown.splitlines() if "n=" in one and "[0." in one]
    assert len(rows) > 1
    assert len({one.index("[0.") for one in rows}) == 1


@pytest.mark.parametrize(
    ("columns", "variables", "drawn"),
    [
        (60, {}, ""),
        (120, {"PYTHONIOENCODING": "ascii"}, "#" * 16 + "." * 4),
    ],
    ids=["narrow", "ascii"],
)
def test_a_lesser_terminal_gets_less(
    tmp_path: Path, columns: int, variables: dict[str, str], drawn: str
) -> None:
    shown, _ = scanned(tmp_path, columns=columns, **variables)
    (line,) = [one for one in shown.splitlines() if " accuracy " in one]
    assert "█" not in line
    assert drawn in line
    assert "0.800" in line
