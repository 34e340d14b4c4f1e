"""Programs that are measured: started, asked what they use, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Usage:
    """What a process and all its descendants use.

    Attributes:
        cpu_s: CPU time of their threads so far, seconds.
        rss_bytes: resident memory, pages that they share counted for each.
    """

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage:
    """Ask /proc (proc(5)); threads that ended before are not counted."""
    process = psutil.Process(pid)
    cpu, rss = 0, 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            for thread in Path(f"/proc/{one.pid}/task").iterdir():
                cpu += int((thread / "schedstat").read_text().split()[0])
            rss += one.memory_info().rss
    return Usage(cpu / 1e9, rss)


@contextmanager
def running(
    command: list[str], *, log: Path, env: Mapping[str, str], cwd: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends, and whatever it has started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
