"""Torch modules that hold preprocessing and the network, so that one file serves both.

A client sends raw values; nothing outside the exported graph scales them, so training
and serving cannot disagree about it. No network here mixes the rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.data.targets import Target
from models.manifest import Column
from models.networks import ARCHITECTURES

__all__ = [
    "ImageClassifier",
    "NetworkSpec",
    "TabularClassifier",
    "TabularRegressor",
    "build_network",
]

_RESNET_WIDTH = 64
_RESNET_BLOCKS = 2
_CNN_WIDTHS = (16, 32)
_CHANNELS_PER_GROUP = 4
# A range from 0 has no smallest factor: it is taken as one from a fiftieth of itself.
_GROWTH_FROM_ZERO = 49.0


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is built from.

    Attributes:
        inputs: shape of one preprocessed example: ``(width,)``, or channels, height,
            width.
        classes: how many logits; 1 where a number is predicted.
        hidden: widths of the hidden layers, or channels of the convolutions; what the
            architecture says where there are none.
        blocks: residual blocks; 0 for what the architecture says.
    """

    inputs: tuple[int, ...]
    classes: int
    hidden: tuple[int, ...] = ()
    blocks: int = 0


class _Tabular(nn.Module):
    """Rows of numbers and category codes, preprocessed before a network.

    The ranges are buffers, not parameters: they are public constants, and training,
    which sees `body` only, cannot move them.

    Attributes:
        low, span: float32, shape ``(d,)``: each column's lower end and width.
        body: the network; maps ``(n, width)`` to logits.
        width: what `network_input` gives: one per number, one per category, and one
            per number for whether it was missing, if flags are wanted.
        centre: which share of each range becomes 0. Where usual values are known to
            lie low in their range, as counts do, the middle wastes gradient on what
            every row has in common.

    Columns in ``logs`` are scaled by factors, not by differences: equal shares of the
    range are equal factors. Sizes and amounts vary so.
    """

    growth: Tensor
    low: Tensor
    span: Tensor
    numeric: Tensor
    origin: Tensor
    category: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        body: nn.Module,
        *,
        missing_flags: bool = False,
        centre: float = 0.5,
        logs: Collection[str] = (),
    ) -> None:
        super().__init__()
        low = torch.tensor([column.low for column in columns], dtype=torch.float32)
        high = torch.tensor([column.high for column in columns], dtype=torch.float32)
        numeric = [i for i, column in enumerate(columns) if not column.categories]
        pairs = [(i, c) for i, item in enumerate(columns) for c in range(_codes(item))]
        self.register_buffer("low", low)
        self.register_buffer("span", high - low)
        # An exported graph must hold no empty tensor, so only what is used is kept.
        self._logs = any(column.name in logs for column in columns)
        if self._logs:
            self.register_buffer("growth", _growth(columns, logs))
        if numeric:
            self.register_buffer("numeric", torch.tensor(numeric))
        if pairs:
            self.register_buffer("origin", torch.tensor([i for i, _ in pairs]))
            self.register_buffer("category", torch.tensor([float(c) for _, c in pairs]))
        self._numbers, self._coded = bool(numeric), bool(pairs)
        self._flags = missing_flags and self._numbers
        self.centre = centre
        self.width = tabular_width(columns, missing_flags=missing_flags)
        self.body = body

    def scale(self, features: Tensor) -> Tensor:
        """Raw features in any unit, any value, to [0, 1] of each public range.

        Linear, or by the logarithm: from ``low`` to ``high``, from 0 to 1 either way.
        What is missing or infinite becomes `centre`, the middle if nothing was said.
        """
        scaled = (features - self.low) / self.span
        scaled = torch.clamp(scaled, 0.0, 1.0)
        if self._logs:
            # 1 + growth is high over low: this is log(value / low) / log(high / low).
            # Linear columns divide by what is not 0, so that no gradient is 0 over 0.
            whole = torch.log(1.0 + self.growth).clamp_min(1e-6)
            share = torch.log(1.0 + self.growth * scaled) / whole
            scaled = torch.where(self.growth > 0.0, share, scaled)
        return torch.where(torch.isfinite(features), scaled, self.centre)

    def network_input(self, features: Tensor) -> Tensor:
        """What `body` takes: numbers, then one-hot categories, then flags.

        Numbers are twice their distance from `centre`: with the middle, in [-1, 1].
        A category that is missing, or none of the known ones, is all zeros.
        """
        centred = 2.0 * self.scale(features) - 2.0 * self.centre
        if not (self._coded or self._flags):
            return centred
        parts = []
        if self._numbers:
            parts.append(torch.index_select(centred, 1, self.numeric))
        if self._coded:
            chosen = torch.index_select(features, 1, self.origin)
            parts.append((chosen == self.category).float())
        if self._flags:
            raw = torch.index_select(features, 1, self.numeric)
            parts.append(1.0 - torch.isfinite(raw).float())
        return torch.cat(parts, dim=1)

    def input_bounds(self) -> tuple[float, float]:
        """What the network sees of a column's lower and upper end."""
        return -2.0 * self.centre, 2.0 - 2.0 * self.centre

    def movable(self) -> Tensor | None:
        """1 for what `network_input` makes of numbers, 0 for categories and flags."""
        fixed = torch.zeros(self.width)
        fixed[: len(self.numeric) if self._numbers else 0] = 1.0
        return fixed


