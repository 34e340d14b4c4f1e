"""Canaries: the product's own mechanism, sound and broken; and the bounds they give."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from security.assessment.checks.privacy import bounds
from security.assessment.checks.privacy.bounds import Curve
from security.assessment.checks.privacy.canaries import (
    AuditedMechanism,
    judge_kind,
    one_run,
)
from security.commands import main
from security.errors import TrainingError
from security.training import gradients, mechanism, trainer
from security.training.accounting import Mechanism, recompute_epsilon
from security.training.bookkeeping import BookkeepingMethod
from security.training.canaries import CanaryTrainings
from security.training.examples import Examples
from security.training.gradients import Clipping, cross_entropy, single_rows
from security.training.guarantee import privacy_curve
from security.training.loop import Recipe
from security.training.noise import SeededRandomness
from security.training.stacked import StackedNetwork, numbered, stackable
from security.training.trainer import train_private
from tests.support.scanned import linear_onnx
from tests.support.servers import ROOT
from tests.support.small_training import write_config

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ROOT / "examples" / "breast_cancer.toml"
DELTA = 1e-3
NOISE, STEPS = 2.5, 20
EPSILONS = np.linspace(0, 12, 121)


def network(width=3, hidden=4, classes=2, seed=0):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(width, hidden), torch.nn.ReLU()] if hidden else []
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden or width, classes))


def examples(rows=20, width=3, classes=2):
    random = torch.Generator().manual_seed(1)
    inputs = torch.rand(rows, width, generator=random)
    labels = torch.randint(classes, (rows,), generator=random)
    return Examples(inputs, labels)


def audited(*, rate=1.0, noise=NOISE, body=None, **recipe) -> AuditedMechanism:
    plan = Mechanism(rate, noise, STEPS)
    body = body or network(hidden=0)
    width, classes = body[0].in_features, body[-1].out_features
    settings = {"max_grad_norm": 1.0, "expected_batch": 50, "learning_rate": 1.0}
    return AuditedMechanism(
        CanaryTrainings(
            body,
            examples(width=width, classes=classes),
            plan,
            Recipe(**settings | recipe),
        ),
        epsilon=recompute_epsilon(rate, noise, STEPS, DELTA),
        delta=DELTA,
        curve=Curve(EPSILONS, np.array(privacy_curve(plan, list(EPSILONS)))),
        steps=STEPS,
        conditions={},
    )


def verdict(what: AuditedMechanism, kind="gradient", trainings=600):
    watched = what.trainings.several(kind, trainings, seed=3)
    return judge_kind(what, kind, watched.scores, watched.planted)


def weights(body):
    return torch.cat([p.detach().flatten() for p in body.parameters()])


class Silent:
    """Randomness without noise: the radius of 0 is 0; everyone is taken."""

    name = "silent"

    def uniform(self, count):
        return np.zeros(count)


# Side by side is what one after another is.


@pytest.mark.parametrize("kind", ["flat", "automatic"])
def test_gradients_side_by_side_are_those_of_single_networks(kind):
    bodies = [network(seed=seed) for seed in range(3)]
    stack = StackedNetwork(bodies[0], 3)
    with torch.no_grad():
        for place, body in enumerate(bodies):
            for layer, own in ((0, 0), (2, 2)):
                stack.layers[layer].weight[place] = body[own].weight
                stack.layers[layer].bias[place] = body[own].bias
    counts, clipping = (5, 0, 2), Clipping(0.3, kind)
    parts = [examples(count) for count in counts]
    batch = single_rows(
        torch.cat([numbered(p.inputs, i) for i, p in enumerate(parts)]),
        torch.cat([p.labels for p in parts]),
    )
    whole = BookkeepingMethod(stack, cross_entropy).clipped_sums(batch, clipping)
    for place, (body, part) in enumerate(zip(bodies, parts)):
        method = BookkeepingMethod(body, cross_entropy)
        alone = method.clipped_sums(single_rows(part.inputs, part.labels), clipping)
        for ours, theirs in zip(whole.sums, alone.sums):
            assert torch.allclose(ours[place], theirs, atol=1e-6)
    assert float(whole.norms.max()) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_side_by_side_is_that_of_single_networks(optimizer):
    recipe = Recipe(
        0.5, 10, 0.3, momentum=0.5, optimizer=optimizer, ema=0.9, schedule="cosine"
    )
    body, rows = network(), [examples(n) for n in (4, 6)]
    stack = StackedNetwork(body, 2)
    both = Examples(
        torch.cat([numbered(r.inputs, i) for i, r in enumerate(rows)]),
        torch.cat([r.labels for r in rows]),
    )
    plan = Mechanism(1.0, 1.0, 7)
    train_private(stack, both, mechanism=plan, recipe=recipe, randomness=Silent())
    for place, own in enumerate(rows):
        single = network()
        train_private(single, own, mechanism=plan, recipe=recipe, randomness=Silent())
        stacked = torch.cat([p.detach()[place].flatten() for p in stack.parameters()])
        assert not torch.allclose(weights(single), weights(body))
        assert torch.allclose(stacked, weights(single), atol=1e-5)


def test_noise_side_by_side_is_of_the_stated_deviation_and_independent():
    stack = StackedNetwork(network(hidden=0, width=40), 30)
    before = stack.layers[0].weight.detach().clone()
    train_private(
        stack,
        Examples(numbered(torch.zeros(1, 40), 0), torch.zeros(1, dtype=torch.int64)),
        mechanism=Mechanism(1e-12, 2.5, 1),
        recipe=Recipe(1.0, 50, 1.0),
        randomness=SeededRandomness(0),
    )
    draws = (stack.layers[0].weight.detach() - before).flatten(1) * 50 / 2.5
    assert abs(float(draws.std()) - 1) < 0.06
    between = torch.corrcoef(draws) - torch.eye(30)
    assert float(between.abs().max()) < 0.5


def test_what_is_no_perceptron_is_not_put_side_by_side():
    body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GroupNorm(1, 4))
    assert not stackable(body)
    with pytest.raises(TrainingError, match="only perceptrons"):
        StackedNetwork(body, 2)


# The mechanism as it is, and broken.


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"rate": 0.3, "noise": 1.0},
        {"clipping": "automatic", "loss_share": 0.1},
        {"body": network(hidden=3), "optimizer": "adam", "ema": 0.9},
    ],
    ids=["full", "sampled", "automatic", "perceptron"],
)
def test_the_mechanism_keeps_its_claim(what):
    whole = audited(**what)
    for kind in ("gradient", "huge"):
        judged = verdict(whole, kind)
        assert judged.words == "no evidence against it", judged
        assert judged.epsilon_counting < whole.epsilon
        # The audit is no empty gesture: it sees a good part of what is there.
        assert (
            judged.epsilon_gaussian > (0.1 if "rate" in what else 0.3) * whole.epsilon
        )


def test_half_the_noise_is_caught(monkeypatch):
    whole, real = audited(), mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda r, n: real(r, n) / 2)
    judged = verdict(whole)
    assert judged.words == "contradicts the claim"
    assert judged.gaussian.low > judged.allowed + 0.05
    assert judged.epsilon_gaussian > 1.3 * whole.epsilon


def test_missing_clipping_is_caught_by_the_long_canary(monkeypatch):
    whole = audited()
    monkeypatch.setattr(
        gradients.Clipping, "factors", lambda self, norms: torch.ones_like(norms)
    )
    judged = verdict(whole, "huge", 200)
    assert judged.words == "contradicts the claim"
    assert judged.gaussian.found == judged.gaussian.trained
    assert judged.gaussian.accused == 0


def test_a_sampler_that_takes_everyone_is_caught(monkeypatch):
    whole = audited(rate=0.3, noise=2.0)
    monkeypatch.setattr(
        trainer, "poisson", lambda units, *_: torch.ones(units, dtype=torch.bool)
    )
    assert verdict(whole).words == "contradicts the claim"


def test_networks_of_other_layers_are_trained_one_after_another(monkeypatch):
    body = torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.GroupNorm(1, 3), torch.nn.Linear(3, 2)
    )
    whole = audited(body=body)
    assert not whole.trainings.side_by_side
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda r, n: real(r, n) * 0)
    watched = whole.trainings.several("gradient", 4, seed=1)
    assert watched.planted.tolist() == [False, True, False, True]
    absent, present = watched.scores[:2]
    # About T (C/s)^2, but for what other rows do to the hidden layer.
    assert present - absent == pytest.approx(STEPS / NOISE**2, rel=0.5)
    assert watched.scores[2:].tolist() == [absent, present]


def test_the_same_seed_gives_the_same_scores_in_another_process():
    whole = audited()
    again = pickle.loads(pickle.dumps(whole))  # noqa: S301  (our own, as workers get it)
    first, second = (
        item.trainings.several("gradient", 20, seed=7) for item in (whole, again)
    )
    assert np.array_equal(first.scores, second.scores)
    other = whole.trainings.several("gradient", 20, seed=8)
    assert not np.array_equal(first.scores, other.scores)


def test_one_run_sees_something_and_claims_nothing_wrong(monkeypatch):
    whole = replace(audited(body=network(width=10, hidden=0, classes=4)), delta=1e-7)
    watched = whole.trainings.once(seed=2)
    assert len(watched.scores) == 40
    own, others = watched.scores[watched.planted], watched.scores[~watched.planted]
    assert own.mean() > others.mean()
    metric, words = one_run(whole, watched.scores, watched.planted)
    assert 0 <= metric.value < recompute_epsilon(1.0, NOISE, STEPS, 1e-7)
    assert "40 canaries" in words
    real = mechanism.gaussian

    def bound(factor):
        monkeypatch.setattr(mechanism, "gaussian", lambda r, n: real(r, n) * factor)
        seen = whole.trainings.once(seed=2)
        return one_run(whole, seen.scores, seen.planted)[0].value

    assert bound(0) > bound(10) + 0.3


# The bounds, on attackers whose epsilon is known.


def test_bounds_hold_for_a_gaussian_of_known_distance():
    shift, delta, wrong = 1.2, 1e-3, 0
    truth = bounds.epsilon_of_mean(shift, delta)
    planted = np.arange(1000) % 2 == 1
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(size=1000) + planted * shift
        counting, gaussian = bounds.judge(scores, planted, delta=delta, level=0.01)
        found = bounds.epsilon_of_mean(bounds.mean_shift(gaussian), delta)
        wrong += found > truth or bounds.epsilon_by_counting(counting, delta) > truth
        assert found > 0.4 * truth
    # Four bounds at 1% each: 1.6 of 40 at most expected.
    assert wrong <= 6


def test_counting_is_sharp_for_randomised_response():
    # The definition's own worst case: a coin that tells the truth e^1 times as often.
    random = np.random.default_rng(0)
    planted = np.arange(20_000) % 2 == 1
    honest = random.random(20_000) < math.e / (1 + math.e)
    scores = np.where(honest, planted, ~planted).astype(float)
    counting, _ = bounds.judge(scores, planted, delta=0.0, level=0.01)
    assert 0.85 < bounds.epsilon_by_counting(counting, 0.0) < 1.0


def test_epsilon_of_a_gaussian_is_the_accountants():
    for noise, steps in ((5.0, 20), (1.0, 4)):
        exact = recompute_epsilon(1.0, noise, steps, 1e-4)
        ours = bounds.epsilon_of_mean(math.sqrt(steps) / noise, 1e-4)
        assert ours == pytest.approx(exact, abs=2e-3)


def test_the_curve_of_full_batches_is_a_gaussians():
    plan = Mechanism(1.0, NOISE, STEPS)
    curve = Curve(EPSILONS, np.array(privacy_curve(plan, list(EPSILONS))))
    shift = math.sqrt(STEPS) / NOISE
    for rate in (0.001, 0.05, 0.5, 0.95):
        exact = norm.cdf(norm.ppf(rate) + shift)
        assert exact <= curve.most(rate) + 1e-9
        assert curve.most(rate) < exact + 2e-3


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_one_run_bound_holds_for_coins(epsilon):
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(60):
        planted = random.random(200) < 0.5
        honest = random.random(200) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(honest, planted, ~planted) + 1e-3 * random.random(200)
        bound, guesses, right = bounds.one_run_epsilon(
            scores, planted, 1e-6, level=0.05
        )
        assert 0 < guesses <= 200
        assert right <= guesses
        wrong += bound > epsilon
    assert wrong <= 8


def test_nothing_told_apart_bounds_nothing():
    scores = np.random.default_rng(0).normal(size=400)
    planted = np.arange(400) % 2 == 1
    counting, gaussian = bounds.judge(scores, planted, delta=1e-5, level=0.01)
    assert bounds.epsilon_by_counting(counting, 1e-5) == 0
    assert bounds.epsilon_of_mean(bounds.mean_shift(gaussian), 1e-5) == 0
    assert bounds.one_run_epsilon(scores, planted, 1e-5, level=0.01)[0] == 0


# By the command, and in a scan.


def test_the_command(tmp_path, capsys, monkeypatch):
    config = write_config(tmp_path)
    arguments = ["canaries", str(config), "--trainings", "300"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("no evidence against it") == 2
    assert "epsilon 2 at delta 0.001" in out
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda r, n: real(r, n) / 3)
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {item["verdict"] for item in document["canaries"]} == {
        "contradicts the claim"
    }
    assert document["canaries"][0]["epsilon_at_least_gaussian"] > 2


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--trainings", "50"], "fewer than 100"),
        ({}, ["--seed", "-1"], "--seed"),
        ({"epsilon": "-1"}, [], "privacy.epsilon"),
    ],
)
def test_bad_input_of_the_command(tmp_path, capsys, changes, arguments, message):
    config = write_config(tmp_path, **changes)
    assert main(["canaries", str(config), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_public_training_claims_nothing(tmp_path, capsys):
    from tests.support.small_training import CONFIG as TEXT

    text = TEXT.replace('name = "persons"', 'name = "persons"\npersonal = false')
    text = text.replace("epsilon = 2.0", 'mechanism = "none"')
    config = write_config(tmp_path, text)
    assert main(["canaries", str(config)]) == 2
    assert "claims no epsilon" in capsys.readouterr().err


def scan(tmp_path, *more):
    weights = np.zeros((30, 2), np.float32)
    weights[0] = (0.4, -0.4)
    (tmp_path / "m.onnx").write_bytes(
        linear_onnx(weights, [-5.6, 5.6], tail=("Softmax",))
    )
    arguments = ["scan", str(tmp_path / "m.onnx"), "--data", str(CONFIG), "--jobs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), *more]) == 0
    report = json.loads((tmp_path / "out" / "scan.json").read_text())
    (result,) = [r for r in report["results"] if r["check"] == "canaries"]
    return report, result


def test_in_a_scan_a_broken_mechanism_is_an_error(tmp_path, monkeypatch):
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda r, n: real(r, n) / 3)
    config = write_config(tmp_path)
    more = ["--training", str(config), "--check", "canaries"]
    report, result = scan(tmp_path, *more)
    assert result["status"] == "done"
    assert result["conditions"]["verdict"] == "contradicts the claim"
    (rule,) = {item["rule"] for item in report["findings"]}
    assert rule == "canary-beyond-claim"
    assert result["metrics"]["epsilon_at_least_gradient_gaussian"]["n"] == 300
    assert "epsilon_at_least_one_run" in result["metrics"]
    assert len(result["details"]["tables"][0]["rows"]) == 3
    page = (tmp_path / "out" / "scan.html").read_text()
    assert "contradicts the claim" in page
    assert "allowed by the claim" in page


def test_an_interrupted_scan_goes_on_with_the_same_training_only(tmp_path):
    from security.commands.scan_training import load_mechanism, load_training

    def digests(epsilon):
        config = write_config(tmp_path, epsilon=epsilon)
        loaded = load_mechanism(config, None)
        return loaded.sha256, load_training(config, None).sha256

    first, other = digests("2.0"), digests("3.0")
    assert all(len(a) == 64 and a != b for a, b in zip(first, other))


def test_in_a_quick_scan_it_is_left_out_with_the_reason(tmp_path):
    _, result = scan(tmp_path, "--check", "quality", "--check", "canaries")
    assert result["status"] == "skipped"
    assert "--training" in result["reason"]
