"""Training for certificates: bounds, gradients of them, schedules, configurations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.architectures import NetworkSpec, TabularClassifier, build_network
from models.manifest import Column
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.adversarial import Adversary, attack
from security.training.certified import Certifying, Schedule
from security.training.config import parse_config, parse_object
from security.training.gradient_methods import METHODS, choose, make_method
from security.training.gradients import Batch, Clipping, probe, single_rows
from security.training.intervals import BoundedNetwork, check_boundable, views_of
from security.training.loop import Recipe
from security.training.noise import SeededRandomness
from security.training.session import against
from security.training.trainer import train_private, train_public
from tests.security.training.conftest import CONFIG as SHARED

torch.set_num_threads(1)
SHAPES = {"linear": (6,), "mlp": (6,), "deep": (6,), "plain-cnn": (2, 9, 8)}
SHAPES |= {"groups": (2, 9, 8), "clipped": (6,)}
KINDS = list(SHAPES)
RADIUS = 0.1


def network(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "groups":
        return nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(1, 2), dilation=2, groups=2, bias=False),
            nn.ReLU6(),
            nn.Flatten(),
            nn.Linear(60, 3),
        )
    if kind == "clipped":
        inner = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Hardtanh(-0.2, 0.4))
        return nn.Sequential(inner, nn.Identity(), nn.Linear(5, 3))
    hidden = {"mlp": (5,), "deep": (8, 8), "plain-cnn": (4, 8)}.get(kind, ())
    name = "mlp" if kind == "deep" else kind
    body = build_network(name, NetworkSpec(SHAPES[kind], 3, hidden))
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.3)
    return body


def batch(kind, units=None, rows=7):
    generator = torch.Generator().manual_seed(1)
    inputs = 2 * torch.rand(rows, *SHAPES[kind], generator=generator) - 1
    labels = torch.randint(0, 3, (rows,), generator=generator)
    if units is None:
        return single_rows(inputs, labels)
    return Batch(inputs, labels, torch.tensor(units), max(units) + 1)


def margins(body, given, radius):
    low, high = given.inputs - radius, given.inputs + radius
    views = views_of([given.inputs], low, high, given.labels)
    bounded = BoundedNetwork(body, tuple(given.inputs.shape[1:]))
    with torch.no_grad():
        answers = bounded(views)
    torch.testing.assert_close(answers[:, 0], body(given.inputs).detach())
    return answers[:, 1]


def ahead(body, inputs, labels):
    with torch.no_grad():
        logits = body(inputs)
    return logits.gather(1, labels[:, None]) - logits


@pytest.mark.parametrize("kind", KINDS)
def test_no_point_of_the_box_is_below_the_margins(kind):
    generator = torch.Generator().manual_seed(3)
    for seed in range(5):
        body, given = network(kind, seed), batch(kind)
        least = margins(body, given, RADIUS)
        for draw in range(40):
            moved = 2 * torch.rand(given.inputs.shape, generator=generator) - 1
            moved = moved.sign() if draw % 2 else moved
            found = ahead(body, given.inputs + RADIUS * moved, given.labels)
            assert bool((found >= least - 1e-5).all())
        adversary = Adversary("pgd", RADIUS, low=-2.0, high=2.0, steps=20)
        found = ahead(body, attack(body, given, adversary), given.labels)
        assert bool((found >= least - 1e-5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_box_margins_are_those_of_the_point(kind):
    body, given = network(kind), batch(kind)
    wanted = ahead(body, given.inputs, given.labels)
    torch.testing.assert_close(margins(body, given, 0.0), wanted, atol=1e-5, rtol=1e-5)


def test_a_linear_model_s_margins_are_exact():
    body, given = network("linear"), batch("linear")
    least = margins(body, given, RADIUS)
    weight = body[0].weight.detach()
    for other in range(3):
        against_it = (weight[given.labels] - weight[other]).sign()
        worst = given.inputs - RADIUS * against_it
        found = ahead(body, worst, given.labels)[:, other]
        torch.testing.assert_close(least[:, other], found, atol=1e-5, rtol=1e-5)


def certifying(attacked="pgd", **values):
    return Certifying(
        Adversary(attacked, RADIUS, steps=2, beta=3.0, low=-1.0, high=1.0),
        Schedule(**values),
    )


def clipped(kind, method, given, clipping, attacked):
    body, made = network(kind), certifying(attacked)
    torch.manual_seed(5)  # of the attack's start
    ready = made.prepare(body, given)
    taught = made.network(body, SHAPES[kind])
    assert choose(taught) == "bookkeeping"
    maker = make_method(taught, method, made.objective)
    result = maker.clipped_sums(ready, clipping)
    longest = probe(maker, ready, clipping)
    maker.close()
    assert all(p.grad is None for p in body.parameters())
    return result, longest, ready, body


@pytest.mark.parametrize("attacked", ["pgd", "trades"])
@pytest.mark.parametrize("units", [None, [0, 0, 0, 1, 2, 2, 3]])
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_method_gives_the_same(kind, units, attacked):
    given = batch(kind, units)
    for clipping in (Clipping(0.3), Clipping(0.3, "automatic"), Clipping(1e6)):
        found = {m: clipped(kind, m, given, clipping, attacked) for m in METHODS}
        (ours, longest, _, _), (theirs, _, _, _) = found["bookkeeping"], found["hooks"]
        for one, other in zip(ours.sums, theirs.sums, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.norms, theirs.norms, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.losses, theirs.losses, atol=1e-5, rtol=1e-4)
        if clipping.max_grad_norm < 1:
            assert longest <= clipping.max_grad_norm * (1 + 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_autograd_s(kind, method):
    """Each example's by itself, so that nothing of the others is in it."""
    given = batch(kind)
    result, _, ready, body = clipped(kind, method, given, Clipping(0.3), "pgd")
    made, sums = certifying(), [torch.zeros_like(p) for p in body.parameters()]
    for row in range(len(given.labels)):
        taught = made.network(body, SHAPES[kind])
        one = slice(row, row + 1)
        loss = made.objective(taught, ready.inputs[one], ready.labels[one])
        own = torch.autograd.grad(loss.sum(), list(body.parameters()))
        norm = torch.stack([g.norm() for g in own]).norm()
        torch.testing.assert_close(
            result.norms[row], norm.clamp(max=0.3), atol=1e-5, rtol=1e-4
        )
        for total, gradient in zip(sums, own):
            total.add_(gradient, alpha=min(1.0, 0.3 / float(norm)))
    for ours, theirs in zip(result.sums, sums, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_parts_that_cancel_are_not_clipped_too_little():
    """Norms come from products that may cancel: never below what is summed."""
    body, given = network("deep"), batch("deep", rows=64)
    taught = BoundedNetwork(body, (6,))
    ends = given.inputs - 1e-6, given.inputs + 1e-6
    views = views_of([given.inputs], *ends, given.labels)

    def objective(net, views, labels):
        answers = net(views)
        right = answers[:, 0].gather(1, labels[:, None])
        # All but the width of the box takes itself away.
        return 1e4 * (right - answers[:, 0] - answers[:, 1]).sum(1)

    maker = make_method(taught, "bookkeeping", objective)
    for most in (1e-3, 1.0):
        found = probe(maker, replace(given, inputs=views), Clipping(most))
        assert found <= most * 1.001
    maker.close()


def test_an_empty_batch():
    empty = single_rows(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    made, body = certifying(), network("mlp")
    ready = made.prepare(body, empty)
    assert (ready.count, tuple(ready.inputs.shape)) == (0, (0, 3, 7))


def test_radius_and_weight_grow_and_stay():
    made = certifying(weight=0.8, ramp=0.4)
    body, given = network("mlp"), batch("mlp")
    taught = made.network(body, (6,))
    widths, losses = [], []
    for share in (0.1, 0.2, 0.4, 1.0):
        made.begin(share)
        torch.manual_seed(0)
        ready = made.prepare(body, given)
        widths.append(float((ready.inputs[:, 2, 0] - ready.inputs[:, 1, 0]).max()))
        losses.append(made.objective(taught, ready.inputs, ready.labels).detach())
    assert widths == pytest.approx([0.05, 0.1, 0.2, 0.2], abs=1e-6)
    torch.testing.assert_close(losses[2], losses[3])
    answers = taught(ready.inputs).detach()
    entropy = nn.functional.cross_entropy
    attacked = entropy(answers[:, 0], given.labels, reduction="none")
    certified = entropy(-answers[:, 1], given.labels, reduction="none")
    wanted = 0.2 * attacked + 0.8 * certified
    torch.testing.assert_close(losses[3], wanted)


def test_categories_and_the_ends_of_ranges_are_kept():
    movable = torch.tensor([1.0, 1, 1, 1, 0, 0])
    adversary = Adversary("pgd", 0.3, low=-1.0, high=1.0, movable=movable)
    given = batch("mlp")
    views = Certifying(adversary, Schedule()).prepare(network("mlp"), given).inputs
    low, high = views[:, 1, :-1], views[:, 2, :-1]
    wanted = (given.inputs - 0.3 * movable).clamp_min(-1)
    torch.testing.assert_close(low, wanted)
    torch.testing.assert_close(high, (given.inputs + 0.3 * movable).clamp_max(1))
    assert bool((views[:, 0] >= views[:, 1]).all() & (views[:, 0] <= views[:, 2]).all())
    assert bool((views[..., -1] == given.labels[:, None]).all())


REFUSED = [
    (build_network("resnet", NetworkSpec((6,), 3)), "no bounds for _Residual"),
    (build_network("cnn", NetworkSpec((1, 8, 8), 3)), "no bounds for GroupNorm"),
    (nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), "no bounds for Sigmoid"),
    (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "last layer must be Linear"),
    (nn.Sequential(), "last layer must be Linear"),
    (
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        "ReLU works in place",
    ),
    (nn.Sequential(nn.Flatten(2), nn.Linear(6, 4)), "Flatten must take all"),
    (nn.Sequential(*[nn.Linear(6, 6)] * 2, nn.Linear(6, 2)), "used twice"),
    (
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(8, 2)
        ),
        "Conv2d must pad with zeros",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_networks_without_bounds_are_refused(body, message):
    with pytest.raises(TrainingError, match=message):
        check_boundable(body)


@pytest.mark.parametrize("values", [{"weight": 0.0}, {"weight": 1.1}, {"ramp": -0.1}])
def test_schedules_refused(values):
    with pytest.raises(TrainingError):
        Schedule(**values)


def perceptron():
    torch.manual_seed(0)
    return build_network("mlp", NetworkSpec((64,), 10, (32, 32)))


def certified_share(body, batch, radius):
    ends = (batch.inputs + s * radius for s in (-1, 1))
    ends = [end.clamp(-1, 1) for end in ends]
    views = views_of([batch.inputs], *ends, batch.labels)
    with torch.no_grad():
        least = BoundedNetwork(body, (64,))(views)[:, 1]
    others = torch.nn.functional.one_hot(batch.labels, 10) == 0
    return float((least[others].reshape(-1, 9) > 0).all(1).float().mean())


def test_more_can_be_certified_after_it(digits):
    train, test = digits
    adversary = Adversary("pgd", RADIUS, steps=2)
    shares = {}
    for certified in (False, True):
        body, options = perceptron(), {}
        if certified:
            made = Certifying(adversary, Schedule())
            options = {
                "prepare": made.prepare,
                "objective": made.objective,
                "curriculum": made,
            }
        train_public(
            body,
            train,
            sample_rate=0.2,
            steps=150,
            recipe=Recipe(1.0, 280, 0.3, momentum=0.9),
            randomness=SeededRandomness(1),
            **options,
        )
        with torch.no_grad():
            right = (body(test.inputs).argmax(1) == test.labels).float().mean()
        shares[certified] = float(right), certified_share(body, test, RADIUS)
    assert shares[True][0] > 0.85
    assert shares[True][1] > shares[False][1] + 0.2, shares


@pytest.mark.parametrize("method", METHODS)
def test_together_with_privacy(digits, method):
    train, test = digits
    made, body = certifying(), perceptron()
    outcome = train_private(
        body,
        train,
        mechanism=Mechanism(1.0, 10.0, 30),
        recipe=Recipe(1.0, 1400, 4.0, clipping="automatic"),
        randomness=SeededRandomness(1),
        method=method,
        prepare=made.prepare,
        objective=made.objective,
        curriculum=made,
    )
    assert outcome.mechanism == Mechanism(1.0, 10.0, 30)  # nothing more was spent
    assert outcome.record.norms_conform()
    assert outcome.method == method
    with torch.no_grad():
        right = (body(test.inputs).argmax(1) == test.labels).float().mean()
    assert float(right) > 0.3  # it learns: one in ten by chance


CONFIG = (
    SHARED.replace("[data]\n", 'architecture = "mlp"\nhidden = [8]\n[data]\n')
    + """certified = true
certified_weight = 0.25
certified_ramp = 0.0
"""
)


def test_configuration_reaches_the_trainer():
    config = parse_config(CONFIG.encode())
    columns = (Column("a", 0.0, 8.0), Column("b", 0.0, 1.0, ("x", "y")))
    module = TabularClassifier(columns, nn.Linear(3, 2))
    options = against(config, module)
    options["curriculum"].begin(0.01)
    inputs = module.network_input(torch.tensor([[4.0, 1.0], [8.0, 0.0]]))
    views = options["prepare"](module.body, single_rows(inputs, torch.tensor([0, 1])))
    width = views.inputs[:, 2, :-1] - views.inputs[:, 1, :-1]
    wanted = torch.tensor([[0.4, 0, 0], [0.2, 0, 0]])  # a tenth of a range of 2
    torch.testing.assert_close(width, wanted)


def test_what_is_stated_is_read_again_and_names_nothing_where_it_is_not_asked_for():
    config = parse_config(CONFIG.encode())
    stated = config.to_object()
    assert stated["adversarial"]["certified"] is True
    again = parse_object(stated, where="evidence")
    assert again.adversarial == config.adversarial
    plain = CONFIG[: CONFIG.index("certified")]
    assert parse_config(plain.encode()).to_object()["adversarial"] == {
        "method": "pgd",
        "radius": 0.1,
        "steps": 7,
        "beta": 6.0,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"mlp"\nhidden = [8]',
            '"resnet"',
            "'resnet' normalises.*GroupNorm.*plain-cnn",
        ),
        ('"mlp"\nhidden = [8]', '"cnn"', "'cnn' normalises"),
        ("certified_weight = 0.25", "certified_weight = 0.0", "certified_weight"),
        ("certified_weight = 0.25", "certified_weight = 1.5", "certified_weight"),
        ("certified_ramp = 0.0", "certified_ramp = 2.0", "certified_ramp"),
        ("certified = true", "certified = false", "is for certified = true"),
        ("certified = true", 'certified = "yes"', "certified"),
        ("certified = true", "certifed = true", "did you mean 'certified'"),
    ],
)
def test_configuration_refused(old, new, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(CONFIG.replace(old, new).encode())
