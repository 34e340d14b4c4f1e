"""Layers of networks in torch, each against onnxruntime; and steps with a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from models.sessions import make_session
from security.assessment.torch_graph.layers import LAYERS
from security.assessment.torch_graph.module import OnnxModule
from security.assessment.torch_graph.operators import ML_OPERATORS
from security.errors import AssessmentError
from tests.support.scanned import digits, digits_cnn, digits_onnx, node, onnx_model

f32 = np.float32
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(6, 3, 3, 3)).astype(f32)
BIAS = RANDOM.normal(size=6).astype(f32)
THREE = [np.abs(RANDOM.normal(size=3)).astype(f32) + 0.5 for _ in range(4)]


def image(name, *more, opset=20, **attributes):
    """One layer on images of three channels."""
    stored = {f"c{index}": item for index, item in enumerate(more)}
    made = node(name, ["x", *stored], "scores", **attributes)
    return onnx_model([made], stored, shape=[3, 7, 8], rank=4, opset=opset)


WHOLE = RANDOM.integers(-100, 100, size=(6, 3, 3, 3)).astype(np.int8)
SCALES = (0.01 + 0.02 * RANDOM.random(6)).astype(f32)


def quantised(layer, *more, **attributes):
    """A layer of whole numbers, between steps to them and back."""
    name, weight, *rest = layer
    stored = {f"c{index}": item for index, item in enumerate((weight, *rest, *more))}
    stored |= {"s": f32(0.05), "z": np.uint8(120)}
    places = [*stored][:-2]
    ends = places[3:5]
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node(name, ["q", "s", "z", *places], "y", **attributes),
        node("DequantizeLinear", ["y", *ends], "scores"),
    ]
    return onnx_model(nodes, stored, shape=[3, 7, 8], rank=4)


def integer(name, weight, **attributes):
    """A layer on whole numbers whose scale is each row's own."""
    stored = {"w": weight, "zero": np.int8(2)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node(name, ["q", "w", "z", "zero"], "y", **attributes),
        node("Cast", ["y"], "f", to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], "scores"),
    ]
    return onnx_model(nodes, stored, shape=[3, 7, 8], rank=4)


