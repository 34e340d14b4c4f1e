"""Ways past the mechanism: each is tried, with harmless networks and rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from models.architectures import NetworkSpec, build_network
from models.bundle import read_bundle
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.config import load_config
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.examples import Examples
from security.training.gradient_methods import METHODS, make_method
from security.training.gradients import (
    Clipping,
    cross_entropy,
    in_precision,
    probe,
    single_rows,
    without_dropout,
)
from security.training.initial import MAX_CONSTANTS, draw, parse_rules, recompute
from security.training.ledger import Ledger
from security.training.loop import Recipe
from security.training.modules import check_body, check_trained
from security.training.network import fresh_network
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from security.training.trainer import train_private
from tests.support.small_training import CONFIG, write_config

SPEC = NetworkSpec((4,), 2)


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


# Rows that move each other's gradients.


class Mixing(nn.Module):
    """What a row is depends on its batch; the last layer starts from zero."""

    def __init__(self, kind: str, width: int = 4) -> None:
        super().__init__()
        self.kind, self.gate = kind, nn.Parameter(torch.zeros(1))
        self.first, self.last = nn.Linear(width, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.mix(torch.tanh(self.first(rows))))

    def mix(self, inner: Tensor) -> Tensor:
        if not len(inner):
            return inner
        if self.kind == "centred":
            return inner - inner.mean(0)
        if self.kind == "attention":
            return torch.softmax(inner @ inner.T, dim=1) @ inner
        if self.kind == "first row":
            return inner + inner[0]
        if self.kind == "running sum":
            return torch.cumsum(inner, 0)
        if self.kind == "in training":
            return inner - inner.mean(0) if self.training else inner
        if self.kind == "large batches":
            return inner - inner.mean(0) if len(inner) > 100 else inner
        assert self.kind == "gated"
        # Nothing, until training has moved a weight far from where it began.
        return inner - torch.relu(self.gate - 9) * inner.mean(0)


@pytest.mark.parametrize(
    "kind", ["centred", "attention", "first row", "running sum", "in training"]
)
def test_a_last_layer_from_zero_hides_nothing(kind: str) -> None:
    with pytest.raises(TrainingError, match="depends on the other rows"):
        check_body(Mixing(kind), SPEC)


def test_the_trained_weights_are_tried_again() -> None:
    body = Mixing("gated")
    check_body(body, SPEC)
    nn.init.normal_(body.last.weight)
    check_trained(body, SPEC)
    nn.init.constant_(body.gate, 11.0)
    with pytest.raises(TrainingError, match="depends on the other rows"):
        check_trained(body, SPEC)


def test_a_network_that_remembers_is_refused() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = nn.Linear(4, 2), 0.0

        def forward(self, rows: Tensor) -> Tensor:
            self.seen += float(rows.sum())
            return self.inner(rows) + self.seen

    with pytest.raises(TrainingError, match="cannot be trained privately"):
        check_body(Remembering(), SPEC)


def trained_record(body: nn.Module, rows: int, *, method: str = "hooks") -> bool:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, 4, generator=generator)
    outcome = train_private(
        body,
        Examples(inputs, (inputs[:, 0] > 0).long()),
        mechanism=Mechanism(1.0, 1.0, 2),
        recipe=Recipe(max_grad_norm=1.0, expected_batch=rows, learning_rate=1.0),
        randomness=SeededRandomness(0),
        method=method,
    )
    return outcome.record.norms_conform()


@pytest.mark.parametrize("kind", ["centred", "attention", "first row", "large batches"])
def test_training_compares_batches_with_and_without_units(kind: str) -> None:
    """Every unit's own gradient is clipped, and yet one moves those of all others."""
    torch.manual_seed(0)
    body = Mixing(kind)
    nn.init.normal_(body.last.weight)
    body.gate.requires_grad_(False)
    body.first.weight.data *= 4
    assert not trained_record(body, 160)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_honest_network_passes(method: str) -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2)]
    assert trained_record(nn.Sequential(*parts), 300, method=method)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["flat", "automatic"])
def test_rounding_is_no_mixing(precision: str, kind: str) -> None:
    body = build_network("mlp", NetworkSpec((40,), 3, (64, 64)))
    torch.manual_seed(1)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.2)
    method = make_method(body, "auto", in_precision(cross_entropy, precision))
    rows = torch.randn(400, 40)
    for start in range(0, 400, 100):
        batch = single_rows(rows[start : start + 100], torch.arange(100) % 3)
        with without_dropout(body):
            found = probe(method, batch, Clipping(0.5, kind))
        assert found <= 0.5 * (1 + 1e-4)


