"""Poisoned rows and triggers: found where they are, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from security.assessment.checks.poisoning.activations import last_layer_input
from security.assessment.checks.poisoning.groups import METHODS, split
from security.commands import main
from security.errors import AssessmentError
from tests.security.assessment.checks.test_evasion import tree_model
from tests.security.inspection.test_backdoor import BACKDOORS, graph
from tests.support.scanned import (
    digits,
    digits_onnx,
    fit,
    linear_onnx,
    save_npz,
    to_onnx,
)

CONFIG = Path(__file__).parents[4] / "examples" / "breast_cancer.toml"
TARGET = 7


def perceptron(columns: int, classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def poisoned(x, y, target, trigger, share):
    """Some rows of other classes with a trigger, as rows of the target class."""
    x, y = x.copy(), y.copy()
    others = np.flatnonzero(y != target)
    rows = np.random.default_rng(1).permutation(others)[: int(share * len(y))]
    trigger(x, rows)
    y[rows] = target
    return x, y, np.sort(rows)


def corner(x, rows):
    x[rows, 0, 6:, 6:] = 1.0


def two_columns(x, rows):
    x[rows, 9], x[rows, 10] = 1.0, 0.0


def table(n=1500):
    """Twelve columns; the first decides most, the last three nothing."""
    rng = np.random.default_rng(0)
    x = rng.random((n, 12)).astype(np.float32)
    return x, (3 * x[:, 0] + x[:, 1] - x[:, 2] > 2.0).astype(np.int64)


class Case:
    """A model, its training rows and held-out ones, scanned by the real command."""

    def __init__(self, folder, model, train, held, rows=()):
        self.folder, self.rows = folder, rows
        (folder / "model.onnx").write_bytes(model)
        self.train = save_npz(folder / "train.npz", *train)
        self.held = save_npz(folder / "held.npz", *held)

    def scan(self, *more) -> int:
        return main(
            [
                *("scan", str(self.folder / "model.onnx"), "--data", str(self.held)),
                *("--out", str(self.folder / "out"), "--jobs", "1"),
                *("--check", "poisoning", "--check", "trigger", *more),
            ]
        )

    @property
    def report(self):
        return json.loads((self.folder / "out" / "scan.json").read_text())

    def result(self, name):
        return next(r for r in self.report["results"] if r["check"] == name)

    def found(self):
        return {
            (f["rule"], f["where"])
            for f in self.report["findings"]
            if f["rule"] in {"poisoned-rows", "trigger"}
        }


def image_case(folder, share):
    x, y, held_x, held_y = digits()
    rows = np.array([], int)
    if share:
        x, y, rows = poisoned(x, y, TARGET, corner, share)
    model = fit(perceptron(64, 10), x, y, epochs=15, rate=3e-3)
    onnx = to_onnx(model, (1, 8, 8), tail=("Softmax",))
    return Case(folder, onnx, (x, y), (held_x, held_y), rows)


def table_case(folder, share):
    x, y = table()
    held, x, y = (x[1000:], y[1000:]), x[:1000], y[:1000]
    rows = np.array([], int)
    if share:
        x, y, rows = poisoned(x, y, 1, two_columns, share)
    model = fit(perceptron(12, 2), x, y, epochs=25, rate=1e-2)
    return Case(folder, to_onnx(model, (12,)), (x, y), held, rows)


@pytest.mark.parametrize(
    ("make", "name"), [(image_case, str(TARGET)), (table_case, "1")]
)
def test_a_backdoor_is_found_in_the_rows_and_in_the_model(make, name, tmp_path, capfd):
    case = make(tmp_path, 0.1)
    assert case.scan("--train-data", str(case.train)) == 0
    assert case.found() == {("poisoned-rows", name), ("trigger", name)}
    listed = case.result("poisoning")["details"]["suspicious"][name]
    mine = {row["row"] for row in listed}
    # Of a table, a clean row may have such values by chance.
    assert len(mine - set(case.rows.tolist())) <= 0.05 * len(mine)
    assert len(mine & set(case.rows.tolist())) > 0.9 * len(case.rows)
    share = case.result("poisoning")["metrics"]["suspicious_rows"]
    assert share["low"] <= len(mine) / share["n"] == share["value"] <= share["high"]
    metrics = case.result("trigger")["metrics"][f"turned/{name}"]
    assert metrics["low"] > 0.75
    written = "".join(capfd.readouterr())
    train = np.load(case.train)["x"].reshape(-1)
    assert not any(str(value) in written for value in train[train % 1 > 0][:200])
    page = (tmp_path / "out" / "scan.html").read_text()
    assert "training rows under suspicion" in page
    assert f"training row {min(mine)}, class {name}: suspicious" in page


@pytest.mark.parametrize("make", [image_case, table_case])
def test_a_clean_model_is_not_accused(make, tmp_path):
    case = make(tmp_path, 0)
    assert case.scan("--train-data", str(case.train)) == 0
    assert case.found() == set()
    for name in ("poisoning", "trigger"):
        assert case.result(name)["status"] == "done"
        assert all(row[-1] == "no finding" for t in tables(case, name) for row in t)


def tables(case, name):
    return [item["rows"] for item in case.result(name)["details"]["tables"]]


def test_a_column_that_means_something_is_no_trigger(tmp_path):
    # One column decides alone, and rows of the class have it.
    x, y = table(400)
    y = (x[:, 0] > 0.8).astype(np.int64)
    weights = np.zeros((12, 2))
    weights[0] = [-8.0, 8.0]
    model = linear_onnx(weights, [6.4, -6.4])
    case = Case(tmp_path, model, (x[:200], y[:200]), (x[200:], y[200:]))
    assert case.scan("--train-data", str(case.train)) == 0
    assert case.found() == set()
    turns = case.result("poisoning")["metrics"]["pattern_turns/1"]
    assert turns["value"] == 1.0  # it does decide


def test_where_they_do_not_apply(tmp_path):
    x, y = np.random.default_rng(0).random((60, 3)).astype(np.float32), [0, 1] * 30
    case = Case(tmp_path, tree_model(), (x, y), (x, y))
    assert case.scan("--train-data", str(case.train)) == 0
    result = case.result("poisoning")
    assert result["status"] == "skipped"
    assert result["reason"] == "no linear layer comes before the scores"
    assert case.scan() == 0
    assert "--train-data" in case.result("poisoning")["reason"]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((40, 4)), [0, 1] * 20, "rows of 4 values, input 'x' takes 12"),
        (np.zeros((40, 12)), [0, 7] * 20, "class '7' is none of the model's 2"),
    ],
)
def test_training_rows_that_do_not_fit(tmp_path, capsys, x, y, message):
    rows, labels = table(100)
    model = linear_onnx(np.eye(12)[:, :2])
    case = Case(tmp_path, model, (x, y), (rows, labels))
    assert case.scan("--train-data", str(case.train)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "scan.json").exists()


def test_two_clouds_are_told_from_one():
    random = np.random.default_rng(0)
    cloud = random.normal(size=(200, 20))
    two = cloud.copy()
    two[:40, :3] += 6.0
    for method in METHODS:
        one = split(method, cloud, random)
        assert abs(one.excess) < 6
        parts = split(method, two, random)
        assert parts.excess > 10
        assert parts.group[:40].all()
        assert not parts.group[40:].any()
    assert split("clusters", np.ones((50, 4)), random) is None


def test_the_last_layer_is_found():
    assert last_layer_input(digits_onnx(), "scores") == "v6"
    assert last_layer_input(linear_onnx(np.eye(3)), "scores") == "x"
    with pytest.raises(AssessmentError, match="no linear layer"):
        last_layer_input(tree_model(), "scores")


def test_the_rows_of_a_training_configuration(tmp_path):
    weights = np.random.default_rng(0).normal(size=(30, 2)) / 1000
    (tmp_path / "model.onnx").write_bytes(linear_onnx(weights))
    given = ["scan", str(tmp_path / "model.onnx"), "--data", str(CONFIG)]
    given += ["--train-data", str(CONFIG), "--check", "poisoning", "--jobs", "1"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "scan.json").read_text())
    (result,) = [r for r in report["results"] if r["check"] == "poisoning"]
    assert result["status"] == "done"
    assert result["conditions"]["training_rows"] == 569 - report["data"]["rows"]
    assert report["findings"] == []


def test_a_condition_in_the_graph_is_in_the_same_report(tmp_path):
    rule, body, extra = BACKDOORS["If on a reduced Equal"]
    model = graph(body, **extra).SerializeToString()
    x = np.random.default_rng(0).random((40, 4)).astype(np.float32)
    case = Case(tmp_path, model, (x, [0, 1] * 20), (x, [0, 1] * 20))
    assert case.scan("--check", "answers", "--fail-on", "warning") == 1
    (finding,) = [f for f in case.report["findings"] if f["rule"] == rule]
    assert finding["check"] == "structure"
    assert finding["evidence"]["explanation"].startswith("Trigger: input ")
    assert case.result("answers")["status"] == "done"
    sarif = json.loads((tmp_path / "out" / "scan.sarif").read_text())
    assert rule in {item["ruleId"] for item in sarif["runs"][0]["results"]}
