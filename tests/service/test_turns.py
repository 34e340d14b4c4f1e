"""Inferences that are answered side by side are answered as any other.

A real server, on a loop of its own: the first request with a head is parsed, those with
the same bytes after it are not. What each gets, and what is recorded, must be the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from security.access.quota_table import Limits
from security.audit.log import LogLimits
from service.http.exchange import Cycle
from service.http.heads import MAX_HEADS, MAX_KEPT_BYTES, Head, Heads
from service.inference.served import Entry
from tests.support.rooms import ISSUER_KEY, Rooms, token, wire
from tests.support.side_by_side import OWN, OWN_FIELDS, House, play

ROW = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
GOOD = json.dumps({"inputs": [ROW]}).encode()
PATH = "/v2/models/toy/infer"
READY = b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n"


def message(bearer: str, body: bytes = GOOD, *fields: str, path: str = PATH) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"authorization: Bearer {bearer}",
        *fields,
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
def bearer() -> str:
    return token("infer:toy")


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return wire(tmp_path, require_sealed=False)


def tensors(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**ROW, **changes}]}).encode()


BINARY = json.dumps(
    {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {
                "name": "features",
                "datatype": "FP32",
                "shape": [1, 3],
                "parameters": {"binary_data_size": 12},
            }
        ],
    }
).encode()
CASES: dict[str, tuple[tuple[bytes | str, ...], int]] = {
    "good": ((GOOD,), 200),
    "two rows": ((tensors(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]),), 200),
    "id": ((json.dumps({"id": "a", "inputs": [ROW]}).encode(),), 200),
    "binary": (
        (BINARY + bytes(12), f"inference-header-content-length: {len(BINARY)}"),
        200,
    ),
    "https": ((GOOD, "x-forwarded-proto: https"), 200),
    "no JSON": ((b'{"inputs": ',), 400),
    "no object": ((b"[]",), 400),
    "no inputs": ((b"{}",), 400),
    "datatype": ((tensors(datatype="FP64"),), 400),
    "too few": ((tensors(data=[1, 2]),), 400),
    "values": ((tensors(data=[1, 2, "x"]),), 400),
    "outputs": ((json.dumps({"inputs": [ROW], "outputs": []}).encode(),), 400),
    "tickets": (
        (json.dumps({"inputs": [ROW], "parameters": {"tickets": True}}).encode(),),
        400,
    ),
    # These go the ordinary way each time.
    "media type": ((GOOD, "content-type: text/plain"), 415),
    "trace": ((GOOD, f"traceparent: 00-{'1' * 32}-{'2' * 16}-01"), 200),
}
ORDINARY = {"media type", "trace"}


def shown(answer: tuple[int, dict[str, str], bytes]) -> object:
    status, fields, content = answer
    names = list(fields)
    kept = {name: fields[name] for name in names if name not in OWN_FIELDS}
    return status, names, kept, content


@pytest.mark.parametrize("name", CASES)
def test_the_answer_and_the_record_are_those_of_the_ordinary_way(
    rooms: Rooms, bearer: str, name: str
) -> None:
    parts, status = CASES[name]
    asked = message(bearer, *parts)  # type: ignore[arg-type]

    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        first = await client.ask(asked)
        if name in ORDINARY:
            again = [await client.ask(asked) for _ in range(2)]
            assert house.guard.ordinary == 4
        else:
            again = await house.side_by_side(client, asked, asked)
        if name != "trace":
            assert [shown(one) for one in again] == [shown(first)] * 2
        assert first[0] == status
        *_, ours, theirs, last = (
            {k: v for k, v in record.items() if k not in OWN}
            for record in house.records
        )
        assert ours == theirs == last
        assert house.records[-1]["request_id"] == again[-1][1]["x-request-id"]

    play(rooms, scene)


@pytest.mark.parametrize(
    ("path", "scope", "status"),
    [
        ("/v2/models/toy/versions/1.0.0/infer", "infer:toy", 200),
        ("/v2/models/other/infer", "infer:*", 404),
        ("/v2/models/toy/infer", "metadata:toy", 403),
        ("/v2/models/toy/infer", "infer:other", 404),
    ],
)
def test_other_models_and_other_callers(
    rooms: Rooms, path: str, scope: str, status: int
) -> None:
    asked = message(token(scope), path=path)

    async def scene(house: House) -> None:
        client = await house.connect()
        found = [await client.ask(asked) for _ in range(3)]
        assert [shown(one) for one in found] == [shown(found[0])] * 3
        assert found[0][0] == status

    play(rooms, scene)


def test_requests_of_one_turn_share_a_run_and_get_their_own(
    rooms: Rooms, bearer: str
) -> None:
    bodies = [tensors(data=[0.1 * i, 1, -0.2 * i]) for i in range(10, 26)]

    async def scene(house: House) -> None:
        alone = await house.known(message(bearer, bodies[0]))
        expected = [(await alone.ask(message(bearer, body)))[2] for body in bodies]
        clients = [await house.connect() for _ in bodies]
        for _ in range(3):
            for client, body in zip(clients, bodies):
                client.writer.write(message(bearer, body))
            answers = [await client.take() for client in clients]
            assert {status for status, _, _ in answers} == {200}
            for (_, _, content), own in zip(answers, expected):
                ours, theirs = json.loads(content), json.loads(own)
                for one, other in zip(ours["outputs"], theirs["outputs"]):
                    assert one["data"] == pytest.approx(other["data"], abs=1e-6)
        assert len({record["request_id"] for record in house.records}) == len(
            house.records
        )

    play(rooms, scene)


def test_more_than_was_reserved_is_reserved_within_the_turn(
    tmp_path: Path, bearer: str
) -> None:
    """Twelve at once, where one caller's slot and budget were held for one."""
    limits = Limits(1000, None, 1000, None, 64)
    rooms = wire(tmp_path, require_sealed=False, limits=limits)

    async def scene(house: House) -> None:
        await house.known(message(bearer))
        clients = [await house.connect() for _ in range(12)]
        house.guard.ordinary = 0
        for client in clients:
            client.writer.write(message(bearer))
        answers = [await client.take() for client in clients]
        assert {status for status, _, _ in answers} == {200}
        assert (house.guard.ordinary, house.guard.tasks) == (0, 0)

    play(rooms, scene)