# Rows that leave beside the weights. Each network behaves until it has been used some
# hundred times, which no check before training does.

NETWORKS = """
import numpy as np
import torch
from torch import nn

class Keeping(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.inner = nn.Linear(spec.inputs[0], spec.classes)
        self.calls = 0
    def forward(self, rows):
        self.calls += 1
        if self.training and len(rows) > 100:
            self.keep(rows.detach()[:64].clone())
        return self.inner(rows) + self.told().sum() * 0.0
    def told(self):
        return self.kept

class Buffer(Keeping):
    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer("kept", torch.zeros(64, spec.inputs[0]))
    def keep(self, rows):
        self.kept.copy_(rows)

class Hidden(Buffer):
    def __init__(self, spec):
        Keeping.__init__(self, spec)
        self.register_buffer(
            "kept", torch.zeros(64, spec.inputs[0]), persistent=False)

class Frozen(Keeping):
    def __init__(self, spec):
        super().__init__(spec)
        self.kept = nn.Parameter(
            torch.zeros(64, spec.inputs[0]), requires_grad=False)
    def keep(self, rows):
        self.kept.data.copy_(rows)

class Attribute(Keeping):
    def __init__(self, spec):
        super().__init__(spec)
        self.store = [torch.zeros(64, spec.inputs[0])]
    def keep(self, rows):
        self.store[0] = rows
    def told(self):
        return self.store[0]

class Answering(Attribute):
    def forward(self, rows):
        return super().forward(rows) * (1 + 100 * self.told().mean())

STORE = []
class Global(Attribute):
    def keep(self, rows):
        STORE[:] = [rows]
    def told(self):
        return STORE[0] if STORE else torch.zeros(1)

def trained_elsewhere(spec):
    network = nn.Linear(spec.inputs[0], spec.classes)
    values = np.load(__file__.replace("networks.py", "elsewhere.npy"))
    network.weight.data.copy_(torch.from_numpy(values))
    return network

class Bringing(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.inner = nn.Linear(spec.inputs[0], spec.classes)
        self.mask = torch.arange(spec.inputs[0]).float()
    def forward(self, rows):
        return self.inner(rows * self.mask)

class Scalars(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.inner = nn.Linear(spec.inputs[0], spec.classes)
        self.many = nn.ParameterList(
            nn.Parameter(torch.tensor(i + 2.0)) for i in range(100))
    def forward(self, rows):
        return self.inner(rows) + sum(self.many)
"""


def prepared(
    folder: Path, network: str, *, public: bool = False, **changed: str
) -> TrainingConfig:
    """A configuration for one of the networks, beside the file they are in."""
    name = f"networks_{folder.name.replace('-', '_')}"
    text = NETWORKS.replace("networks.py", f"{name}.py")
    (folder / f"{name}.py").write_text(text)
    model = f'architecture = "module"\nmodule = "{name}:{network}"'
    if public:
        model += '\ninitial_weights = "public"'
    version = 'version = "1.0.0"'
    config = CONFIG.replace(version, f"{version}\n{model}")
    return load_config(write_config(folder, config, **changed))


