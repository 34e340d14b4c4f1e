"""What privacy costs per epoch, by gradient method, beside the same training without.

Both sides draw the same batches, decide on the same steps and update the same weights;
the private one also clips, adds noise from the operating system and is accounted. Each
measurement is a whole training of several epochs, divided by their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from benchmarks.timing import alternate, table
from models.architectures import NetworkSpec, build_network
from security.training.accounting import Mechanism
from security.training.examples import Examples
from security.training.gradient_methods import METHODS
from security.training.loop import Recipe
from security.training.noise import SystemRandomness
from security.training.trainer import train_private, train_public

# Name, architecture, input, rows, batch.
CASES = (
    ("linear, 30", "linear", NetworkSpec((30,), 2), 32_768, 4096),
    ("mlp, 88-64", "mlp", NetworkSpec((88,), 2, (64,)), 32_768, 4096),
    ("resnet, 88", "resnet", NetworkSpec((88,), 2), 8192, 2048),
    ("cnn, 28 by 28", "cnn", NetworkSpec((1, 28, 28), 10), 2048, 512),
)
# What a training does once is spread over these, as over those of a real one, or more.
EPOCHS = 5
CHOSEN = os.environ.get("SEALGATE_METHODS", ",".join(METHODS)).split(",")
ROUNDS = int(os.environ.get("SEALGATE_ROUNDS", "5"))


def run() -> None:
    """Print the table, of the methods in SEALGATE_METHODS or of all."""
    rows = []
    for name, architecture, spec, count, batch in CASES:
        medians = _measure(architecture, spec, count, batch)
        plain = medians.pop("plain")
        ratios = [f"{medians[method] / plain:.2f}" for method in CHOSEN]
        rows.append((name, f"{plain * 1e3:.1f}", *ratios))
    table(("network", "plain, ms per epoch", *CHOSEN), rows)


def _measure(
    architecture: str, spec: NetworkSpec, count: int, batch: int
) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    examples = Examples(
        torch.rand(count, *spec.inputs), torch.randint(0, spec.classes, (count,))
    )
    recipe = Recipe(max_grad_norm=1.0, expected_batch=batch, learning_rate=0.1)
    rate, steps = batch / count, EPOCHS * count // batch
    network = build_network(architecture, spec)

    def plain() -> None:
        train_public(
            network,
            examples,
            sample_rate=rate,
            steps=steps,
            recipe=recipe,
            randomness=SystemRandomness(),
        )

    def private(method: str) -> Callable[[], object]:
        return lambda: train_private(
            network,
            examples,
            mechanism=Mechanism(rate, 1.0, steps),
            recipe=recipe,
            randomness=SystemRandomness(),
            method=method,
        )

    cases = {method: private(method) for method in CHOSEN}
    seconds = alternate({"plain": plain, **cases}, rounds=ROUNDS, repeat=1)
    return {name: value / EPOCHS for name, value in seconds.items()}