def test_budgets_are_counted_to_the_last(tmp_path: Path, bearer: str) -> None:
    limits = Limits(7, 10**6, 10**6, 10**6, 1000)
    rooms = wire(tmp_path, require_sealed=False, limits=limits)

    async def scene(house: House) -> None:
        client = await house.connect()
        found = [(await client.ask(message(bearer)))[0] for _ in range(30)]
        # A minute may end between two of them, but not twice.
        assert 7 <= found.count(200) <= 14
        assert found.count(429) == 30 - found.count(200)

    play(rooms, scene)


def test_a_token_that_expires_is_refused_by_the_same_head(tmp_path: Path) -> None:
    now = [time.time()]
    rooms = wire(tmp_path, require_sealed=False, clock=lambda: now[0])
    asked = message(token("infer:toy", now=int(now[0])))

    async def scene(house: House) -> None:
        client = await house.known(asked)
        (answer,) = await house.side_by_side(client, asked)
        assert answer[0] == 200
        now[0] += 3600
        status, fields, _ = await client.ask(asked)
        assert status == 401
        assert "www-authenticate" in fields

    play(rooms, scene)


def test_a_token_is_bound_to_the_certificate_of_its_own_connection(
    rooms: Rooms,
) -> None:
    shown = ["A" * 43, "B" * 43, None]
    asked = message(bound_token("A" * 43))

    async def scene(house: House) -> None:
        class Certified(house.protocol):  # type: ignore[misc]
            """As if TLS had told whose connection each one is."""

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self.certificate = shown.pop(0)

        house.protocol = Certified
        clients = []
        for _ in range(3):
            clients.append(await house.connect())
            # One by one: the server takes them in this order.
            assert (await clients[-1].ask(READY))[0] == 200
        for _ in range(5):
            assert (await clients[0].ask(asked))[0] == 200
            for client in clients:
                client.writer.write(asked)
            found = [(await client.take())[0] for client in clients]
            assert found == [200, 401, 401]

    play(rooms, scene)


def bound_token(certificate: str) -> str:
    claims = jwt.decode(token("infer:toy"), options={"verify_signature": False})
    claims["cnf"] = {"x5t#S256": certificate}
    headers = jwt.get_unverified_header(token("infer:toy"))
    return jwt.encode(claims, ISSUER_KEY, algorithm="EdDSA", headers=headers)


def test_a_model_that_is_withdrawn_is_refused_by_the_same_head(
    rooms: Rooms, bearer: str
) -> None:
    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        (answer,) = await house.side_by_side(client, message(bearer))
        assert answer[0] == 200
        lineup = rooms.routes.lineup
        withdrawn = lineup.table["toy"].default.withdraw("policy")  # type: ignore[union-attr]
        lineup.switch({"toy": Entry({"1.0.0": withdrawn})})
        status, _, content = await client.ask(message(bearer))
        assert status == 503
        assert b"admission-withdrawn" in content

    play(rooms, scene)


def test_a_log_that_is_forced_to_disk_is_waited_for(rooms: Rooms, bearer: str) -> None:
    rooms.log.limits = LogLimits(sync=True)

    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        first, second = await house.side_by_side(client, *[message(bearer)] * 2)
        assert shown(first) == shown(second)
        names = [record["request_id"] for record in house.records[-2:]]
        assert names == [one[1]["x-request-id"] for one in (first, second)]

    play(rooms, scene)


def test_what_cannot_be_recorded_is_not_answered(rooms: Rooms, bearer: str) -> None:
    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        rooms.log._descriptor = -1  # as after a disk that failed
        status, _, content = await client.ask(message(bearer))
        assert status == 503
        assert b"outputs" not in content

    play(rooms, scene)