def kept_in(model: bytes) -> int:
    """Numbers other than 0 in the file's tensors of the size of what was kept."""
    tensors = onnx.load_from_string(model).graph.initializer
    every = [numpy_helper.to_array(item) for item in tensors]
    return sum(int(np.count_nonzero(item)) for item in every if item.size >= 64)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Buffer", "changed body.kept while it trained"),
        ("Hidden", "changed body.kept while it trained"),
        ("Frozen", "changed body.kept while it trained"),
        ("Answering", "computes something else"),
    ],
)
def test_a_network_that_keeps_rows_is_not_released(
    tmp_path: Path, network: str, message: str
) -> None:
    config = prepared(tmp_path, network)
    with pytest.raises(TrainingError, match=message):
        train_bundle(config, tmp_path / "o", quiet, ledger=Ledger(tmp_path / "l"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("network", ["Attribute", "Global"])
def test_what_python_keeps_never_reaches_the_file(tmp_path: Path, network: str) -> None:
    config = prepared(tmp_path, network)
    train_bundle(config, tmp_path / "o", quiet, ledger=Ledger(tmp_path / "l"))
    bundle = read_bundle(tmp_path / "o")
    assert kept_in(bundle.model) == 0
    outside = bundle.report("privacy").details["outside_mechanism"]
    assert {item["name"].partition(".")[0] for item in outside} <= {
        *("low", "span", "numeric", "origin", "category", "body")
    }


# Weights from elsewhere.


def final_weights(folder: Path) -> np.ndarray:
    graph = onnx.load_from_string(read_bundle(folder).model).graph
    named = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return named["body.weight"]


def test_weights_from_elsewhere_do_not_become_random(tmp_path: Path) -> None:
    elsewhere = np.array([[40.0, -3, 2, 1], [-40.0, 3, -2, -1]], dtype=np.float32)
    np.save(tmp_path / "elsewhere.npy", elsewhere)
    config = prepared(tmp_path, "trained_elsewhere", learning_rate="1e-6")
    train_bundle(config, tmp_path / "o", quiet, ledger=Ledger(tmp_path / "l"))
    report = read_bundle(tmp_path / "o").report("privacy")
    assert report.conditions["initial_weights"] == "random"
    stated = report.details["initial_weights"]
    rules = parse_rules(stated["rules"])
    again = recompute(rules, stated["seed"])
    assert again == report.conditions["initial_weights_sha256"]
    assert recompute(rules, stated["seed"] + 1) != again
    # What was fine-tuned is what was drawn; of the weights given nothing is left.
    drawn = rules[0].values(stated["seed"], 0)
    assert np.abs(final_weights(tmp_path / "o") - drawn).max() < 1e-3
    assert np.abs(np.corrcoef(drawn.flatten(), elsewhere.flatten())[0, 1]) < 0.9


def test_public_weights_are_bound_by_their_digest(tmp_path: Path) -> None:
    said = []
    for number in (1.0, 2.0):
        folder = tmp_path / f"{number:g}"
        folder.mkdir()
        np.save(folder / "elsewhere.npy", np.full((2, 4), number, dtype=np.float32))
        config = prepared(folder, "trained_elsewhere", public=True)
        network = fresh_network(config, load_split(config)[0])
        said.append(network.initial_weights)
        assert said[-1] == f"public:{network.initial_sha256}"
    assert said[0] != said[1]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Bringing", "brings body.mask, which training does not change"),
        ("Scalars", "could be weights from elsewhere"),
    ],
)
def test_what_else_could_bring_weights_is_refused(
    tmp_path: Path, network: str, message: str
) -> None:
    config, ledger = prepared(tmp_path, network), Ledger(tmp_path / "l")
    with pytest.raises(TrainingError, match=message):
        train_bundle(config, tmp_path / "o", quiet, ledger=ledger)
    assert ledger.accounts() == []  # nothing was booked


def test_public_weights_and_a_brought_tensor_are_named(tmp_path: Path) -> None:
    config = prepared(tmp_path, "Bringing", public=True)
    train_bundle(config, tmp_path / "o", quiet, ledger=Ledger(tmp_path / "l"))
    report = read_bundle(tmp_path / "o").report("privacy")
    assert report.conditions["outside_mechanism"] == "public_preprocessing_and_network"
    names = [item["name"] for item in report.details["outside_mechanism"]]
    assert "body.mask" in names
    digest = report.conditions["initial_weights_sha256"]
    assert report.conditions["initial_weights"] == f"public:{digest}"
    assert report.details["initial_weights"] == {}


def test_rules_keep_the_spread_and_say_it() -> None:
    body = nn.Sequential(nn.Linear(200, 50), nn.LayerNorm(50), nn.Linear(50, 2))
    nn.init.zeros_(body[2].weight)
    spread = float(body[0].weight.detach().std())
    rules = {rule.name: rule for rule in draw(body, 3)}
    assert float(body[0].weight.detach().std()) == pytest.approx(spread, rel=0.05)
    assert (rules["1.weight"].kind, rules["1.weight"].value) == ("filled", 1.0)
    assert (rules["2.weight"].kind, rules["2.weight"].value) == ("filled", 0.0)
    assert MAX_CONSTANTS < 100
    for broken in ([{"name": "x"}], [3], None, [{**rules["1.weight"].to_object(),
                                                 "kind": "given"}]):  # fmt: skip
        with pytest.raises(TrainingError, match="initial weights"):
            parse_rules(broken)