class TabularClassifier(_Tabular):
    """A classifier of rows of numbers and category codes, preprocessing inside."""

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Class probabilities ``(n, classes)`` and the likeliest class ``(n,)``."""
        probabilities = torch.softmax(self.body(self.network_input(features)), dim=-1)
        return probabilities, torch.argmax(probabilities, dim=-1)


class TabularRegressor(_Tabular):
    """Predicts a number of such rows, by a network of one logit.

    Attributes:
        target: which number: a sigmoid gives its place in the public range.
    """

    def __init__(
        self, columns: Sequence[Column], body: nn.Module, *, target: Target, **how: Any
    ) -> None:
        super().__init__(columns, body, **how)
        self.target = target
        self._low, self._high = target.ends

    def forward(self, features: Tensor) -> Tensor:
        """The number, in its own unit ``(n,)``, never beyond its range."""
        logits = self.body(self.network_input(features)).squeeze(1)
        scaled = self._low + torch.sigmoid(logits) * (self._high - self._low)
        found = _UNSCALED[self.target.scale](scaled)
        return torch.clamp(found, self.target.low, self.target.high)


class ImageClassifier(nn.Module):
    """A classifier of images, normalisation and fixed features inside.

    Attributes:
        body: the network; maps ``(n, channels, height, width)``, of the features where
            there are any, to logits.
    """

    def __init__(
        self,
        bounds: tuple[float, float],
        *,
        mean: float,
        std: float,
        body: nn.Module,
        features: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._low, self._high = bounds
        self._mean, self._std = mean, std
        self._features = nn.Identity() if features is None else features
        self.body = body

    @property
    def has_features(self) -> bool:
        """Whether a fixed map stands before the network."""
        return not isinstance(self._features, nn.Identity)

    def network_input(self, pixels: Tensor) -> Tensor:
        """What `body` takes: pixels clipped to their range, scaled, normalised; then
        their features.
        """
        scaled = (pixels - self._low) / (self._high - self._low)
        scaled = torch.clamp(scaled, 0.0, 1.0)
        scaled = torch.where(torch.isfinite(pixels), scaled, 0.5)
        result: Tensor = self._features((scaled - self._mean) / self._std)
        return result

    def input_bounds(self) -> tuple[float, float]:
        """What the network sees of a pixel's lower and upper end, without features."""
        return -self._mean / self._std, (1.0 - self._mean) / self._std

    def movable(self) -> Tensor | None:
        """None: every pixel may change."""
        return None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class probabilities ``(n, classes)`` and the likeliest class ``(n,)``."""
        probabilities = torch.softmax(self.body(self.network_input(pixels)), dim=-1)
        return probabilities, torch.argmax(probabilities, dim=-1)


class _Residual(nn.Module):
    """x + f(x), where f starts at 0: a fresh block changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = _zeroed(nn.Linear(width, width))
        self.inner = nn.Sequential(
            nn.GroupNorm(1, width), nn.Linear(width, width), nn.ReLU(), last
        )

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = rows + self.inner(rows)
        return result


