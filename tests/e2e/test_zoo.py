"""Models that others made: each is served as onnxruntime runs it, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

import sealgate
from models.sessions import make_session
from sealgate.errors import TensorError
from tests.conftest import mint
from tests.support import zoo
from tests.support.proxies import grpc_proxy
from tests.support.servers import Server, serve

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
aio = pytest.importorskip("tritonclient.http.aio")
utils = pytest.importorskip("tritonclient.utils")

SERVED = (
    "onnx-models/cifar10_cnn_pytorch",
    "onnx-models/iris_logreg_sklearn",
    "onnx-models/iris_mlp_pytorch",
    "onnx-models/light_squeezenet",
    "onnx-models/mnist-8_cntk",
    "onnx-models/mnist_logreg_sklearn",
    "onnx-models/triton_simple",
    "onnx-models/triton_simple_int8",
    "onnx-models/triton_simple_string",
    "onnx-edge/badnames",
    "onnx-edge/dynamic_axes",
    "onnx-edge/label_encoder",
    "onnx-edge/multitype",
    "onnx-edge/overridable_initializer",
    "onnx-edge/types_float16",
    "onnx-edge/types_string",
)
REFUSED = {
    "onnx-edge/external_matmul": "refused: external-data: ",
    "onnx-hostile/arbitrary_external_file_etc_passwd": "refused: external-data: ",
    "onnx-hostile/no_opset": "refused: opset-missing: ",
    "onnx-hostile/opset_314159": "refused: opset-version: ",
}
PLAIN = tuple(name for name in zoo.KINDS if name != "BF16")
OWN = {
    "echo": zoo.echo_model(PLAIN),
    "echo-bf16": zoo.echo_model(["BF16", "FP16", "FP32", "INT64", "BOOL"]),
    "maps": zoo.maps_model(),
    "misdeclared": zoo.misdeclared_model(),
    "sequence": zoo.sequence_model(),
}


def tag(path: str) -> str:
    return path.rpartition("/")[2].replace("_", "-").lower()


@dataclass(frozen=True)
class Zoo:
    server: Server
    token: str
    said: dict[str, tuple[int, str]]
    files: dict[str, bytes]

    @property
    def address(self) -> str:
        return urlsplit(self.server.url).netloc

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, shared_data: Path
) -> Iterator[Zoo]:
    paths = {path: shared_data / f"{path}.onnx" for path in (*SERVED, *REFUSED)}
    missing = [path for path, file in paths.items() if not file.is_file()]
    if missing:
        pytest.skip(f"not on this machine: {missing}")
    files = {tag(path): file.read_bytes() for path, file in paths.items()} | OWN
    home = tmp_path_factory.mktemp("zoo") / "home"
    said = zoo.admit_all(home, files)
    names = [tag(path) for path in SERVED] + list(OWN)
    with serve(
        "service.app:Sealgate", home, extra=zoo.settings(home, names), alone=True
    ) as server:
        yield Zoo(server, mint(home, "infer:*"), said, files)


def test_nothing_is_left_out(shared_data: Path) -> None:
    for folder in ("onnx-models", "onnx-edge", "onnx-hostile"):
        found = {f"{folder}/{f.stem}" for f in (shared_data / folder).glob("*.onnx")}
        assert found <= {*SERVED, *REFUSED}


@pytest.mark.parametrize("path", REFUSED)
def test_refused_with_a_reason(served: Zoo, path: str) -> None:
    code, said = served.said[tag(path)]
    assert code == 1
    assert said.startswith(REFUSED[path])
    assert said.count("\n") == 1
    assert not (served.server.home / tag(path)).exists()


def in_process(model: bytes, seed: int = 5):
    """Inputs, and what onnxruntime makes of them here."""
    session = make_session(model)
    rng = np.random.default_rng(seed)
    inputs = {node.name: zoo.example(node, rng) for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    values = session.run(names, inputs)
    return inputs, {n: zoo.as_table(v) for n, v in zip(names, values, strict=True)}


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape
    if wanted.dtype == object:
        assert [_text(x) for x in got.reshape(-1)] == wanted.reshape(-1).tolist()
    else:
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def tensors(module, inputs, datatypes, *, binary):
    result = []
    for name, array in inputs.items():
        given, kind = array, datatypes[name]
        if kind == "BF16":  # as FP32, or since 2.73 as ml_dtypes' own type
            given = array.astype(utils.triton_to_np_dtype(kind))
        tensor = module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(given, binary_data=binary)
        result.append(tensor)
    return result


@pytest.mark.parametrize("path", SERVED)
def test_served_as_onnxruntime_runs_it(served: Zoo, path: str) -> None:
    name = tag(path)
    assert served.said[name] == (0, "")
    inputs, wanted = in_process(served.files[name])
    with http.InferenceServerClient(served.address) as client:
        metadata = client.get_model_metadata(name, headers=served.headers)
        kinds = {t["name"]: t["datatype"] for t in metadata["inputs"]}
        for binary in (True, False):
            # The client itself cannot write FP16 as JSON.
            if not binary and {"FP16"} & set(kinds.values()):
                continue
            result = client.infer(
                name,
                tensors(http, inputs, kinds, binary=binary),
                headers=served.headers,
                outputs=[
                    http.InferRequestedOutput(output, binary_data=binary)
                    for output in reversed(wanted)
                ],
            )
            listed = [item["name"] for item in result.get_response()["outputs"]]
            assert listed == list(reversed(wanted))
            for output, array in wanted.items():
                same(result.as_numpy(output), array)
    with sealgate.Client(served.server.url, token=served.token) as own:
        for output, array in own.infer(name, inputs).items():
            same(array, wanted[output])


def test_classes_are_columns_with_labels(served: Zoo) -> None:
    rows = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32)
    with sealgate.Client(served.server.url, token=served.token) as client:
        (output,) = client.metadata("maps")["outputs"]
        assert output["shape"] == [-1, 3]
        assert output["parameters"]["labels"] == ["sí", "no", "maybe"]
        same(client.infer("maps", {"x": rows})["scores"], rows)
        assert client.infer("maps", {"x": rows[:0]})["scores"].shape == (0, 3)
        outputs = client.metadata("iris-logreg-sklearn")["outputs"]
        assert outputs[1]["parameters"]["labels"] == ["0", "1", "2"]


def test_what_comes_is_served_whatever_was_declared(served: Zoo) -> None:
    rows = np.array([[0.5, 2.0], [-3.0, 1.0], [0.0, 0.0]], np.float32)
    with sealgate.Client(served.server.url, token=served.token) as client:
        outputs = client.metadata("misdeclared")["outputs"]
        assert [item["shape"] for item in outputs] == [[-1], [-1, 1]]
        answer = client.infer("misdeclared", {"x": rows})
        assert answer["label"].shape == (3,)
        same(answer["scores"], rows[:, :1] - rows[:, 1:] + np.float32(0.5))


def test_a_sequence_is_stacked(served: Zoo) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    with sealgate.Client(served.server.url, token=served.token) as client:
        assert client.metadata("sequence")["outputs"][0]["shape"] == [-1, 2]
        same(client.infer("sequence", {"x": rows})["rows"], rows)


def every_datatype() -> dict[str, np.ndarray]:
    made = {}
    for name in zoo.KINDS:
        dtype = {"FP16": "f2", "FP32": "f4", "FP64": "f8", "BF16": "f4"}.get(name)
        if name == "BYTES":
            array = np.array([["a", "é\0"], ["", "x" * 1000]], dtype=object)
        elif name == "BOOL":
            array = np.array([[True, False], [False, True]])
        elif dtype is not None:
            array = np.array([[0.5, -2.0], [1.25, 96.0]], dtype=dtype)
        else:
            info = np.iinfo(name.lower())
            array = np.array([[info.min, info.max], [0, 1]], dtype=name.lower())
        made[f"i{name}"] = array
    return made


@pytest.fixture(scope="module")
def echoes(served: Zoo) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The two models that give back what they take, with values for them."""
    values = every_datatype()
    result = []
    for model in ("echo", "echo-bf16"):
        session = make_session(OWN[model])
        names = [node.name for node in session.get_inputs()]
        result.append((model, {name: values[name] for name in names}))
    return result


