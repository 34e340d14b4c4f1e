"""Two processes against one: the same accounting, the same expected update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import read_bundle
from security.training.accounting import Mechanism, epsilon_prv
from security.training.config import load_config
from security.training.examples import Examples
from security.training.guarantee import make_plan
from security.training.ledger import Ledger
from security.training.loop import Recipe
from security.training.trainer import train_private
from tests.support.servers import environment
from tests.support.small_training import write_config

WEIGHTS = 2 * (1 + 3) + 2  # of the small network: age and three jobs, two classes
ROOT = Path(__file__).parents[3]
MECHANISM = Mechanism(1.0, 1.0, 4)
RECIPE = Recipe(
    max_grad_norm=0.5,
    expected_batch=30,
    learning_rate=1.0,
    momentum=0.5,
    loss_share=0.2,
    clamped_share=0.3,
)

WORKER = """
import json, os, sys, torch
from torch import distributed
sys.path.insert(0, os.getcwd())
from security.training.accounting import Mechanism
from security.training.noise import SystemRandomness
from tests.security.training.test_distributed import (
    MECHANISM, RECIPE, Silent, body, examples,
)
from security.training.trainer import train_private
distributed.init_process_group("gloo")
rank = distributed.get_rank()
result = {}
for name, randomness in (("silent", Silent()), ("noisy", SystemRandomness())):
    network = body(seed=rank)
    outcome = train_private(
        network, examples(), mechanism=MECHANISM, recipe=RECIPE, randomness=randomness
    )
    result[name] = [p.detach().flatten().tolist() for p in network.parameters()]
    result["draws"] = outcome.record.draws
    result["clamped " + name] = outcome.clamped
    result["units"] = outcome.units
    result["coins"] = outcome.record.counts()[-2]
    result["history"] = [outcome.mechanism.noise_multiplier,
                         outcome.mechanism.sample_rate, outcome.mechanism.steps]
with open(sys.argv[1] + str(rank), "w") as file:
    json.dump(result, file)
distributed.destroy_process_group()
"""


class Silent:
    """Everyone is taken, and there is no noise: the radius of 0 is 0."""

    name = "silent"

    def uniform(self, count):
        return np.zeros(count)


def body(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    )


def examples():
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(31, 3, generator=generator)
    # Some units own two rows; a unit is never torn apart.
    units = torch.arange(31) // 2
    clamped = (torch.arange(16) % 5 / 4).double()
    return Examples(inputs, (inputs[:, 0] > 0).long(), units, clamped)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    home = tmp_path_factory.mktemp("workers")
    script = home / "worker.py"
    script.write_text(WORKER)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", str(script), str(home / "rank")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((home / f"rank{rank}").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_same_update_as_one_process(two):
    alone = body()
    train_private(
        alone, examples(), mechanism=MECHANISM, recipe=RECIPE, randomness=Silent()
    )
    wanted = torch.cat([p.detach().flatten() for p in alone.parameters()])
    for rank in range(2):
        got = torch.tensor([x for values in two[rank]["silent"] for x in values])
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_same_weights_everywhere_and_noise_once(two):
    assert two[0]["noisy"] == two[1]["noisy"]
    assert two[0]["noisy"] != two[0]["silent"]
    parameters = 3 * 4 + 4 + 4 * 2 + 2
    # Each tells the draws of all: they were made once.
    drawn = (parameters + 2) * MECHANISM.steps  # and the loss, and clamped targets
    assert two[0]["draws"] == two[1]["draws"] == drawn


@pytest.mark.slow
def test_clamped_targets_of_all_processes_are_added_up_once(two):
    whole = float(examples().clamped.sum()) * MECHANISM.steps
    assert two[0]["clamped silent"] == two[1]["clamped silent"]
    assert two[0]["clamped silent"] == pytest.approx(whole)
    assert two[0]["clamped noisy"] == two[1]["clamped noisy"] != whole


@pytest.mark.slow
def test_same_accounting_and_every_unit_in_one_process(two):
    for result in two:
        assert result["history"] == [1.0, 1.0, 4]
        assert result["units"] == examples().count
        assert result["coins"] == examples().count * MECHANISM.steps


def torchrun(folder: Path, *extra: str, config: Path) -> subprocess.CompletedProcess:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "-m", "security", "train", str(config)),
        *("--out", str(folder / "out"), *extra),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path):
    path = write_config(tmp_path, steps="6")
    done = torchrun(tmp_path, config=path)
    assert done.returncode == 0, done.stderr[-4000:]
    stages = [line.split()[0] for line in done.stdout.splitlines()]
    # Some of the made-up rows are the same, and no unit says whose they are.
    said = ["data", "warning", "noise", "training", "privacy", "export", "bundle"]
    assert stages == said
    (account,) = Ledger(tmp_path / "home" / "ledger").accounts()
    (entry,) = account.entries
    assert (entry.state, entry.spent) == ("finished", 6)
    privacy = read_bundle(tmp_path / "out").report("privacy")
    stated, config = privacy.conditions, load_config(path)
    assert all(check.passed for check in privacy.checks)
    assert (stated["processes"], stated["steps"], stated["steps_in_weights"]) == (
        *(2, 6, 6),
    )
    # The same accounting as in one process, and noise for each weight once.
    units = stated["units"]
    alone = make_plan(config, units)
    assert stated["noise_multiplier"] == alone.mechanism.noise_multiplier
    assert privacy.metrics["epsilon"].value == pytest.approx(
        epsilon_prv(alone.mechanism, alone.mechanism_delta)
    )
    deficit = privacy.metrics["noise_deficit_detectable"]
    assert deficit.n == 6 * (WEIGHTS + 1)  # the loss is one more
    left = {item.name for item in tmp_path.iterdir()}
    assert left == {"c.toml", "rows.csv", "home", "out"}
    # What cannot be trained is said once, and nothing more is spent.
    again = torchrun(tmp_path, config=path)
    assert again.returncode != 0
    assert again.stderr.count("exists already") == 1
    assert Ledger(tmp_path / "home" / "ledger").accounts()[0].entries == (entry,)
