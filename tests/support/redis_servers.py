"""Real Redis servers, and a wire to one that breaks where a test wants it to."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    port = port or free_port()
    ports = ("0", "--tls-port", str(port)) if tls else (str(port),)
    command = [_program(), "--bind", "127.0.0.1", "--port", *ports, "--save", ""]
    command += ["--dir", str(folder), "--appendonly", "yes", *options]
    with _running(command, port) as process:
        yield RedisServer(f"redis://127.0.0.1:{port}/0", port, process)


def _program() -> str:
    """Redis, or what REDIS_SERVER names: Valkey."""
    pytest.importorskip("redis", reason="the redis package is not installed")
    program = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not on this machine")
    return program


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def plain(port: int, **options: Any) -> Any:
    """The library's own client, as an administrator."""
    module = importlib.import_module("redis")
    return module.Redis(host="127.0.0.1", port=port, protocol=2, **options)


def wait_until(holds: Callable[[], bool], *, timeout_s: float = 30.0) -> float:
    """Wait for something; says how long it took, in seconds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def redis_cluster(
    folder: Path, *options: str, replicas: int = 0
) -> Iterator[list[RedisServer]]:
    """Three masters that have all slots between them, then their replicas.

    Args:
        folder: where they write.
        options: further ones of each command line.
        replicas: of each master.
    """
    with ExitStack() as stack:
        buses = [free_port() for _ in range(3 + 3 * replicas)]
        servers = []
        for number, bus in enumerate(buses):
            (folder / str(number)).mkdir()
            node = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
            quick = ("--cluster-node-timeout", "1000")
            opened = redis_server(folder / str(number), *node, *quick, *options)
            servers.append(stack.enter_context(opened))
        nodes = [plain(server.port) for server in servers]
        for number, node in enumerate(nodes):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                first, last = (part * 16384 // 3 for part in (number, number + 1))
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            nodes[0].execute_command(
                "CLUSTER", "MEET", "127.0.0.1", servers[number].port, buses[number]
            )
        masters = [node.execute_command("CLUSTER", "MYID") for node in nodes[:3]]
        for number, node in enumerate(nodes[3:]):
            wait_until(lambda n=node: len(n.cluster("NODES")) == len(nodes))
            node.execute_command("CLUSTER", "REPLICATE", masters[number % 3])
        wait_until(lambda: all(map(_is_whole, nodes)))
        for node in nodes:
            node.close()
        yield servers


def _is_whole(node: Any) -> bool:
    state: str = node.execute_command("CLUSTER INFO")["cluster_state"]
    return state == "ok"


@contextmanager
def redis_sentinels(
    folder: Path,
    master: RedisServer,
    *lines: str,
    quorum: int = 1,
    tls: bool = False,
    count: int = 1,
) -> Iterator[list[int]]:
    """Sentinels that watch a master, which they call ``main``.

    Args:
        folder: where they write.
        master: that they watch.
        lines: of their configuration.
        quorum: how many must find it down.
        tls: whether their ports are for TLS, set up by the lines.
        count: how many.

    Yields:
        Their ports.
    """
    with ExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        for port in ports:
            file = folder / f"sentinel-{port}.conf"
            own = ["port 0", f"tls-port {port}"] if tls else [f"port {port}"]
            watched = f"main 127.0.0.1 {master.port} {quorum}"
            file.write_text(
                "\n".join(
                    [
                        *(*own, "bind 127.0.0.1", f"dir {folder}"),
                        f"sentinel monitor {watched}",
                        "sentinel down-after-milliseconds main 1000",
                        "sentinel failover-timeout main 3000",
                        *lines,
                        "",
                    ]
                )
            )
            command = [_program(), str(file), "--sentinel"]
            stack.enter_context(_running(command, port))
        yield ports


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
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
