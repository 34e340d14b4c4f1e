"""Under load: good requests get their own answers whatever else comes in beside them.

Bounded in requests and time; nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from tests.conftest import mint
from tests.support.live import (
    INFER,
    ODD,
    calling,
    make_live_deployment,
    reports,
    settings,
    wait_for,
)
from tests.support.servers import Server, serve

WORKERS = 2
REQUESTS = 10_000
CONNECTIONS = 64
# What no request may hold, and what it is answered.
MALFORMED = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'{"inputs": []}', 400),
    (b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3]}]}', 400),
    (
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 2],'
        b' "data": [1, 2]}]}',
        400,
    ),
    (
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3],'
        b' "data": [1, 2, "x"]}]}',
        400,
    ),
    (b"\xff" * 1000, 400),
    (b"[" * 100_000, 400),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("load") / "home"
    make_live_deployment(home, "1.0.0")
    return home


@pytest.fixture(scope="module")
def loaded(home: Path) -> Iterator[Server]:
    extra = settings(home) | {
        "BENTOML_CONFIG_OPTIONS": f"services.sealgate.workers={WORKERS}",
        # Under test is who gets which answer, not the disk.
        "SEALGATE_AUDIT_SYNC": "false",
        "SEALGATE_SERVICE_BODY_TIMEOUT_S": "5",
        "SEALGATE_SERVICE_HEAD_TIMEOUT_S": "5",
    }
    with serve("", home, extra=extra, alone=True) as server:
        wait_for(lambda: len(reports(home)) == WORKERS)
        yield server


@pytest.fixture(scope="module")
def token(home: Path) -> str:
    return mint(home, "infer:toy")


def tagged(number: int) -> tuple[bytes, int]:
    """A request that no other one is like, and its status."""
    rows = _rows(number)
    tensor = {
        "name": "features",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "data": rows.reshape(-1).tolist(),
    }
    return json.dumps({"id": f"request-{number}", "inputs": [tensor]}).encode(), 200


def _rows(number: int) -> np.ndarray:
    count = 1 + number % 4
    values = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    return values / 7 + np.float32(number % 1009) / 101


def check(number: int, document: dict) -> None:
    assert document["id"] == f"request-{number}"
    outputs = {item["name"]: item for item in document["outputs"]}
    logits = np.exp(_rows(number) @ ODD)
    expected = logits / logits.sum(axis=1, keepdims=True)
    got = np.array(outputs["probabilities"]["data"]).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


class Line:
    """A connection that sends one request after the other; httpx takes longer."""

    def __init__(self, server: Server, token: str) -> None:
        self._port = int(server.url.rpartition(":")[2])
        self._head = (
            f"POST {INFER} HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    async def __aenter__(self) -> Line:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, content: bytes) -> tuple[int, bytes]:
        self._writer.write(self._head + b"%d\r\n\r\n" % len(content) + content)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", head)
        assert length is not None, head
        return int(head[9:12]), await self._reader.readexactly(int(length[1]))


@pytest.mark.slow
def test_ten_thousand_mixed_requests(loaded: Server, token: str) -> None:
    draw = random.Random(7)
    numbers = iter(range(REQUESTS))
    statuses: Counter[tuple[bool, int]] = Counter()
    wrong: list[str] = []

    async def one() -> None:
        async with Line(loaded, token) as line:
            for number in numbers:
                bad = draw.random() < 0.1
                content, expected = draw.choice(MALFORMED) if bad else tagged(number)
                status, answer = await line.post(content)
                statuses[bad, status] += 1
                if status != expected:
                    wrong.append(f"{number}: {status} {answer[:200]!r}")
                elif not bad:
                    check(number, json.loads(answer))

    async def everyone() -> None:
        async with asyncio.timeout(500):
            await asyncio.gather(*(one() for _ in range(CONNECTIONS)))

    asyncio.run(everyone())
    assert wrong == []
    assert sum(statuses.values()) == REQUESTS
    assert statuses.keys() == {(False, 200), (True, 400)}
    assert 800 < statuses[True, 400] < 1200


def test_slow_clients_do_not_starve_others(loaded: Server, token: str) -> None:
    """Heads and bodies that come byte by byte, and answers that nobody takes."""
    port = int(loaded.url.rpartition(":")[2])
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    ).encode()
    stop = Event()

    def drip(start: bytes) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=30) as client,
        ):
            client.sendall(start)
            while not stop.wait(0.2):
                client.sendall(b" ")

    slow = [Thread(target=drip, args=(start,)) for start in [head, head[:40]] * 30]
    for thread in slow:
        thread.start()
    try:
        with calling(loaded, token) as caller:
            wait_for(lambda: caller.answers.total() >= 300)
        assert caller.failures == []
    finally:
        stop.set()
        for thread in slow:
            thread.join(timeout=60)


def test_a_killed_worker_is_replaced(home: Path, loaded: Server, token: str) -> None:
    """What was in work at it fails, at most; everything after that is answered."""
    connections = 8
    victim = reports(home)[0]["pid"]
    with calling(loaded, token, connections=connections) as caller:
        wait_for(lambda: caller.answers.total() > 50)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len({r["pid"] for r in reports(home)} - {victim}) >= WORKERS)
        before = caller.answers.total()
        wait_for(lambda: caller.answers.total() > before + 200)
        during = len(caller.failures)
        before = caller.answers.total()
        wait_for(lambda: caller.answers.total() > before + 200)
    # One in work per connection, and its successor that met the closed connection.
    assert during <= 2 * connections, caller.failures
    assert len(caller.failures) == during, caller.failures[during:]
