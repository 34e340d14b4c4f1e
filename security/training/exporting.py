"""A trained network to ONNX, compared with it on rows held out and on nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.architectures import ImageClassifier
from models.data.datasets import AnyDataset, ImageDataset, TabularDataset
from models.export import IMAGES, INPUT, Parity, exported, parity
from models.manifest import Column
from security.errors import TrainingError
from security.training.network import Network

__all__ = ["Compared", "export"]

# Probabilities are FP32; exports of these architectures differ by about 1e-7.
MAX_PARITY_DIFFERENCE = 1e-5
# Fixed features normalise what is nearly flat: that enlarges float32's last digits.
MAX_FEATURE_DIFFERENCE = 1e-3
_PARITY_ROWS = 1000
_PARITY_IMAGES = 50


@dataclass(frozen=True)
class Compared:
    """An export, and how far it is from the module it came from.

    Attributes:
        most: the largest difference of a probability that passes.
        holdout: on every held-out row.
        public: on rows that nobody owns: the whole range and beyond, missing, huge.
    """

    model: bytes
    holdout: Parity
    public: Parity
    most: float = MAX_PARITY_DIFFERENCE

    @property
    def worst(self) -> Parity:
        """Both together."""
        rows = self.holdout.rows + self.public.rows
        agreed = sum(p.rows * p.label_agreement for p in (self.holdout, self.public))
        return Parity(
            rows,
            max(self.holdout.max_abs_difference, self.public.max_abs_difference),
            agreed / rows,
        )


def export(network: Network, holdout: AnyDataset) -> Compared:
    """Export, and compare on every held-out row and on rows that nobody owns.

    What is exported is the graph from before the first row with the weights of now, so
    a network that computes something else now is found out here.

    Raises:
        TrainingError: the ONNX file computes something else, or the network changed
            more than its weights.
        ExportError: it cannot be exported.
    """
    module, program = network.module, network.released()
    if isinstance(holdout, TabularDataset):
        model, rows = exported(program, INPUT), _parity_rows(holdout.columns)
    else:
        model, rows = exported(program, IMAGES), _parity_images(holdout)
    featured = isinstance(module, ImageClassifier) and module.has_features
    compared = Compared(
        model,
        parity(module, model, holdout.features),
        parity(module, model, rows),
        MAX_FEATURE_DIFFERENCE if featured else MAX_PARITY_DIFFERENCE,
    )
    worst = compared.worst
    if worst.max_abs_difference > compared.most:
        raise TrainingError(f"the ONNX file computes something else: {worst.line()}")
    return compared


def _parity_rows(columns: Sequence[Column]) -> NDArray[np.float64]:
    """Uniform in ranges half as wide again, then what is missing, infinite or huge.

    Codes are whole numbers, some of them of no category.
    """
    low, high = (
        np.array([getattr(column, end) for column in columns])
        for end in ("low", "high")
    )
    margin = (high - low) / 4
    uniform = np.random.default_rng(0).uniform(
        low - margin, high + margin, size=(_PARITY_ROWS, len(columns))
    )
    coded = np.array([bool(column.categories) for column in columns])
    uniform[:, coded] = np.round(uniform[:, coded])
    special = np.repeat([[np.nan], [np.inf], [-np.inf], [1e38]], len(columns), axis=1)
    uniform[:: len(columns) + 1, 0] = np.nan
    return np.concatenate([uniform, special, [low], [high]])


def _parity_images(dataset: ImageDataset) -> NDArray[np.float64]:
    low, high = dataset.bounds
    margin = (high - low) / 4
    shape = (_PARITY_IMAGES, *dataset.features.shape[1:])
    images = np.random.default_rng(0).uniform(low - margin, high + margin, size=shape)
    images[0], images[1], images[2], images[3] = low, high, np.nan, np.inf
    return images
