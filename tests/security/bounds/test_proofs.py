"""Bounds against what attacks, exact solvers and onnxruntime find inside the box."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.export import exported, recorded, run_onnx
from models.sessions import make_session
from security.assessment.torch_graph.module import OnnxModule
from security.bounds.files import read_graph
from security.bounds.proofs import bounds, linear, margins, points
from security.bounds.scores import head_of
from security.errors import UnboundedModel
from security.training.config import load_config
from security.training.data import load_split
from security.training.network import build_classifier
from tests.support.exact import ReluNet, distance
from tests.support.scanned import linear_onnx, node, onnx_model, to_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared"
RECIPES = ("breast_cancer", "breast_cancer_tuned", "digits", "adult")


def rule_of(model, output="scores", label=None):
    graph = read_graph(model)
    made = head_of(graph, output, label=label, lead=0.0, single=False)
    return graph, made


def served(model, rows, output="scores"):
    session = make_session(model)
    given = session.get_inputs()[0]
    shape = [-1, *(s for s in given.shape[1:] if isinstance(s, int))]
    asked = rows.astype(np.float32).reshape(shape)
    return session.run([output], {given.name: asked})[0]


def random_net(seed, sizes):
    torch.manual_seed(seed)
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
        layers[-2].weight.data *= 2.0
    return nn.Sequential(*layers[:-1])


def attacked(model, low, high, labels, value):
    """Rows that gradient descent from several points turns, as they are served."""
    torch.manual_seed(0)
    module = OnnxModule(model, outputs=[value])
    a, b = torch.as_tensor(low), torch.as_tensor(high)
    own = torch.as_tensor(labels)[:, None]
    broken = np.zeros(len(low), dtype=bool)
    for start in range(3):
        x = a + (b - a) * (0.5 if start == 0 else torch.rand_like(a))
        for step in range(40):
            x = x.detach().requires_grad_(True)
            z = module(x)[value]
            lead = z.gather(1, own)[:, 0] - z.scatter(1, own, -torch.inf).amax(1)
            (grad,) = torch.autograd.grad(lead.sum(), x)
            x = x - grad.sign() * (b - a) * 0.5 * 0.9**step
            x = torch.minimum(torch.maximum(x, a), b)
            asked = x.detach().numpy().astype(np.float32)
            inside = ((asked >= low) & (asked <= high)).all(axis=1)
            given = served(model, asked)
            broken |= inside & (given.argmax(axis=1) != labels)
    return broken


@pytest.mark.parametrize("seed", range(12))
def test_no_certified_row_breaks_and_values_stay_in_their_bounds(seed) -> None:
    """Random networks of one to three layers, at radii from nothing to everything."""
    random = np.random.default_rng(seed)
    sizes = [[5, 8, 3], [6, 12, 12, 4], [4, 10, 10, 10, 2]][seed % 3]
    model = to_onnx(random_net(seed, sizes), [sizes[0]], tail=("Softmax",))
    graph, rule = rule_of(model)
    rows = random.random((120, sizes[0])).astype(np.float32).astype(np.float64)
    labels = served(model, rows).argmax(axis=1)
    before = np.ones(len(rows), dtype=bool)
    for radius in (0.0, 0.01, 0.05, 0.2, 1.0):
        low, high = np.maximum(rows - radius, 0), np.minimum(rows + radius, 1)
        proved = margins(graph, rule, low, high, labels).proved
        assert not (proved & ~before).any()
        broken = attacked(model, low, high, labels, rule.value)
        assert not (proved & broken).any()
        before = proved
        least, most = bounds(graph, rule.value, low, high)
        for _ in range(20):
            inner = (low + (high - low) * random.random(low.shape)).astype(np.float32)
            inner = np.clip(inner, low, high)
            z = points(graph, rule.value, inner)
            assert (z >= least).all()
            assert (z <= most).all()
    assert margins(graph, rule, rows, rows, labels).proved.mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_certificates_agree_with_an_exact_solver(seed) -> None:
    """Below the exact distance most rows are proved, above it none is."""
    random = np.random.default_rng(seed)
    net = ReluNet.of(random_net(seed, [4, 6, 3]))
    model = net.onnx()
    graph, rule = rule_of(model)
    rows = random.random((12, 4)).astype(np.float32).astype(np.float64)
    labels = net.scores(rows).argmax(axis=1)
    exact = np.array([distance(net, row, own, 0.5) for row, own in zip(rows, labels)])
    reach = np.where(np.isfinite(exact), exact, 0.5)[:, None]
    for share, wanted in ((0.2, True), (1.001, False)):
        low, high = rows - share * reach, rows + share * reach
        proved = margins(graph, rule, low, high, labels).proved
        if wanted:
            assert proved.mean() > 0.7
        else:
            assert not proved[np.isfinite(exact)].any()


def test_a_linear_models_bound_is_reached_to_the_last_digits() -> None:
    random = np.random.default_rng(0)
    model = linear_onnx(random.normal(size=(6, 4)), random.normal(size=4))
    graph, rule = rule_of(model)
    rows = random.random((50, 6))
    labels = points(graph, rule.value, rows).argmax(axis=1)
    low, high = rows - 0.1, rows + 0.1
    assert linear(graph, rule.value, low, high)
    found = margins(graph, rule, low, high, labels, safety=0.0).low + rule.floor
    weight = points(graph, rule.value, np.eye(6)) - points(
        graph, rule.value, np.zeros((1, 6))
    )
    for row, own, least in zip(rows, labels, found):
        z = points(graph, rule.value, row[None])[0]
        leads = [
            z[own] - z[k] - 0.1 * np.abs(weight[:, own] - weight[:, k]).sum()
            for k in range(4)
            if k != own
        ]
        assert least == pytest.approx(min(leads), abs=1e-12)


def test_bounds_hold_for_single_precision_where_it_rounds_most() -> None:
    """Large numbers that cancel: what a server computes is far from what is exact."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(1, 400)) * 1e4
    first = np.concatenate([weight, weight * (1 + 1e-7)])
    second = np.array([[1.0, -1.0], [-1.0, 1.0]])
    net = ReluNet.stack((first, np.zeros(2)), (second, np.zeros(2)))
    model = net.onnx()
    graph, rule = rule_of(model)
    rows = random.random((200, 400)).astype(np.float32).astype(np.float64)
    least, most = bounds(graph, rule.value, rows, rows)
    given = served(model, rows)
    assert (np.abs(given - points(graph, rule.value, rows)) > 1e-3).any()
    assert (given >= least).all()
    assert (given <= most).all()


