"""Commands that are forked from a process which has imported what servers import.

A new interpreter spends more than a second on imports before `python -m service` does
anything of its own. Here one process for all tests of a
worker imports them, and a copy of it goes on as the command: the module is run as
`__main__`, with the command's arguments, variables, folder and streams.

What makes the copy as good as a new interpreter:

1. The warm process has one thread, no handler of a signal, no session of onnxruntime,
   and has read no settings: importing has no effects here, save `service.app`, which
   it does not import. It never runs a test.
2. A variable that imports or the interpreter have read may not differ. Only those in
   `_MAY_DIFFER` do; BentoML reads its own once more.
3. A folder with sources of its own, a Bento's, gets a new interpreter. So does every
   other command, and a platform without what this needs. Of them `bentoml serve`: it
   silences all loggers that exist when it begins, and ours do not exist there yet.
4. The generators of `random` and OpenSSL seed themselves again after a fork; numpy's
   is seeded here.
5. It ends as interpreters end: exit handlers, a traceback, its status or its signal.
   What it would execute in its place is held to 2 and 3 again.

Not for tests of the start itself, of imports and memory, or of what /proc says of a
process: its name there, its pages and its parent are the warm process's.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
_OURS = ("security", "service")
_SOURCES = ("models", "sealgate", "security", "service")
_MAY_DIFFER = (
    "SEALGATE_",
    "BENTOML_HOME",
    "BENTOML_CONFIG_OPTIONS",
    "PYTEST_",
    "KMP_",  # set by importing scikit-learn; read by OpenMP, which is not loaded
)
# All of `service` but these is imported, and:
_NOT = ("service.app", "service.__main__")
_IMPORTS = (
    "_bentoml_impl.server.app",
    "_bentoml_impl.worker.service",
    "httptools",
    "security.admission.hooks",
    "security.commands.options",
    "uvicorn.lifespan.on",
    "uvloop",
)
_MAX_REQUEST = 1 << 17
# Before any test changes it.
_VARIABLES = {
    **os.environ,
    "BENTOML_DO_NOT_TRACK": "True",
    "PYTHONDONTWRITEBYTECODE": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # by importing `models`
}


class Forked:
    """A command that was forked: `subprocess.Popen`, as far as tests need it."""

    def __init__(self, args: Sequence[str], status: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._status = status
        self.pid = self._read()

    def poll(self) -> int | None:
        """How it ended, if it did: a status, or a signal's number below 0."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if (
            self.returncode is None
            and select.select([self._status], [], [], timeout)[0]
        ):
            self.returncode = self._read()
            self._status.close()
        return self.returncode

    def _read(self) -> int:
        told = self._status.recv(32)
        if not told:
            raise RuntimeError("the warm process is gone; what it said stands above")
        return int(told)


Process = subprocess.Popen[bytes] | Forked


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> Process:
    """Start a command in a session of its own, with the tests' standard input."""
    if not fits(command, cwd, env):
        return start_fresh(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    return fork(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)


def fork(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> Forked:
    """The same by the warm process, whatever `fits` says."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    request = json.dumps([list(command), str(cwd), dict(env)]).encode()
    streams = [0, stdout.fileno(), stderr.fileno()]
    with theirs:
        socket.send_fds(_warm(), [request], [*streams, theirs.fileno()])
    return Forked(command, ours)


def start_fresh(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    """The same by a new interpreter, always."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    by: Callable[..., Process] = start,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a command whose output is text, started ``by`` one of these.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = by(command, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(list(command), code, *said)


def fits(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> bool:
    """Whether the warm process can become this command."""
    if not hasattr(os, "pidfd_open"):
        return False
    python, flag, module, *_ = command
    if (python, flag) != (sys.executable, "-m"):
        return False
    own = cwd.resolve() != ROOT and any((cwd / name).exists() for name in _SOURCES)
    return module in _OURS and not own and _lasting(env) == _lasting(_VARIABLES)


def _lasting(variables: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in variables.items() if not k.startswith(_MAY_DIFFER)}


@cache
def _warm() -> socket.socket:
    """The warm process of these tests; it ends with them."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env=_lasting(_VARIABLES),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


# The warm process.


def main() -> None:
    """Import, and fork for each request; what follows happens in a copy only."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _import()
    request, streams = _serve(control)
    control.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.execve = _go_on  # type: ignore[assignment]
    following = json.loads(request)
    while True:
        try:
            return _become(*following)
        except _Following as other:
            following = other.args


def _import() -> None:
    import service
    from security.deferring import deferring

    found = walk_packages(service.__path__, "service.")
    ours = [item.name for item in found if item.name not in _NOT]
    with deferring():
        for name in (*ours, *_IMPORTS):
            import_module(name)
    # What is not collected any more is not written to, and stays one page for all.
    gc.collect()
    gc.freeze()


def _serve(control: socket.socket) -> tuple[bytes, list[int]]:
    """A request and its streams, in the copy that is to answer it."""
    waiting = selectors.PollSelector()
    waiting.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not control:
                waiting.unregister(key.fileobj)
                _tell_end(*key.data)
                continue
            request, fds, *_ = socket.recv_fds(control, _MAX_REQUEST, 4)
            if not request:
                sys.exit()
            pid = os.fork()
            *streams, status = fds
            if pid == 0:
                for fd in (status, *_descriptors(waiting)):
                    os.close(fd)
                return request, streams
            os.write(status, str(pid).encode())
            for fd in streams:
                os.close(fd)
            end = os.pidfd_open(pid)
            waiting.register(end, selectors.EVENT_READ, (end, pid, status))


def _tell_end(end: int, pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(status, str(code).encode())
    os.close(status)
    os.close(end)


def _descriptors(waiting: selectors.BaseSelector) -> list[int]:
    """Those by which the others' ends are awaited and told."""
    others = [key.data for key in waiting.get_map().values() if key.data]
    return [fd for end, _, status in others for fd in (end, status)]


class _Following(BaseException):
    """The command, folder and variables that a command goes on as."""


def _go_on(path: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """What `os.execve` does, here too if it can: `security serve` ends in `service`."""
    if fits(command, Path.cwd(), variables):
        raise _Following([*command], str(Path.cwd()), {**variables})
    _execve(path, command, variables)


_execve = os.execve


def _become(command: list[str], cwd: str, variables: dict[str, str]) -> None:
    """Be what a new interpreter with this command would be."""
    import bentoml
    import numpy as np

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    np.random.seed()
    bentoml.load_config()
    sys.orig_argv = command
    sys.argv = command[2:]
    sys.path[0] = cwd
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
