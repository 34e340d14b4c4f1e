"""tritonclient over gRPC, unchanged, through the proxy against a sealed-only server."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator

import numpy as np
import pytest

from models.sessions import make_session
from tests.conftest import mint
from tests.support.bundles import NAME, onnx_model
from tests.support.proxies import grpc_proxy

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
triton = pytest.importorskip("tritonclient.grpc")
aio = pytest.importorskip("tritonclient.grpc.aio")
utils = pytest.importorskip("tritonclient.utils")

ROWS = np.array([[1, 2, 3], [-4, 5.5, 0.125], [0, 0, 0]], dtype=np.float32)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    session = make_session(onnx_model())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"features": ROWS}), strict=True))


@pytest.fixture(scope="module")
def address(server, token) -> Iterator[str]:
    with grpc_proxy(server.url, token=token) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


def inputs(rows: np.ndarray = ROWS, module=triton):
    tensor = module.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def check(result, expected) -> None:
    for name, array in expected.items():
        got = result.as_numpy(name)
        assert got.dtype == array.dtype
        np.testing.assert_allclose(got, array, rtol=1e-6)


def test_inference(client, expected):
    wanted = [triton.InferRequestedOutput("probabilities")]
    result = client.infer(NAME, inputs(), outputs=wanted, request_id="7")
    check(result, {"probabilities": expected["probabilities"]})
    assert result.as_numpy("label") is None
    assert result.get_response().id == "7"
    check(client.infer(NAME, inputs()), expected)
    check(client.infer(NAME, inputs(), model_version="1.0.0"), expected)


def test_nan_passes(client):
    rows = np.array([[np.nan, 1, 2]], dtype=np.float32)
    answer = client.infer(NAME, inputs(rows)).as_numpy("probabilities")
    assert np.isnan(answer).all()


def test_inference_with_asyncio(address, expected):
    async def run():
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            pending = [client.infer(NAME, inputs(module=aio)) for _ in range(3)]
            return await asyncio.gather(*pending)

    for result in asyncio.run(run()):
        check(result, expected)


def test_inference_in_the_background(client, expected):
    answers: queue.Queue = queue.Queue()
    for _ in range(4):
        client.async_infer(
            NAME, inputs(), lambda result, error: answers.put((result, error))
        )
    for _ in range(4):
        result, error = answers.get(timeout=30)
        assert error is None
        check(result, expected)


def test_a_stream_outlives_errors(address, expected):
    answers: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(12):
            model = NAME if number != 5 else "other"
            client.async_stream_infer(model, inputs(), request_id=str(number))
        got = [answers.get(timeout=30) for _ in range(12)]
        client.stop_stream()
    for number, (result, error) in enumerate(got):
        if number == 5:
            assert "no such model" in str(error)
            continue
        assert error is None
        assert result.get_response().id == str(number)
        check(result, expected)


def test_an_asynchronous_stream(address, expected):
    async def run():
        async def requests():
            for number in range(3):
                yield {
                    "model_name": NAME,
                    "inputs": inputs(module=aio),
                    "request_id": str(number),
                }

        async with aio.InferenceServerClient(address) as client:
            return [item async for item in client.stream_infer(requests())]

    for number, (result, error) in enumerate(asyncio.run(run())):
        assert error is None
        assert result.get_response().id == str(number)
        check(result, expected)


def test_what_a_client_asks_first(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1.0.0")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata(NAME, as_json=True)
    assert metadata["name"] == NAME
    assert metadata["inputs"][0]["shape"] == ["-1", "3"]
    assert metadata["versions"] == ["1.0.0"]


def refused(call, *arguments, **named) -> tuple[str, str]:
    with pytest.raises(utils.InferenceServerException) as caught:
        call(*arguments, **named)
    return caught.value.status(), caught.value.message()


def test_errors_say_what_is_wrong(client):
    rows = np.zeros((1, 2), dtype=np.float32)
    assert refused(client.infer, NAME, inputs(rows)) == (
        "StatusCode.INVALID_ARGUMENT",
        'input "features": expected FP32[-1,3], got FP32[1,2]',
    )
    assert refused(client.infer, "other", inputs())[0] == "StatusCode.NOT_FOUND"
    assert refused(client.get_model_config, NAME)[0] == "StatusCode.UNIMPLEMENTED"


def test_the_callers_own_token_is_used(client, deployment, expected):
    wrong = {"authorization": "Bearer a.b.c"}
    status, _ = refused(client.infer, NAME, inputs(), headers=wrong)
    assert status == "StatusCode.UNAUTHENTICATED"
    other = {"authorization": f"Bearer {mint(deployment, 'metrics')}"}
    # A model that a token does not grant is not even there.
    status, _ = refused(client.infer, NAME, inputs(), headers=other)
    assert status in ("StatusCode.NOT_FOUND", "StatusCode.PERMISSION_DENIED")
    own = {"authorization": f"Bearer {mint(deployment, f'infer:{NAME}')}"}
    check(client.infer(NAME, inputs(), headers=own), expected)


def test_nothing_is_lent_to_others(server, token):
    with (
        grpc_proxy(server.url, token=token, lend=lambda *_: False) as address,
        triton.InferenceServerClient(address) as client,
    ):
        assert client.is_server_live()
        status, _ = refused(client.infer, NAME, inputs())
        assert status == "StatusCode.UNAUTHENTICATED"
        own = {"authorization": f"Bearer {token}"}
        assert client.infer(NAME, inputs(), headers=own).as_numpy("label") is not None


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_requests_may_be_compressed(client, coding, expected):
    check(client.infer(NAME, inputs(), compression_algorithm=coding), expected)
