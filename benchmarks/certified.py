"""What training for certificates costs, and what it gives: digits, two hidden layers.

Of each model, on held-out rows: right; proved by bounds to stay right wherever a pixel
moves within the radius; and still right under attack, PGD of 60 steps from 3 starts.
The truth lies between the last two. Of the ONNX files, medians over seeds.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.recipes import EXAMPLES, trained
from benchmarks.timing import table
from models.data.datasets import AnyDataset
from models.export import run_onnx
from security.assessment.torch_graph.module import OnnxModule
from security.bounds.files import read_graph
from security.bounds.proofs import margins
from security.bounds.scores import Rule, head_of
from security.training.adversarial import Adversary, attack
from security.training.config import load_config
from security.training.config_sections import AdversarialConfig, TrainingConfig
from security.training.gradients import single_rows

RADII = (0.01, 0.02, 0.05)
STEPS, STARTS = 60, 3
SEEDS = int(os.environ.get("SEALGATE_SEEDS", "3"))
HIDDEN = (64, 64)
AGAINST = AdversarialConfig("pgd", radius=0.05)
CERTIFIED = replace(AGAINST, certified=True)
_PUBLIC: Mapping[str, Any] = {"mechanism": "none", "sampling_rate": 0.2, "steps": 1500}
_PRIVATE: Mapping[str, Any] = {"epsilon": 8.0, "clipping": "automatic"}


@dataclass(frozen=True)
class Case:
    """What of the recipe for digits is changed: of each section, some values."""

    privacy: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    adversarial: AdversarialConfig | None = None


_USUAL = Case(_PUBLIC, {"learning_rate": 0.3, "momentum": 0.9})
# Bounds take larger steps: each of both is the better one of those that were tried.
CASES: Mapping[str, Case] = {
    "as usual": _USUAL,
    "PGD": replace(_USUAL, adversarial=AGAINST),
    "certified": replace(_USUAL, adversarial=CERTIFIED),
    "epsilon 8, as usual": Case(
        {**_PRIVATE, "steps": 200}, {"learning_rate": 2.0, "ema": 0.97}
    ),
    "epsilon 8, certified": Case(
        {**_PRIVATE, "steps": 100}, {"learning_rate": 8.0, "ema": 0.95}, CERTIFIED
    ),
}


def run() -> None:
    """Print the table."""
    header = ("trained", "clean", *(f"certified and attacked, {r:g}" for r in RADII))
    rows = []
    for name in CASES:
        found = [_figures(name, seed) for seed in range(SEEDS)]
        middle = [statistics.median(values) for values in zip(*found, strict=True)]
        pairs = zip(middle[1::2], middle[2::2], strict=True)
        shown = (f"{low:.3f} of {high:.3f}" for low, high in pairs)
        rows.append((name, f"{middle[0]:.3f}", *shown))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    table(header, rows)


def configured(name: str, seed: int) -> TrainingConfig:
    """The recipe of digits, as one of the cases changes it."""
    case = CASES[name]
    config = load_config(EXAMPLES / "digits.toml")
    return replace(
        config,
        model=replace(config.model, architecture="mlp", hidden=HIDDEN),
        data=replace(config.data, split_key=f"seed {seed}"),
        privacy=replace(config.privacy, **case.privacy),
        optimizer=replace(config.optimizer, **case.optimizer),
        adversarial=case.adversarial,
    )


def _figures(name: str, seed: int) -> list[float]:
    """Accuracy; then for each radius the certified and the attacked share."""
    model, rows = trained(configured(name, seed), seed)
    points = rows.features.reshape(len(rows.features), -1).astype(np.float64)
    right = _right(model, rows, rows.features)
    graph = read_graph(model)
    score, label = graph.outputs
    rule = head_of(graph, score, label=label, lead=0.0, single=False)
    low, high = rows.bounds
    found = [float(right.mean())]
    for radius in RADII:
        reach = radius * (high - low)
        ends = (np.clip(points + s * reach, low, high) for s in (-1, 1))
        proved = margins(graph, rule, *ends, rows.labels).proved
        standing = right & _standing(model, rule, rows, reach)
        if (proved & ~standing).any():
            raise AssertionError(f"{name}: an attack broke what was certified")
        found += [float(proved.mean()), float(standing.mean())]
    return found


def _right(model: bytes, rows: AnyDataset, points: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(run_onnx(model, points)[1] == rows.labels)


def _standing(
    model: bytes, rule: Rule, rows: AnyDataset, reach: float
) -> NDArray[np.bool_]:
    """Rows that the attack leaves right, from every start."""
    graph = OnnxModule(model, outputs=(rule.value,), dtype=torch.float32)
    low, high = rows.bounds
    adversary = Adversary("pgd", reach, steps=STEPS, low=low, high=high)
    inputs, labels = torch.as_tensor(rows.features), torch.as_tensor(rows.labels)
    batch, standing = single_rows(inputs, labels), np.ones(len(labels), dtype=bool)
    torch.manual_seed(0)
    for _ in range(STARTS):
        found = attack(_Answers(graph, rule.value), batch, adversary)
        standing &= _right(model, rows, found.numpy())
    return standing


class _Answers(torch.nn.Module):
    """One value of a graph, as an attack asks for it."""

    def __init__(self, graph: OnnxModule, name: str) -> None:
        super().__init__()
        self._graph, self._name = graph, name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._graph(inputs)[self._name]
        return result
