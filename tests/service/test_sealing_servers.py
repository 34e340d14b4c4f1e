"""Two real servers that share keys and a Redis: replays, and keys that rotate."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from sealgate import Client
from sealgate.exchange import GATEWAY_PATH, Answer, Exchange, build_request
from sealgate.protocol import keyconfig
from sealgate.protocol.bhttp import Response
from tests.conftest import check_security, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.redis_servers import RedisServer, redis_server
from tests.support.servers import Server, serve

pytestmark = pytest.mark.slow
SEALED = {"content-type": "message/ohttp-req"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment whose keys may be changed."""
    return Path(shutil.copytree(pristine, tmp_path_factory.mktemp("pair") / "home"))


@pytest.fixture(scope="module")
def pair(home: Path, redis: RedisServer) -> Iterator[list[Server]]:
    extra = toy_settings(home) | {"SEALGATE_SEALING_REPLAY_STORE": redis.url}
    with ExitStack() as stack:
        yield [
            stack.enter_context(serve("", home, extra=extra, alone=True))
            for _ in range(2)
        ]


def sealed(server: Server, home: Path) -> Exchange:
    configs = keyconfig.decode_list(httpx.get(server.url + GATEWAY_PATH).content)
    request = build_request(
        "GET", "/v2", url=server.url, token=mint(home, "metrics"), now=time.time()
    )
    return Exchange(configs[0], request, max_response_bytes=1 << 16)


def post(server: Server, exchange: Exchange) -> Response:
    outer = httpx.post(
        server.url + GATEWAY_PATH, content=exchange.content, headers=SEALED, timeout=60
    )
    headers = {name.lower(): value for name, value in outer.headers.items()}
    return exchange.finish(Answer(outer.status_code, headers, outer.content))


def kind(response: Response) -> str:
    return json.loads(bytes(response.body))["type"].rpartition("/")[2]


def test_one_answer_from_both(pair: list[Server], home: Path) -> None:
    first, second = pair
    exchange = sealed(first, home)
    assert post(second, exchange).status == 200
    for server in (first, second):
        again = post(server, exchange)
        assert (again.status, kind(again)) == (409, "replayed")
    assert post(first, sealed(second, home)).status == 200


def test_of_copies_at_both_at_once_one_is_answered(
    pair: list[Server], home: Path
) -> None:
    exchange = sealed(pair[0], home)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda s=s: statuses.append(post(s, exchange).status))
        for s in pair * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409, 409, 409, 409, 409]


def test_no_request_is_dropped_while_keys_rotate(
    pair: list[Server], home: Path
) -> None:
    """Keys are made and taken up while clients go on with what they have."""
    token = mint(home, f"infer:{NAME}")
    failures: list[BaseException] = []
    answers = [0, 0]
    done = threading.Event()

    def work(number: int) -> None:
        try:
            with Client(pair[number].url, token=token, timeout_s=60) as client:
                while not done.is_set():
                    client.infer(NAME, {"features": [[1, 2, 3]]})
                    answers[number] += 1
        except BaseException as error:  # noqa: BLE001  (raised by who waits)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    before = keyconfig.decode_list(httpx.get(pair[0].url + GATEWAY_PATH).content)
    for thread in threads:
        thread.start()
    try:
        check_security(
            home, "keys", "generate", "--role", "sealing", **toy_settings(home)
        )
        new = before
        deadline = time.monotonic() + 60
        while any(key in before for key in new) and time.monotonic() < deadline:
            time.sleep(0.2)
            new = keyconfig.decode_list(httpx.get(pair[0].url + GATEWAY_PATH).content)
        so_far = list(answers)
        while (
            any(now <= then for now, then in zip(answers, so_far))
            and not failures
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert not any(key in before for key in new)
    assert all(now > then for now, then in zip(answers, so_far))


def test_a_redis_that_is_gone_fails_closed(
    pair: list[Server], home: Path, redis: RedisServer
) -> None:
    """The last test of this module: it takes the Redis away."""
    redis.process.kill()
    redis.process.wait(timeout=20)
    refused = post(pair[0], sealed(pair[0], home))
    assert (refused.status, kind(refused)) == (503, "replay-unavailable")
    assert dict(refused.headers)[b"retry-after"] == b"1"
