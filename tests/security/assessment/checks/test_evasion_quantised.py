"""A quantised network scans as it is, not as more robust than what it was made of."""

from __future__ import annotations

import io
import logging

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)

from models.data.held_out import Holdout
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.target import OnnxTarget
from tests.support.scanned import digits, digits_cnn, to_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, RADII = 60, {"linf": 0.1, "l2": 0.5}


class Rows(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter(np.split(digits()[0][:400], 4))

    def get_next(self):
        part = next(self._left, None)
        return None if part is None else {"x": part}


def static(kind, source, target, **more):
    """Weights of seven bits: processors without VNNI saturate sums of eight."""
    more["reduce_range"] = True
    quantize_static(source, target, Rows(), quant_format=kind, **more)


def cut_short(source, target):
    """Operators of the standard alone: the last layer stays as it was."""
    static(QuantFormat.QOperator, source, target, op_types_to_quantize=["Conv"])


MAKERS = {
    "qdq": lambda *files: static(QuantFormat.QDQ, *files),
    "qdq by channel": lambda *files: static(QuantFormat.QDQ, *files, per_channel=True),
    "operators": cut_short,
    "dynamic": quantize_dynamic,
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """The network, as a file and as it scans."""
    path = tmp_path_factory.mktemp("quantised") / "float.onnx"
    path.write_bytes(to_onnx(digits_cnn(), (1, 8, 8), tail=("Softmax",), opset=17))
    return path, scanned(path.read_bytes())


def quantised(origin, kind):
    logging.disable(logging.WARNING)  # it advises, of every model
    try:
        target = origin.with_name(f"{kind}.onnx")
        MAKERS[kind](origin, target)
    finally:
        logging.disable(logging.NOTSET)
    return target.read_bytes()


def scanned(model):
    x, y = digits()[2][:ROWS], digits()[3][:ROWS]
    radii = {f"radius_{norm}": radius for norm, radius in RADII.items()}
    source = TargetSource("onnx", "model.onnx", model)
    job, target = prepare(source, Holdout("rows", x, y), Options(**radii))
    context, check = Context(job, target), EvasionCheck()
    outcomes = {unit.key: check.run(unit, context) for unit in check.units(context)}
    return check.conclude(context, outcomes)


def standing(result, norm):
    rows = result.details["norms"][norm]["rows"]
    far = np.array([np.inf if r["distance"] is None else r["distance"] for r in rows])
    return np.array([r["correct"] for r in rows]) & ~(far <= RADII[norm])


def turned(model, rows):
    """Which rows the model as served gives another class, each alone."""
    session = OnnxTarget(model)
    session.shape = (1, 8, 8)
    labels = digits()[3][:ROWS]
    scores = np.concatenate(
        [session.values(row[None], "scores") for row in rows.reshape(ROWS, -1)]
    )
    own = scores[np.arange(ROWS), labels]
    return (scores > own[:, None]).any(axis=1)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_does_not_scan_as_more_robust_than_its_origin(origin, kind):
    path, plain = origin
    model = quantised(path, kind)
    names = {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert names & {"QuantizeLinear", "QLinearConv", "DynamicQuantizeLinear"}
    result = scanned(model)
    assert result.details["access"] == "white box"
    assert result.conditions["gradient"] == "twin_in_torch_float32"
    assert result.reliable, [item.id for item in result.checks if not item.passed]
    for norm in RADII:
        made = np.load(io.BytesIO(result.files[f"adversarial-{norm}.npy"]))
        stands = standing(result, norm)
        right = np.array([r["correct"] for r in result.details["norms"][norm]["rows"]])
        # What counts as broken is broken on the engine, alone.
        examples = np.isfinite(
            [r["distance"] or np.inf for r in result.details["norms"][norm]["rows"]]
        )
        assert turned(model, made)[right & examples].all()
        # What breaks the origin and, on the engine, this model: the scan found it too.
        given = np.load(io.BytesIO(plain.files[f"adversarial-{norm}.npy"]))
        carried = turned(model, given) & ~standing(plain, norm)
        assert not (stands & carried).any()
        # Beyond rows that rounding moved across the edge, the figures are the same.
        assert stands.sum() <= standing(plain, norm).sum() + 0.05 * ROWS


def test_without_a_twin_the_figure_is_not_to_be_believed(origin):
    model = onnx.load_from_string(quantised(origin[0], "qdq"))
    # An operator that the interpreter does not know, and that changes nothing.
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(
        onnx.helper.make_node("Trilu", ["wide", "all"], ["lower"], upper=0)
    )
    model.graph.node.insert(
        len(model.graph.node) - 1,
        onnx.helper.make_node("Unsqueeze", ["before", "axis"], ["wide"]),
    )
    model.graph.node.append(
        onnx.helper.make_node("Squeeze", ["lower", "axis"], ["scores"])
    )
    for name, value in (("axis", [1]), ("all", 1 << 20)):
        array = np.array(value, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = scanned(model.SerializeToString())
    assert result.details["access"] == "black box"
    assert not result.reliable
    failed = {item.id for item in result.checks if not item.passed}
    assert {"linf-quantised-twin", "l2-quantised-twin"} <= failed