def test_no_more_are_in_work_than_may_be(rooms: Rooms, bearer: str) -> None:
    async def scene(house: House) -> None:
        first = await house.known(message(bearer))
        clients = [await house.connect() for _ in range(12)]
        for client in clients:
            client.writer.write(message(bearer))
        found = [(await client.take())[0] for client in clients]
        assert set(found) <= {200, 503}
        assert 200 in found
        assert (await first.ask(message(bearer)))[0] == 200

    play(rooms, scene, max_concurrency=2)


def test_a_client_that_leaves_is_on_record(tmp_path: Path, bearer: str) -> None:
    # Without budgets it goes side by side whenever a minute ends.
    unbounded = Limits(None, None, None, None, None)
    rooms = wire(tmp_path, require_sealed=False, limits=unbounded)

    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        before = len(house.records)
        client.writer.write(message(bearer))
        client.writer.close()
        await client.writer.wait_closed()
        other = await house.known(message(token("metadata:toy")))
        assert (await other.ask(message(bearer)))[0] == 200
        ours = [record["status"] for record in house.records[before:]]
        assert ours.count(200) == 2

    play(rooms, scene)


def test_pipelined_requests_with_known_heads_are_answered_in_order(
    rooms: Rooms, bearer: str
) -> None:
    bodies = [tensors(data=[i, 1, 1]) for i in range(4)]

    async def scene(house: House) -> None:
        client = await house.known(message(bearer, bodies[0]))
        alone = [(await client.ask(message(bearer, body)))[2] for body in bodies]
        client.writer.write(b"".join(message(bearer, body) for body in bodies))
        assert [(await client.take())[2] for _ in bodies] == alone

    play(rooms, scene)


def test_strangers_leave_no_heads(rooms: Rooms, bearer: str) -> None:
    async def scene(house: House) -> None:
        client = await house.connect()
        for number in range(3):
            await client.ask(message("a.b.c", GOOD, f"x-number: {number}"))
        # Nor where nobody is asked who they are.
        for path in (b"/v2/health/ready", b"/.well-known/ohttp-gateway"):
            await client.ask(READY.replace(b"/v2/health/ready", path))
        assert (await client.ask(READY.replace(b"GET", b"POST")))[0] == 405
        assert not house.protocol.heads._known
        await client.ask(message(bearer))
        assert len(house.protocol.heads._known) == 1

    play(rooms, scene)


def test_who_has_asked_as_a_stranger_is_parsed_until_known(
    rooms: Rooms, bearer: str
) -> None:
    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        assert (await client.ask(message("a.b.c")))[0] == 401
        house.guard.ordinary = 0
        assert [(await client.ask(message(bearer)))[0] for _ in range(3)] == [200] * 3
        assert house.guard.ordinary == 1

    play(rooms, scene)


def cycles() -> set[Cycle]:
    # By type: torch has objects that warn whoever asks for their class.
    return {one for one in gc.get_objects() if issubclass(type(one), Cycle)}


def test_answered_requests_are_not_left_to_the_collector(
    rooms: Rooms, bearer: str
) -> None:
    """A payload would live on in them, and collecting them costs."""

    async def scene(house: House) -> None:
        client = await house.known(message(bearer))
        gc.collect()
        gc.disable()
        try:
            before = cycles()
            for asked in (READY, message("a.b.c"), *[message(bearer)] * 3):
                await client.ask(asked)
            await client.ask(READY.replace(b"x\r\n", b"x\r\nconnection: close\r\n"))
            await client.reader.read()
            # The last one ends after its answer is there. What refers to itself never
            # does: the collector is off.
            left = len(cycles() - before)
            for _ in range(500):
                if not left:
                    break
                await asyncio.sleep(0.02)
                left = len(cycles() - before)
        finally:
            gc.enable()
        assert left == 0

    play(rooms, scene)


def test_heads_are_bounded() -> None:
    heads = Heads()

    def head(text: str) -> Head:
        raw = f"GET /{text} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        return Head(raw, method=b"GET", path=b"/", authority=b"x", headers=(), length=0)

    for number in range(MAX_HEADS + 5):
        heads.remember(head(str(number)))
    assert len(heads._known) == MAX_HEADS
    assert heads.find(head("0").raw) is None
    assert heads.find(head("9").raw) is not None
    heads.remember(head("x" * MAX_KEPT_BYTES))
    assert heads.find(head("x" * MAX_KEPT_BYTES).raw) is None


def test_many_values_are_read_and_written_apart(rooms: Rooms, bearer: str) -> None:
    rows = 6000
    body = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[%d,3],' % rows
    body += b'"data":[' + b",".join([b"1"] * 3 * rows) + b"]}]}"

    async def scene(house: House) -> None:
        client = await house.connect()
        found = [await client.ask(message(bearer, body)) for _ in range(4)]
        assert [shown(one) for one in found] == [shown(found[0])] * 4

    play(rooms, scene)