def tabular_width(columns: Sequence[Column], *, missing_flags: bool = False) -> int:
    """How many numbers `TabularClassifier.network_input` makes of a row."""
    numeric = sum(not column.categories for column in columns)
    return numeric * (1 + missing_flags) + sum(_codes(column) for column in columns)


def build_network(architecture: str, spec: NetworkSpec) -> nn.Module:
    """The network of an architecture, by its name in `models.networks.ARCHITECTURES`.

    Its last layer starts at zero: with few noisy steps, no budget is spent on undoing a
    random start, and a linear model starts the same way everywhere.

    >>> network = build_network("linear", NetworkSpec((4,), 2))
    >>> sum(p.numel() for p in network.parameters())
    10
    """
    return _BUILDERS[architecture](spec)


def _perceptron(spec: NetworkSpec) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()] if len(spec.inputs) > 1 else []
    width = math.prod(spec.inputs)
    for size in spec.hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, _zeroed(nn.Linear(width, spec.classes)))


def _resnet(spec: NetworkSpec) -> nn.Module:
    width = spec.hidden[0] if spec.hidden else _RESNET_WIDTH
    layers: list[nn.Module] = [nn.Flatten()] if len(spec.inputs) > 1 else []
    layers.append(nn.Linear(math.prod(spec.inputs), width))
    layers += [_Residual(width) for _ in range(spec.blocks or _RESNET_BLOCKS)]
    last = _zeroed(nn.Linear(width, spec.classes))
    return nn.Sequential(*layers, nn.GroupNorm(1, width), nn.ReLU(), last)


def _cnn(spec: NetworkSpec) -> nn.Module:
    """Convolution, GroupNorm, ReLU, halving; then one linear layer."""
    return _convolutions(spec, normalised=True)


def _plain_cnn(spec: NetworkSpec) -> nn.Module:
    """The same without GroupNorm, so that certificates can be had of it."""
    return _convolutions(spec, normalised=False)


def _convolutions(spec: NetworkSpec, *, normalised: bool) -> nn.Module:
    if len(spec.inputs) != 3:
        raise ValueError("convolutions take images")
    channels, height, width = spec.inputs
    layers: list[nn.Module] = []
    for size in spec.hidden or _CNN_WIDTHS:
        layers.append(nn.Conv2d(channels, size, 3, stride=2, padding=1))
        if normalised:
            whole = size % _CHANNELS_PER_GROUP == 0
            groups = size // _CHANNELS_PER_GROUP if whole else 1
            layers.append(nn.GroupNorm(groups, size))
        layers.append(nn.ReLU())
        channels, height, width = size, (height + 1) // 2, (width + 1) // 2
    last = _zeroed(nn.Linear(channels * height * width, spec.classes))
    return nn.Sequential(*layers, nn.Flatten(), last)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _growth(columns: Sequence[Column], logs: Collection[str]) -> Tensor:
    """By how much more than itself ``low`` grows to ``high``; 0 for linear columns."""
    growths = [
        0.0
        if column.name not in logs
        else column.high / column.low - 1.0
        if column.low > 0
        else _GROWTH_FROM_ZERO
        for column in columns
    ]
    return torch.tensor(growths, dtype=torch.float32)


def _codes(column: Column) -> int:
    return len(column.categories)


# From the scales of `models.data.targets` to the number's own unit.
_UNSCALED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda scaled: scaled,
    "sqrt": torch.square,
    "log": torch.exp,
}
_BUILDERS: Mapping[str, Callable[[NetworkSpec], nn.Module]] = dict(
    zip(
        ARCHITECTURES,
        (_perceptron, _perceptron, _resnet, _cnn, _plain_cnn),
        strict=True,
    )
)
