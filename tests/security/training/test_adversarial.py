"""Adversarial training, alone and together with DP-SGD."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.architectures import TabularClassifier
from models.manifest import Column
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.adversarial import (
    Adversary,
    adversarial,
    attack,
)
from security.training.config import parse_config
from security.training.gradient_methods import METHODS, make_method
from security.training.gradients import Batch, Clipping, probe, single_rows
from security.training.loop import Recipe
from security.training.noise import SeededRandomness
from security.training.session import against
from security.training.trainer import train_private, train_public
from tests.security.training.conftest import CONFIG as SHARED

torch.set_num_threads(1)
RADIUS = 0.3
RECIPE = Recipe(
    max_grad_norm=1.0, expected_batch=1400, learning_rate=2.0, clipping="automatic"
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def some(count=6):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.rand(count, 64, generator=generator) * 2 - 1
    return single_rows(inputs, torch.randint(0, 10, (count,), generator=generator))


def robust_accuracy(body, batch, adversary):
    found = attack(body, batch, adversary)
    with torch.no_grad():
        return float((body(found).argmax(1) == batch.labels).float().mean())


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_the_attack_stays_where_it_may(method):
    given = some()
    movable = torch.zeros(64)
    movable[:40] = 1
    adversary = Adversary(method, RADIUS, movable=movable)
    found = attack(network(), given, adversary)
    change = (found - given.inputs).abs()
    assert float(change.max()) <= RADIUS + 1e-6
    assert float(found.abs().max()) <= 1
    assert not change[:, 40:].any()
    assert change[:, :40].any(1).all()
    assert not found.requires_grad


def test_the_attack_hurts():
    given, body = some(), network()
    found = attack(body, given, Adversary("pgd", RADIUS))
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(body(found), given.labels) > loss(body(given.inputs), given.labels)
    assert all(p.grad is None for p in body.parameters())


def test_an_example_is_attacked_by_itself():
    """What the guarantee rests on: others in the batch change nothing for one."""
    given, body = some(), network()
    adversary = Adversary("pgd", RADIUS, steps=60)
    whole = attack(body, given, adversary)
    alone = attack(body, single_rows(given.inputs[:1], given.labels[:1]), adversary)
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(body(x[:1]), given.labels[:1]))
            for x in (whole, alone)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_trades_is_its_formula_and_each_pair_is_clipped_as_one(name):
    given, body, beta = some(3), network(), 4.0
    prepare, objective = adversarial(Adversary("trades", RADIUS, beta=beta))
    ready = prepare(body, given)
    assert ready.units.tolist() == [0, 0, 1, 1, 2, 2]
    assert ready.count == 3
    maker = make_method(body, name, objective)
    sums = maker.clipped_sums(ready, Clipping(1e9)).sums
    longest = probe(maker, ready, Clipping(0.1))
    maker.close()
    clean, moved = body(ready.inputs[0::2]), body(ready.inputs[1::2])
    apart = nn.functional.kl_div(
        moved.log_softmax(1), clean.log_softmax(1), reduction="sum", log_target=True
    )
    loss = nn.functional.cross_entropy(clean, given.labels, reduction="sum")
    wanted = torch.autograd.grad(loss + beta * apart, list(body.parameters()))
    for ours, theirs in zip(sums, wanted):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert longest <= 0.1 * (1 + 1e-5)


def test_an_empty_batch():
    empty = single_rows(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    for method in ("pgd", "trades"):
        prepare, _ = adversarial(Adversary(method, RADIUS))
        assert prepare(network(), empty).count == 0


def test_it_makes_models_robust(digits):
    train, test = digits
    judge = Adversary("pgd", RADIUS, steps=20)
    robust = {}
    for method in (None, "pgd", "trades"):
        body = network()
        options = {}
        if method:
            prepare, objective = adversarial(Adversary(method, RADIUS, steps=3))
            options = {"prepare": prepare, "objective": objective}
        train_public(
            body,
            train,
            sample_rate=0.2,
            steps=60,
            recipe=Recipe(1.0, 280, 0.3, momentum=0.9),
            randomness=SeededRandomness(1),
            **options,
        )
        robust[method] = robust_accuracy(body, test, judge)
    assert robust["pgd"] > robust[None] + 0.1
    assert robust["trades"] > robust[None] + 0.1


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_together_with_privacy(digits, method):
    train, test = digits
    prepare, objective = adversarial(Adversary(method, RADIUS, steps=3))
    body = network()
    outcome = train_private(
        body,
        train,
        mechanism=Mechanism(1.0, 10.0, 30),
        recipe=RECIPE,
        randomness=SeededRandomness(1),
        prepare=prepare,
        objective=objective,
    )
    assert outcome.mechanism == Mechanism(1.0, 10.0, 30)  # nothing more was spent
    assert outcome.record.norms_conform()
    assert outcome.method == "bookkeeping"
    with torch.no_grad():
        right = (body(test.inputs).argmax(1) == test.labels).float().mean()
    assert float(right) > 0.3  # it learns: one in ten by chance


@pytest.mark.parametrize(
    "bad", [{"method": "fgsm"}, {"radius": 0.0}, {"steps": 0}, {"beta": -1.0}]
)
def test_refused(bad):
    with pytest.raises(TrainingError):
        Adversary(**{"method": "pgd", "radius": 0.1, **bad})


def test_units_of_several_rows_keep_their_pairs():
    given = some(4)
    owned = Batch(given.inputs, given.labels, torch.tensor([0, 0, 1, 2]), 3)
    prepare, _ = adversarial(Adversary("trades", RADIUS))
    assert prepare(network(), owned).units.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


CONFIG = SHARED.replace('name = "m"\n', 'name = "m"\ncentre = 0.25\n')


def test_configuration_reaches_the_trainer():
    config = parse_config(CONFIG.encode())
    columns = (Column("a", 0.0, 8.0), Column("b", 0.0, 1.0, ("x", "y")))
    module = TabularClassifier(columns, nn.Linear(3, 2), centre=0.25)
    prepare = against(config, module)["prepare"]
    inputs = module.network_input(torch.tensor([[4.0, 1.0], [8.0, 0.0]]))
    nn.init.normal_(module.body.weight)
    found = prepare(module.body, single_rows(inputs, torch.tensor([0, 1]))).inputs
    change = (found - inputs).abs()
    assert 0 < float(change[:, 0].max()) <= 0.2 + 1e-6  # a tenth of a range of 2
    assert not change[:, 1:].any()
    assert against(replace(config, adversarial=None), module) == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"pgd"', '"fgsm"', "adversarial.method"),
        ("radius = 0.1", "radius = 2.0", "adversarial.radius"),
        ("radius = 0.1", "raduis = 0.1", "did you mean 'radius'"),
        ("radius = 0.1", "radius = 0.1\nsteps = 0", "adversarial.steps"),
    ],
)
def test_configuration_refused(old, new, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(CONFIG.replace(old, new).encode())
