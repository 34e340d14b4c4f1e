"""The three models, what is asked of them, and a deployment that has admitted them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.deployments import admit
from models.manifest import Manifest, Tensor
from models.sessions import make_session
from sealgate.protocol import binary_tensors
from sealgate.protocol.tensors import TensorSpec
from tests.conftest import check_security, toy_settings
from tests.support import bundles

VERSION = "1.0.0"


@dataclass(frozen=True)
class Workload:
    """One model and one input.

    Attributes:
        name: the model's.
        title: for tables.
        model: the ONNX file's bytes.
        array: the input ``x``, FP32.
        binary: whether it goes as bytes, where the server can take them.
    """

    name: str
    title: str
    model: bytes
    array: np.ndarray
    binary: bool

    def json(self) -> bytes:
        """The request in JSON."""
        tensor = {"name": "x", "datatype": "FP32", "shape": list(self.array.shape)}
        data = self.array.ravel().tolist()
        return json.dumps({"inputs": [tensor | {"data": data}]}).encode()

    def message(self) -> tuple[bytes, dict[str, str]]:
        """The request as v2 servers with binary tensors get it, and its headers."""
        if not self.binary:
            return self.json(), {"Content-Type": "application/json"}
        document, parts = binary_tensors.encode_request({"x": self.array})
        # JSON outputs: all contenders write the same answer.
        document.pop("parameters", None)
        head = json.dumps(document).encode()
        head = head.ljust(-(-len(head) // 8) * 8)
        return b"".join([head, *map(bytes, parts)]), {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }

    def expected(self) -> np.ndarray:
        """What the model gives for the input."""
        return make_session(self.model).run(None, {"x": self.array})[0]


def workloads() -> dict[str, Workload]:
    """By name, the smallest first."""
    rng = np.random.default_rng(6)
    mlp = rng.integers(-8, 8, (1, 30)).astype(np.float32) / 8
    image = rng.integers(0, 256, (1, 3, 224, 224)).astype(np.float32) / 256
    tensor = np.ones((1, 10 * (1 << 20) // 4), np.float32)
    return {
        item.name: item
        for item in (
            Workload("mlp", "MLP 30-64-2, JSON", _mlp(rng), mlp, binary=False),
            Workload("image", "602 KB image, binary", _image(rng), image, binary=True),
            Workload("tensor", "10 MB tensor, binary", _mean(), tensor, binary=True),
        )
    }


def write_models(folder: Path, chosen: dict[str, Workload]) -> None:
    """Write the files that the peers serve."""
    folder.mkdir(parents=True)
    for item in chosen.values():
        (folder / f"{item.name}.onnx").write_bytes(item.model)
        np.save(folder / f"{item.name}.npy", item.array)


def deploy(home: Path, chosen: dict[str, Workload]) -> dict[str, str]:
    """Admit the models by the commands; the settings of a server for them."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(bundles.POLICY)
    settings = toy_settings(home) | {
        "SEALGATE_SERVICE_MODELS": ",".join(f"{name}:{VERSION}" for name in chosen),
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }
    check_security(home, "keygen", **settings)
    for item in chosen.values():
        admit(home, item.model, _manifest(item), settings)
    return settings


def _manifest(item: Workload) -> Manifest:
    shape = (-1, *item.array.shape[1:]) if item.name != "tensor" else (-1, -1)
    columns = {"mlp": 2, "image": 10, "tensor": 1}[item.name]
    return Manifest(
        name=item.name,
        version=VERSION,
        inputs=(Tensor(TensorSpec("x", "FP32", shape)),),
        outputs=(Tensor(TensorSpec("y", "FP32", (-1, columns))),),
        max_rows=64,
    )


def _mlp(rng: np.random.Generator) -> bytes:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    weights = {
        "w1": rng.normal(size=(30, 64)) / 6,
        "b1": rng.normal(size=64),
        "w2": rng.normal(size=(64, 2)) / 8,
        "b2": rng.normal(size=2),
    }
    return _model(nodes, weights, ("rows", 30), ("rows", 2))


def _image(rng: np.random.Generator) -> bytes:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], strides=[4, 4], pads=[3, 3, 3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2"], ["y"]),
    ]
    weights = {
        "w1": rng.normal(size=(8, 3, 7, 7)) / 12,
        "w2": rng.normal(size=(8, 10)),
    }
    return _model(nodes, weights, ("rows", 3, 224, 224), ("rows", 10))


def _mean() -> bytes:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1, axes=[1])]
    return _model(nodes, {}, ("rows", "n"), ("rows", 1))


def _model(
    nodes: list,
    weights: dict[str, np.ndarray],
    taken: tuple[str | int, ...],
    given: tuple[str | int, ...],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "benchmark",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(taken))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(given))],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())
