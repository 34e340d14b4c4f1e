"""Every kind of model through the real `scan`, each with its clear answer."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, load_from_string

from models.data.held_out import Holdout
from models.sessions import make_session
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import PROFILES, Options
from security.assessment.plan.source import TargetSource
from security.commands import main
from tests.security.assessment.checks.test_evasion import (
    LABELS,
    POINTS,
    RAW,
    TRUE,
    masked,
    small_mlp,
    tree_model,
)
from tests.security.assessment.checks.test_evasion import WEIGHTS as FOUR
from tests.security.assessment.engine.test_scan import WEIGHTS, toy_rows
from tests.support.scanned import (
    DOUBLE,
    INT64,
    linear_onnx,
    node,
    onnx_model,
    save_npz,
    to_onnx,
)


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    effort = replace(PROFILES["quick"], square_queries=100)
    monkeypatch.setitem(PROFILES, "quick", effort)


def scan(folder, model, x, y, *more, code=0):
    (folder / "model.onnx").write_bytes(model)
    save_npz(folder / "rows.npz", x, y)
    (folder / "data.toml").write_text("low = 0.0\nhigh = 1.0\n")
    given = [
        *("scan", str(folder / "model.onnx"), "--data", str(folder / "rows.npz")),
        *("--data-config", str(folder / "data.toml"), "--out", str(folder / "out")),
        *("--jobs", "1", "--radius-linf", "0.1", *more),
    ]
    assert main(given) == code
    report = json.loads((folder / "out" / "scan.json").read_text())
    return report, {item["check"]: item for item in report["results"]}


def single(tail=()):
    return linear_onnx((WEIGHTS[:, 1] - WEIGHTS[:, 0])[:, None], tail=tail)


def labels_only():
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("ArgMax", ["v"], "scores", axis=1, keepdims=0),
    ]
    stored = {"w": WEIGHTS.astype(np.float32)}
    return onnx_model(nodes, stored, shape=[3], out=INT64, rank=1)


def zipmap():
    names = {"classlabels_strings": ["no", "yes"]}
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("Softmax", ["v"], "p"),
        node("ZipMap", ["p"], "scores", domain="ai.onnx.ml", **names),
    ]
    stored = {"w": WEIGHTS.astype(np.float32)}
    model = onnx_model(nodes, stored, shape=[3], domains=[("ai.onnx.ml", 3)])
    proto = load_from_string(model)
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_map_type_proto(TensorProto.STRING, number)
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    return proto.SerializeToString()


def open_axes():
    nodes = [node("Flatten", ["x"], "f"), node("MatMul", ["f", "w"], "scores")]
    return onnx_model(nodes, {"w": WEIGHTS.astype(np.float32)}, shape=["a"])


WHITE, BLACK = "white_box", "black_box"
KINDS = {
    "logits": (linear_onnx(WEIGHTS), "scores", WHITE),
    "one logit": (single(), "scores", WHITE),
    "one probability": (single(("Sigmoid",)), "probabilities", WHITE),
    "labels": (labels_only(), "labels", BLACK),
    "double": (
        linear_onnx(WEIGHTS, dtype=np.float64, kind=DOUBLE, out=DOUBLE),
        "scores",
        WHITE,
    ),
    "zipmap": (zipmap(), "probabilities", WHITE),
    "open axes": (open_axes(), "scores", WHITE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_decision_in_any_form_is_as_robust(kind, tmp_path):
    model, form, access = KINDS[kind]
    x, y = toy_rows(60)
    x = x.astype(np.float64) if kind == "double" else x
    y = np.where(y == 1, "yes", "no") if kind == "zipmap" else y
    report, results = scan(tmp_path, model, x, y, "--check", "evasion")
    evasion = results["evasion"]
    assert report["target"]["answers"] == form
    assert evasion["status"] == "done"
    assert evasion["reliable"]
    assert evasion["conditions"]["access"] == access
    gap = (x.astype(float) @ WEIGHTS) @ np.array([1.0, -1.0])
    robust = np.abs(gap) > 0.1 * np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum()
    found = evasion["metrics"]["robust_accuracy"]["value"]
    # Labels alone show no way: what is found is true, but less.
    slack = 0.05 if kind == "labels" else 0.02
    assert robust.mean() - 1e-9 <= found <= robust.mean() + slack


def constant():
    return linear_onnx(np.zeros((3, 2)), [0.0, 1.0])


def no_number():
    return linear_onnx(-np.abs(WEIGHTS), tail=("Log",))


@pytest.mark.parametrize(
    ("model", "rule", "reason"),
    [
        (constant(), "answer-constant", "one class"),
        (no_number(), "answer-not-finite", "no row right"),
    ],
)
def test_nothing_to_break_is_not_robust(model, rule, reason, tmp_path):
    # None of the checks falls over such answers.
    names = ["answers", "evasion", "evasion-cost", "quality", "trigger"]
    names += ["extraction"] if rule == "answer-not-finite" else []
    checks = [part for name in names for part in ("--check", name)]
    report, results = scan(tmp_path, model, *toy_rows(60), *checks)
    assert rule in {item["rule"] for item in report["findings"]}
    assert results["evasion"]["status"] == "skipped"
    assert reason in results["evasion"]["reason"]
    assert all(
        item["status"] != "done" or item["reliable"] for item in results.values()
    )


def test_trees_by_black_box_and_the_reason_for_it(tmp_path):
    x = np.random.default_rng(1).random((60, 3)).astype(np.float32)
    y = np.where(x[:, 0] <= 0.3, x[:, 1] > 0.6, x[:, 2] <= 0.4).astype(int)
    report, results = scan(tmp_path, tree_model(), x, y, "--check", "evasion")
    evasion = results["evasion"]
    assert evasion["conditions"]["access"] == BLACK
    assert set(evasion["conditions"]["attacks"].split(",")) == {
        "coordinates",
        "square",
        "starts",
    }
    (note,) = [f for f in report["findings"] if f["rule"] == "no-gradient"]
    assert "TreeEnsembleClassifier" in note["message"]


def test_the_slow_attacks_and_the_certificate(tmp_path, monkeypatch):
    effort = replace(
        PROFILES["thorough"],
        square_queries=50,
        art_rows=5,
        smoothing_rows=20,
        smoothing_draws=200,
    )
    monkeypatch.setitem(PROFILES, "thorough", effort)
    checks = ("--check", "evasion", "--check", "smoothing", "--profile", "thorough")
    _, results = scan(tmp_path, linear_onnx(WEIGHTS), *toy_rows(40), *checks)
    attacks = set(results["evasion"]["conditions"]["attacks"].split(","))
    assert {"fab", "apgd-ce", "apgd-t", "pgd", "deepfool", "carlini-wagner"} <= attacks
    certified = results["smoothing"]["metrics"]["certified_accuracy"]
    assert certified["n"] == 20
    assert certified["low"] <= certified["value"] <= certified["high"]


def louder(model, factor):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[-1].weight *= factor
        model[-1].bias *= factor
    return model


def quantised(model, step):
    head = (("Mul", 32.0), step, ("Mul", 1 / 32.0))
    return masked(model, (), head=head)


MASKS = {
    "logits x100": lambda m: to_onnx(louder(m, 100), [4], tail=("Softmax",)),
    "rounded inputs": lambda m: quantised(m, "Round"),
}


def test_a_masked_gradient_makes_no_robust_model(tmp_path):
    model, x, _ = small_mlp()
    x = x[:30]
    robust, trusted = {}, {}
    for name, make in {"plain": lambda m: to_onnx(m, [4]), **MASKS}.items():
        data = make(model)
        y = make_session(data).run(None, {"x": x})[0].argmax(axis=1)
        (tmp_path / name).mkdir()
        _, results = scan(tmp_path / name, data, x, y, "--check", "evasion")
        robust[name] = results["evasion"]["metrics"]["robust_accuracy"]["value"]
        trusted[name] = results["evasion"]["reliable"]
    for name in MASKS:
        assert not trusted[name] or robust[name] <= robust["plain"] + 0.06


def test_what_no_attack_can_follow_is_unreliable(tmp_path, capsys):
    # The answer turns where eight sines are at their top: no gradient leads there, and
    # no search finds it.
    nodes = [
        node("Mul", ["x", "big"], "v"),
        node("Sin", ["v"], "s"),
        node("Greater", ["s", "top"], "g"),
        node("Cast", ["g"], "f", to=1),
        node("ReduceMin", ["f"], "m", axes=[1], keepdims=1),
        node("Sub", ["one", "m"], "o"),
        node("Concat", ["o", "m"], "scores", axis=1),
    ]
    numbers = {"big": 1e4, "top": 0.9, "one": 1.0}
    stored = {name: np.float32(value) for name, value in numbers.items()}
    model = onnx_model(nodes, stored, shape=[8], opset=17)
    x = np.random.default_rng(0).random((60, 8))
    turns = np.round(x[:20] * 1e4 / (2 * np.pi))
    x[:20] = (turns * 2 * np.pi + np.pi / 2) / 1e4
    y = (np.arange(60) < 20).astype(int)
    x = x.astype(np.float32)
    report, results = scan(tmp_path, model, x, y, "--check", "evasion")
    assert not results["evasion"]["reliable"]
    assert "evasion-unreliable" in {item["rule"] for item in report["findings"]}
    assert "NOT RELIABLE" in capsys.readouterr().out


def test_an_interpreter_that_disagrees_yields_no_break():
    # Its gradients are another model's; what counts is still onnxruntime's answer.
    def context(weights):
        source = TargetSource("onnx", "model.onnx", linear_onnx(weights))
        job, target = prepare(source, Holdout("rows", POINTS, LABELS), Options(), RAW)
        return Context(job, target)

    honest, other = context(FOUR), context(-FOUR)
    honest.cache["white box"] = white_box_of(other)
    check = EvasionCheck()
    outcomes = {u.key: check.run(u, honest) for u in check.units(honest)}
    result = check.conclude(honest, outcomes)
    for norm in ("linf", "l2"):
        for row in result.details["norms"][norm]["rows"]:
            assert row["distance"] is None or row["distance"] >= TRUE[norm][
                row["row"]
            ] * (1 - 1e-5)
