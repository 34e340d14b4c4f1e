"""Small models and rows for scans: built once per test run, with fixed seeds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
UINT8, STRING = TensorProto.UINT8, TensorProto.STRING
# A name in a file that somebody else wrote.
HOSTILE = '</script><img src="//x" onerror=alert(1)>'


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training features and labels, then held-out ones; pixels from 0 to 1."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], data.target[order].astype(np.int64)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@cache
def digits_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    model = network()
    return fit(model, *digits()[:2], epochs=8, rate=3e-3)


def fit(model: nn.Module, x, y, *, epochs: int, rate: float) -> nn.Module:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    features, labels = torch.as_tensor(x), torch.as_tensor(y)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in torch.randperm(len(features), generator=order).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features[part]), labels[part])
            loss.backward()
            optimizer.step()
    torch.set_num_threads(before)
    return model.eval()


def onnx_model(
    nodes,
    stored,
    *,
    shape,
    kind=FLOAT,
    out=FLOAT,
    opset=20,
    outputs=("scores",),
    domains=(),
    batch="n",
    rank=2,
) -> bytes:
    """One input ``x``; outputs with axes of any length."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [
            helper.make_tensor_value_info(
                name, item if isinstance(item, int) else out, ["m", "k"][:rank]
            )
            for name, item in (
                outputs.items()
                if isinstance(outputs, dict)
                else ((name, out) for name in outputs)
            )
        ],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(name, number) for name, number in domains]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model.SerializeToString()


def node(name, inputs, output, **attributes):
    return helper.make_node(name, list(inputs), [output], **attributes)


def to_onnx(model: nn.Sequential, shape, *, tail=(), dtype=np.float32, **more) -> bytes:
    """A sequence of layers as a graph; ``tail`` names operators put after it."""
    nodes, stored, value = [], {}, "x"
    for place, layer in enumerate([*model, *tail]):
        last = place == len(model) + len(tail) - 1
        output = "scores" if last else f"v{place}"
        name, extra, attributes = _layer(layer, dtype)
        inputs = [value]
        for index, item in enumerate(extra):
            stored[f"w{place}_{index}"] = item
            inputs.append(f"w{place}_{index}")
        nodes.append(node(name, inputs, output, **attributes))
        value = output
    return onnx_model(nodes, stored, shape=shape, **more)


def _layer(layer, dtype):
    def array(value):
        return value.detach().numpy().astype(dtype)

    match layer:
        case str():
            return layer, [], {"axis": -1} if "Softmax" in layer else {}
        case nn.Conv2d():
            pads = [*layer.padding, *layer.padding]
            return "Conv", [array(layer.weight), array(layer.bias)], {"pads": pads}
        case nn.MaxPool2d():
            size = [layer.kernel_size] * 2
            return "MaxPool", [], {"kernel_shape": size, "strides": size}
        case nn.Linear():
            return "Gemm", [array(layer.weight), array(layer.bias)], {"transB": 1}
        case nn.ReLU():
            return "Relu", [], {}
        case nn.Flatten():
            return "Flatten", [], {}
    raise TypeError(layer)


@cache
def digits_onnx(tail: tuple[str, ...] = ("Softmax",)) -> bytes:
    return to_onnx(digits_cnn(), (1, 8, 8), tail=tail)


def linear_onnx(weights, bias=None, *, tail=(), dtype=np.float32, **more) -> bytes:
    """Scores ``x @ weights + bias``; ``weights`` is ``(d, classes)``."""
    weights = np.asarray(weights, dtype)
    bias = (
        np.zeros(weights.shape[1], dtype) if bias is None else np.asarray(bias, dtype)
    )
    stages = ["Gemm", *tail]
    names = [f"v{i}" for i in range(len(stages) - 1)] + ["scores"]
    nodes = [node("Gemm", ["x", "w", "b"], names[0])]
    for before, after, name in zip(names, names[1:], tail):
        nodes.append(node(name, [before], after))
    stored = {"w": weights, "b": bias}
    return onnx_model(nodes, stored, shape=[weights.shape[0]], **more)


def save_npz(path: Path, x, y) -> Path:
    np.savez(path, x=x, y=y)
    return path
