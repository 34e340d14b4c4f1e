"""A process for hostile bytes: started empty, limited before it loads a library.

`run_confined` starts it and bounds what comes back; the module that it runs calls
`confine` first, loads its libraries, and calls `close_everything` before it reads.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from security.inspection.findings import StructureLimits

__all__ = ["close_everything", "confine", "load", "run_confined"]

_T = TypeVar("_T")

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL = 9
# The exit code of a process that a library was missing for: it has read nothing.
_NOT_LOADED = 70


def run_confined(
    module: str, parts: Sequence[bytes], limits: StructureLimits, max_answer: int
) -> tuple[bytes | None, int]:
    """Run a module of ours on hostile bytes.

    Args:
        module: its name; it gets the bytes on standard input.
        parts: those bytes, in parts whose sizes the module is told.
        limits: of the process.
        max_answer: bytes that it may answer; one more means that it went beyond.

    Returns:
        What it wrote, None after the deadline; and its exit code.

    Raises:
        OSError: it cannot be started.
        ModuleNotFoundError: a library that it needs is not installed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sealgate-confined-") as folder,
        _start(folder, module, parts, limits) as child,
    ):
        answer = _exchange(child, parts, limits.wall_s, max_answer)
    if answer is not None and child.returncode == _NOT_LOADED:
        # One that was taken over can say so too, and gains nothing: it has no answer.
        name = answer[:100].decode("ascii", "replace")
        if re.fullmatch(r"\w+(\.\w+)*", name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return answer, child.returncode


def confine(argument: str) -> tuple[StructureLimits, list[int]]:
    """In the child, first of all: the limits, except on open files.

    Args:
        argument: its only one, as `run_confined` gives it.

    Returns:
        The limits, and the sizes of the parts on standard input.
    """
    given = json.loads(argument)
    limits, sizes = StructureLimits(**given["limits"]), given["sizes"]
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes + 6 * sum(sizes)),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (value, value))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    return limits, sizes


def load(libraries: Callable[[], _T]) -> _T:
    """In the child, after `confine`: its libraries, or the name of what is missing.

    Args:
        libraries: imports them.
    """
    try:
        return libraries()
    except ModuleNotFoundError as error:
        sys.stdout.write(error.name or "")
        sys.stdout.flush()
        sys.exit(_NOT_LOADED)


def close_everything() -> None:
    """In the child, once its libraries are loaded: it can open no file or socket."""
    # 0, 1 and 2 are open. From here on nothing else can be.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _start(
    folder: str, module: str, parts: Sequence[bytes], limits: StructureLimits
) -> subprocess.Popen[bytes]:
    told = json.dumps({"limits": asdict(limits), "sizes": list(map(len, parts))})
    return subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", module, told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,  # empty: no relative path in the file leads anywhere
        env=_environment(),
        start_new_session=True,  # no terminal, and not the caller's signals
    )


def _exchange(
    child: subprocess.Popen[bytes],
    parts: Sequence[bytes],
    wall_s: float,
    max_answer: int,
) -> bytes | None:
    """Feed the parts and read the answer, bounded; None after the deadline.

    A child that has been taken over may write without end, or neither read nor write.
    """
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    deadline = threading.Timer(wall_s, stop)
    feeder = threading.Thread(target=_feed, args=(child, parts), daemon=True)
    deadline.start()
    feeder.start()
    try:
        answer = child.stdout.read(max_answer + 1) if child.stdout else b""
        if len(answer) > max_answer:
            child.kill()
        child.wait()
        feeder.join()
    finally:
        deadline.cancel()
        child.kill()
    return None if late.is_set() else answer


def _feed(child: subprocess.Popen[bytes], parts: Sequence[bytes]) -> None:
    # A pipe takes slices of the one copy; the child may end before it has read all.
    with contextlib.suppress(OSError), child.stdin or contextlib.nullcontext() as pipe:
        if pipe is not None:
            pipe.writelines(parts)


def _environment() -> dict[str, str]:
    # Nothing of the caller's but what the interpreter needs to find its libraries.
    kept = {
        name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ
    }
    told = {
        "PYTHONPATH": str(_ROOT),
        "OPENBLAS_NUM_THREADS": "1",  # the child may not start a second thread
        "ORT_DISABLE_TELEMETRY": "1",  # as in models/__init__.py
    }
    return kept | told
