"""Sealed requests that are answered side by side are answered as any other.

With a field in its outer head that no other has, a request takes the ordinary way.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.padding import pad
from security.sealing.freshness import http_date
from tests.support import rooms as support
from tests.support.rooms import INPUT, Rooms, request, sealed, wire
from tests.support.side_by_side import OWN, OWN_FIELDS, Client, House, play

GOOD = json.dumps({"inputs": [INPUT]}).encode()
PATH = "/v2/models/toy/infer"
COUNT = itertools.count()
# A record names the token.
token = cache(support.token)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return wire(tmp_path)


def dated(seconds: float = 0.0) -> tuple[bytes, bytes]:
    return b"date", http_date(time.time() + seconds)


def asking(*scopes: str, body: bytes = GOOD, path: str = PATH) -> Request:
    bearer = token(*(scopes or ("infer:toy",)))
    return request("POST", path, bearer=bearer, headers=(dated(),), body=body)


def outer(body: bytes, *fields: str) -> bytes:
    lines = [
        "POST /.well-known/ohttp-gateway HTTP/1.1",
        "host: x",
        "content-type: message/ohttp-req",
        *fields,
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def own_head() -> str:
    return f"x-count: {next(COUNT)}"


class Sealer:
    """Seals to the keys of a house, and opens what it answers."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.keys = house.rooms.gateway.keys

    def seal(self, asked: Request | bytes) -> tuple[bytes, ohttp.ResponseContext]:
        message = asked if isinstance(asked, bytes) else bhttp.encode_request(asked)
        return sealed(self.keys, pad(message))

    async def ask(self, client: Client, asked: Request | bytes, *fields: str) -> object:
        """What an answer shows beside what no two have in common."""
        body, context = self.seal(asked)
        status, outside, content = await client.ask(outer(body, *fields))
        inner = bhttp.decode_response(context.open(content))
        return status, _kept(outside), shown(inner)

    async def begin(self) -> Client:
        """A connection whose head is known from now on."""
        client = await self.house.connect()
        await self.ask(client, asking())
        self.house.guard.ordinary = 0
        return client


def shown(inner: Response) -> object:
    names = [name for name, _ in inner.headers]
    fields = {name.decode(): value.decode() for name, value in inner.headers}
    return inner.status, names, _kept(fields), bytes(inner.body)


def _kept(fields: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in fields.items() if name not in OWN_FIELDS}


def last_records(house: House, count: int) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in one.items() if k not in OWN} for one in house.records[-count:]
    ]


