"""`python -m tests.support.telling`: what a process finds itself to be, as JSON.

With an argument it ends in the way that this names.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    """Tell, or end."""
    ends = {"raise": _fail, "exit": _exit, "wait": signal.pause, "become": _become}
    print("begun", flush=True)
    if sys.argv[1:2] and sys.argv[1] in ends:
        ends[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"same": _same(), "own": _own()}))


def _same() -> dict[str, object]:
    """What does not depend on how a process was started."""
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer

    modules = ("service.app", "service.__main__", "onnxruntime", "tests.conftest")
    return {
        "arguments": [sys.argv[1:], sys.orig_argv[1:]],
        "bentoml": bentoml.models.list() and [],
        "descriptors": sorted(os.listdir("/dev/fd"), key=int)[:3],
        "folder": str(Path.cwd()),
        "garbage": [gc.isenabled(), gc.get_threshold()],
        "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "home": BentoMLContainer.bentoml_home.get(),
        "imported": [name for name in modules if name in sys.modules],
        "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
        "main": [__name__, __spec__.name if __spec__ else None],
        "mask": [os.umask(0o22), [*signal.pthread_sigmask(signal.SIG_BLOCK, [])]],
        "options": BentoMLContainer.config.get()["services"].get("sealgate"),
        "path": sys.path,
        "streams": [[s.encoding, s.line_buffering] for s in (sys.stdout, sys.stderr)],
        "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
        "variables": dict(os.environ),
    }


def _own() -> list[float]:
    """What no two processes have in common."""
    import numpy as np

    return [random.random(), float(np.random.random()), os.getpid()]


def _fail() -> None:
    raise LookupError("nothing is here")


def _exit() -> None:
    sys.exit("said at the end")


def _become(*arguments: str) -> None:
    """Be another command, in another folder and with another variable."""
    os.chdir("/")
    variables = {**os.environ, "SEALGATE_HOME": "/nowhere"}
    os.execve(sys.executable, [sys.executable, *arguments], variables)  # noqa: S606


if __name__ == "__main__":
    main()
