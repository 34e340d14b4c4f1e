"""Shadow models, LiRA, RMIA, extraction: against ground truth, and by the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from security.assessment.checks.privacy import curves, signals
from security.assessment.checks.privacy.shadows import (
    ShadowRecipe,
    random_halves,
    train_shadows,
)
from security.commands import main
from tests.support.scanned import digits, linear_onnx, node, onnx_model, save_npz
from tests.support.servers import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLE = ROOT / "examples" / "breast_cancer.toml"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The example's training with all rows in every step, which accounts in no time."""
    text = EXAMPLE.read_text()
    assert "sampling_rate = 0.5" in text
    path = tmp_path_factory.mktemp("config") / "training.toml"
    path.write_text(text.replace("sampling_rate = 0.5", "sampling_rate = 1.0"))
    return path


def rows(n=60, d=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, classes, n)


def test_a_shadow_is_the_model_that_plain_torch_trains():
    x, y = rows()
    included = random_halves(4, len(x), np.random.default_rng(0))
    recipe = ShadowRecipe(3, (7,), steps=30, learning_rate=0.5, momentum=0.9)
    shadows = train_shadows(x, y, included, recipe, seed=3)
    start = ShadowRecipe(3, (7,), steps=0)
    random = torch.Generator().manual_seed(3)
    bound = 1 / math.sqrt(5)
    weights = (2 * torch.rand((4, 5, 7), generator=random) - 1) * bound
    bias = (2 * torch.rand((4, 1, 7), generator=random) - 1) * bound
    size = included.sum(axis=1).mean()
    for place in range(4):
        model = torch.nn.Sequential(
            torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)
        )
        with torch.no_grad():
            model[0].weight.copy_(weights[place].T)
            model[0].bias.copy_(bias[place, 0])
            model[2].weight.zero_()
            model[2].bias.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        own = torch.from_numpy(included[place])
        features, labels = torch.from_numpy(x), torch.from_numpy(y)
        for _ in range(30):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(features[own]), labels[own], reduction="sum"
            )
            (loss / size).backward()
            optimizer.step()
        expected = model(features).detach().numpy()
        assert np.abs(shadows.logits[place] - expected).max() < 1e-3
    assert np.ptp(train_shadows(x, y, included, start, seed=3).logits) == 0


def test_clipping_bounds_what_one_row_adds():
    x, y = rows(n=1)
    x *= 100
    recipe = ShadowRecipe(3, (7,), steps=1, learning_rate=1.0, max_grad_norm=0.1)
    free = ShadowRecipe(3, (7,), steps=1, learning_rate=1.0)
    included = np.ones((1, 1), bool)
    moved = {}
    for name, item in (("clipped", recipe), ("free", free)):
        logits = train_shadows(x, y, included, item, seed=0).logits
        moved[name] = np.abs(logits).max()
    # Clipped, the last layer moves by 0.1 at most; free, with the hidden layer.
    assert moved["clipped"] < moved["free"] / 10


def test_automatic_clipping_makes_every_row_count():
    x, y = rows(n=1)
    recipe = ShadowRecipe(3, (), steps=1, max_grad_norm=0.5)
    included = np.ones((1, 1), bool)
    moved = {}
    for automatic in (False, True):
        item = replace(recipe, automatic=automatic)
        # So near its class that its own gradient is short: the bias' alone.
        logits = train_shadows(x * 1e-3, y, included, item, seed=0).logits
        moved[automatic] = np.linalg.norm(logits)
    assert moved[True] == pytest.approx(0.5, rel=0.05)
    assert moved[False] == pytest.approx(0.5, rel=0.05)
    half = replace(recipe, automatic=True, max_grad_norm=5.0)
    # A gradient of length 0.82, the bias' only, is lengthened to five.
    assert np.linalg.norm(
        train_shadows(x * 1e-3, y, included, half, seed=0).logits
    ) == pytest.approx(5.0, rel=0.05)


def test_noise_makes_shadows_differ():
    x, y = rows()
    included = np.ones((2, len(x)), bool)
    recipe = ShadowRecipe(3, (), steps=5, max_grad_norm=1.0, noise_multiplier=5.0)
    first, second = train_shadows(x, y, included, recipe, seed=0).logits
    assert np.abs(first - second).max() > 0.1
    again = train_shadows(x, y, included, recipe, seed=0).logits
    assert np.array_equal(again[0], first)


