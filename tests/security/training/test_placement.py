"""Where a network is trained, how much of it at once, and in which precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.bundle import read_bundle
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.config import load_config
from security.training.examples import Examples
from security.training.gradients import cross_entropy, in_precision
from security.training.ledger import Ledger
from security.training.loop import Recipe
from security.training.noise import SeededRandomness
from security.training.placement import physical_batch, place_of
from security.training.run import train_bundle
from security.training.trainer import train_private
from tests.support.small_training import CONFIG, write_config

RECIPE = Recipe(max_grad_norm=1.0, expected_batch=50, learning_rate=1.0)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def body():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
    )


def run(module, *, precision="float32", mechanism=Mechanism(0.5, 1e-6, 6)):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(100, 3, generator=generator)
    labels = (inputs[:, 0] > 0.5).long()
    return train_private(
        module,
        Examples(inputs, labels),
        mechanism=mechanism,
        recipe=RECIPE,
        randomness=SeededRandomness(1),
        precision=precision,
    )


def weights(module):
    return torch.cat([p.detach().flatten().cpu() for p in module.parameters()])


def config(tmp_path, compute):
    return load_config(write_config(tmp_path, CONFIG + f"[compute]\n{compute}\n"))


def test_half_precision_in_the_pass_keeps_the_bound():
    full, mixed = body(), body()
    before = weights(full)
    run(full)
    outcome = run(mixed, precision="bfloat16")
    # What is clipped is what is summed, in float32, whatever the pass was in.
    assert outcome.record.norms_conform()
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    moved = torch.linalg.vector_norm(weights(full) - before)
    apart = torch.linalg.vector_norm(weights(full) - weights(mixed))
    assert 0 < apart < 0.05 * moved


def test_the_pass_is_really_in_half_precision():
    seen = []

    def network(inputs):
        logits = torch.nn.functional.linear(inputs, torch.eye(2, 3))
        seen.append(logits.dtype)
        return logits

    for name in ("float32", "bfloat16"):
        losses = in_precision(cross_entropy, name)(
            network, torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
        )
        assert losses.dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_precision_is_stated(tmp_path):
    chosen = config(tmp_path, 'precision = "bfloat16"\nphysical_batch = "auto"')
    out = train_bundle(
        chosen, tmp_path / "o", lambda *_: None, ledger=Ledger(tmp_path / "l")
    )
    assert read_bundle(out).report("privacy").conditions["precision"] == "bfloat16"


def test_physical_batches_follow_memory(tmp_path):
    small = config(tmp_path, 'physical_batch = "auto"')
    fits = physical_batch(small, body(), torch.zeros(5, 3))
    assert fits > 1000
    wide = torch.nn.Sequential(torch.nn.Linear(3, 100_000), torch.nn.Linear(100_000, 2))
    assert 1 <= physical_batch(small, wide, torch.zeros(5, 3)) < fits / 100
    assert physical_batch(config(tmp_path, "threads = 1"), body(), torch.ones(1)) == 0
    fixed = replace(small, compute=replace(small.compute, physical_batch=7))
    assert physical_batch(fixed, body(), torch.zeros(5, 3)) == 7


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ('device = "gpu"', "compute.device: one of auto, cpu, cuda"),
        ('physical_batch = "all"', "compute.physical_batch: a number .* or 'auto'"),
        ("physical_batch = -1", "compute.physical_batch: a number"),
        ("physical_batch = 1.5", "compute.physical_batch: expected an integer"),
        ('precision = "float16"', "compute.precision: one of"),
        ('precision = "bfloat16"\ngradients = "hooks"', "is for gradients = 'book"),
    ],
)
def test_faults(tmp_path, compute, message):
    with pytest.raises(TrainingError, match=message):
        config(tmp_path, compute)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_here(tmp_path):
    assert place_of(config(tmp_path, 'device = "auto"')).type == "cpu"
    with pytest.raises(TrainingError, match="there is no CUDA device here"):
        train_bundle(
            config(tmp_path, 'device = "cuda"'),
            tmp_path / "out",
            lambda *_: None,
            ledger=Ledger(tmp_path / "ledger"),
        )
    assert {item.name for item in tmp_path.iterdir()} == {"c.toml", "rows.csv"}


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_training_on_a_cuda_device(precision):
    here, there = body(), body().cuda()
    run(here)
    outcome = run(there, precision=precision)
    assert outcome.record.norms_conform()
    slack = 1e-4 if precision == "float32" else 5e-2
    torch.testing.assert_close(weights(there), weights(here), atol=slack, rtol=slack)


@gpu
def test_the_command_on_a_cuda_device(tmp_path):
    chosen = config(tmp_path, 'device = "cuda"\nprecision = "bfloat16"')
    out = train_bundle(
        chosen, tmp_path / "o", lambda *_: None, ledger=Ledger(tmp_path / "l")
    )
    assert all(check.passed for check in read_bundle(out).report("privacy").checks)
