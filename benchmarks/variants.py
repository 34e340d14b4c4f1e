"""What the page of comparisons compares: data sets, and the models trained on each.

Each is a recipe of examples/ with a few values changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.recipes import EXAMPLES, FOLDERS, Changes, changed
from security.training.config import load_config
from security.training.config_sections import TrainingConfig

__all__ = ["DATA", "Data", "Variant", "configuration"]

PUBLIC: Changes = {"data": {"personal": False}, "privacy": {"mechanism": "none"}}


@dataclass(frozen=True)
class Variant:
    """One way of training a model of a data set.

    Attributes:
        name: in the table.
        file: the recipe in examples/.
        changes: of its values.
    """

    name: str
    file: str
    changes: Changes = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A data set and what is trained on it.

    Attributes:
        title: of its table.
        folder: of its files, in the folder of data; none where a library brings it.
        radius: of the attacks and bounds, as a share of each range.
        variants: the models.
    """

    title: str
    folder: str
    radius: float
    variants: tuple[Variant, ...]


def _mlp(hidden: int, *, rate: float, ema: float = 0.9, norm: float = 1.0) -> Changes:
    return {
        "model": {"architecture": "mlp", "hidden": (hidden,)},
        "privacy": {"max_grad_norm": norm},
        "optimizer": {"learning_rate": rate, "ema": ema},
    }


def _public(hidden: int, steps: int, rate: float) -> Changes:
    """The same network without privacy, and with time to converge."""
    return {
        "data": PUBLIC["data"],
        "model": {"architecture": "mlp", "hidden": (hidden,)},
        "privacy": {**PUBLIC["privacy"], "steps": steps},
        "optimizer": {"learning_rate": rate},
    }


DATA: Mapping[str, Data] = {
    "adult": Data(
        "Adult: income above 50,000, 12 columns",
        "adult",
        0.02,
        (
            Variant("MLP-32, not private", "adult.toml", _public(32, 600, 0.5)),
            Variant("linear, DP-SGD", "adult.toml"),
            Variant("MLP-32, DP-SGD", "adult.toml", _mlp(32, norm=1.0, rate=4.0)),
            Variant("DP-EBM", "adult_ebm.toml"),
        ),
    ),
    "credit": Data(
        "Credit default: 23 columns",
        "credit-default",
        0.01,
        (
            Variant(
                "MLP-32, not private", "credit_default.toml", _public(32, 600, 0.5)
            ),
            Variant("linear, DP-SGD", "credit_default.toml"),
            Variant("MLP-32, DP-SGD", "credit_default.toml", _mlp(32, rate=4.0)),
            Variant(
                "DP-EBM",
                "credit_ebm.toml",
                {"data": {"split_key": "sealgate-recipe"}},  # the others' rows
            ),
        ),
    ),
    "digits": Data(
        "Digits: 8 by 8 pixels, 10 classes",
        "",
        0.02,
        (
            Variant("MLP-64, not private", "digits.toml", _public(64, 1500, 0.5)),
            Variant("linear, DP-SGD", "digits.toml"),
            Variant("MLP-64, DP-SGD", "digits.toml", _mlp(64, rate=2.0, ema=0.9)),
        ),
    ),
    "fashion": Data(
        "Fashion-MNIST: 28 by 28 pixels, 10 classes",
        "fashion-mnist",
        0.0078,
        (
            Variant(
                "MLP-128, not private",
                "fashion_mnist.toml",
                {
                    "model": {
                        "architecture": "mlp",
                        "hidden": (128,),
                        "features": "",
                    },
                    "privacy": {
                        **PUBLIC["privacy"],
                        "steps": 2000,
                        "sampling_rate": 0.02,
                        "expected_batch": 1200,
                    },
                    "optimizer": {"learning_rate": 0.1},
                },
            ),
            Variant("linear on scattering, DP-SGD", "fashion_mnist.toml"),
            Variant(
                "MLP-128, DP-SGD",
                "fashion_mnist.toml",
                {
                    "data": {"personal": False},
                    "model": {
                        "architecture": "mlp",
                        "hidden": (128,),
                        "features": "",
                    },
                    "privacy": {"clipping": "automatic"},
                    "optimizer": {"learning_rate": 4.0},
                },
            ),
        ),
    ),
    "bikes": Data(
        "Bike sharing: hourly rentals, 0 to 1000",
        "bike-sharing",
        0.02,
        (
            Variant(
                "MLP-64, not private", "bike_sharing_mlp.toml", _public(64, 1500, 0.5)
            ),
            Variant("linear, DP-SGD", "bike_sharing.toml"),
            Variant("MLP-64, DP-SGD", "bike_sharing_mlp.toml"),
        ),
    ),
}


def configuration(data: Data, item: Variant, folder: Path) -> TrainingConfig:
    """A variant's configuration, which finds its data in a folder of that."""
    config = changed(load_config(EXAMPLES / item.file), item.changes)
    if config.data.source.startswith("python:"):
        for name, variable in FOLDERS.items():
            os.environ.setdefault(variable, str(folder / name))
        return config
    return replace(config, _base=folder / data.folder)