def test_every_row_is_in_half_of_the_shadows():
    included = random_halves(16, 100, np.random.default_rng(0))
    assert (included.sum(axis=0) == 8).all()


def overfit(models=17):
    """Digits, a tenth of the labels wrong: models that learn them by heart."""
    x, y = digits()[:2]
    x, y = x[:300].reshape(300, -1), y[:300].copy()
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 0.1
    y[wrong] = rng.integers(0, 10, wrong.sum())
    included = random_halves(models, 300, rng)
    recipe = ShadowRecipe(10, (64,), steps=200, learning_rate=0.01, adam=True)
    return y, included, train_shadows(x, y, included, recipe, seed=1)


def test_shadows_find_members_that_the_loss_does_not():
    y, included, shadows = overfit()
    member = included[-1]
    rest = type(shadows)(included[:-1], shadows.logits[:-1])
    logits = shadows.logits[-1].astype(float)
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    own = signals.loss(chance, y)
    sure = signals.confidences(logits, y)
    found = {
        "loss": own,
        "lira": signals.lira(sure, rest, y),
        "rmia": signals.rmia(own, rest, y),
    }
    areas = {k: curves.rates(v[member], v[~member])["auc"] for k, v in found.items()}
    assert areas["lira"].value > areas["loss"].value + 0.05
    assert areas["rmia"].value > areas["loss"].value
    assert areas["lira"].low > 0.6


def test_without_leak_nothing_is_found():
    y, included, shadows = overfit()
    rng = np.random.default_rng(5)
    # Membership drawn after the training: nobody can know it.
    member = rng.random(300) < 0.5
    rest = type(shadows)(included[:-1], shadows.logits[:-1])
    score = signals.lira(signals.confidences(shadows.logits[-1], y), rest, y)
    area = curves.rates(score[member], score[~member])["auc"]
    assert area.low < 0.5 < area.high or abs(area.value - 0.5) < 0.1


def test_small_samples_get_no_rate_at_one_in_a_thousand():
    rng = np.random.default_rng(0)
    assert "tpr_at_fpr_0.1pct" not in curves.rates(rng.random(100), rng.random(9999))
    assert "tpr_at_fpr_0.1pct" in curves.rates(rng.random(100), rng.random(10_000))


def test_the_curve_ends_where_all_are_accused():
    rng = np.random.default_rng(0)
    points = curves.roc(rng.random(50), rng.random(80))
    assert points[-1] == [1.0, 1.0]
    assert all(a[1] <= b[1] for a, b in pairwise(points))


def memory_of(train, *, logits=False) -> bytes:
    """A graph that knows its training rows by heart and guesses about all others."""
    low, high = (
        np.array([getattr(c, e) for c in train.columns]) for e in ("low", "high")
    )
    scale = (1 / (high - low)).astype(np.float32)
    known = (train.features * scale).astype(np.float32)
    nodes = [
        node("Mul", ["x", "scale"], "z"),
        node("Mul", ["z", "z"], "zz"),
        node("ReduceSum", ["zz", "axis"], "own", keepdims=1),
        node("MatMul", ["z", "known"], "cross"),
        node("Mul", ["cross", "minus_two"], "cross2"),
        node("Add", ["own", "cross2"], "part"),
        node("Add", ["part", "norms"], "distance"),
        node("Mul", ["distance", "steep"], "steeper"),
        node("Exp", ["steeper"], "near"),
        node("MatMul", ["near", "classes"], "votes"),
        node("Mul", ["votes", "loud"], "logits"),
        node("Softmax", ["logits"], "scores", axis=-1),
    ]
    if logits:
        nodes = [*nodes[:-2], node("Mul", ["votes", "loud"], "scores")]
    stored = {
        "scale": scale,
        "axis": np.array([1], np.int64),
        "known": known.T.copy(),
        "minus_two": np.float32(-2.0),
        "norms": (known**2).sum(1)[None].astype(np.float32),
        "steep": np.float32(-3e4),
        "classes": np.eye(2, dtype=np.float32)[train.labels],
        "loud": np.float32(8.0),
    }
    return onnx_model(nodes, stored, shape=[len(train.columns)])


