"""A model that explains itself, with made-up curves, as its file and manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.additive import AdditiveClassifier
from models.explanations import Explanations
from models.export import export_onnx
from models.manifest import Column, Manifest, Tensor
from sealgate.protocol.tensors import TensorSpec

__all__ = ["COLUMNS", "additive_model", "made_up"]

COLUMNS = (
    Column("age", 0.0, 100.0),
    Column("sum", 1.0, 10_000.0),
    Column("job", 0.0, 2.0, ("baker", "nurse", "smith")),
)


def made_up(seed: int = 0) -> AdditiveClassifier:
    """Bins of equal width with random scores."""
    module = AdditiveClassifier(COLUMNS, bins=9)
    body, random = module.body, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        body.cuts.copy_(
            torch.stack(
                [
                    torch.linspace(10, 90, 8),
                    torch.linspace(100, 9000, 8),
                    torch.arange(8) + 0.5,
                ]
            )
        )
        body.scores.copy_(torch.randn(body.scores.shape, generator=random))
        body.intercept.fill_(0.25)
    return module


def additive_model(name: str = "own", **changes: Any) -> tuple[bytes, Manifest]:
    """The file, and what a training writes of it."""
    manifest = Manifest(
        name,
        "1.0.0",
        (Tensor(TensorSpec("features", "FP32", (-1, 3)), columns=COLUMNS),),
        (
            Tensor(TensorSpec("probabilities", "FP32", (-1, 2)), labels=("no", "yes")),
            Tensor(TensorSpec("label", "INT64", (-1,))),
            Tensor(TensorSpec("contributions", "FP32", (-1, 3))),
        ),
        64,
        explanations=Explanations(contributions="contributions"),
    )
    return export_onnx(made_up(), COLUMNS), replace(manifest, **changes)