def test_every_datatype_by_tritonclient(served: Zoo, echoes) -> None:
    for model, inputs in echoes:
        kinds = {name: name[1:] for name in inputs}
        with http.InferenceServerClient(served.address) as client:
            result = client.infer(
                model, tensors(http, inputs, kinds, binary=True), headers=served.headers
            )
        for name, array in inputs.items():
            assert result.get_output("o" + name[1:])["datatype"] == name[1:]
            got = result.as_numpy("o" + name[1:])
            same(got.astype(np.float32) if name == "iBF16" else got, array)


def test_every_datatype_over_grpc(served: Zoo, echoes) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    rpc = pytest.importorskip("tritonclient.grpc")
    with (
        grpc_proxy(served.server.url, token=served.token) as address,
        rpc.InferenceServerClient(address) as client,
    ):
        for model, inputs in echoes:
            given = []
            for name, array in inputs.items():
                kind = name[1:]
                value = array.astype(utils.triton_to_np_dtype(kind))
                given.append(rpc.InferInput(name, list(array.shape), kind))
                given[-1].set_data_from_numpy(value)
            result = client.infer(model, given)
            for name, array in inputs.items():
                assert result.get_output("o" + name[1:]).datatype == name[1:]
                got = result.as_numpy("o" + name[1:])
                same(got.astype(np.float32) if name == "iBF16" else got, array)


