"""Real Redis servers, and a wire to one that breaks where a test wants it to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import free_port


@dataclass
class RedisServer:
    """A running server.

    Attributes:
        url: of it.
        port: on this machine.
        process: its own.
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def redis_server(
    folder: Path, *options: str, port: int | None = None, tls: bool = False
) -> Iterator[RedisServer]:
    """A server that keeps what it is told, as a deployment's must.

    Args:
        folder: where it writes.
        options: further ones of its command line; the last one holds.
        port: free if absent.
        tls: whether ``port`` is for TLS, set up by the options.
    """
    pytest.importorskip("redis", reason="the redis package is not installed")
    program = shutil.which("redis-server") or os.environ.get("REDIS_SERVER")
    if not program:
        pytest.skip("redis-server is not on this machine")
    port = port or free_port()
    ports = ("0", "--tls-port", str(port)) if tls else (str(port),)
    command = [program, "--bind", "127.0.0.1", "--port", *ports, "--save", ""]
    command += ["--dir", str(folder), "--appendonly", "yes", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield RedisServer(f"redis://127.0.0.1:{port}/0", port, process)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def losing_answers(port: int, marker: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A wire that breaks once, after the server has done what was asked.

    Args:
        port: of the server.
        marker: the first request that holds it is answered to nobody.

    Yields:
        The URL to use, and what was lost.
    """
    lost: list[bytes] = []

    def serve(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            while request := near.recv(1 << 16):
                far.sendall(request)
                answer = far.recv(1 << 16)
                # A missing script is no work done: only what was done is lost.
                if marker in request and not lost and not answer.startswith(b"-"):
                    lost.append(request)
                    return
                near.sendall(answer)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=serve, args=(near,), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", lost
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)
