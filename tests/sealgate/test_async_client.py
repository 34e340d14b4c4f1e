"""The asynchronous client against the real server: the same core, other I/O."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sealgate import (
    AsyncClient,
    AuthenticationError,
    Client,
    Options,
    OverloadedError,
    PassportError,
    Profile,
    ServerRefusedError,
    TransportError,
)
from sealgate.protocol.dsse import public_pem
from security.admission.keys import load_signing_key
from tests.sealgate.test_client import junk
from tests.support.bundles import NAME, Keys

ROWS = np.array([[1, 2, 3], [-4, 5.5, 0.125]], dtype=np.float32)


def run(url, token, work, **options):
    async def main():
        async with AsyncClient(url, token=token, **options) as client:
            return await work(client)

    return asyncio.run(main())


def test_it_answers_what_the_synchronous_client_answers(server, token):
    async def work(client):
        assert await client.health()
        assert await client.ready(NAME)
        metadata = await client.metadata(NAME)
        extensions = (await client.server_metadata())["extensions"]
        answers = await asyncio.gather(
            *(client.infer(NAME, {"features": ROWS}) for _ in range(8))
        )
        return metadata, extensions, answers, await client.keys()

    metadata, extensions, answers, keys = run(server.url, token, work)
    with Client(server.url, token=token) as client:
        assert client.health()
        assert client.ready(NAME)
        assert client.metadata(NAME) == metadata
        assert client.server_metadata()["extensions"] == extensions
        assert client.keys() == keys
        expected = client.infer(NAME, {"features": ROWS})
    for answer in answers:
        for name, array in expected.items():
            np.testing.assert_array_equal(answer[name], array)


@pytest.mark.parametrize("kind", ["text", "callable", "coroutine"])
def test_tokens_of_every_kind(server, token, kind):
    given = []

    def fresh():
        given.append(1)
        return token

    async def later():
        await asyncio.sleep(0)
        return fresh()

    source = {"text": token, "callable": fresh, "coroutine": later}[kind]
    run(server.url, source, lambda client: client.metadata(NAME))
    assert len(given) == (0 if kind == "text" else 1)


def test_errors(server, token):
    with pytest.raises(AuthenticationError):
        run(server.url, "a.b.c", lambda client: client.metadata(NAME))
    with pytest.raises(ServerRefusedError, match='input "features": expected FP32'):
        run(server.url, token, lambda client: client.infer(NAME, {"features": [[1]]}))
    with pytest.raises(TransportError, match="the connection was refused"):
        run("http://127.0.0.1:9", token, lambda client: client.metadata(NAME))


def test_a_token_that_cannot_be_had(server):
    def broken():
        raise LookupError("no token today")

    with pytest.raises(LookupError):
        run(server.url, broken, lambda client: client.metadata(NAME))


def test_a_model_is_used_with_its_passport_only(server, token, deployment):
    key = load_signing_key(deployment / "keys" / "release.pem").public_key()
    good = Options(require_passport=True, trusted_keys=(public_pem(key),))
    outputs = run(
        server.url,
        token,
        lambda client: client.infer(NAME, {"features": ROWS}),
        options=good,
    )
    assert outputs["label"].tolist() == [1, 1]
    other = public_pem(Keys.generate().release.public_key())
    bad = Options(require_passport=True, trusted_keys=(other,))
    with pytest.raises(PassportError):
        run(
            server.url,
            token,
            lambda client: client.infer(NAME, {"features": ROWS}),
            options=bad,
        )


def test_large_requests_in_chunks_or_whole(open_server, token):
    # 64 rows are the model's limit: the refusal shows that the server read it all.
    rows = np.zeros((5000, 3), dtype=np.float32)

    async def work(client):
        with pytest.raises(ServerRefusedError, match="5000 rows, at most 64 allowed"):
            await client.infer(NAME, {"features": rows}, batched=False)

    run(open_server.url, token, work, options=Options(chunked_above_bytes=1000))
    with (
        Client(
            open_server.url, token=token, options=Options(chunked_above_bytes=1000)
        ) as client,
        pytest.raises(ServerRefusedError, match="5000 rows, at most 64 allowed"),
    ):
        client.infer(NAME, {"features": rows}, batched=False)


def test_rows_beyond_the_models_limit(server, token):
    rows = np.random.default_rng(1).normal(size=(130, 3)).astype(np.float32)
    told = []

    async def work(client):
        return await client.infer(
            NAME, {"features": rows}, progress=lambda *item: told.append(item)
        )

    answer = run(server.url, token, work)
    assert answer["label"].shape == (130,)
    assert told == [(64, 130), (128, 130), (130, 130)]


def test_waiting_does_not_block_others():
    """Two overloaded requests wait at the same time."""
    problem = b'{"type": "about:blank", "title": "busy"}'

    def busy(method, body):
        return 503, "application/problem+json", problem

    async def work(client):
        return await asyncio.gather(
            *(client.metadata(NAME) for _ in range(2)), return_exceptions=True
        )

    with junk(busy) as url:
        options = Options(key_configs=_any_keys())
        errors = run(url, "t", work, options=options)
    assert [type(error) for error in errors] == [OverloadedError] * 2


def _any_keys() -> bytes:
    from tests.sealgate.test_client import KEYS

    return KEYS


def test_from_profile(server, token):
    async def main():
        profile = Profile(url=server.url, token=token)
        async with AsyncClient.from_profile(profile) as client:
            assert token not in repr(client)
            return await client.metadata(NAME)

    assert asyncio.run(main())["name"] == NAME
