"""Torch modules that hold preprocessing and the network, so that one file serves both.

A client sends raw values; nothing outside the exported graph scales them, so training
and serving cannot disagree about it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.manifest import Column

__all__ = ["ARCHITECTURES", "TabularClassifier", "tabular_classifier"]

ARCHITECTURES = ("linear", "mlp")


class TabularClassifier(nn.Module):
    """A classifier of rows of numbers with its preprocessing inside.

    The ranges are buffers, not parameters: they are public constants, and training,
    which sees `body` only, cannot move them.

    Attributes:
        low, span: float32, shape ``(d,)``: each column's lower end and width.
        body: the network; maps ``(n, d)`` in [-1, 1] to ``(n, classes)`` logits.
    """

    low: Tensor
    span: Tensor

    def __init__(self, columns: Sequence[Column], body: nn.Module) -> None:
        super().__init__()
        low = torch.tensor([column.low for column in columns], dtype=torch.float32)
        high = torch.tensor([column.high for column in columns], dtype=torch.float32)
        self.register_buffer("low", low)
        self.register_buffer("span", high - low)
        self.body = body

    def scale(self, features: Tensor) -> Tensor:
        """Raw features in any unit, any value, to [0, 1] of each public range.

        What is missing or infinite becomes the middle of the range: 0.5.
        """
        scaled = (features - self.low) / self.span
        scaled = torch.clamp(scaled, 0.0, 1.0)
        return torch.where(torch.isfinite(features), scaled, 0.5)

    def network_input(self, features: Tensor) -> Tensor:
        """What `body` takes: scaled features, centred, in [-1, 1]."""
        return 2.0 * self.scale(features) - 1.0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class probabilities ``(n, classes)`` and the likeliest class ``(n,)``."""
        probabilities = torch.softmax(self.body(self.network_input(features)), dim=-1)
        return probabilities, torch.argmax(probabilities, dim=-1)


def tabular_classifier(
    columns: Sequence[Column], classes: int, *, hidden: Sequence[int] = ()
) -> TabularClassifier:
    """Build a linear classifier, or a perceptron where there are hidden layers.

    The last layer starts at zero: with few noisy steps, no budget is spent on undoing a
    random start, and a linear model starts the same way everywhere.

    Args:
        columns: the input's columns with public ranges.
        classes: how many classes.
        hidden: widths of the hidden layers.

    >>> columns = [Column("a", 0.0, 2.0), Column("b", -1.0, 1.0)]
    >>> model = tabular_classifier(columns, 3)
    >>> probabilities, label = model(torch.tensor([[1.0, float("nan")]]))
    >>> probabilities.shape, label.dtype
    (torch.Size([1, 3]), torch.int64)
    """
    layers: list[nn.Module] = []
    width = len(columns)
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    last = nn.Linear(width, classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return TabularClassifier(columns, nn.Sequential(*layers, last))
