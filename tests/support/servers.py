"""Real servers on a free port, stopped by who started them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support import warm

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: where it listens.
        home: its SEALGATE_HOME.
        log: file with everything it printed.
        pid: of the parent process.
    """

    url: str
    home: Path
    log: Path
    pid: int


def free_port() -> int:
    """A port that nothing listens on, and that no connection is given meanwhile.

    Those from 32768 on the kernel gives to whoever connects (ip(7),
    ip_local_port_range), so that it may be taken when its server starts.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def bentoml(*arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "bentoml", *arguments]


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with the state of a deployment under ``home``."""
    # With an underscore: left there by parts of a server in this process.
    ours = ("SEALGATE_", "_SEALGATE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {
        **kept,
        "SEALGATE_HOME": str(home),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(extra or {}),
    }


def known_noise() -> dict[str, str]:
    """Variables of a child that draws the same noise each time."""
    seeded = ROOT / "tests" / "support" / "seeded"
    return {"PYTHONPATH": os.pathsep.join((str(seeded), str(ROOT)))}


def sealgate(
    *arguments: object, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The end of the command, in this process, with nothing else in its environment."""
    from sealgate.cli import main
    from tests.support.in_process import ended

    return ended(main, [*map(str, arguments)], variables, cwd=cwd)


@contextmanager
def serve(
    target: str,
    home: Path,
    *,
    extra: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    python: str = sys.executable,
    tls: ssl.SSLContext | None = None,
    port: int | None = None,
    graceful_s: int = 5,
    wait_for: str = "ready",
    own: Sequence[str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "security"),
    alone: bool = False,
    fresh: bool = False,
) -> Iterator[Server]:
    """Run `bentoml serve TARGET` until the block ends, once it is ready, or live.

    With ``own`` arguments, `python -m security serve TARGET` and those instead, or
    another ``program`` that is the same. What serves ``alone``, by `python -m service`
    what the settings name, starts in a fraction of the time, with one worker or as many
    as BentoML's options name: for tests that are about answers, and not about BentoML's
    command. All of them are forked from a warm process where they can be
    (tests.support.warm), unless a ``fresh`` interpreter is wanted.
    """
    port = port or free_port()
    log = home / f"server-{port}.log"
    address = ("--host", "127.0.0.1", "--port", str(port))
    grace = ("--timeout-graceful-shutdown", str(graceful_s))
    if alone:
        command = [python, "-m", "service", *address]
    elif own is None:
        command = bentoml("serve", target, *address, *grace, python=python)
    else:
        command = [*program, "serve", target, *address, *own]
    begin = warm.start_fresh if fresh else warm.start
    with log.open("wb") as output:
        process = begin(
            command, cwd=cwd, env=environment(home, extra), stdout=output, stderr=output
        )
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        _wait(f"{url}/v2/health/{wait_for}", process, log, tls)
        yield Server(url, home, log, process.pid)
    finally:
        _stop(process)


def _wait(
    url: str,
    process: warm.Process,
    log: Path,
    tls: ssl.SSLContext | None,
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"exited {process.returncode}: {log.read_text()}")
        try:
            ready = httpx.get(url, timeout=1, verify=tls or False)
            if ready.status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"server did not become ready: {log.read_text()}")


def _stop(process: warm.Process) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
