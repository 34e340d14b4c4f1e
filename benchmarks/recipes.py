"""Accuracy, or error, of the recipes in examples/ under their guarantee.

Every figure is of the bundle's ONNX file, run by onnxruntime on held-out rows. Medians
over seeds; a seed decides the split, where it is not official, the noise, the batches
and the initial weights.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import table
from models.bundle import MODEL_FILE
from models.data.datasets import AnyDataset
from models.export import predict_onnx, run_onnx
from security.training.config import load_config
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.ledger import Ledger
from security.training.noise import SeededRandomness
from security.training.run import train_bundle

EXAMPLES = Path(__file__).parent.parent / "examples"
SHARED = Path(os.environ.get("SEALGATE_DATA", EXAMPLES.parent.parent / "shared/data"))
SEEDS = 5

Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """A configuration, what changes with epsilon, and what is aimed at.

    Attributes:
        aims: of accuracy at least, above the reference's where there is one; of a
            number's root mean squared error at most.
    """

    file: str
    by_epsilon: Mapping[float, Changes]
    aims: tuple[float, ...]
    folder: str = ""
    reference: Changes = field(default_factory=dict)


def _privacy(**values: Any) -> Changes:
    return {"privacy": values}


PUBLIC: Changes = {
    "data": {"personal": False},
    "privacy": {"mechanism": "none", "steps": 1500},
    "optimizer": {"learning_rate": 0.5, "ema": 0.0},
}
RECIPES = {
    "digits": Recipe(
        "digits.toml",
        {
            1.0: {
                **_privacy(clipping="automatic", steps=60),
                "optimizer": {"learning_rate": 4.0, "ema": 0.9},
            },
            3.0: {},
            8.0: {"optimizer": {"learning_rate": 8.0}},
        },
        (0.92, 0.945, 0.955),
    ),
    "breast cancer": Recipe(
        "breast_cancer_tuned.toml",
        {
            1.0: {},
            3.0: {},
            8.0: {**_privacy(clipping="flat"), "optimizer": {"ema": 0.0}},
        },
        (0.96, 0.97, 0.975),
    ),
    "adult": Recipe(
        "adult.toml",
        {1.0: _privacy(max_grad_norm=1.0), 3.0: {}, 8.0: {}},
        (-0.01, -0.005, -0.003),
        folder="adult",
        reference=PUBLIC,
    ),
    # Absolute: there is no training without privacy to compare with.
    "adult ebm": Recipe(
        "adult_ebm.toml",
        {1.0: {}, 3.0: {}, 8.0: {}},
        (0.842, 0.845, 0.845),
        folder="adult",
    ),
    "credit ebm": Recipe(
        "credit_ebm.toml",
        {1.0: {}, 3.0: {}, 8.0: {}},
        (0.80, 0.81, 0.81),
        folder="credit-default",
    ),
    "fashion": Recipe(
        "fashion_mnist.toml",
        {
            1.0: {
                **_privacy(steps=146, sampling_rate=0.1365, expected_batch=8192),
                "optimizer": {"learning_rate": 20.0},
            },
            3.0: {},
            8.0: {**_privacy(steps=400), "optimizer": {"ema": 0.98}},
        },
        (0.86, 0.895, 0.905),
        folder="fashion-mnist",
    ),
    "bike sharing": Recipe(
        "bike_sharing.toml",
        {1.0: {}, 3.0: {}, 8.0: {}},
        (68.0, 62.0, 61.5),
        folder="bike-sharing",
        reference={
            **PUBLIC,
            "optimizer": {"learning_rate": 4.0, "ema": 0.0},
        },
    ),
    "bike sharing MLP": Recipe(
        "bike_sharing_mlp.toml",
        {
            1.0: {
                **_privacy(max_grad_norm=0.25),
                "optimizer": {"learning_rate": 1.0},
            },
            3.0: _privacy(max_grad_norm=0.25),
            8.0: {},
        },
        (68.0, 62.0, 58.5),
        folder="bike-sharing",
        reference=PUBLIC,
    ),
}
# Functions of examples/sources.py look for their files where these say.
FOLDERS = {"fashion-mnist": "FASHION_MNIST", "bike-sharing": "BIKE_SHARING"}


def run() -> None:
    """Print the table; the recipes named in SEALGATE_RECIPES, or all."""
    names = os.environ.get("SEALGATE_RECIPES", ",".join(RECIPES)).split(",")
    rows: list[tuple[str, ...]] = []
    for name in filter(None, names):
        rows += _rows(name, RECIPES[name])
    header = ("data", "epsilon", "median", "lowest", "highest", "aim")
    table(header, rows)


def _rows(name: str, recipe: Recipe) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    base = 0.0
    if recipe.reference:
        found = measure(recipe, recipe.reference, 0)
        rows.append((name, "none", f"{found:.4f}", "", "", ""))
        number = load_config(EXAMPLES / recipe.file).predicts_number
        base = 0.0 if number else found
    for (epsilon, changes), aim in zip(recipe.by_epsilon.items(), recipe.aims):
        privacy = {**changes.get("privacy", {}), "epsilon": epsilon}
        scores = [
            measure(recipe, {**changes, "privacy": privacy}, seed)
            for seed in range(SEEDS)
        ]
        middle = statistics.median(scores)
        ends = f"{min(scores):.4f}", f"{max(scores):.4f}"
        rows.append((name, f"{epsilon:g}", f"{middle:.4f}", *ends, f"{base + aim:.4f}"))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def changed(config: TrainingConfig, changes: Changes) -> TrainingConfig:
    """A configuration with some values changed, by section."""
    for section, values in changes.items():
        new = replace(getattr(config, section), **values)
        config = replace(config, **{section: new})
    return config


def configuration(recipe: Recipe, changes: Changes, seed: int) -> TrainingConfig:
    """The recipe's file with some values changed."""
    config = changed(load_config(EXAMPLES / recipe.file), changes)
    if not recipe.folder:
        data = replace(config.data, split_key=f"seed {seed}")
        return replace(config, data=data)
    if config.data.source.startswith("python:"):
        os.environ.setdefault(FOLDERS[recipe.folder], str(SHARED / recipe.folder))
        split = {} if config.data.holdout_source else {"split_key": f"seed {seed}"}
        return replace(config, data=replace(config.data, **split))
    return replace(config, _base=SHARED / recipe.folder)


def measure(recipe: Recipe, changes: Changes, seed: int) -> float:
    """Train, and score what was exported: accuracy, or root mean squared error."""
    config = configuration(recipe, changes, seed)
    model, holdout = trained(config, seed)
    if config.predicts_number:
        errors = predict_onnx(model, holdout.features) - holdout.labels
        return float(np.sqrt((errors**2).mean()))
    _, labels = run_onnx(model, holdout.features)
    return float((labels == holdout.labels).mean())


def trained(config: TrainingConfig, seed: int) -> tuple[bytes, AnyDataset]:
    """A bundle's ONNX file, and the held-out rows."""
    config = replace(config, model=replace(config.model, seed=seed))
    with tempfile.TemporaryDirectory() as home:
        out = train_bundle(
            config,
            Path(home) / "bundle",
            lambda *_: None,
            ledger=Ledger(Path(home) / "ledger.sqlite"),
            randomness=SeededRandomness(seed),
        )
        model = (out / MODEL_FILE).read_bytes()
    return model, load_split(config)[1]
