"""service.gateway: plain errors before decapsulation, sealed answers after it."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import EncapsulationError
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.bhttp import Response
from sealgate.protocol.drafts.chunked import ResponseOpener, seal_chunked_request
from sealgate.protocol.keyconfig import KeyConfig
from security.sealing import rotation
from security.sealing.freshness import http_date
from security.sealing.keyring import generate_key, load_keyring
from security.sealing.live import LiveRing
from service.gateway import StreamedResponse, _chunks, _padded
from service.problems import Problem, problem_response, to_problem
from tests.support.rooms import INPUT, Rooms, opened, request, sealed, token, wire


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    return wire(tmp_path_factory.mktemp("gateway"))


def exchange(rooms: Rooms, message: bytes, keys: bytes | None = None) -> Response:
    body, context = sealed(keys or rooms.gateway.keys, message)
    return opened(context, asyncio.run(rooms.gateway.answer(body)))


def refusal(rooms: Rooms, body: bytes) -> Response:
    with pytest.raises((Problem, EncapsulationError)) as caught:
        asyncio.run(rooms.gateway.answer(body))
    return problem_response(to_problem(caught.value))


def test_a_sealed_inference(rooms: Rooms) -> None:
    body = json.dumps({"inputs": [INPUT]}).encode()
    bearer = token("infer:toy")
    asked = request("POST", "/v2/models/toy/infer", bearer=bearer, body=body)
    inner = exchange(rooms, bhttp.encode_request(asked))
    assert inner.status == 200
    assert json.loads(bytes(inner.body))["outputs"][1]["data"] in ([0], [1])
    assert b"x-request-id" in dict(inner.headers)


def test_the_outer_answer_is_always_200(rooms: Rooms) -> None:
    for asked, status in (
        (request("GET", "/v2"), 401),
        (request("GET", "/v2/models/toy", bearer=token("infer:other")), 404),
        (request("GET", "/none", bearer=token("infer:toy")), 404),
        (request("PUT", "/v2", bearer=token("infer:toy")), 405),
        (request("GET", "/v2/health/ready"), 200),
        (request("GET", "/metrics", bearer=token("metrics")), 404),
    ):
        inner = exchange(rooms, bhttp.encode_request(asked))
        assert inner.status == status


def test_a_sealed_401_has_its_challenge_inside(rooms: Rooms) -> None:
    inner = exchange(rooms, bhttp.encode_request(request("GET", "/v2")))
    assert b"Bearer" in dict(inner.headers)[b"www-authenticate"]


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x00\x03GET", b"\xff" * 40])
def test_a_malformed_message_is_told_inside(rooms: Rooms, message: bytes) -> None:
    inner = exchange(rooms, message)
    assert inner.status == 400
    assert json.loads(bytes(inner.body))["type"].endswith("/malformed-message")


def test_the_inner_body_is_bounded(tmp_path: Path) -> None:
    rooms = wire(tmp_path, max_body_bytes=100)
    asked = request("POST", "/v2", bearer=token("infer:toy"), body=b" " * 101)
    assert exchange(rooms, bhttp.encode_request(asked)).status == 400


def other_key(folder: Path, key_id: int) -> bytes:
    generate_key(folder, key_id)
    return load_keyring(folder).document


def test_unknown_and_undecryptable_are_one_answer(rooms: Rooms, tmp_path: Path) -> None:
    message = bhttp.encode_request(request("GET", "/v2"))
    good, _ = sealed(rooms.gateway.keys, message)
    tampered = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in (7, 40, -1)]
    low_order = good[:7] + bytes(32) + good[39:]
    wrong_key, _ = sealed(other_key(tmp_path / "a", 1), message)
    unknown_key, _ = sealed(other_key(tmp_path / "b", 9), message)
    other_kem = good[:1] + b"\x00\x10" + good[3:]
    other_aead = good[:5] + b"\x00\x02" + good[7:]
    swapped_aead = good[:5] + b"\x00\x03" + good[7:]
    answers = {
        (response.status, response.headers, response.body)
        for body in (
            *tampered, good[:-1], good + b"\x00", low_order, wrong_key, unknown_key,
            other_kem, other_aead, swapped_aead,
        )
        for response in [refusal(rooms, body)]
    }  # fmt: skip
    ((status, headers, body),) = answers
    assert status == 422
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert json.loads(body)["type"] == (
        "https://iana.org/assignments/http-problem-types#ohttp-key"
    )


@pytest.mark.parametrize("size", [0, 1, 7, 38, 54])
def test_too_short_is_malformed(rooms: Rooms, size: int) -> None:
    good, _ = sealed(rooms.gateway.keys, b"x")
    response = refusal(rooms, good[:size])
    assert response.status == 400
    assert json.loads(response.body)["type"].endswith("/malformed-encapsulation")


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.binary(min_size=48).map(lambda b: b"\x01\x00\x20" + b)
)
def test_any_bytes_are_refused(rooms: Rooms, body: bytes) -> None:
    assert refusal(rooms, body).status in (400, 422)


def test_the_response_opens_with_its_request_only(rooms: Rooms) -> None:
    message = bhttp.encode_request(request("GET", "/v2/health/ready"))
    first, first_context = sealed(rooms.gateway.keys, message)
    second, _ = sealed(rooms.gateway.keys, message)
    answers = [asyncio.run(rooms.gateway.answer(body)) for body in (first, second)]
    assert answers[0].body != answers[1].body
    assert opened(first_context, answers[0]).status == 200
    with pytest.raises(Exception, match="does not authenticate"):
        opened(first_context, answers[1])


# Freshness: told inside the seal, and nothing is done for the request.


def answer(rooms: Rooms, body: bytes) -> Response:
    return asyncio.run(rooms.gateway.answer(body))


def problem_of(inner: Response) -> str:
    return str(json.loads(bytes(inner.body))["type"])


def test_a_replay_is_refused_inside(rooms: Rooms) -> None:
    asked = request("GET", "/v2/models/toy", bearer=token("infer:toy"))
    body, context = sealed(rooms.gateway.keys, bhttp.encode_request(asked))
    assert opened(context, answer(rooms, body)).status == 200
    for _ in range(2):
        inner = opened(context, answer(rooms, body))
        assert inner.status == 409
        assert problem_of(inner) == "https://sealgate.dev/problems/replayed"
    assert rooms.records.count(b'"replayed"') == 2


def test_of_two_copies_at_once_one_is_answered(rooms: Rooms) -> None:
    asked = request("GET", "/v2/models/toy", bearer=token("infer:toy"))
    body, context = sealed(rooms.gateway.keys, bhttp.encode_request(asked))

    async def both() -> list[Response]:
        return await asyncio.gather(*(rooms.gateway.answer(body) for _ in range(2)))

    inner = [opened(context, outer).status for outer in asyncio.run(both())]
    assert sorted(inner) == [200, 409]


def test_a_store_that_is_away_is_503_inside(tmp_path: Path) -> None:
    away = wire(tmp_path)
    (tmp_path / "replay").write_text("in the way")
    asked = request("GET", "/v2", bearer=token("infer:toy"))
    inner = exchange(away, bhttp.encode_request(asked))
    assert inner.status == 503
    assert problem_of(inner).endswith("/replay-unavailable")
    assert dict(inner.headers)[b"retry-after"] == b"1"


def test_strangers_fill_nothing(tmp_path: Path) -> None:
    """Requests without a valid token are not remembered, dated or not."""
    rooms = wire(tmp_path)
    for bearer in (None, "nonsense", token("infer:toy", now=1)):
        for dated in (False, True):
            date = ((b"date", http_date(time.time())),) if dated else ()
            asked = request("GET", "/v2", bearer=bearer, headers=date)
            body, context = sealed(rooms.gateway.keys, bhttp.encode_request(asked))
            # A copy is refused like the original: it has no effect either.
            for _ in range(2):
                assert opened(context, answer(rooms, body)).status == 401
    assert not (tmp_path / "replay").exists()


def test_who_has_a_token_fills_a_share_and_no_more(tmp_path: Path) -> None:
    rooms = wire(tmp_path, replay_share=5)

    def ask(subject: str) -> Response:
        bearer = token("infer:toy", subject=subject)
        asked = request("GET", "/v2/models/toy", bearer=bearer)
        return exchange(rooms, bhttp.encode_request(asked))

    assert [ask("greedy").status for _ in range(7)] == [200] * 5 + [429] * 2
    refused = ask("greedy")
    assert json.loads(bytes(refused.body))["violated-policies"] == [
        "remembered-requests"
    ]
    assert dict(refused.headers)[b"retry-after"] == b"10"
    assert ask("modest").status == 200


def test_dates_are_told_inside_with_ours(tmp_path: Path) -> None:
    strict = wire(tmp_path, require_date=True)
    bearer = token("infer:toy")
    now = time.time()
    for dates, status in (
        ([], 400),
        ([http_date(now - 300)], 400),
        ([http_date(now + 300)], 400),
        ([b"yesterday"], 400),
        ([http_date(now)] * 2, 400),
        ([http_date(now - 60)], 200),
    ):
        headers = tuple((b"date", date) for date in dates)
        asked = request("GET", "/v2", bearer=bearer, headers=headers)
        inner = exchange(strict, bhttp.encode_request(asked))
        assert inner.status == status
        if status == 400:
            iana = "https://iana.org/assignments/http-problem-types#date"
            assert problem_of(inner) == iana
            fields = dict(inner.headers)
            assert fields[b"cache-control"] == b"no-store"
            ours = parsedate_to_datetime(fields[b"date"].decode()).timestamp()
            assert abs(ours - now) < 5


# Rotation.


def test_no_request_is_lost_while_keys_rotate(tmp_path: Path) -> None:
    folder = tmp_path / "ring"
    rotation.generate(folder, now=time.time() - 10)
    monotonic = itertools.count()
    live = LiveRing(folder, overlap_s=3600, monotonic=lambda: next(monotonic) / 5)
    rooms = wire(tmp_path, ring=live.current)
    message = bhttp.encode_request(request("GET", "/v2/health/ready"))
    seen = set()
    for round_number in range(6):
        # A client that fetched before the rotation and uses what it has.
        configs = keyconfig.decode_list(rooms.gateway.keys)
        seen |= {config.key_id for config in configs}
        if round_number % 2:
            rotation.generate(folder, now=time.time() - 5 + round_number)
        for config in configs * 5:
            body, context = ohttp.seal_request(config, message)
            assert opened(context, answer(rooms, body)).status == 200
    assert len(seen) >= 6


# Padding.


def test_answers_of_other_lengths_look_alike(rooms: Rooms) -> None:
    lengths = set()
    for path in ("/v2", "/v2/models/toy/ready", "/v2/models/none", "/none"):
        asked = request("GET", path, bearer=token("infer:*"))
        body, _ = sealed(rooms.gateway.keys, bhttp.encode_request(asked))
        lengths.add(len(answer(rooms, body).body))
    # Nonce, bucket, tag.
    assert lengths == {16 + 1024 + 16}


# Chunked.


def chunked_parts(
    rooms: Rooms, message: bytes, size: int = 1000
) -> tuple[list[bytes], ResponseOpener]:
    config = keyconfig.decode_list(rooms.gateway.keys)[0]
    sealer, opener = seal_chunked_request(config)
    cuts = [message[i : i + size] for i in range(0, len(message), size)] or [b""]
    last = cuts.pop()
    return [sealer.head, *map(sealer.seal, cuts), sealer.finish(last)], opener


def chunked_exchange(rooms: Rooms, *parts: bytes) -> StreamedResponse:
    asked = rooms.gateway.begin_chunked()
    for part in parts:
        asked.feed(part)
    return asyncio.run(rooms.gateway.answer_chunked(asked))


def unstream(outer: StreamedResponse, opener: ResponseOpener) -> Response:
    assert outer.status == 200
    assert dict(outer.headers)[b"content-type"] == b"message/ohttp-chunked-res"
    assert dict(outer.headers)[b"incremental"] == b"?1"
    message = b"".join(b"".join(opener.feed(part)) for part in outer.parts)
    return bhttp.decode_response(message + opener.finish())


@pytest.mark.parametrize("known", [True, False])
def test_a_chunked_inference(rooms: Rooms, known: bool) -> None:
    body = json.dumps({"inputs": [INPUT]}).encode()
    bearer = token("infer:toy")
    asked = request("POST", "/v2/models/toy/infer", bearer=bearer, body=body)
    message = bhttp.encode_request(asked, known=known)
    parts, opener = chunked_parts(rooms, message, 50)
    inner = unstream(chunked_exchange(rooms, *parts), opener)
    assert inner.status == 200
    assert json.loads(bytes(inner.body))["outputs"]
    # The same stream again is a replay; told inside.
    again = copy.copy(opener)
    again.__dict__.update(_stream=None, _head=bytearray(), _over=False)
    assert unstream(chunked_exchange(rooms, *parts), again).status == 409


def test_a_long_answer_comes_in_full_chunks(rooms: Rooms) -> None:
    parts, opener = chunked_parts(rooms, b"x")
    asked = rooms.gateway.begin_chunked()
    for part in parts:
        asked.feed(part)
    _, sealer = asked.finish()
    body = bytes(range(256)) * 400
    sealing: list[float] = []
    padded = _padded(Response(200, (), body))
    outer = list(_chunks(sealer, padded, sealing.append))
    assert len(sealing) == 1
    assert {len(part) for part in outer[1:-1]} == {4 + (16 << 10) + 16}
    message = b"".join(b"".join(opener.feed(part)) for part in outer)
    assert bhttp.decode_response(message + opener.finish()).body == body


def test_a_chunked_message_that_is_malformed_is_told_inside(rooms: Rooms) -> None:
    parts, opener = chunked_parts(rooms, b"\xff" * 40)
    assert unstream(chunked_exchange(rooms, *parts), opener).status == 400


def chunked_refusal(rooms: Rooms, data: bytes) -> tuple[int, str]:
    with pytest.raises((Problem, EncapsulationError)) as caught:
        chunked_exchange(rooms, data)
    response = problem_response(to_problem(caught.value))
    return response.status, json.loads(response.body)["type"].rpartition("/")[2]


def test_chunked_streams_that_lie(rooms: Rooms) -> None:
    message = bhttp.encode_request(request("GET", "/v2"))
    parts, _ = chunked_parts(rooms, message, 10)
    head, *chunks = parts
    malformed = (400, "malformed-encapsulation")
    unusable = (422, "http-problem-types#ohttp-key")
    cases = {
        "nothing": (b"", malformed),
        "head only": (head, malformed),
        "no final chunk": (head + b"".join(chunks[:-1]), malformed),
        "cut in the final chunk": (b"".join(parts)[:-1], unusable),
        "empty non-final chunk": (head + b"\x10" + bytes(16), malformed),
        "a chunk of 2^62-1 bytes": (head + b"\xff" * 8, malformed),
        "swapped": (head + chunks[1] + chunks[0], unusable),
        "another key id": (b"\x99" + b"".join(parts)[1:], unusable),
        "another KEM": (head[:1] + b"\x00\x10" + head[3:], unusable),
        "another AEAD": (head[:5] + b"\x00\x02" + head[7:], unusable),
    }
    # What the first bytes of an ordinary ciphertext say as a length is chance.
    data, _ = sealed(rooms.gateway.keys, message)
    assert chunked_refusal(rooms, data) in (malformed, unusable)
    for name, (stream, expected) in cases.items():
        assert chunked_refusal(rooms, stream) == expected, name


def test_a_chunked_message_is_bounded(tmp_path: Path) -> None:
    small = wire(tmp_path, max_body_bytes=100)
    parts, _ = chunked_parts(small, bytes(80_000))
    assert chunked_refusal(small, b"".join(parts)) == (400, "malformed-encapsulation")


# Bad input: every truncation and every field of a request, at the gateway.


def test_every_truncation_at_the_gateway(rooms: Rooms) -> None:
    message = bhttp.encode_request(request("GET", "/v2"))
    good, _ = sealed(rooms.gateway.keys, message)
    for size in range(len(good)):
        expected = 400 if size < 7 + 32 + 16 else 422
        assert refusal(rooms, good[:size]).status == expected


def test_both_kems_and_aeads(tmp_path: Path) -> None:
    both = wire(tmp_path, kems=(0x647A, 0x0020))
    configs = keyconfig.decode_list(both.gateway.keys)
    assert [config.kem_id for config in configs] == [0x647A, 0x0020]
    message = bhttp.encode_request(request("GET", "/v2"))
    for config in configs:
        for aead in (1, 3):
            chosen = replace(config, symmetric=((1, aead),))
            body, context = ohttp.seal_request(chosen, message)
            assert opened(context, answer(both, body)).status == 401
            for i in (0, 2, 4, 6, 7, 1100, len(body) - 1):
                if i < len(body):
                    broken = bytearray(body)
                    broken[i] ^= 1
                    assert refusal(both, bytes(broken)).status == 422
    # A key of one KEM is not one of the other.
    swapped = replace(configs[0], key_id=configs[1].key_id)
    assert refusal(both, ohttp.seal_request(swapped, message)[0]).status == 422


def test_a_request_too_short_for_its_kem(tmp_path: Path) -> None:
    both = wire(tmp_path, kems=(0x647A,))
    good, _ = sealed(both.gateway.keys, b"x")
    for size in (55, 7 + 1120 + 15):
        assert refusal(both, good[:size]).status == 400


def test_a_large_answer_is_not_joined_first(rooms: Rooms) -> None:
    body, context = sealed(rooms.gateway.keys, b"x")
    header = ohttp.parse_header(body)
    _, gateway = ohttp.open_request(body, rooms.gateway._ring().find(header))
    inner = Response(200, (), os.urandom(200_000))
    parts = _padded(inner)
    sealed_parts = gateway.seal_parts(parts)
    assert isinstance(sealed_parts, bytearray)
    assert bhttp.decode_response(context.open(sealed_parts)) == inner
    nonce = bytes(16)
    assert gateway.seal_parts(parts, nonce=nonce) == gateway.seal(
        b"".join(parts), nonce=nonce
    )


def test_what_is_published(rooms: Rooms) -> None:
    (config,) = keyconfig.decode_list(rooms.gateway.keys)
    assert isinstance(config, KeyConfig)
    assert config.key_id == 1