def test_convolutions_residuals_clips_and_normalisation() -> None:
    """Each as onnxruntime computes it, and bounded."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
            self.norm = nn.BatchNorm2d(4)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2.0)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Linear(4 * 4 * 3, 3)

        def forward(self, x):
            x = torch.clamp(self.norm(self.first(x)), 0.0, 1.5)
            x = x + nn.functional.leaky_relu(self.again(x), 0.1)
            z = self.last(x.flatten(1))
            return torch.softmax(z, dim=-1), z.argmax(dim=-1)

    model = exported(recorded(Net().eval(), (2, 8, 6)), "images")
    graph, rule = rule_of(model, "probabilities", "label")
    rows = np.random.default_rng(0).random((30, 96)).astype(np.float32)
    given, labels = run_onnx(model, rows.reshape(-1, 2, 8, 6))
    z = points(graph, rule.value, rows.astype(float))
    soft = np.exp(z - z.max(axis=1, keepdims=True))
    assert given == pytest.approx(soft / soft.sum(axis=1, keepdims=True), abs=1e-5)
    for radius in (0.001, 0.02):
        low, high = rows - radius, rows.astype(float) + radius
        proved = margins(graph, rule, low, high, labels).proved
        random = np.random.default_rng(1)
        for _ in range(30):
            corner = np.where(random.random(low.shape) < 0.5, low, high)
            inner = np.clip(corner.astype(np.float32), low, high).astype(np.float32)
            _, answered = run_onnx(model, inner.reshape(-1, 2, 8, 6))
            assert not (proved & (answered != labels)).any()
        assert proved.any() or radius > 0.01


@cache
def recipe(name):
    """A recipe's network as it is exported, with weights drawn at random; and rows."""
    config = load_config(ROOT / "examples" / f"{name}.toml")
    if name == "adult":
        folder = SHARED / "adult"
        if not folder.exists():
            pytest.skip("no ../shared/data/adult")
    train, held = load_split(config)
    module = build_classifier(config, train)
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    name_in = "images" if train.features.ndim > 2 else "features"
    shape = tuple(train.features.shape[1:])
    return exported(recorded(module, shape), name_in), held, shape


@pytest.mark.parametrize("name", ["breast_cancer", "breast_cancer_tuned", "digits"])
def test_no_certified_row_of_a_recipe_breaks(name) -> None:
    model, held, shape = recipe(name)
    graph, rule = rule_of(model, "probabilities", "label")
    rows = held.features.reshape(len(held), -1)[:60].astype(np.float64)
    _, labels = run_onnx(model, rows.reshape(-1, *shape))
    span = np.ptp(held.features.reshape(len(held), -1), axis=0)
    shares = []
    for radius in (0.001, 0.02, 0.1):
        low, high = rows - radius * span, rows + radius * span
        proved = margins(graph, rule, low, high, labels).proved
        broken = turned(model, shape, (low, high), labels)
        assert not (proved & broken).any()
        # A linear network behind preprocessing that rises: nothing is between.
        assert (proved | broken).mean() > 0.97
        shares.append(proved.mean())
    assert shares[0] > 0.5 > shares[-1] or shares[0] > shares[-1]


