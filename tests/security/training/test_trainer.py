"""DP-SGD: the mechanism itself, and the bundle that a training writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant
from scipy import stats

from models.bundle import read_bundle
from models.data.datasets import digest
from models.errors import BundleError
from security.errors import TrainingError
from security.training import mechanism as mechanisms
from security.training.accounting import Mechanism, recompute_epsilon
from security.training.examples import Examples
from security.training.ledger import Ledger
from security.training.loop import Recipe
from security.training.noise import SeededRandomness, SystemRandomness, gaussian
from security.training.run import train_bundle
from security.training.trainer import train_private
from tests.support import trained

RECIPE = Recipe(max_grad_norm=1.0, expected_batch=50, learning_rate=1.0)


def body(width: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(width, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    )


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def run(module, rows=100, *, mechanism, recipe=RECIPE, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(rows, 3, generator=generator) * scale
    labels = (inputs[:, 0] > scale / 2).long()
    return train_private(
        module,
        Examples(inputs, labels),
        mechanism=mechanism,
        recipe=recipe,
        randomness=SeededRandomness(seed),
    )


def noisy(module):
    return mechanisms.NoisyOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        mechanisms.Noise(1.0, 1.0, 50),
        randomness=SeededRandomness(0),
        record=mechanisms.Conformance(),
    )


class Silent:
    """Randomness without noise: the radius of 0 is 0; everyone is taken."""

    name = "silent"

    def uniform(self, count):
        return np.zeros(count)


def test_same_seed_same_weights_other_seed_other_weights():
    mechanism = Mechanism(0.5, 1.0, 5)
    first, second, third = body(), body(), body()
    run(first, mechanism=mechanism)
    run(second, mechanism=mechanism)
    run(third, mechanism=mechanism, seed=2)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def test_outcome_is_the_plan():
    mechanism = Mechanism(0.25, 2.0, 7)
    outcome = run(body(), rows=150, mechanism=mechanism)
    assert outcome.mechanism == mechanism
    assert outcome.units == 150


def test_empty_batches_are_noise_alone():
    module = body()
    before = weights(module)
    run(module, rows=3, mechanism=Mechanism(1e-9, 1.0, 4))
    moved = weights(module) - before
    assert torch.isfinite(moved).all()
    assert (moved != 0).all()


def test_full_batches():
    outcome = run(body(), mechanism=Mechanism(1.0, 1.0, 3))
    assert outcome.record.rate_conforms(1.0, 1e-9)


def test_noise_has_the_stated_deviation():
    # Empty batches leave the noise: lr * sigma * C / expected_batch per step.
    moves = []
    for seed in range(40):
        module = torch.nn.Linear(3, 20)
        before = weights(module)
        run(module, rows=1, mechanism=Mechanism(1e-12, 2.5, 1), seed=seed)
        moves.append(weights(module) - before)
    draws = torch.cat(moves).double().numpy() * RECIPE.expected_batch / 2.5
    statistic = float((draws**2).sum())
    assert 1e-4 < stats.chi2.cdf(statistic, len(draws)) < 1 - 1e-4
    assert stats.kstest(draws, "norm").pvalue > 1e-4


@pytest.mark.parametrize("rows", [1, 7])
def test_each_row_is_clipped(rows):
    # Equal rows with huge gradients move the weights by lr * C / batch each.
    module = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(module.bias)
    train_private(
        module,
        Examples(torch.full((rows, 3), 1e6), torch.zeros(rows, dtype=torch.int64)),
        mechanism=Mechanism(1.0, 1.0, 1),
        recipe=RECIPE,
        randomness=Silent(),
    )
    length = torch.linalg.vector_norm(weights(module))
    assert float(length) == pytest.approx(rows / RECIPE.expected_batch, rel=1e-3)


def test_rows_are_sampled_at_the_stated_rate():
    drawn = [
        int(mechanisms.poisson(1000, 0.3, SeededRandomness(seed)).sum())
        for seed in range(100)
    ]
    deviation = np.sqrt(100 * 1000 * 0.3 * 0.7)
    assert abs(sum(drawn) - 30_000) < 5 * deviation
    assert len(set(drawn)) > 10  # the size is random: Poisson, not fixed


def test_divisor_does_not_depend_on_the_rows():
    small, large = body(), body()
    mechanism = Mechanism(1e-9, 1.0, 2)
    run(small, rows=2, mechanism=mechanism)
    run(large, rows=200, mechanism=mechanism)
    # Same seed, different counts of rows: the noise differs, its scale does not.
    ratio = weights(small).std() / weights(large).std()
    assert 0.5 < float(ratio) < 2


def test_the_original_optimizer_refuses():
    module = body()
    optimizer = noisy(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(TrainingError, match="without clipping and noise"):
        optimizer.original_optimizer.step()


def test_a_step_the_accountant_missed():
    accountant = PRVAccountant()
    accountant.step(noise_multiplier=1.0, sample_rate=0.5)
    with pytest.raises(TrainingError, match="the accountant recorded"):
        mechanisms.check_history(accountant.history, Mechanism(0.5, 1.0, 2))


def test_gradients_that_are_not_finite():
    module = body()
    with pytest.raises(TrainingError, match="not finite"):
        run(module, mechanism=Mechanism(1.0, 1.0, 1), scale=float("inf"))


def test_no_rows():
    with pytest.raises(TrainingError, match="0 rows"):
        run(body(), rows=0, mechanism=Mechanism(1.0, 1.0, 1))


@pytest.mark.parametrize("source", [SystemRandomness(), SeededRandomness(0)])
def test_randomness(source):
    uniform = source.uniform(20_000)
    assert ((uniform >= 0) & (uniform < 1)).all()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-6
    assert stats.kstest(gaussian(source, 20_000), "norm").pvalue > 1e-6


def test_both_numbers_of_a_pair_are_independent():
    for count in (0, 1, 7):
        assert len(gaussian(SeededRandomness(0), count)) == count
    drawn = gaussian(SeededRandomness(1), 40_000)
    first, second = drawn[:20_000], drawn[20_000:]  # cosines, then sines
    assert stats.kstest(second, "norm").pvalue > 1e-6
    for left, right in ((first, second), (first**2, second**2), (first, second**2)):
        assert stats.pearsonr(left, right).pvalue > 1e-6


def test_system_randomness_does_not_repeat():
    first, second = (SystemRandomness().uniform(8).tolist() for _ in range(2))
    assert first != second


@pytest.mark.slow
def test_bundle_and_its_evidence():
    bundle = read_bundle(trained.bundle())
    train, _ = trained.rows()
    reports = {
        kind: bundle.report(kind) for kind in ("privacy", "parity", "provenance")
    }
    assert all(report.subject == bundle.subject for report in reports.values())
    privacy = reports["privacy"]
    assert all(check.passed for check in privacy.checks)
    conditions = privacy.conditions
    # What a stranger does with the evidence.
    again = recompute_epsilon(
        conditions["sample_rate"],
        conditions["noise_multiplier"],
        conditions["steps"],
        conditions["delta"],
    )
    assert again <= privacy.metrics["epsilon"].value <= 3.0
    assert privacy.metrics["delta"].value <= len(train) ** -1.1
    assert privacy.metrics["epsilon_rdp"].value >= again
    assert conditions["noise_generator"] == "seeded_not_private"
    assert conditions["personal_data"] is True
    for name in ("privacy", "provenance"):
        (used,) = reports[name].datasets
        assert (used.role, used.rows) == ("train", len(train))
        assert used.sha256 == digest(train.features, train.labels)
    assert reports["parity"].metrics["max_abs_difference"].value < 1e-5
    assert reports["provenance"].details["config"] == trained.config().to_object()


def test_manifest():
    manifest = read_bundle(trained.bundle()).manifest
    assert manifest.tag == "breast-cancer:1.0.0"
    assert manifest.inputs[0].columns == trained.rows()[0].columns
    assert manifest.outputs[0].labels == ("malignant", "benign")


def test_existing_folder_is_refused_untouched(tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        train_bundle(
            trained.config(),
            tmp_path / "bundle",
            lambda *_: None,
            ledger=Ledger(tmp_path / "ledger"),
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_impossible_guarantee_writes_nothing(tmp_path):
    config = trained.config().to_object()
    config["privacy"]["delta"] = 0.5
    text = "\n".join(
        f"[{section}]\n"
        + "\n".join(f"{key} = {json.dumps(item)}" for key, item in values.items())
        for section, values in config.items()
    )
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(TrainingError, match="not below 1/n"):
        train_bundle(
            trained.load_config(tmp_path / "c.toml"),
            tmp_path / "out",
            lambda *_: None,
            ledger=Ledger(tmp_path / "ledger"),
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "c.toml"]


@pytest.mark.parametrize("fault", ["noise", "norms", "rate"])
def test_what_was_wrong_before_a_resume_is_found_after_it(fault):
    mechanism = Mechanism(0.5, 1.0, 20)
    states = []

    class Keeps:
        def before(self, step):
            """Nothing is refused."""

        def after(self, report, state):
            states.append(state())

    def train(start):
        generator = torch.Generator().manual_seed(3)
        inputs = torch.rand(100, 3, generator=generator)
        return train_private(
            body(),
            Examples(inputs, (inputs[:, 0] > 0.5).long()),
            mechanism=mechanism,
            recipe=RECIPE,
            randomness=SeededRandomness(9),
            monitor=Keeps(),
            start=start,
        ).record

    def verdicts(record):
        return {
            "noise": record.noise_conforms(1e-6),
            "norms": record.norms_conform(),
            "rate": record.rate_conforms(0.5, 1e-6),
        }

    record = train(None)
    assert (record.steps, states[-1].record) == (20, record.counts())
    longest, steps, squares, total, draws, coins, taken = record.counts()
    both = train(states[-1])
    assert both.steps == 40
    assert all(verdicts(both).values())
    changed = {
        "noise": (longest, steps, 0.2 * squares, total, draws, coins, taken),
        "norms": (1.5, steps, squares, total, draws, coins, taken),
        "rate": (longest, steps, squares, total, draws, coins, 0),
    }[fault]
    states[19].record = changed
    found = verdicts(train(states[19]))
    assert [name for name, passed in found.items() if not passed] == [fault]
