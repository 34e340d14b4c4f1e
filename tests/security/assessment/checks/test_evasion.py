"""Evasion: what is proven robust is never claimed broken, what can break breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from models.data.held_out import Holdout
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import PROFILES, Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import DataConfig, parse_data_config
from tests.support.scanned import (
    INT64,
    UINT8,
    digits,
    digits_onnx,
    fit,
    linear_onnx,
    node,
    onnx_model,
    to_onnx,
)

RANDOM = np.random.default_rng(0)
RAW = DataConfig(units="raw", low=-10.0, high=10.0)


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    """Less of what only matters where the gradients fail, on models this small."""
    effort = replace(
        PROFILES["quick"], square_queries=50, iterations=20, curve_iterations=10
    )
    monkeypatch.setitem(PROFILES, "quick", effort)


def attack(model, x, y, *, config=RAW, **options):
    """The result, and the closest distance per row and norm."""
    source = TargetSource("onnx", "model.onnx", model)
    holdout = Holdout("rows", np.asarray(x), np.asarray(y))
    job, target = prepare(source, holdout, Options(**options), config)
    context, check = Context(job, target), EvasionCheck()
    assert check.missing(context) is None
    outcomes = {u.key: check.run(u, context) for u in check.units(context)}
    return check.conclude(context, outcomes)


def distances(result, norm):
    rows = result.details["norms"][norm]["rows"]
    return np.array(
        [np.inf if r["distance"] is None else r["distance"] for r in rows]
    ), np.array([r["correct"] for r in rows])


def failed(result):
    return {check.id for check in result.checks if not check.passed}


def margin_distances(weights, x, y):
    """Exactly how far the nearest other class of a linear model is, in both norms."""
    scores = x.astype(np.float64) @ weights
    rows = np.arange(len(x))
    linf, l2 = np.full(len(x), np.inf), np.full(len(x), np.inf)
    for other in range(weights.shape[1]):
        gap = scores[rows, y] - scores[:, other]
        normal = weights[:, [other]].T - weights[:, y].T
        use = other != y
        size1 = np.abs(normal).sum(axis=1)
        size2 = np.sqrt((normal**2).sum(axis=1))
        linf[use] = np.minimum(linf[use], gap[use] / size1[use])
        l2[use] = np.minimum(l2[use], gap[use] / size2[use])
    return {"linf": linf, "l2": l2}


WEIGHTS = np.round(RANDOM.normal(size=(6, 4)) * 8) / 8  # exact in single precision
POINTS = RANDOM.normal(size=(40, 6)).astype(np.float32)
LABELS = np.argmax(POINTS.astype(np.float64) @ WEIGHTS, axis=1)
TRUE = margin_distances(WEIGHTS, POINTS, LABELS)


def check_against_truth(result, true, *, slack=1.02):
    """No claim below the true distance; a break wherever the curve shows it must be."""
    for norm in ("linf", "l2"):
        found, correct = distances(result, norm)
        assert correct.all()
        assert (found >= true[norm] * (1 - 1e-5)).all()
        radii = [p["radius"] for p in result.details["norms"][norm]["curve"]]
        for radius in [r for r in radii if isinstance(r, float) and r > 0]:
            breakable = true[norm] * slack < radius
            assert (found[breakable] <= radius).all(), (norm, radius)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-5])
@pytest.mark.parametrize("tail", [(), ("Softmax",)])
def test_a_linear_model_exactly(scale, tail):
    if scale == 1e-5 and tail:
        return  # then most probabilities are ties in single precision
    model = linear_onnx(WEIGHTS * scale, tail=tail)
    middle = {norm: float(np.median(TRUE[norm])) for norm in TRUE}
    result = attack(
        model,
        POINTS,
        LABELS,
        radius_linf=middle["linf"],
        radius_l2=middle["l2"],
    )
    true = TRUE
    if scale == 1e4 and tail:
        # Saturated: what is 1 and 0 in single precision is turned all the same.
        assert result.details["access"] == "white box"
    check_against_truth(result, true)
    assert result.reliable, failed(result)
    assert result.metrics["robust_accuracy"].value == pytest.approx(0.5, abs=0.03)


def test_a_radius_just_below_and_just_above():
    model = linear_onnx(WEIGHTS)
    for factor, broken in ((0.9999, False), (1.0001, True)):
        radii = {f"radius_{norm}": float(TRUE[norm][0] * factor) for norm in TRUE}
        result = attack(model, POINTS[:30], LABELS[:30], **radii)
        for norm in TRUE:
            found, _ = distances(result, norm)
            assert (found[0] <= radii[f"radius_{norm}"]) == broken


def test_double_precision_inputs():
    model = linear_onnx(
        WEIGHTS, dtype=np.float64, kind=TensorProto.DOUBLE, out=TensorProto.DOUBLE
    )
    check_against_truth(attack(model, POINTS.astype(np.float64), LABELS), TRUE)


def test_one_score_for_two_classes():
    weights = WEIGHTS[:, :1] - WEIGHTS[:, 1:2]
    y = (POINTS.astype(np.float64) @ weights > 0).astype(int)[:, 0]
    both = np.concatenate([np.zeros_like(weights), weights], axis=1)
    true = margin_distances(both, POINTS, y)
    for tail in ((), ("Sigmoid",)):
        model = linear_onnx(weights, tail=tail)
        check_against_truth(attack(model, POINTS, y), true)


def small_mlp():
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 3),
    )
    x = RANDOM.random((400, 4)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int) + (x[:, 1] + x[:, 2] > 1.2)
    fit(model, x, y, epochs=30, rate=1e-2)
    labels = model(torch.as_tensor(x)).argmax(1).numpy()
    return model, x[:40], labels[:40]


def interval_bounds(model, x, y, radius):
    """Rows proven robust in a box by interval arithmetic."""
    low, high = np.maximum(x - radius, 0), np.minimum(x + radius, 1)
    low, high = low.astype(np.float64), high.astype(np.float64)
    for layer in list(model)[:-1]:
        if isinstance(layer, torch.nn.Linear):
            w = layer.weight.detach().numpy().astype(np.float64)
            b = layer.bias.detach().numpy()
            centre, reach = (low + high) / 2 @ w.T + b, (high - low) / 2 @ np.abs(w).T
            low, high = centre - reach, centre + reach
        else:
            low, high = np.maximum(low, 0), np.maximum(high, 0)
    last = model[-1]
    w = last.weight.detach().numpy().astype(np.float64)
    b = last.bias.detach().numpy()
    proven = np.ones(len(x), dtype=bool)
    for other in range(len(b)):
        gap_w, gap_b = w[y] - w[other], b[y] - b[other]
        worst = np.where(gap_w > 0, low * gap_w, high * gap_w).sum(axis=1) + gap_b
        proven &= (worst > 1e-6) | (y == other)
    return proven


def grid_breaks(model, x, y, radius):
    """Rows that some of many points of the box breaks."""
    steps = np.linspace(-1, 1, 9)
    offsets = np.stack(np.meshgrid(*[steps] * 4), axis=-1).reshape(-1, 4) * radius
    broken = []
    for row, label in zip(x, y):
        points = np.clip(row + offsets, 0, 1).astype(np.float32)
        scores = model(torch.as_tensor(points)).detach().numpy()
        own = scores[:, label].copy()
        scores[:, label] = -np.inf
        broken.append((own - scores.max(axis=1) < -1e-5).any())
    return np.array(broken)


# What hides the gradient, and changes no answer or hardly any.
MASKS = {
    "plain": (),
    "probabilities": ("Softmax",),
    "saturated": (("Mul", 1e4), "Softmax"),
    "cold": (("Mul", 1e-3), "Softmax"),
    "rounded answers": ("Softmax", ("Mul", 1000.0), "Round", ("Mul", 0.001)),
}


def masked(model, tail, head=()):
    """The network between further steps."""
    from onnx import load_from_string

    proto = load_from_string(to_onnx(model, [4]))
    graph = proto.graph
    nodes = list(graph.node)
    value = "x"
    before = []
    for place, step in enumerate(head):
        value = _step(graph, before, step, value, f"h{place}")
    if head:
        nodes[0].input[0] = value
    if tail:
        nodes[-1].output[0] = value = "plain"
        for place, step in enumerate(tail):
            last = place == len(tail) - 1
            name = "scores" if last else f"t{place}"
            value = _step(graph, nodes, step, value, name)
    del graph.node[:]
    graph.node.extend([*before, *nodes])
    return proto.SerializeToString()


def _step(graph, nodes, step, value, name):
    from onnx import numpy_helper

    name_of, inputs = step, [value]
    if isinstance(step, tuple):
        name_of, number = step
        graph.initializer.append(
            numpy_helper.from_array(np.float32(number), f"c_{name}")
        )
        inputs.append(f"c_{name}")
    nodes.append(node(name_of, inputs, name))
    return name


@pytest.fixture(scope="module")
def mlp():
    return small_mlp()


UNIT = DataConfig(low=0.0, high=1.0)


@pytest.mark.parametrize("mask", MASKS)
def test_a_network_with_known_bounds(mlp, mask):
    model, x, y = mlp
    radius = 0.08
    result = attack(masked(model, MASKS[mask]), x, y, config=UNIT, radius_linf=radius)
    found, correct = distances(result, "linf")
    assert correct.all()
    proven, broken = (
        interval_bounds(model, x, y, radius),
        grid_breaks(model, x, y, radius),
    )
    assert proven.sum() >= 5
    assert broken.sum() >= 5
    assert not (found[proven] <= radius).any()
    if mask == "rounded answers":
        broken = broken & (found != np.inf)  # ties are no answer of another class
    assert (found[broken] <= radius).all()
    assert result.details["access"] == "white box"


def test_quantised_inputs_are_broken_as_plain_ones(mlp):
    model, x, y = mlp
    levels = 32.0
    x = np.round(x * levels) / levels
    x = x.astype(np.float32)
    y = model(torch.as_tensor(x)).argmax(1).numpy()
    graph = masked(model, (), head=(("Mul", levels), "Round", ("Mul", 1 / levels)))
    plain = attack(masked(model, ()), x, y, config=UNIT, radius_linf=0.1)
    hidden = attack(graph, x, y, config=UNIT, radius_linf=0.1)
    open_, covered = (
        plain.metrics["robust_accuracy"],
        hidden.metrics["robust_accuracy"],
    )
    assert covered.value <= open_.value + 0.05


def test_whole_numbers_stay_whole():
    x = np.random.default_rng(1).integers(0, 256, size=(40, 6)).astype(np.uint8)
    y = np.argmax(x.astype(np.float64) @ WEIGHTS, axis=1)
    nodes = [node("Cast", ["x"], "f", to=1), node("MatMul", ["f", "w"], "scores")]
    model = onnx_model(nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[6], kind=UINT8)
    result = attack(model, x, y, config=DataConfig(), radius_linf=0.1)
    examples = np.load(__import__("io").BytesIO(result.files["adversarial-linf.npy"]))
    assert examples.dtype == np.uint8
    found, _ = distances(result, "linf")
    true = margin_distances(WEIGHTS, x, y)["linf"] / 255
    assert (found >= true).all()
    # A step of a whole number costs up to one of 255 more.
    assert (found[true < 0.1 - 2 / 255] <= 0.1).mean() > 0.95


def tree_model(values=(0.3, 0.6, 0.4)):
    """Class 1 where x0 > values[0] and x1 > values[1], or x2 > values[2] not."""
    nodes = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * 7,
        nodes_nodeids=list(range(7)),
        nodes_featureids=[0, 1, 2, 0, 0, 0, 0],
        nodes_modes=["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
        nodes_values=[*values, 0.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 5, 0, 0, 0, 0],
        nodes_falsenodeids=[2, 4, 6, 0, 0, 0, 0],
        class_treeids=[0] * 4,
        class_nodeids=[3, 4, 5, 6],
        class_ids=[0, 0, 0, 0],
        class_weights=[-1.0, 1.0, 1.0, -1.0],
        classlabels_int64s=[0, 1],
        post_transform="NONE",
    )
    return onnx_model(
        [nodes],
        {},
        shape=[3],
        domains=[("ai.onnx.ml", 3)],
        outputs={"scores": TensorProto.FLOAT},
    )


def test_trees_are_broken_where_they_branch():
    x = RANDOM.random((40, 3)).astype(np.float32)
    right = np.where(x[:, 0] <= 0.3, x[:, 1] > 0.6, x[:, 2] <= 0.4)
    result = attack(tree_model(), x, right.astype(int), config=UNIT, radius_linf=0.05)
    assert result.details["access"] == "black box"
    assert "no-gradient" in {item.rule for item in result.findings}
    found, correct = distances(result, "linf")
    assert correct.all()
    # Exactly: the smallest box around the row that holds another leaf.
    true = np.full(len(x), np.inf)
    for first in (True, False):
        to_branch = np.where((x[:, 0] <= 0.3) == first, 0, np.abs(x[:, 0] - 0.3))
        column, cut = (1, 0.6) if first else (2, 0.4)
        value = x[:, column]
        wanted = ~right  # the class to reach
        have = (value > cut) if first else (value <= cut)
        to_leaf = np.where(have == wanted, 0, np.abs(value - cut))
        true = np.minimum(true, np.maximum(to_branch, to_leaf))
    assert (found >= true - 1e-6).all()
    assert (found[true < 0.05 - 1e-5] <= 0.05).all()
    assert result.reliable


def test_labels_only():
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("ArgMax", ["v"], "scores", axis=1, keepdims=0),
    ]
    model = onnx_model(
        nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[6], out=INT64, rank=1
    )
    result = attack(model, POINTS[:30], LABELS[:30], radius_linf=0.3, radius_l2=0.6)
    assert result.details["access"] == "black box"
    for norm, radius in (("linf", 0.3), ("l2", 0.6)):
        found, _ = distances(result, norm)
        true = TRUE[norm][:30]
        assert (found >= true * (1 - 1e-5)).all()
        assert (found[true < 0.7 * radius] <= radius).mean() > 0.8
        assert "hop-skip-jump" in result.details["norms"][norm]["attacks"]


def test_columns_that_may_not_change():
    config = parse_data_config(
        b"""
        units = "raw"
        low = -10
        high = 10
        [[columns]]
        name = "[0]"
        change = "never"
        [[columns]]
        name = "[1]"
        change = "up"
        [[columns]]
        name = "[2]"
        low = -3.5
        high = 3.5
        """
    )
    result = attack(linear_onnx(WEIGHTS), POINTS, LABELS, config=config)
    for norm in ("linf", "l2"):
        data = result.files[f"adversarial-{norm}.npy"]
        made = np.load(__import__("io").BytesIO(data))
        moved = made.astype(np.float64) - POINTS
        assert (moved != 0).any()
        assert (moved[:, 0] == 0).all()
        assert (moved[:, 1] >= 0).all()
        assert (np.abs(made[:, 2]) <= 3.5).all()
    assert result.conditions["immutable_columns"] == "[0]"


def test_a_model_that_no_attack_can_follow_is_not_called_robust():
    # Flat but for needles: the answer turns where a product of steps says so, and every
    # attack here sees a plateau.
    x = RANDOM.random((60, 16)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    nodes = [
        node("Greater", ["x", "half"], "g"),
        node("Cast", ["g"], "f", to=1),
        node("MatMul", ["f", "w"], "v"),
        node("Mul", ["v", "zero"], "u"),
        node("Add", ["u", "bias"], "scores"),
    ]
    stored = {
        "half": np.float32(0.5),
        "w": np.ones((16, 2), np.float32),
        "zero": np.float32(0),
        "bias": np.array([0.0, 1.0], np.float32),
    }
    model = onnx_model(nodes, stored, shape=[16])
    source = TargetSource("onnx", "m", model)
    job, target = prepare(source, Holdout("r", x, y), Options(), UNIT)
    assert "one class" in EvasionCheck().missing(Context(job, target))


def test_noise_is_not_robustness_and_no_break():
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("RandomNormalLike", ["v"], "r", scale=0.01),
        node("Add", ["v", "r"], "scores"),
    ]
    model = onnx_model(nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[6])
    keep = TRUE["linf"] > 0.05
    result = attack(model, POINTS[keep], LABELS[keep])
    found, correct = distances(result, "linf")
    # Three times in a row by luck alone: only very near the boundary.
    assert (found[correct] >= TRUE["linf"][keep][correct] * 0.8).all()


def test_the_digits_network():
    _, _, x, y = digits()
    options = {"config": DataConfig(), "max_rows": 40, "radius_linf": 0.1}
    result = attack(digits_onnx(), x, y, **options)
    assert result.reliable, failed(result)
    curve = result.details["norms"]["linf"]["curve"]
    shares = [point["value"] for point in curve]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    assert 0.2 < result.metrics["robust_accuracy"].value < 0.8
    assert result.metrics["robust_accuracy"].low is not None
    by_class = result.details["tables"][2]
    assert sum(row[2] for row in by_class["rows"]) == 40
    assert "becomes" in result.details["examples"][0]["caption"]