POOL = {"kernel_shape": [3, 2], "strides": [2, 2]}
CASES = {
    "Conv": image("Conv", KERNEL, BIAS),
    "Conv strided": image(
        "Conv", KERNEL, strides=[2, 3], pads=[1, 1, 1, 1], dilations=[1, 2]
    ),
    "Conv uneven": image("Conv", KERNEL, BIAS, pads=[0, 1, 2, 1]),
    "Conv upper": image("Conv", KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv lower": image("Conv", KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv valid": image("Conv", KERNEL, auto_pad="VALID"),
    "Conv grouped": image("Conv", KERNEL[:, :1], BIAS, group=3),
    "MaxPool": image("MaxPool", **POOL),
    "MaxPool padded": image("MaxPool", **POOL, pads=[1, 0, 1, 1]),
    "MaxPool ceil": image("MaxPool", **POOL, ceil_mode=1),
    "AveragePool": image("AveragePool", **POOL),
    "AveragePool padded": image("AveragePool", **POOL, pads=[1, 0, 1, 1]),
    "AveragePool counted": image(
        "AveragePool", **POOL, pads=[1, 0, 1, 1], count_include_pad=1
    ),
    "BatchNormalization": image("BatchNormalization", *THREE, epsilon=0.01),
    "InstanceNormalization": image("InstanceNormalization", *THREE[:2]),
    "LayerNormalization": image(
        "LayerNormalization",
        RANDOM.normal(size=8).astype(f32),
        RANDOM.normal(size=8).astype(f32),
    ),
    "GroupNormalization": image(
        "GroupNormalization", *THREE[:2], num_groups=3, opset=21
    ),
    "GlobalAveragePool": image("GlobalAveragePool"),
    "GlobalMaxPool": image("GlobalMaxPool"),
    "Pad": image("Pad", np.array([0, 0, 1, 2, 0, 0, 2, 1]), f32(0.5)),
    "Pad reflect": image("Pad", np.array([0, 0, 1, 2, 0, 0, 2, 1]), mode="reflect"),
    "Pad edge": image("Pad", np.array([0, 0, 1, 2, 0, 0, 2, 1]), mode="edge"),
    "QuantizeLinear DequantizeLinear": onnx_model(
        [
            node("QuantizeLinear", ["x", "s", "z"], "q"),
            node("DequantizeLinear", ["q", "s", "z"], "scores"),
        ],
        {"s": f32(0.1), "z": np.uint8(100)},
        shape=[3, 7, 8],
        rank=4,
    ),
    "QLinearConv": quantised(
        ["QLinearConv", WHOLE, SCALES, np.zeros(6, np.int8), f32(3.0), np.uint8(120)],
        RANDOM.integers(-900, 900, size=6).astype(np.int32),
        pads=[1, 1, 1, 1],
    ),
    "QLinearMatMul": quantised(
        ["QLinearMatMul", WHOLE[:4, 0].reshape(-1, 9)[:, :8].T, f32(0.0213)],
        *(np.int8(3), f32(0.4), np.uint8(90)),
    ),
    "DynamicQuantizeLinear ConvInteger": integer("ConvInteger", WHOLE, strides=[2, 1]),
    # Seven bits: without VNNI, onnxruntime adds two products in 16 bits, and saturates.
    "DynamicQuantizeLinear MatMulInteger": integer(
        "MatMulInteger", WHOLE[0, 0, 0, :1].repeat(8)[:, None] // 2
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_layers(case):
    x = np.random.default_rng(1).normal(size=(5, 3, 7, 8)).astype(f32)
    session = make_session(CASES[case])
    # One by one: what is quantised as it runs has one scale for a whole batch.
    wanted = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    got = OnnxModule(CASES[case])(torch.from_numpy(x))["scores"].numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_every_layer_is_tested():
    assert set(LAYERS) <= {word for name in CASES for word in name.split()}


def ml(*nodes, stored=None):
    return onnx_model(
        nodes, stored or {}, shape=[4], domains=[("ai.onnx.ml", 3)], opset=20
    )


def mlnode(name, source, output, **attributes):
    return node(name, [source], output, domain="ai.onnx.ml", **attributes)


ML = {
    "Scaler": ml(mlnode("Scaler", "x", "scores", offset=[1.0] * 4, scale=[2.0] * 4)),
    "Imputer": ml(
        mlnode(
            "Imputer",
            "x",
            "scores",
            imputed_value_floats=[1.0, 2.0, 3.0, 4.0],
            replaced_value_float=float("nan"),
        )
    ),
    **{
        f"Normalizer {norm}": ml(mlnode("Normalizer", "x", "scores", norm=norm))
        for norm in ("L1", "L2")
    },
    "LinearRegressor": ml(
        mlnode(
            "LinearRegressor",
            "x",
            "scores",
            coefficients=[0.5, -1.0, 2.0, 0.25],
            intercepts=[0.1],
        )
    ),
    **{
        f"LinearClassifier {kind}": onnx_model(
            [
                node(
                    "LinearClassifier",
                    ["x"],
                    "label",
                    domain="ai.onnx.ml",
                    coefficients=RANDOM.normal(size=12).tolist(),
                    intercepts=[0.1, 0.2, 0.3],
                    classlabels_ints=[0, 1, 2],
                    post_transform=kind,
                )
            ],
            {},
            shape=[4],
            domains=[("ai.onnx.ml", 3)],
        )
        for kind in ("NONE", "SOFTMAX", "LOGISTIC")
    },
}


@pytest.mark.parametrize("case", ML)
def test_classical_models(case):
    from onnx import load_from_string

    proto = load_from_string(ML[case])
    if case.startswith("LinearClassifier"):
        proto.graph.node[0].output.append("scores")
    model = proto.SerializeToString()
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(f32)
    if case == "Imputer":
        x[1, 2] = np.nan
    (wanted,) = make_session(model).run(["scores"], {"x": x})
    got = OnnxModule(model, outputs=["scores"])(torch.from_numpy(x))["scores"]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_every_classical_operator_is_tested():
    assert set(ML_OPERATORS) - {"ZipMap"} <= {name.split()[0] for name in ML}


def test_the_network_in_single_precision():
    x, model = torch.from_numpy(digits()[2][:50]), digits_cnn()
    with torch.no_grad():
        wanted = torch.softmax(model(x), dim=1)
        got = OnnxModule(digits_onnx(), dtype=torch.float32)(x)["scores"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["mnist-8_cntk", "cifar10_cnn_pytorch", "iris_mlp_pytorch"]
)
def test_models_of_other_exporters(shared_data, name):
    model = (shared_data / "onnx-models" / f"{name}.onnx").read_bytes()
    session = make_session(model)
    (entry,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    x = np.random.default_rng(0).random(shape).astype(f32)
    (wanted,) = session.run(None, {entry.name: x})
    (got,) = OnnxModule(model)(torch.from_numpy(x)).values()
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-3, atol=1e-3)


def test_a_batch_that_the_file_fixes_may_be_another():
    nodes = [node("Reshape", ["x", "s"], "scores")]
    model = onnx_model(nodes, {"s": np.array([1, -1])}, shape=[2, 3], batch=1)
    got = OnnxModule(model)(torch.zeros(5, 2, 3))["scores"]
    assert got.shape == (5, 6)


def test_what_no_output_needs_is_not_run():
    nodes = [
        node("Relu", ["x"], "scores"),
        node("Trilu", ["x"], "label"),
    ]
    model = onnx_model(nodes, {}, shape=[4], outputs=("scores", "label"))
    assert OnnxModule(model, outputs=["scores"])(torch.ones(1, 4))["scores"].sum() == 4
    with pytest.raises(AssessmentError, match="'Trilu'"):
        OnnxModule(model)


def steps(*names):
    """Operators in a row, the last giving scores."""
    values = ["x", *(f"v{i}" for i in range(len(names) - 1)), "scores"]
    nodes = []
    stored = {}
    for place, (name, before, after) in enumerate(zip(names, values, values[1:])):
        inputs, more = [before], {}
        if name in ("Greater", "Less", "Mul"):
            stored[f"c{place}"] = f32(0.5 if name != "Mul" else 4)
            inputs.append(f"c{place}")
        if name == "Cast":
            more = {"to": TensorProto.FLOAT}
        if name == "CastInt":
            more = {"to": TensorProto.INT64}
        nodes.append(node(name.removesuffix("Int"), inputs, after, **more))
    return onnx_model(nodes, stored, shape=[4])


@pytest.mark.parametrize(
    "names",
    [
        ("Mul", "Round"),
        ("Mul", "Floor"),
        ("Sign", "Mul"),
        ("Greater", "Cast"),
        ("Less", "Not", "Cast"),
        ("Mul", "CastInt", "Cast"),
    ],
)
def test_steps_keep_their_value_and_get_a_gradient(names):
    model = steps(*names)
    x = torch.tensor([[0.1, 0.4, 0.61, 0.9]], requires_grad=True)
    (wanted,) = make_session(model).run(None, {"x": x.detach().numpy()})
    soft = OnnxModule(model, soft=True)(x)["scores"]
    np.testing.assert_array_equal(soft.detach().numpy(), wanted)
    soft.sum().backward()
    assert (x.grad != 0).all()
    hard = OnnxModule(model)(x)["scores"]
    assert not hard.requires_grad or not torch.autograd.grad(hard.sum(), x)[0].any()
