"""Graphs that answer otherwise in single precision, or where numbers are none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from security.bounds.files import read_graph
from security.bounds.proofs import bounds
from security.errors import UnboundedModel
from tests.support.relu_networks import served

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 4)).astype(np.float32)


def graph_of(nodes, width, wide, **stored):
    """A file from ``x`` ``(n, width)`` to ``y`` ``(n, wide)``."""
    kept = [numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items()]
    made = [
        helper.make_node(op, list(given), list(out), **attributes)
        for op, given, out, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", wide])],
        kept,
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def node(op, given, out, **attributes):
    return op, given.split(), out.split(), attributes


def single(value):
    return np.float32(value)


ONES = np.ones((1, 1), np.float32)
# A graph, a box, and points of it.
CASES = {
    # (1e8 + 1) - 1e8 is 0 in single precision.
    "constants are computed as they are served": (
        graph_of(
            [
                node("Add", "big one", "sum"),
                node("Sub", "sum big", "factor"),
                node("Mul", "x factor", "z"),
                node("MatMul", "z ones", "y"),
            ],
            1,
            1,
            big=single([1e8]),
            one=single([1.0]),
            ones=ONES,
        ),
        (1.0, 2.0),
    ),
    # A logarithm of what is negative is no number, and then replaced.
    "a logarithm that may be no number": (
        graph_of(
            [
                node("Log", "x", "log"),
                node("IsNaN", "log", "none"),
                node("Where", "none zero log", "z"),
                node("MatMul", "z ones", "y"),
            ],
            1,
            1,
            zero=single([0.0]),
            ones=ONES,
        ),
        (-0.1, 0.2),
    ),
    "a root that may be no number": (
        graph_of(
            [
                node("Sqrt", "x", "root"),
                node("IsNaN", "root", "none"),
                node("Where", "none five root", "z"),
                node("MatMul", "z ones", "y"),
            ],
            1,
            1,
            five=single([5.0]),
            ones=ONES,
        ),
        (-0.1, 0.2),
    ),
    # One over what may be 0 is any number: a comparison with it is open.
    "a quotient that may be anything": (
        graph_of(
            [
                node("Div", "one x", "part"),
                node("Less", "part zero", "under"),
                node("Where", "under five zero", "z"),
                node("Add", "z x", "w"),
                node("MatMul", "w ones", "y"),
            ],
            1,
            1,
            one=single([1.0]),
            zero=single([0.0]),
            five=single([5.0]),
            ones=ONES,
        ),
        (-1.0, 1.0),
    ),
    # 1e40 is infinite in single precision, and infinite less infinite no number.
    "layers that overflow": (
        graph_of(
            [
                node("MatMul", "x up", "a"),
                node("Relu", "a", "b"),
                node("MatMul", "b up2", "c"),
                node("MatMul", "c down", "y"),
            ],
            1,
            1,
            up=single([[1e20, 1e20]]),
            up2=single([[1e20, 0.0], [0.0, 1e20]]),
            down=single([[1e-30], [-1e-30]]),
        ),
        (1.0, 2.0),
    ),
    "a sum of which parts overflow": (
        graph_of(
            [node("MatMul", "x up", "a"), node("MatMul", "a down", "y")],
            2,
            1,
            up=single([[3e38, 0.0], [3e38, 0.0]]),
            down=single([[1e-38], [1.0]]),
        ),
        (1.0, 2.0),
    ),
    "an exponential that overflows": (
        graph_of(
            [
                node("Exp", "x", "e"),
                node("Mul", "e tiny", "z"),
                node("MatMul", "z ones", "y"),
            ],
            1,
            1,
            tiny=single([1e-38]),
            ones=ONES,
        ),
        (80.0, 100.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_served_lies_within(name):
    """Or nothing is known: NaN, or a refusal that names the operator."""
    model, (low, high) = CASES[name]
    graph = read_graph(model)
    width = graph.shape[0]
    ends = np.full((1, width), low), np.full((1, width), high)
    rng = np.random.default_rng(1)
    rows = rng.uniform(low, high, size=(500, width)).astype(np.float32)
    rows = np.concatenate([rows, *(end.astype(np.float32) for end in ends)])
    found = served(model, rows)
    try:
        under, over = bounds(graph, "y", *ends)
    except UnboundedModel:
        return
    if np.isnan(under).any() or np.isnan(over).any():
        return
    assert (found >= under).all(), (found.min(), under)
    assert (found <= over).all(), (found.max(), over)


MODES = {
    "Dropout": graph_of(
        [
            node("MatMul", "x w", "a"),
            node("Dropout", "a ratio mode", "b"),
            node("Relu", "b", "y"),
        ],
        3,
        4,
        w=WEIGHT,
        ratio=single(0.5),
        mode=np.array(True),
    ),
    "BatchNormalization": graph_of(
        [
            node("MatMul", "x w", "a"),
            node("BatchNormalization", "a s b m v", "y o p", training_mode=1),
        ],
        3,
        4,
        w=WEIGHT,
        s=single(np.ones(4)),
        b=single(np.zeros(4)),
        m=single(np.zeros(4)),
        v=single(np.ones(4)),
    ),
    "Gemm": graph_of(
        [node("Gemm", "x w rows", "y")],
        3,
        4,
        w=WEIGHT,
        rows=single(np.arange(4).reshape(4, 1)),
    ),
    "Add": graph_of(
        [
            node("MatMul", "x w", "a"),
            node("Unsqueeze", "a one", "b"),
            node("Concat", "b b b b", "c", axis=1),
            node("Add", "a c", "d"),
            node("ReduceMax", "d", "e", axes=[1], keepdims=0),
            node("Identity", "e", "y"),
        ],
        3,
        4,
        w=WEIGHT,
        one=np.array([1], np.int64),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_what_depends_on_chance_or_on_other_rows_is_refused(name):
    """While training, dropout draws and normalisation looks at the batch."""
    graph, rows = read_graph(MODES[name]), np.zeros((2, 3))
    wanted = "d" if name == "Add" else "y"
    with pytest.raises(UnboundedModel, match=name):
        bounds(graph, wanted, rows, rows)
