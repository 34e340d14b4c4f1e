"""Rows that attacks send: inside ball, ranges and rules, in the model's own type."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from models.data.held_out import Holdout
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.space import build_space
from tests.support.scanned import DOUBLE, FLOAT, linear_onnx


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["float32", "float64", "mixed"])
def test_no_row_on_the_surface_is_rounded_out_of_its_ball(norm, kind):
    random = np.random.default_rng(0)
    for data in (load_breast_cancer().data, load_diabetes(scaled=False).data):
        dtype = "float32" if kind == "float32" else "float64"
        rows = data[:300].astype(np.float32).astype(dtype)
        types = ["float32"] * rows.shape[1] if kind == "mixed" else []
        space = build_space(rows, dtype, table=True, types=types)
        step = random.normal(size=rows.shape)
        step /= np.linalg.norm(step, axis=1, keepdims=True)
        if norm == "linf":
            step = np.sign(step)
        made = space.repair(space.to_z(rows) + 0.05 * step, rows, norm, 0.05)
        assert (space.distance(made, rows, norm) <= 0.05).all()
        assert (space.distance(made, rows, norm) > 0.02).all()
        assert space.allowed(made, rows).all()
        assert (made != rows).any(axis=1).all()
        if kind == "mixed":
            assert (made == made.astype(np.float32)).all()


def test_a_model_of_double_precision_is_as_breakable_as_another():
    random = np.random.default_rng(0)
    x = random.uniform(10.0, 90.0, size=(80, 3))
    weights = np.array([[1.0, -1.0], [2.0, -2.0], [-1.0, 1.0]])
    y = (x @ weights).argmax(axis=1)
    shares = []
    for dtype, kind in ((np.float32, FLOAT), (np.float64, DOUBLE)):
        model = linear_onnx(weights, dtype=dtype, kind=kind, out=kind)
        request = ScanRequest(
            TargetSource("onnx", "m", model),
            Holdout("rows", x.astype(dtype), y),
            Options(checks=("evasion",), radius_linf=0.1),
        )
        (*_, result) = run_scan(request).report.results
        shares.append(result.metrics["robust_accuracy"].value)
    gap = np.abs((x @ weights) @ [1.0, -1.0])
    reach = 0.1 * np.abs(weights[:, 0] - weights[:, 1]) @ np.ptp(x, axis=0)
    assert shares == [pytest.approx((gap > reach).mean(), abs=0.03)] * 2
