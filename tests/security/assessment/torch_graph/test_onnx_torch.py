"""The ONNX-to-torch interpreter: each operator against onnxruntime, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.export import export_onnx, run_onnx
from models.manifest import Column
from models.sessions import make_session
from security.assessment.torch_graph.layers import LAYERS
from security.assessment.torch_graph.module import OPERATORS, OnnxModule
from security.errors import AssessmentError
from tests.support.networks import tabular_classifier

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def make(*nodes, opset=20, out=FLOAT, stored=None, inputs=("x",)):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in inputs],
            [helper.make_tensor_value_info("y", out, None)],
            [
                numpy_helper.from_array(np.asarray(item), name)
                for name, item in (stored or {}).items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    ).SerializeToString()


def node(name, *inputs, output="y", **attributes):
    return helper.make_node(name, list(inputs), [output], **attributes)


def simple(name, *more, out=FLOAT, **attributes):
    """One operator on x, then on constants."""
    stored = {f"c{index}": item for index, item in enumerate(more)}
    return make(node(name, "x", *stored, **attributes), out=out, stored=stored)


f32 = np.float32
HALF = f32(0.5)
ROW = np.array([1, -2, 0.5, 3], f32)
AXES = np.array([1])

CASES = {
    **{
        name: simple(name)
        for name in (
            *("Abs", "Erf", "Exp", "Identity", "LeakyRelu", "LogSoftmax", "Neg"),
            *(
                "Reciprocal",
                "Relu",
                "Sigmoid",
                "Softmax",
                "Tanh",
                "Flatten",
                "Transpose",
            ),
            *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
            *("Ceil", "Cos", "Dropout", "Elu", "Floor", "Gelu", "HardSigmoid"),
            *("HardSwish", "ReduceL2", "ReduceSumSquare", "Round", "Selu", "Sign"),
            *("Sin", "Softplus", "Softsign"),
        )
    },
    **{
        name: simple(name, ROW)
        for name in ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum")
    },
    **{
        name: simple(name, ROW, out=BOOL)
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "ArgMax": simple("ArgMax", axis=1, keepdims=0, out=INT64),
    "ArgMax kept": simple("ArgMax", out=INT64),
    "Clip": simple("Clip", f32(-1), HALF),
    "Clip above": make(node("Clip", "x", "", "h"), stored={"h": HALF}),
    "Cast": make(node("Cast", "x", output="i", to=INT64), node("Cast", "i", to=FLOAT)),
    "Concat": make(node("Concat", "x", "x", axis=-1)),
    "Constant": make(
        node("Constant", output="c", value_floats=[1.0, 2.0, 3.0, 4.0]),
        node("Add", "x", "c"),
    ),
    "Constant tensor": make(
        node("Constant", output="c", value=numpy_helper.from_array(ROW)),
        node("Mul", "x", "c"),
    ),
    "Gather": simple("Gather", np.array([[0, -1], [2, 2]]), axis=1),
    "Gemm": simple("Gemm", np.ones((3, 4), f32), np.arange(3, dtype=f32), transB=1),
    "Gemm scaled": simple(
        "Gemm", np.ones((4, 2), f32), np.ones(2, f32), alpha=0.5, beta=3.0
    ),
    "IsInf": simple("IsInf", out=BOOL),
    "IsInf negative": simple("IsInf", detect_positive=0, out=BOOL),
    "IsNaN": simple("IsNaN", out=BOOL),
    "logic": make(
        node("IsNaN", "x", output="a"),
        node("IsInf", "x", output="b"),
        node("Or", "a", "b", output="c"),
        node("Not", "c", output="d"),
        node("And", "d", "d", output="e"),
        node("Where", "e", "x", "h"),
        stored={"h": HALF},
    ),
    "MatMul": simple("MatMul", np.arange(8, dtype=f32).reshape(4, 2)),
    "Log": make(node("Abs", "x", output="a"), node("Log", "a")),
    "Sqrt": make(node("Abs", "x", output="a"), node("Sqrt", "a")),
    "Pow": simple("Pow", f32(2)),
    "ReduceSum axes": simple("ReduceSum", AXES, keepdims=0),
    "Reshape": simple("Reshape", np.array([0, 2, -1])),
    "Shape": simple("Shape", out=INT64),
    "Unsqueeze": simple("Unsqueeze", np.array([0, -1])),
    "Squeeze": make(
        node("Unsqueeze", "x", "a", output="u"),
        node("Squeeze", "u", "a"),
        stored={"a": AXES},
    ),
    "Expand": simple("Expand", np.array([3, 1, 4])),
    "Gelu tanh": simple("Gelu", approximate="tanh"),
    "Mean": simple("Mean", ROW),
    "PRelu": simple("PRelu", ROW),
    "Slice": simple("Slice", np.array([-1]), np.array([-9]), AXES, np.array([-2])),
    "Slice plain": simple("Slice", np.array([0, 1]), np.array([5, 9])),
    "Split": make(
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        node("Concat", "b", "a", axis=1),
    ),
    "Split sizes": make(
        helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1),
        node("Concat", "b", "a", axis=1),
        stored={"s": np.array([1, 3])},
    ),
    "Tile": simple("Tile", np.array([1, 2])),
    "ConstantOfShape": make(
        node("Shape", "x", output="s"),
        node("ConstantOfShape", "s", value=numpy_helper.from_array(ROW[:1])),
    ),
    "old opset": make(
        node("Softmax", "x", output="a", axis=1),
        node("ReduceSum", "a", output="b", axes=[1], keepdims=1),
        node("Squeeze", "b", output="c", axes=[1]),
        node("Unsqueeze", "c", output="d", axes=[0]),
        node("Clip", "d", output="e", min=0.0, max=0.5),
        node("Slice", "e", starts=[0], ends=[1], axes=[0]),
        opset=9,
    ),
    "integer division": make(
        node("Cast", "x", output="i", to=INT64),
        node("Div", "i", "two", output="j"),
        node("Cast", "j", to=FLOAT),
        stored={"two": np.array(2)},
    ),
}


def rows(case: str) -> np.ndarray:
    values = np.random.default_rng(0).normal(scale=3, size=(6, 4)).astype(f32)
    if case.startswith("Is") or case == "logic":
        values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    values[3] = ROW
    return values


@pytest.mark.parametrize("case", CASES)
def test_operators(case):
    model = CASES[case]
    session = make_session(model)
    (wanted,) = session.run(None, {"x": rows(case)})
    got = OnnxModule(model)(torch.from_numpy(rows(case)))["y"].numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


def test_every_operator_is_tested():
    elsewhere = {"And", "Not", "Or", "Where"} | set(LAYERS)
    assert set(OPERATORS) <= {name.split()[0] for name in CASES} | elsewhere


@pytest.mark.parametrize("hidden", [(), (8,), (16, 8)])
def test_what_the_exporter_emits(hidden):
    columns = [Column(f"c{index}", -1.0, 1.0 + index) for index in range(6)]
    torch.manual_seed(0)
    module = tabular_classifier(columns, 3, hidden=hidden)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    model = export_onnx(module, columns)
    inputs = np.random.default_rng(0).uniform(-3, 8, size=(50, 6))
    inputs[0], inputs[1] = np.nan, np.inf
    probabilities, label = run_onnx(model, inputs)
    got = OnnxModule(model)(torch.tensor(inputs, dtype=torch.float32))
    np.testing.assert_allclose(got["probabilities"], probabilities, atol=1e-5)
    assert np.array_equal(got["label"], label)


def test_gradients_survive_a_saturated_softmax():
    # In single precision this softmax is exactly 1 and its gradient exactly 0.
    model = make(
        node("Mul", "x", "k", output="m"), node("Softmax", "m"), stored={"k": f32(50)}
    )
    features = torch.tensor([[1.0, 0.0, 0.0, 0.0]], requires_grad=True)
    torch.log(OnnxModule(model)(features)["y"])[0, 0].backward()
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (simple("Trilu"), "operator 'Trilu' is not supported"),
        (make(node("Relu", "x", domain="com.microsoft")), "operator 'Relu'"),
        (make(node("Relu", "x"), opset=6), "operator set 6"),
        (make(node("Add", "x", "w"), inputs=("x", "w")), "2 inputs, not one"),
        (make(helper.make_node("Relu", ["x"], ["y", "z"])), "2 outputs"),
    ],
)
def test_refused(model, message):
    with pytest.raises(AssessmentError, match=message):
        OnnxModule(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (simple("Cast", to=TensorProto.STRING), "Cast to element type"),
        (simple("ArgMax", select_last_index=1), "ArgMax of the last index"),
    ],
)
def test_refused_when_run(model, message):
    with pytest.raises(AssessmentError, match=message):
        OnnxModule(model)(torch.ones(1, 4))


def test_a_graph_that_was_narrowed_runs_what_the_rest_needs():
    model = make(
        node("Relu", "x", output="hidden"),
        node("Neg", "x", output="aside"),
        node("Add", "hidden", "aside", output="sum"),
        node("Exp", "sum"),
    )
    graph = OnnxModule(model, outputs=("y", "hidden", "sum"))
    rows = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(2, 4)
    whole = graph(rows)
    graph.narrow(("hidden",))
    assert list(graph(rows)) == ["hidden"]
    assert torch.equal(graph(rows)["hidden"], whole["hidden"])
    assert len(graph._nodes) == 1  # the others cost a step of every attack


@pytest.mark.parametrize("signs", [{}, {"detect_negative": 0}, {"detect_positive": 0}])
def test_infinities_by_sign(signs):
    model = make(node("IsInf", "x", **signs), out=BOOL)
    row = np.array([[np.inf, -np.inf, np.nan, 1.0]], f32)
    (known,) = make_session(model).run(None, {"x": row})
    assert OnnxModule(model)(torch.as_tensor(row))["y"].tolist() == known.tolist()
