"""Membership and copies by explanations: found where they are, and only there."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from security.commands import main
from tests.support.scanned import (
    fit,
    linear_onnx,
    node,
    onnx_model,
    save_npz,
    to_onnx,
)

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = 20
CONFIG = "low = -3\nhigh = 3\n"


def people(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns that say little of a class."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, COLUMNS)).clip(-3, 3).astype(np.float32)
    noisy = rows[:, 0] + 2 * random.normal(size=count)
    return rows, (noisy > 0).astype(np.int64)


@cache
def learned_by_heart() -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(COLUMNS, 128), nn.ReLU(), nn.Linear(128, 2))
    model = fit(network, *people(150, 1), epochs=100, rate=5e-3)
    return to_onnx(model, (COLUMNS,), tail=("Softmax",))


def keeps_rows(rows: np.ndarray) -> bytes:
    """A little of the first column; near a row that it keeps, far more of it."""
    nodes = [
        node("Mul", ["x", "x"], "squares"),
        node("ReduceSum", ["squares", "axis"], "own", keepdims=1),
        node("MatMul", ["x", "rows"], "products"),
        node("Add", ["own", "norms"], "sums"),
        node("Add", ["sums", "products"], "distances"),
        node("Sub", ["one", "distances"], "near"),
        node("Relu", ["near"], "bumps"),
        node("ReduceSum", ["bumps", "axis"], "kept", keepdims=1),
        node("MatMul", ["kept", "heavy"], "all_kept"),
        node("MatMul", ["x", "weights"], "linear"),
        node("Add", ["linear", "all_kept"], "logits"),
        node("Softmax", ["logits"], "scores", axis=-1),
    ]
    weights = np.zeros((COLUMNS, 2), np.float32)
    weights[0] = -0.5, 0.5
    stored = {
        "axis": np.array([1]),
        "rows": (-2 * rows.T).astype(np.float32),
        "norms": (rows**2).sum(axis=1, dtype=np.float32)[None],
        "one": np.float32([1]),
        "heavy": np.float32([[-10, 10]]),
        "weights": weights,
    }
    return onnx_model(nodes, stored, shape=[COLUMNS])


def scan(tmp_path, model: bytes, *more: str):
    (tmp_path / "m.onnx").write_bytes(model)
    (tmp_path / "data.toml").write_text(CONFIG)
    held_out = save_npz(tmp_path / "held.npz", *people(200, 2))
    arguments = [
        *("scan", str(tmp_path / "m.onnx"), "--data", str(held_out)),
        *("--data-config", str(tmp_path / "data.toml"), "--jobs", "1"),
        *("--check", "explanation-attacks", "--out", str(tmp_path / "out"), *more),
    ]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "scan.json").read_text())
    return report, report["results"][-1]


def test_a_model_that_keeps_rows_is_found(tmp_path) -> None:
    rows, labels = people(150, 1)
    trained = save_npz(tmp_path / "trained.npz", rows, labels)
    report, result = scan(tmp_path, keeps_rows(rows), "--train-data", str(trained))
    metrics = result["metrics"]
    assert result["conditions"]["known_members"] is True
    assert metrics["attribution_norm_auc"]["low"] > 0.9
    assert metrics["attribution_variance_auc"]["low"] > 0.9
    assert "explanations-tell-members" in {item["rule"] for item in report["findings"]}
    assert "what they give away" in (tmp_path / "out" / "scan.html").read_text()


def test_a_model_that_never_saw_them_is_not_accused(tmp_path) -> None:
    weights = np.zeros((COLUMNS, 2))
    weights[0] = -1, 1
    trained = save_npz(tmp_path / "trained.npz", *people(150, 1))
    model = linear_onnx(weights, tail=("Softmax",))
    report, result = scan(tmp_path, model, "--train-data", str(trained))
    assert "explanations-tell-members" not in {
        item["rule"] for item in report["findings"]
    }
    assert result["metrics"]["attribution_norm_auc"]["low"] < 0.55


def test_copies_without_known_members(tmp_path) -> None:
    _, result = scan(tmp_path, learned_by_heart())
    assert sorted(result["metrics"]) == [
        "agreement/attributions_200",
        "agreement/attributions_50",
        "agreement/scores_200",
        "agreement/scores_50",
    ]
    # Of this model explained answers sell more than plain ones.
    for count in (50, 200):
        plain, explained = (
            result["metrics"][f"agreement/{form}_{count}"]["value"]
            for form in ("scores", "attributions")
        )
        assert explained > plain
    assert result["conditions"]["rows_charged_per_explanation"] == 77
