"""Graphs that answer otherwise in single precision, or where numbers are none."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper

from security.bounds.files import read_graph
from security.bounds.proofs import bounds
from security.errors import UnboundedModel
from tests.support.relu_networks import served
from tests.support.scanned import onnx_model

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 4)).astype(np.float32)


def graph_of(nodes, width=1, **stored):
    """A file from ``x`` ``(n, width)`` to ``y``; nodes as "Add: x w -> y"."""
    made = [node(item) if isinstance(item, str) else item for item in nodes]
    model = onnx_model(made, stored, shape=[width], outputs=("y",), opset=17)
    onnx.checker.check_model(model)
    return model


def node(text, **attributes):
    operator, given, out = re.fullmatch(r"(\w+): (.+) -> (.+)", text).groups()
    return helper.make_node(operator, given.split(), out.split(), **attributes)


def single(value):
    return np.float32(value)


def replaced(operator, value):
    """What is no number is replaced by a value."""
    nodes = [
        f"{operator}: x -> made",
        "IsNaN: made -> none",
        "Where: none value made -> z",
        "MatMul: z ones -> y",
    ]
    return graph_of(nodes, value=single([value]), ones=ONES)


ONES = np.ones((1, 1), np.float32)
# A graph, a box, and points of it.
CASES = {
    # (1e8 + 1) - 1e8 is 0 in single precision.
    "constants are computed as they are served": (
        graph_of(
            [
                "Add: big one -> sum",
                "Sub: sum big -> factor",
                "Mul: x factor -> z",
                "MatMul: z ones -> y",
            ],
            big=single([1e8]),
            one=single([1.0]),
            ones=ONES,
        ),
        (1.0, 2.0),
    ),
    "a logarithm that may be no number": (replaced("Log", 0.0), (-0.1, 0.2)),
    "a root that may be no number": (replaced("Sqrt", 5.0), (-0.1, 0.2)),
    # One over what may be 0 is any number: a comparison with it is open.
    "a quotient that may be anything": (
        graph_of(
            [
                "Div: one x -> part",
                "Less: part zero -> under",
                "Where: under five zero -> z",
                "Add: z x -> w",
                "MatMul: w ones -> y",
            ],
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
                "MatMul: x up -> a",
                "Relu: a -> b",
                "MatMul: b up2 -> c",
                "MatMul: c down -> y",
            ],
            up=single([[1e20, 1e20]]),
            up2=single([[1e20, 0.0], [0.0, 1e20]]),
            down=single([[1e-30], [-1e-30]]),
        ),
        (1.0, 2.0),
    ),
    "a sum of which parts overflow": (
        graph_of(
            ["MatMul: x up -> a", "MatMul: a down -> y"],
            2,
            up=single([[3e38, 0.0], [3e38, 0.0]]),
            down=single([[1e-38], [1.0]]),
        ),
        (1.0, 2.0),
    ),
    "an exponential that overflows": (
        graph_of(
            ["Exp: x -> e", "Mul: e tiny -> z", "MatMul: z ones -> y"],
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
        ["MatMul: x w -> a", "Dropout: a ratio mode -> b", "Relu: b -> y"],
        3,
        w=WEIGHT,
        ratio=single(0.5),
        mode=np.array(True),
    ),
    "BatchNormalization": graph_of(
        [
            "MatMul: x w -> a",
            node("BatchNormalization: a s b m v -> y o p", training_mode=1),
        ],
        3,
        w=WEIGHT,
        s=single(np.ones(4)),
        b=single(np.zeros(4)),
        m=single(np.zeros(4)),
        v=single(np.ones(4)),
    ),
    "Gemm": graph_of(
        ["Gemm: x w rows -> y"],
        3,
        w=WEIGHT,
        rows=single(np.arange(4).reshape(4, 1)),
    ),
    "Add": graph_of(
        [
            "MatMul: x w -> a",
            "Unsqueeze: a one -> b",
            node("Concat: b b b b -> c", axis=1),
            "Add: a c -> d",
            node("ReduceMax: d -> e", axes=[1], keepdims=0),
            "Identity: e -> y",
        ],
        3,
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
