"""Graphs that were made to look certain, or to take the prover's time or memory."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from security.bounds.files import read_graph
from security.bounds.proofs import bounds, margins
from security.bounds.scores import head_of
from security.errors import UnboundedModel
from tests.support.relu_networks import served

RNG = np.random.default_rng(0)
# Far above what any takes here, far below what they took before.
SECONDS = 30


def file_of(nodes, width, stored, *, shape=None, outputs=("y",), ml=False):
    """A file from ``x`` ``(n, width)``, whose outputs say nothing of their shapes."""
    kept = [numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items()]
    graph = helper.make_graph(
        [
            helper.make_node(op, given.split(), out.split(), **attributes)
            for op, given, out, attributes in nodes
        ],
        "graph",
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, ["n", *(shape or (width,))]
            )
        ],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in (
                (item, TensorProto.FLOAT) if isinstance(item, str) else item
                for item in outputs
            )
        ],
        kept,
    )
    opsets = [helper.make_opsetid("", 17)]
    opsets += [helper.make_opsetid("ai.onnx.ml", 3)] if ml else []
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model.SerializeToString()


def single(*values):
    return np.array(values, np.float32)


LABEL = ("label", TensorProto.INT64)
EYE = np.eye(2, dtype=np.float32)


def head(data, output="y", *, label=None, lead=0.0, one=False):
    return head_of(
        read_graph(data),
        output,
        label=label,
        lead=lead,
        single=one,
        probabilities=True,
    )


# What decides


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("Sigmoid", "Sigmoid"), ("Sigmoid", "Softmax"), ("Softmax", "Sigmoid")],
)
def test_two_squashings_have_no_threshold(inner, outer) -> None:
    """A threshold of .6 on sigmoid(sigmoid(x)) is at x = -.38, not at .405."""
    data = file_of(
        [
            ("MatMul", "x one", "z", {}),
            (inner, "z", "p", {}),
            (outer, "p", "y", {}),
        ],
        1,
        {"one": single([1.0])},
    )
    with pytest.raises(UnboundedModel):
        head(data, lead=0.2, one=True)


def test_a_softmax_of_probabilities_may_be_a_tie() -> None:
    wide = 20_000
    data = file_of(
        [
            ("MatMul", "x weight", "z", {}),
            ("Softmax", "z", "p", {}),
            ("Softmax", "p", "y", {}),
        ],
        1,
        {"weight": np.eye(1, wide, 1, dtype=np.float32) * single(3e-5)},
    )
    tied = served(data, np.ones((1, 1), np.float32))[0]
    assert tied[1] == tied[0]
    with pytest.raises(UnboundedModel):
        head(data)


@pytest.mark.parametrize("axis", [None, 0])
def test_the_largest_of_a_batch_is_no_label(axis) -> None:
    more = {} if axis is None else {"axis": axis}
    data = file_of(
        [("MatMul", "x eye", "y", {}), ("ArgMax", "y", "label", more)],
        2,
        {"eye": EYE},
        outputs=("y", LABEL),
    )
    with pytest.raises(UnboundedModel, match="label"):
        head(data, label="label")


def classifier(post):
    return (
        "LinearClassifier",
        "x",
        "label z",
        {
            "domain": "ai.onnx.ml",
            "coefficients": [0.0, 1.0, -1.0],
            "intercepts": [0.0, -5.0, -5.0],
            "classlabels_ints": [0, 1, 2],
            "post_transform": post,
        },
    )


def test_a_softmax_that_leaves_zeros_out_is_refused() -> None:
    """SOFTMAX_ZERO gives a score of exactly 0 no share, although it is the largest."""
    nodes = [classifier("SOFTMAX_ZERO"), ("Identity", "z", "y", {})]
    data = file_of(nodes, 1, {}, ml=True)
    with pytest.raises(UnboundedModel, match="SOFTMAX_ZERO"):
        head(data)


def test_a_label_is_no_score() -> None:
    """The place of the largest score, read as a number by what comes after it."""
    _, given, out, attributes = classifier("NONE")
    one = {"coefficients": [1.0], "intercepts": [0.0], "classlabels_ints": [3, 7]}
    nodes = [
        ("LinearClassifier", given, out, {**attributes, **one}),
        ("Cast", "label", "c", {"to": 1}),
        ("Reshape", "c shape", "d", {}),
        ("MatMul", "d weight", "y", {}),
    ]
    stored = {"shape": np.array([-1, 1]), "weight": single([1.0])}
    data = file_of(nodes, 1, stored, ml=True)
    assert served(data, single([1.0]))[0, 0] == 7
    with pytest.raises(UnboundedModel):
        bounds(read_graph(data), "y", np.zeros((1, 1)), np.full((1, 1), 9.0))


# What a server computes


def norm(scale, shift, mean):
    return file_of(
        [
            ("MatMul", "x eye", "h", {}),
            ("BatchNormalization", "h scale shift mean var", "z", {}),
            ("MatMul", "z ones", "y", {}),
        ],
        2,
        {
            "eye": EYE,
            "scale": single(scale, scale),
            "shift": single(shift, shift),
            "mean": single(mean, mean),
            "var": single(1.0, 1.0),
            "ones": np.ones((2, 1), np.float32),
        },
    )


CASES = {
    "batch normalisation whose shift and mean cancel": (
        norm(1.0, 1e6 / np.sqrt(1 + 1e-5), 1e6),
        np.linspace(-1e-3, 1e-3, 9)[:, None] * [[1, 1]],
    ),
    "products that are too small for a float": (
        file_of(
            [
                ("MatMul", "x small", "h", {}),
                ("MatMul", "h large", "i", {}),
                ("MatMul", "i more", "y", {}),
            ],
            1,
            {
                "small": single([1e-38]),
                "large": single([1e38]),
                "more": single([1e6]),
            },
        ),
        np.linspace(1e-8, 2e-7, 9)[:, None],
    ),
    "a logistic function far below 0": (
        file_of(
            [("Sigmoid", "x", "h", {}), ("MatMul", "h large", "y", {})],
            1,
            {"large": single([1e8])},
        ),
        np.linspace(-30.0, -25.0, 65)[:, None],
    ),
    "whole numbers are divided toward 0": (
        file_of(
            [
                ("Div", "seven two", "d", {}),
                ("Cast", "d", "shift", {"to": 1}),
                ("MatMul", "x one", "h", {}),
                ("Add", "h shift", "y", {}),
            ],
            1,
            {
                "seven": np.array([-7]),
                "two": np.array([2]),
                "one": single([1.0]),
            },
        ),
        np.linspace(0.0, 1.0, 5)[:, None],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_served_lies_within(name) -> None:
    data, points = CASES[name]
    points = points.astype(np.float32)
    try:
        low, high = bounds(
            read_graph(data),
            "y",
            points.min(axis=0, keepdims=True).astype(float),
            points.max(axis=0, keepdims=True).astype(float),
            safety=1.05,
        )
    except UnboundedModel:
        return
    for rows in (points, *(point[None] for point in points)):
        answer = served(data, rows).reshape(-1)
        assert not (answer < low[0, 0]).any(), name
        assert not (answer > high[0, 0]).any(), name


# How many rows share a run


def by_count(nodes, **stored):
    """A graph whose ``size`` is the number of rows of the batch."""
    own = [
        ("Shape", "x", "sizes", {}),
        ("Gather", "sizes first", "size", {}),
        *nodes,
    ]
    return file_of(own, 4, {"first": np.array([0]), **stored})


COUNTS = {
    "rows are multiplied by it": by_count(
        [
            ("Cast", "size", "c", {"to": 1}),
            ("MatMul", "x eye", "h", {}),
            ("Mul", "h c", "y", {}),
        ],
        eye=np.eye(4, dtype=np.float32),
    ),
    "a table is read by it": by_count(
        [
            ("Gather", "table size", "c", {}),
            ("MatMul", "x eye", "h", {}),
            ("Mul", "h c", "y", {}),
        ],
        table=single(1.0, -1.0, 1.0, 1.0),
        eye=np.eye(4, dtype=np.float32),
    ),
    "columns are cut by it": by_count(
        [("Slice", "x size end axis", "y", {})], end=np.array([4]), axis=np.array([1])
    ),
    "columns are turned by it": by_count(
        [
            ("Concat", "size rest size", "shape", {"axis": 0}),
            ("Reshape", "x shape", "h", {}),
            ("Transpose", "h", "t", {"perm": [0, 2, 1]}),
            ("Flatten", "t", "y", {}),
        ],
        rest=np.array([-1]),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_depends_on_the_number_of_rows_is_refused(name) -> None:
    with pytest.raises(UnboundedModel):
        bounds(read_graph(COUNTS[name]), "y", np.zeros((1, 4)), np.ones((1, 4)))


def test_the_number_of_rows_may_be_the_first_of_a_shape() -> None:
    data = by_count(
        [
            ("Concat", "size rest", "shape", {"axis": 0}),
            ("Reshape", "x shape", "h", {}),
            ("MatMul", "h ones", "y", {}),
        ],
        rest=np.array([-1]),
        ones=np.ones((4, 1), np.float32),
    )
    low, high = bounds(read_graph(data), "y", np.zeros((1, 4)), np.ones((1, 4)))
    assert (low < 0.01) & (high > 3.99)


# Time and memory


def wide(count):
    return [("Gather", "x places", "w0", {"axis": 1})] + [
        ("Neg", f"w{place}", f"w{place + 1}", {}) for place in range(count)
    ]


def deep(count, width=1):
    stored = {"eye": np.eye(width, dtype=np.float32)}
    nodes = [("Identity", "x", "h0", {})]
    for place in range(count):
        nodes += [
            ("MatMul", f"h{place} eye", f"z{place}", {}),
            ("Relu", f"z{place}", f"h{place + 1}", {}),
        ]
    nodes.append(("MatMul", f"h{count} eye", "y", {}))
    return file_of(nodes, width, stored)


def kernel(filters, channels, taps, side, pad=0):
    stored = {"k": np.zeros((filters, channels, taps, taps), np.float32)}
    nodes = [
        ("Conv", "x k", "c", {"pads": [pad] * 4}),
        ("Flatten", "c", "y", {}),
    ]
    return file_of(nodes, 0, stored, shape=(channels, side, side))


def doubled(count):
    nodes = [("Identity", "one", "c0", {})] + [
        ("Concat", f"c{place} c{place}", f"c{place + 1}", {"axis": 0})
        for place in range(count)
    ]
    nodes += [
        ("MatMul", "x eye", "h", {}),
        ("Gather", f"c{count} zero", "f", {}),
        ("Mul", "h f", "y", {}),
    ]
    return file_of(
        nodes, 1, {"one": single(1.0), "zero": np.array([0]), "eye": single([1.0])}
    )


HEAVY = {
    "many wide values": (
        file_of(
            [*wide(400), ("MatMul", "w400 sums", "y", {})],
            1,
            {
                "places": np.zeros(1 << 21, np.int64),
                "sums": np.ones((1 << 21, 1), np.float32),
            },
        ),
        1,
    ),
    "four thousand layers": (deep(4000), 1),
    "a kernel of many channels": (kernel(2048, 2048, 1, 1), 2048),
    "a window on much that is not there": (kernel(1, 1, 1, 2, pad=40_000), 4),
    "a kernel larger than its image": (kernel(1, 1, 4000, 2, pad=2000), 4),
    "constants that double": (doubled(40), 1),
    "an outer product of constants": (
        file_of(
            [
                ("Mul", "tall flat", "c", {}),
                ("MatMul", "x eye", "h", {}),
                ("Mul", "h c", "y", {}),
            ],
            1,
            {
                "tall": np.ones((1 << 18, 1), np.float32),
                "flat": np.ones((1, 1 << 18), np.float32),
                "eye": single([1.0]),
            },
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_graph_is_refused_or_done_soon(name) -> None:
    data, width = HEAVY[name]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    most = used + (3 << 30)
    if limits[1] != resource.RLIM_INFINITY:
        most = min(most, limits[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    began = time.process_time()
    rows = 400 if width == 1 else 2
    try:
        bounds(read_graph(data), "y", np.zeros((rows, width)), np.ones((rows, width)))
    except UnboundedModel:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - began < SECONDS


def test_a_tie_is_not_proved() -> None:
    data = file_of([("MatMul", "x eye", "y", {})], 2, {"eye": EYE})
    point = np.ones((1, 2))
    rule = head_of(
        read_graph(data), "y", label=None, lead=0.0, single=False, probabilities=False
    )
    for label in (0, 1):
        found = margins(read_graph(data), rule, point, point, np.array([label]))
        assert not found.proved.any()
