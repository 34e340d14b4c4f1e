"""ONNX export: signature, reproducible bytes, nothing of the machine, parity."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch

from models.architectures import TabularClassifier
from models.errors import ExportError
from models.export import export_onnx, parity, run_onnx
from models.manifest import Column
from tests.support.networks import tabular_classifier

COLUMNS = tuple(Column(f"c{index}", -1.0, index + 1.0) for index in range(5))


@cache
def module() -> TabularClassifier:
    torch.manual_seed(0)
    model = tabular_classifier(COLUMNS, 3, hidden=(7,))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


@cache
def exported() -> bytes:
    return export_onnx(module(), COLUMNS)


def odd_rows() -> np.ndarray:
    rows = np.random.default_rng(0).uniform(-3, 8, size=(200, 5))
    rows[0], rows[1], rows[2], rows[3] = np.nan, np.inf, -np.inf, 1e38
    rows[4, 2] = np.nan
    return rows


def signature(values) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [
                dim.dim_param or dim.dim_value
                for dim in value.type.tensor_type.shape.dim
            ],
        )
        for value in values
    ]


def test_signature():
    graph = onnx.load_from_string(exported()).graph
    assert signature(graph.input) == [("features", onnx.TensorProto.FLOAT, ["rows", 5])]
    assert signature(graph.output) == [
        ("probabilities", onnx.TensorProto.FLOAT, ["rows", 3]),
        ("label", onnx.TensorProto.INT64, ["rows"]),
    ]


def test_checker_accepts():
    onnx.checker.check_model(onnx.load_from_string(exported()), full_check=True)


def test_bytes_are_reproducible():
    assert export_onnx(module(), COLUMNS) == exported()


def test_nothing_of_the_machine():
    model = onnx.load_from_string(exported())
    assert not model.metadata_props
    assert not model.doc_string
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    for word in (b"/home", b"/work", b"/tmp", b".py", b"site-packages", b"File"):
        assert word not in exported()


def test_no_output(capfd, recwarn):
    export_onnx(module(), COLUMNS)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("rows", [1, 2, 200])
def test_parity(rows):
    result = parity(module(), exported(), odd_rows()[:rows])
    assert result.rows == rows
    assert result.max_abs_difference < 1e-6
    assert result.label_agreement == 1.0


def test_odd_rows_stay_finite():
    probabilities, label = run_onnx(exported(), odd_rows())
    assert np.isfinite(probabilities).all()
    assert label.shape == (200,)


def test_parity_sees_another_model():
    other = tabular_classifier(COLUMNS, 3)
    result = parity(other, exported(), odd_rows())
    assert result.max_abs_difference > 0.1
    assert result.label_agreement < 1


def test_parity_needs_rows():
    with pytest.raises(ExportError, match="at least one row"):
        parity(module(), exported(), np.zeros((0, 5)))


def test_what_cannot_be_exported():
    class Branching(torch.nn.Module):
        def forward(self, features):
            return features if features.sum() > 0 else -features

    with pytest.raises(ExportError, match="cannot be exported"):
        export_onnx(Branching(), COLUMNS)