def test_halves_by_our_own_client(served: Zoo, echoes) -> None:
    """FP32 in and out; ml_dtypes' type, as tritonclient 2.73 has it, goes in too."""
    halves = pytest.importorskip("ml_dtypes").bfloat16
    model, inputs = echoes[1]
    with sealgate.Client(served.server.url, token=served.token) as client:
        for kind in (np.float32, halves):
            given = {**inputs, "iBF16": inputs["iBF16"].astype(kind)}
            same(client.infer(model, given)["oBF16"], inputs["iBF16"])


def test_json_and_bytes_in_one_request(served: Zoo, echoes) -> None:
    model, inputs = echoes[0]
    as_json = {f"i{name}" for name in ("INT8", "UINT64", "BYTES", "BOOL", "FP32")}

    async def ask():
        async with aio.InferenceServerClient(served.address) as client:
            given = []
            for name, array in inputs.items():
                tensor = aio.InferInput(name, list(array.shape), name[1:])
                tensor.set_data_from_numpy(array, binary_data=name not in as_json)
                given.append(tensor)
            wanted = [
                aio.InferRequestedOutput(f"o{name}", binary_data=index % 2 == 0)
                for index, name in enumerate(PLAIN)
                if name != "FP16"  # that client reads no such JSON
            ]
            return await client.infer(
                model,
                given,
                outputs=wanted,
                request_id="r-1",
                headers=served.headers,
                model_version="1.0.0",
            )

    result = asyncio.run(ask())
    document = result.get_response()
    assert document["id"] == "r-1"
    assert {"data" in item for item in document["outputs"]} == {True, False}
    for item in document["outputs"]:
        same(result.as_numpy(item["name"]), inputs["i" + item["name"][1:]])


def test_every_datatype_as_json(served: Zoo, echoes) -> None:
    for model, inputs in echoes:
        sent = [
            {
                "name": name,
                "datatype": name[1:],
                "shape": list(array.shape),
                "data": array.tolist(),
            }
            for name, array in inputs.items()
        ]
        url = f"{served.server.url}/v2/models/{model}/infer"
        answer = httpx.post(url, json={"inputs": sent}, headers=served.headers).json()
        for given, got in zip(sent, answer["outputs"], strict=True):
            assert got["datatype"] == given["datatype"]
            assert got["data"] == [x for row in given["data"] for x in row]


def test_every_datatype_by_our_client(served: Zoo, echoes) -> None:
    with sealgate.Client(served.server.url, token=served.token) as client:
        for model, inputs in echoes:
            outputs = client.infer(model, inputs)
            assert set(outputs) == {"o" + name[1:] for name in inputs}
            for name, array in outputs.items():
                same(array, inputs["i" + name[1:]])


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (0, "iBYTES", np.array([["a", 1]], dtype=object)),
        (0, "iBYTES", np.array([[1, 2]])),
        (1, "iBF16", np.array([[1e39, 0]])),
        (1, "iBF16", np.array([["a", "b"]])),
    ],
)
def test_what_our_client_refuses_to_send(
    served: Zoo, echoes, model: int, name: str, value: np.ndarray
) -> None:
    target, inputs = echoes[model]
    with (
        sealgate.Client(served.server.url, token=served.token) as client,
        pytest.raises(TensorError, match=name),
    ):
        client.infer(target, inputs | {name: value})