def turned(model, shape, box, labels):
    """Rows that the worst corner of a model of rising columns turns, as served."""
    low, high = box
    graph, rule = rule_of(model, "probabilities", "label")
    broken = np.zeros(len(low), dtype=bool)
    width = low.shape[1]
    for row in range(len(low)):
        tried = np.repeat(low[row][None], width + 1, axis=0)
        tried[np.arange(width), np.arange(width)] = high[row]
        z = points(graph, rule.value, tried)
        effect = z[:width] - z[width]
        lead = effect[:, labels[row]][:, None] - effect
        corner = np.where(lead.T > 0, low[row], high[row])
        sent = np.clip(corner.astype(np.float32), low[row], high[row])
        _, answered = run_onnx(model, sent.reshape(-1, *shape))
        broken[row] = (answered != labels[row]).any()
    return broken


def test_what_is_missing_constant_or_beyond_the_range() -> None:
    """Exported preprocessing has an answer for each, and so have bounds."""
    model, held, _ = recipe("breast_cancer")
    graph, rule = rule_of(model, "probabilities", "label")
    rows = held.features[:40].astype(np.float64)
    rows[:, 3] = np.nan
    rows[0, 5] = np.inf
    rows[1, 7] = 1e30
    _, labels = run_onnx(model, rows)
    moved = np.where(np.isfinite(rows), 1e-6 * np.abs(rows), 0.0)
    found = margins(graph, rule, rows - moved, rows + moved, labels)
    assert found.proved.mean() > 0.9
    wide = margins(graph, rule, rows - 1e9, rows + 1e9, labels)
    assert not wide.proved.any()
    everywhere = np.full_like(rows, np.nan)
    _, labels = run_onnx(model, everywhere)
    found = margins(graph, rule, everywhere, everywhere, labels)
    assert np.isfinite(found.low).all()


def test_an_operator_without_a_bound_is_named() -> None:
    def refused(model, match, output="scores"):
        graph = read_graph(model)
        with pytest.raises(UnboundedModel, match=match):
            _, rule = rule_of(model, output)
            margins(graph, rule, np.zeros((1, 3)), np.ones((1, 3)), np.zeros(1, int))

    weight = {"w": np.eye(3, dtype=np.float32)}
    for name in ("Sin", "Softplus", "Erf"):
        made = [node("Gemm", ["x", "w"], "v"), node(name, ["v"], "scores")]
        refused(onnx_model(made, weight, shape=[3]), f"{name} has no bound")
    made = [node("Gemm", ["x", "w"], "v"), node("Mul", ["v", "v"], "scores")]
    refused(onnx_model(made, weight, shape=[3]), "Mul of two values")
    made = [node("Gemm", ["x", "w"], "v"), node("Sigmoid", ["v"], "scores")]
    refused(onnx_model(made, weight, shape=[3]), "may be equal")
    made = [node("Gather", ["x", "i"], "v", axis=0), node("Gemm", ["v", "w"], "scores")]
    stored = {**weight, "i": np.array([0, 0])}
    refused(onnx_model(made, stored, shape=[3]), "mixes the rows")
    half = {"w": np.eye(3, dtype=np.float16)}
    made = [node("Gemm", ["x", "w"], "scores")]
    with pytest.raises(UnboundedModel, match="usual precision"):
        read_graph(onnx_model(made, half, shape=[3], kind=10, out=10))


def test_a_model_that_is_too_large_is_refused_before_it_is_bounded() -> None:
    net = random_net(0, [30, 900, 900, 900, 3])
    model = to_onnx(net, [30])
    graph, rule = rule_of(model)
    rows = np.zeros((4000, 30))
    with pytest.raises(UnboundedModel, match="take too long"):
        margins(graph, rule, rows, rows + 1, np.zeros(4000, int))


@pytest.mark.parametrize(
    ("file", "output", "width"),
    [
        ("iris_mlp_pytorch", "output", 4),
        ("mnist_logreg_sklearn", "output_probability", 784),
    ],
)
def test_models_of_other_exporters(file, output, width) -> None:
    path = SHARED / "data/onnx-models" / f"{file}.onnx"
    if not path.exists():
        pytest.skip("no ../shared/data/onnx-models")
    model = path.read_bytes()
    names = [item.name for item in onnx.load_model_from_string(model).graph.output]
    label = next((n for n in names if "label" in n), None)
    graph, rule = rule_of(model, output, label)
    rows = np.random.default_rng(0).random((50, width)) * 5
    rows = rows.astype(np.float32).astype(np.float64)
    session = make_session(model)
    asked = {session.get_inputs()[0].name: rows.astype(np.float32)}
    given = session.run([label or output], asked)[0]
    labels = np.asarray(given).reshape(len(rows), -1)
    labels = labels[:, 0] if label else labels.argmax(axis=1)
    z = points(graph, rule.value, rows)
    assert (z.argmax(axis=1) == labels).mean() > 0.97
    assert margins(graph, rule, rows, rows, labels.astype(int)).proved.mean() > 0.9
    wide = margins(graph, rule, rows - 50, rows + 50, labels.astype(int))
    assert wide.proved.mean() < 0.5
