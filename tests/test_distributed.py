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

from security.training.accounting import Mechanism
from security.training.trainer import Examples, Recipe, train_private

ROOT = Path(__file__).parent.parent
MECHANISM = Mechanism(1.0, 1.0, 4)
RECIPE = Recipe(max_grad_norm=0.5, expected_batch=30, learning_rate=1.0, momentum=0.5)

WORKER = """
import json, os, sys, torch
from torch import distributed
sys.path.insert(0, os.getcwd())
from security.training.accounting import Mechanism
from security.training.noise import SystemRandomness
from tests.test_distributed import MECHANISM, RECIPE, Silent, body, examples
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
    result["units"] = outcome.units
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
    return Examples(inputs, (inputs[:, 0] > 0).long(), units)


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
    assert two[0]["draws"] == parameters * MECHANISM.steps
    assert two[1]["draws"] == 0


@pytest.mark.slow
def test_same_accounting_and_every_unit_in_one_process(two):
    for result in two:
        assert result["history"] == [1.0, 1.0, 4]
    assert two[0]["units"] + two[1]["units"] == examples().count
