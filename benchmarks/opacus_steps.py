"""One private step of an MLP by our trainer, and the same by Opacus with its hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.architectures import NetworkSpec, build_network
from security.training.accounting import Mechanism
from security.training.examples import Examples
from security.training.loop import Recipe
from security.training.mechanism import poisson
from security.training.noise import SystemRandomness
from security.training.trainer import train_private

_SPEC = NetworkSpec((784,), 10, (256, 128))
_BATCH, _ROWS, _STEPS = 512, 1024, 4
_RATE, _NOISE, _NORM = 0.5, 1.0, 1.0


def steps() -> dict[str, Callable[[], object]]:
    """The two sides, a few steps each: the same network, rows, batches and noise."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.rand(_ROWS, *_SPEC.inputs)
    examples = Examples(inputs, torch.randint(0, _SPEC.classes, (_ROWS,)))
    return {"ours": lambda: _ours(examples), "Opacus": lambda: _opacus(examples)}


def _ours(examples: Examples) -> None:
    train_private(
        build_network("mlp", _SPEC),
        examples,
        mechanism=Mechanism(_RATE, _NOISE, _STEPS),
        recipe=Recipe(_NORM, _BATCH, 0.1),
        randomness=SystemRandomness(),
    )


def _opacus(examples: Examples) -> None:
    body = build_network("mlp", _SPEC)
    rows = TensorDataset(examples.inputs, examples.labels)
    with warnings.catch_warnings():
        # It says that its noise is not from the operating system, which ours is.
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant="prv")
        module, optimizer, _ = engine.make_private(
            module=body,
            optimizer=torch.optim.SGD(body.parameters(), lr=0.1),
            data_loader=DataLoader(rows, batch_size=_BATCH),
            noise_multiplier=_NOISE,
            max_grad_norm=_NORM,
        )
        _take_steps(module, optimizer, examples)


def _take_steps(
    module: nn.Module, optimizer: torch.optim.Optimizer, examples: Examples
) -> None:
    for _ in range(_STEPS):
        batch = examples.batch(poisson(examples.count, _RATE, SystemRandomness()))
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(module(batch.inputs), batch.labels).backward()
        optimizer.step()
