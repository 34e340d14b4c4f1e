"""tritonclient, unchanged, through the sealing proxy against a sealed-only server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from models.sessions import make_session
from tests.conftest import mint
from tests.support.bundles import NAME, onnx_model
from tests.support.proxies import proxy

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
aio = pytest.importorskip("tritonclient.http.aio")
utils = pytest.importorskip("tritonclient.utils")

ROWS = np.array([[1, 2, 3], [-4, 5.5, 0.125], [0, 0, 0]], dtype=np.float32)
MODES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    session = make_session(onnx_model())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"features": ROWS}), strict=True))


@pytest.fixture(scope="module")
def address(server, token) -> Iterator[str]:
    with proxy(server.url, token=token) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(address):
    with http.InferenceServerClient(address) as client:
        yield client


def request(module, *, sent: bool, wanted: bool):
    tensor = module.InferInput("features", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=sent)
    outputs = [
        module.InferRequestedOutput(name, binary_data=wanted)
        for name in ("label", "probabilities")
    ]
    return [tensor], outputs


def check(result, expected) -> None:
    for name, array in expected.items():
        got = result.as_numpy(name)
        assert got.dtype == array.dtype
        np.testing.assert_allclose(got, array, rtol=1e-6)


@pytest.mark.parametrize(("sent", "wanted"), MODES)
def test_inference(client, expected, sent, wanted):
    inputs, outputs = request(http, sent=sent, wanted=wanted)
    result = client.infer(NAME, inputs, outputs=outputs, request_id="7")
    check(result, expected)
    document = result.get_response()
    assert document["id"] == "7"
    assert [("data" in item) for item in document["outputs"]] == [not wanted] * 2


@pytest.mark.parametrize("sent", [True, False])
def test_all_outputs_by_default(client, expected, sent):
    inputs, _ = request(http, sent=sent, wanted=True)
    check(client.infer(NAME, inputs), expected)
    check(client.infer(NAME, inputs, model_version="1.0.0"), expected)


@pytest.mark.parametrize(("sent", "wanted"), MODES)
def test_inference_with_asyncio(address, expected, sent, wanted):
    async def run():
        async with aio.InferenceServerClient(address) as client:
            inputs, outputs = request(aio, sent=sent, wanted=wanted)
            assert await client.is_server_live()
            results = [client.infer(NAME, inputs, outputs=outputs) for _ in range(3)]
            return [await result for result in results]

    for result in asyncio.run(run()):
        check(result, expected)


def test_inference_in_the_background(client, expected):
    inputs, outputs = request(http, sent=True, wanted=True)
    pending = [client.async_infer(NAME, inputs, outputs=outputs) for _ in range(4)]
    for item in pending:
        check(item.get_result(), expected)


def test_nan_passes_as_bytes(client):
    rows = np.array([[np.nan, 1, 2]], dtype=np.float32)
    tensor = http.InferInput("features", [1, 3], "FP32").set_data_from_numpy(rows)
    result = client.infer(NAME, [tensor]).as_numpy("probabilities")
    assert np.isnan(result).all()


def test_nan_is_null_in_json(client):
    rows = np.array([[np.nan, 1, 2], [1, 2, 3]], dtype=np.float32)
    tensor = http.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=True)
    wanted = [http.InferRequestedOutput("probabilities", binary_data=False)]
    result = client.infer(NAME, [tensor], outputs=wanted).as_numpy("probabilities")
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1]).all()


def test_a_length_from_the_request_before(client):
    """Whoever passes one dictionary of headers twice sends the first one's length."""
    headers = {"Inference-Header-Content-Length": "20"}
    tensor = http.InferInput("features", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=False)
    with pytest.raises(utils.InferenceServerException, match="out of the JSON"):
        client.infer(NAME, [tensor], headers=headers)


def test_what_a_client_asks_first(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1.0.0")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(NAME)
    assert metadata["inputs"][0]["shape"] == [-1, 3]


def test_errors_say_what_is_wrong(client):
    tensor = http.InferInput("features", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), dtype=np.float32))
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer(NAME, [tensor])
    assert caught.value.status() == "400"
    message = 'input "features": expected FP32[-1,3], got FP32[1,2]'
    assert caught.value.message() == message


def test_what_is_not_there(client):
    with pytest.raises(utils.InferenceServerException) as caught:
        client.get_model_config("other")
    assert caught.value.status() == "404"
    assert not client.is_model_ready("other")
    with pytest.raises(utils.InferenceServerException, match="operator's command"):
        client.load_model(NAME)


def test_configuration_and_index(client):
    config = client.get_model_config(NAME)
    assert client.get_model_config(NAME, "1.0.0") == config
    assert config["max_batch_size"] == 64
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    metadata = client.get_model_metadata(NAME)
    for tensor, described in zip(config["input"], metadata["inputs"], strict=True):
        assert [-1, *tensor["dims"]] == described["shape"]
    index = client.get_model_repository_index()
    assert index == [{"name": NAME, "version": "1.0.0", "state": "READY", "reason": ""}]


def test_statistics_take_the_right_to_metrics(client, deployment):
    with pytest.raises(utils.InferenceServerException) as caught:
        client.get_inference_statistics(NAME)
    assert caught.value.status() == "403"

    headers = {"Authorization": f"Bearer {mint(deployment, 'metrics')}"}
    (before,) = client.get_inference_statistics(NAME, headers=headers)["model_stats"]
    inputs, _ = request(http, sent=True, wanted=True)
    client.infer(NAME, inputs)
    (after,) = client.get_inference_statistics(NAME, "1.0.0", headers=headers)[
        "model_stats"
    ]
    assert after["inference_count"] == before["inference_count"] + len(ROWS)
    assert after["inference_stats"]["compute_infer"]["ns"] > 0
    assert client.get_inference_statistics(headers=headers)["model_stats"] == [after]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_requests_may_be_compressed(client, coding):
    inputs, _ = request(http, sent=True, wanted=True)
    answer = client.infer(NAME, inputs, request_compression_algorithm=coding)
    assert answer.as_numpy("label").shape == (len(ROWS),)


def test_the_callers_own_token_is_used(server, address):
    with http.InferenceServerClient(address) as client:
        inputs, _ = request(http, sent=True, wanted=True)
        with pytest.raises(utils.InferenceServerException) as caught:
            client.infer(NAME, inputs, headers={"Authorization": "Bearer a.b.c"})
        assert caught.value.status() == "401"
