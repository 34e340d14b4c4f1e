"""Clocks that jump: what depends on the time says so, and recovers by itself."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sealgate.protocol import bhttp
from sealgate.protocol.bhttp import Response
from security.sealing.freshness import http_date
from tests.support.rooms import (
    INPUT,
    Rooms,
    admitted,
    opened,
    request,
    sealed,
    token,
    wire,
)

HOUR = 3600.0
DAY = 24 * HOUR
BODY = json.dumps({"inputs": [INPUT]}).encode()


class Clock:
    """Ours to set; it stands still."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rooms(tmp_path: Path, clock: Clock) -> Rooms:
    admission = replace(
        admitted(tmp_path / "bundle"),
        expires_at=datetime.fromtimestamp(clock.now, UTC) + timedelta(days=20),
    )
    return wire(
        tmp_path / "rooms", admissions=[admission], require_sealed=False, clock=clock
    )


def code(response: Response) -> str:
    if response.status == 200:
        return "ok"
    return re.split("[/#]", json.loads(bytes(response.body))["type"])[-1]


def ask(rooms: Rooms, bearer: str) -> str:
    asked = request("POST", "/v2/models/toy/infer", bearer=bearer, body=BODY)
    return code(asyncio.run(rooms.routes.answer(asked, sealed=False)))


def test_tokens(rooms: Rooms, clock: Clock) -> None:
    bearer, start = token("infer:toy"), clock.now
    assert ask(rooms, bearer) == "ok"
    for jump, expected in [
        (HOUR, "unauthenticated"),  # expired
        (0, "ok"),
        (-HOUR, "unauthenticated"),  # from the future
        (-DAY, "unauthenticated"),
        (0, "ok"),
    ]:
        clock.now = start + jump
        assert ask(rooms, bearer) == expected, jump


def test_admission(rooms: Rooms, clock: Clock) -> None:
    """Evidence that is too old at the new time is not used until that is over."""
    start = clock.now
    for jump, expected in [
        (19 * DAY, "ok"),
        (21 * DAY, "admission-expired"),
        (0, "ok"),
    ]:
        clock.now = start + jump
        assert ask(rooms, token("infer:toy", now=int(clock.now))) == expected


def test_sealed_requests(rooms: Rooms, clock: Clock) -> None:
    """A jump shuts out honest clients, never lets a copy in."""
    start = clock.now
    inner = request(
        "POST",
        "/v2/models/toy/infer",
        bearer=token("infer:toy"),
        headers=((b"date", http_date(start)),),
        body=BODY,
    )
    message = bhttp.encode_request(inner)

    def seal() -> tuple[bytes, object]:
        return sealed(rooms.gateway.keys, message)

    def send(content: bytes, context: object) -> str:
        outer = asyncio.run(rooms.gateway.answer(content))
        return code(opened(context, outer))  # type: ignore[arg-type]

    first = seal()
    assert send(*first) == "ok"
    for jump in (HOUR, -HOUR):
        clock.now = start + jump
        assert send(*first) in {"date", "replayed"}
        assert send(*seal()) == "date"
    clock.now = start
    assert send(*first) == "replayed"
    assert send(*seal()) == "ok"


def test_a_jump_ahead_and_back_forgets_nothing(rooms: Rooms, clock: Clock) -> None:
    """Requests of the time between would be forgotten, and their copies answered."""
    start = clock.now

    def seal() -> tuple[bytes, object]:
        date = ((b"date", http_date(clock.now)),)
        inner = request(bearer=token(now=int(clock.now)), headers=date)
        return sealed(rooms.gateway.keys, bhttp.encode_request(inner))

    def send(content: bytes, context: object) -> str:
        outer = asyncio.run(rooms.gateway.answer(content))
        return code(opened(context, outer))  # type: ignore[arg-type]

    first = seal()
    assert send(*first) == "ok"
    clock.now = start + HOUR
    assert send(*seal()) == "ok"
    clock.now = start
    assert send(*first) == "replayed"
