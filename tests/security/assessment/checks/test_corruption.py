"""Natural corruption: known models, known damage, and the finding names the column."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.data.held_out import Holdout
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.results import intervals
from security.assessment.targets.dataconfig import ColumnRules, DataConfig
from security.commands import main
from tests.support.regressors import linear_regressor
from tests.support.scanned import linear_onnx, node, onnx_model, save_npz

NAMES = ("income", "age", "noise", "region")
# Between two classes by income against age; the third column is not read.
WEIGHTS = np.array([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])


def rows(n=200, seed=0):
    random = np.random.default_rng(seed)
    x = random.uniform(1.0, 2.0, size=(n, 4)).astype(np.float32)
    x[:, 3] = random.integers(0, 3, size=n)
    return x


def corrupted(model, x, y, config=DataConfig(), names=NAMES):
    request = ScanRequest(
        TargetSource("onnx", "model.onnx", model),
        Holdout("rows", x, y, columns=names),
        Options(checks=("corruption",)),
        config=config,
    )
    result = run_scan(request).report.results[-1]
    assert result.status == "done", result.reason
    return result


def test_a_slip_of_the_unit_costs_what_it_must_and_names_its_column():
    x = rows()
    y = (x[:, 0] > x[:, 1]).astype(int)
    regions = ColumnRules("region", kind="category", values=(0.0, 1.0, 2.0))
    result = corrupted(linear_onnx(WEIGHTS), x, y, DataConfig(columns=(regions,)))
    metric = result.metrics["corruption_drop/unit=x10"]
    # Ten times the one column is always the larger: half of the rows become wrong.
    lost = max(int((y == 0).sum()), int((y == 1).sum()))
    assert metric.value == pytest.approx(lost / 200)
    assert metric.low < metric.value < metric.high
    # Two columns of three may be it, and the unread third: at once, by Bonferroni.
    assert metric.confidence == pytest.approx(1 - 0.05 / 3)
    assert result.conditions["columns"] == 3
    (found,) = [item for item in result.findings if item.where.startswith("unit")]
    assert found.rule == "corruption"
    assert "'income'" in found.message or "'age'" in found.message
    assert "(x10)" in found.message
    table = result.details["tables"][0]["rows"]
    unread = [row for row in table if row[1] == "noise" and row[0].startswith("unit")]
    assert {row[2] for row in unread} == {0.0}
    assert not [row for row in table if row[1] == "region"]


def test_a_model_that_noise_of_a_hundredth_turns_is_warned_of():
    x = rows()
    close = np.array([[-1e3, 1e3], [1e3, -1e3], [0.0, 0.0], [0.0, 0.0]])
    x[:, 1] = x[:, 0] + np.where(np.arange(200) % 2, 0.002, -0.002)
    y = (x[:, 0] > x[:, 1]).astype(int)
    result = corrupted(linear_onnx(close), x, y)
    rules = {item.where: item.rule for item in result.findings}
    assert rules["noise=0.01"] == "corruption-mild"
    assert result.metrics["corruption_drop/noise=0.01"].low > 0.3


def test_a_robust_model_has_no_finding_of_noise():
    x = rows()
    x[:, 0] += np.where(np.arange(200) % 2, 10.0, -10.0)
    y = (x[:, 0] > x[:, 1]).astype(int)
    result = corrupted(linear_onnx(WEIGHTS), x, y)
    assert not [item for item in result.findings if item.where.startswith("noise")]
    drop = result.metrics["corruption_drop/noise=0.05"]
    assert drop.value == 0.0
    assert drop.low < 0.0 < drop.high


def test_the_error_of_a_number_rises_by_what_the_slip_adds():
    x = rows()
    y = (x @ np.array([2.0, 0.5, 0.0, 0.0])).astype(float) + 0.001
    result = corrupted(linear_regressor([2.0, 0.5, 0.0, 0.0], 0.0), x, y)
    assert result.conditions["predicts"] == "number"
    metric = result.metrics["corruption_rise/unit=C_to_F"]
    wanted = 2.0 * np.abs(0.8 * x[:, 0] + 32).mean()
    assert metric.value == pytest.approx(wanted, rel=1e-3)
    assert "mean absolute error" in result.findings[-1].message


def test_missing_values_are_nan_only_where_the_model_answers_them():
    x = rows()
    y = (x[:, 0] > x[:, 1]).astype(int)
    assert corrupted(linear_onnx(WEIGHTS), x, y).conditions["missing_as"] == "zero"
    nodes = [
        node("IsNaN", ["x"], "n"),
        node("Where", ["n", "one", "x"], "v"),
        node("MatMul", ["v", "w"], "scores"),
    ]
    stored = {"w": WEIGHTS.astype(np.float32), "one": np.float32([1.5])}
    filled = onnx_model(nodes, stored, shape=[4])
    assert corrupted(filled, x, y).conditions["missing_as"] == "nan"


def test_images_are_blurred():
    random = np.random.default_rng(0)
    # What is told apart is a checkerboard, which blur takes away; or brightness.
    board = np.indices((8, 8)).sum(axis=0) % 2 * 2.0 - 1.0
    y = np.arange(120) % 2
    for pattern, hurt in ((board, True), (np.ones((8, 8)), False)):
        x = 0.5 + 0.2 * (2 * y - 1)[:, None, None] * pattern
        x = (x + 0.02 * random.normal(size=x.shape)).clip(0, 1).astype(np.float32)
        weights = np.stack([-pattern, pattern], axis=-1).reshape(64, 2)
        middle = 0.5 * pattern.sum()
        nodes = [
            node("Flatten", ["x"], "f"),
            node("MatMul", ["f", "w"], "m"),
            node("Add", ["m", "b"], "scores"),
        ]
        stored = {"w": weights, "b": np.array([middle, -middle])}
        stored = {name: item.astype(np.float32) for name, item in stored.items()}
        model = onnx_model(nodes, stored, shape=[1, 8, 8])
        x += 0.08 * random.normal(size=x.shape).astype(np.float32)
        result = corrupted(model, x[:, None].clip(0, 1), y, names=())
        drop = result.metrics["corruption_drop/blur=2"]
        assert (drop.low > 0.1) == hurt
        assert any("blur" in item.message for item in result.findings) == hurt


def test_the_report_lists_it_apart_from_evasion(tmp_path):
    x = rows()
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    save_npz(tmp_path / "r.npz", x, (x[:, 0] > x[:, 1]).astype(int))
    given = [
        *("scan", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "r.npz")),
        *("--out", str(tmp_path / "o"), "--check", "corruption", "--jobs", "1"),
    ]
    assert main(given) == 0
    report = json.loads((tmp_path / "o" / "scan.json").read_text())
    found = [item for item in report["findings"] if item["check"] == "corruption"]
    assert found
    assert not any(item["atlas"] for item in found)
    assert "worn data, no attacker" in (tmp_path / "o" / "scan.html").read_text()


@pytest.mark.parametrize(
    ("lost", "won", "total"), [(0, 0, 40), (20, 2, 100), (3, 9, 60)]
)
def test_a_paired_drop_covers_and_has_width(lost, won, total):
    metric = intervals.paired_drop(lost, won, total)
    assert metric.low < metric.value < metric.high
    assert metric.value == pytest.approx((lost - won) / total)
    random = np.random.default_rng(0)
    # Of the share that is drawn here the interval covers what it says, or nearly.
    down, up = (lost + 0.5) / (total + 1), (won + 0.5) / (total + 1)
    draws = random.multinomial(total, [down, up, 1 - down - up], size=2000)
    inside = 0
    for fell, rose, _ in draws:
        made = intervals.paired_drop(int(fell), int(rose), total)
        inside += made.low <= down - up <= made.high
    assert inside / 2000 > 0.93