CASES: dict[str, tuple[Any, int]] = {
    "good": (asking, 200),
    "version": (lambda: asking(path="/v2/models/toy/versions/1.0.0/infer"), 200),
    "no JSON": (lambda: asking(body=b"{"), 400),
    "no tensor": (lambda: asking(body=b"{}"), 400),
    "not granted": (lambda: asking("infer:other"), 404),
    "no right": (lambda: asking("metadata:toy"), 403),
    "no model": (lambda: asking("infer:*", path="/v2/models/other/infer"), 404),
    "no token": (lambda: request("POST", PATH, headers=(dated(),), body=GOOD), 401),
    "bad token": (
        lambda: request("POST", PATH, bearer="a.b.c", headers=(dated(),), body=GOOD),
        401,
    ),
    "metadata": (
        lambda: request("GET", "/v2/models/toy", bearer=token("metadata:toy")),
        200,
    ),
    "health": (lambda: request("GET", "/v2/health/ready"), 200),
    "method": (lambda: request("PUT", PATH, bearer=token("infer:toy")), 405),
    "not Binary HTTP": (lambda: b"\xff" * 40, 400),
    "too old": (
        lambda: request(
            "POST",
            PATH,
            bearer=token("infer:toy"),
            headers=(dated(-1000),),
            body=GOOD,
        ),
        400,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_answer_and_the_record_are_those_of_the_ordinary_way(
    rooms: Rooms, name: str
) -> None:
    make, status = CASES[name]

    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        records = len(house.records)
        # The first answer of its length remembers its head, if a caller is known.
        await sealer.ask(client, make())
        each = len(house.records) - records
        by_side = await sealer.ask(client, make())
        ours = last_records(house, each) if each else []
        house.guard.ordinary = 0
        ordinary = await sealer.ask(client, make(), own_head())
        assert house.guard.ordinary == 1
        theirs = last_records(house, each) if each else []
        assert by_side == ordinary
        assert ours == theirs
        assert by_side[2][0] == status  # type: ignore[index]

    play(rooms, scene)


def test_a_trace_inside_the_seal_goes_on_behind_a_known_head(rooms: Rooms) -> None:
    trace = "1" * 32
    traced = (b"traceparent", f"00-{trace}-{'2' * 16}-01".encode())

    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        bearer = token("infer:toy")
        for fields in ((), (), (own_head(),)):
            asked = request(
                "POST", PATH, bearer=bearer, headers=(dated(), traced), body=GOOD
            )
            _, _, inner = await sealer.ask(client, asked, *fields)  # type: ignore[misc]
            assert inner[0] == 200
            assert inner[2]["traceresponse"].split("-")[1] == trace

    play(rooms, scene)


def test_inferences_take_no_task(rooms: Rooms) -> None:
    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        for _ in range(10):
            house.guard.ordinary = house.guard.tasks = 0
            answers = [await sealer.ask(client, asking()) for _ in range(3)]
            assert [answer[2][0] for answer in answers] == [200] * 3  # type: ignore[index]
            if not house.guard.tasks:
                break  # a budget that is reserved anew takes one
        assert (house.guard.ordinary, house.guard.tasks) == (0, 0)

    play(rooms, scene)


@pytest.mark.parametrize("first", ["side by side", "ordinary"])
@pytest.mark.parametrize("second", ["side by side", "ordinary"])
def test_a_copy_is_refused_whichever_way_they_take(
    rooms: Rooms, first: str, second: str
) -> None:
    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        body, context = sealer.seal(asking())
        statuses = []
        for way in (first, second, second):
            fields = [own_head()] if way == "ordinary" else []
            _, _, content = await client.ask(outer(body, *fields))
            statuses.append(bhttp.decode_response(context.open(content)).status)
        assert statuses[0] == 200
        assert statuses[1:] == [_replayed()] * 2
        assert [one["status"] for one in house.records[-3:]] == statuses

    play(rooms, scene)


def _replayed() -> int:
    from security.errors import ReplayError
    from service.problems import to_problem

    return to_problem(ReplayError("")).status


def test_of_copies_in_one_turn_one_is_answered(rooms: Rooms) -> None:
    async def scene(house: House) -> None:
        sealer = Sealer(house)
        clients = [await sealer.begin() for _ in range(4)]
        body, context = sealer.seal(asking())
        other, its_context = sealer.seal(asking())
        asked = [body, other, body, body]
        for client, one in zip(clients, asked):
            client.writer.write(outer(one))
        answers = await asyncio.gather(*(client.take() for client in clients))
        contexts = [context, its_context, context, context]
        statuses = [
            bhttp.decode_response(c.open(content)).status
            for c, (_, _, content) in zip(contexts, answers)
        ]
        assert statuses.pop(1) == 200
        assert sorted(statuses) == sorted([200, _replayed(), _replayed()])

    play(rooms, scene)


@pytest.mark.parametrize("damage", [0, 1, 20, -1])
def test_what_does_not_open_is_refused_alike(rooms: Rooms, damage: int) -> None:
    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        body = bytearray(sealer.seal(asking())[0])
        body[damage] ^= 1
        by_side = await client.ask(outer(bytes(body)))
        ours = last_records(house, 1)
        assert house.guard.ordinary == 0
        ordinary = await client.ask(outer(bytes(body), own_head()))
        assert by_side[0] == ordinary[0] == 422
        assert by_side[2] == ordinary[2]
        assert list(by_side[1]) == list(ordinary[1])
        assert ours == last_records(house, 1)

    play(rooms, scene)


def test_a_store_that_fails_refuses_all_of_the_turn(
    rooms: Rooms, tmp_path: Path
) -> None:
    async def scene(house: House) -> None:
        sealer = Sealer(house)
        clients = [await sealer.begin() for _ in range(3)]
        store = rooms.gateway._freshness._store
        store.close()  # type: ignore[attr-defined]
        file = store._file.path  # type: ignore[attr-defined]
        file.write_bytes(b"this is not a database" * 500)
        for tail in ("-wal", "-shm"):
            file.with_name(file.name + tail).unlink(missing_ok=True)
        pairs = [sealer.seal(asking()) for _ in clients]
        for client, (body, _) in zip(clients, pairs):
            client.writer.write(outer(body))
        for client, (_, context) in zip(clients, pairs):
            _, _, content = await client.take()
            assert bhttp.decode_response(context.open(content)).status == 503

    play(rooms, scene)


class Waiting:
    """A store that has to be waited for, as Redis has."""

    def __init__(self, store: Any) -> None:
        self.insert, self.forget = store.insert, store.forget

    def insert_at_once(self, group: object) -> None:
        """Nothing is done."""


class Broken(Waiting):
    """A store with a bug where requests are remembered together."""

    def insert_at_once(self, group: object) -> None:
        raise LookupError


@pytest.mark.parametrize("kind", [Waiting, Broken])
def test_a_store_that_cannot_tell_at_once(rooms: Rooms, kind: type[Waiting]) -> None:
    freshness = rooms.gateway._freshness
    freshness._store = kind(freshness._store)

    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        body, context = sealer.seal(asking())
        answers = [await client.ask(outer(body)) for _ in range(2)]
        inner = [bhttp.decode_response(context.open(one[2])) for one in answers]
        assert [one.status for one in inner] == [200, _replayed()]
        assert house.guard.ordinary == 0

    play(rooms, scene)


PAGE = "https://app.example"


@pytest.mark.parametrize("name", ["good", "metadata", "bad token", "not Binary HTTP"])
@pytest.mark.parametrize("origin", [PAGE, "https://app.example.evil.test"])
def test_a_page_reads_what_it_is_answered_whichever_way(
    rooms: Rooms, name: str, origin: str
) -> None:
    """Side by side, in a task, or the ordinary way: the fields of CORS are the same."""
    make, _ = CASES[name]

    async def scene(house: House) -> None:
        sealer = Sealer(house)
        client = await sealer.begin()
        found = []
        for fields in ((), (), (), (own_head(),)):
            body, _ = sealer.seal(make())
            message = outer(body, f"origin: {origin}", *fields)
            _, outside, _ = await client.ask(message)
            found.append((outside["vary"], outside.get("access-control-allow-origin")))
        assert found == [("origin", PAGE if origin == PAGE else None)] * 4

    play(rooms, scene, allowed_origins=(PAGE,))