@pytest.fixture
def cancer(config):
    from security.training.config import load_config
    from security.training.data import load_split

    return load_split(load_config(config))


def scan(tmp_path, model, data, *more):
    (tmp_path / "model.onnx").write_bytes(model)
    arguments = ["scan", str(tmp_path / "model.onnx"), "--data", str(data)]
    assert main([*arguments, "--jobs", "1", "--out", str(tmp_path / "out"), *more]) == 0
    return json.loads((tmp_path / "out" / "scan.json").read_text())


@pytest.mark.parametrize("logits", [False, True])
def test_a_model_that_remembers_breaks_the_claim(cancer, config, tmp_path, logits):
    train, _ = cancer
    report = scan(
        tmp_path,
        memory_of(train, logits=logits),
        config,
        "--training",
        str(config),
        "--check",
        "membership",
    )
    (result,) = [r for r in report["results"] if r["check"] == "membership"]
    assert result["status"] == "done"
    assert result["metrics"]["auc"]["low"] > 0.9
    assert "membership-beyond-claim" in {item["rule"] for item in report["findings"]}
    assert result["conditions"]["shadow_models"] == 16
    assert "label_only" not in result["conditions"]["attacks"]
    for attack in ("rule", "learned"):
        assert result["metrics"][f"{attack}_auc"]["low"] > 0.6


def test_a_model_that_never_saw_them_is_not_accused(config, tmp_path):
    weights = np.zeros((30, 2), np.float32)
    weights[0] = (0.4, -0.4)
    model = linear_onnx(weights, [-5.6, 5.6], tail=("Softmax",))
    more = ["--profile", "standard", "--training", str(config)]
    report = scan(tmp_path, model, config, *more, "--check", "membership")
    rules = {item["rule"] for item in report["findings"]}
    assert not {"membership-beyond-claim", "membership-exposed"} & rules
    (result,) = [r for r in report["results"] if r["check"] == "membership"]
    by_labels = result["metrics"]["label_only_auc"]
    assert by_labels["n"] == 80
    assert by_labels["low"] < 0.5 < by_labels["high"]


def test_rows_beyond_the_bound_are_sampled(config, monkeypatch):
    from security.commands import scan_training

    monkeypatch.setattr(scan_training, "_MAX_ROWS", 60)
    known = scan_training.load_training(config, None)
    assert (known.member.sum(), (~known.member).sum()) == (60, 60)
    # The recipe's noise is that of the whole training, not of the sample's.
    monkeypatch.undo()
    whole = scan_training.load_training(config, None)
    assert known.recipe == whole.recipe
    assert known.delta == whole.delta


def test_without_the_configuration_membership_is_skipped_with_a_reason(tmp_path):
    x = np.random.default_rng(0).random((80, 3)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    data = save_npz(tmp_path / "rows.npz", x, y)
    model = linear_onnx(np.array([[-8.0, 8.0], [0, 0], [0, 0]]), [4.0, -4.0])
    report = scan(tmp_path, model, data, "--check", "membership")
    (result,) = [r for r in report["results"] if r["check"] == "membership"]
    assert result["status"] == "skipped"
    assert "--training" in result["reason"]


def test_a_simple_model_is_copied_cheaply(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((200, 3)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    data = save_npz(tmp_path / "rows.npz", x, y)
    model = linear_onnx(
        np.array([[-8.0, 8.0], [0, 0], [0, 0]]), [4.0, -4.0], tail=("Softmax",)
    )
    report = scan(tmp_path, model, data, "--check", "extraction")
    (result,) = [r for r in report["results"] if r["check"] == "extraction"]
    metrics = result["metrics"]
    assert metrics["agreement/ranges_scores_1000"]["value"] > 0.95
    assert (
        metrics["agreement/ranges_scores_50"]["value"]
        <= metrics["agreement/ranges_scores_1000"]["value"] + 0.05
    )
    assert "extraction-cheap" in {item["rule"] for item in report["findings"]}
