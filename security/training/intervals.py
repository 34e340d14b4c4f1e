"""A network that carries intervals: the worst that a box of inputs does to its answer.

Interval bound propagation (Gowal et al. 2018, "On the Effectiveness of Interval Bound
Propagation for Training Verifiably Robust Models"): beside each point that goes
through the network, a lower and an upper end of every number go through it. A linear
layer moves the middle as it moves a point, and the half width by the absolute values
of its weights; a monotone function moves each end by itself. The last layer answers
with margins: by how much the right class stays ahead of each other one, at least. It
bounds each difference of two logits at once, so that those of a linear model are exact.

An example is one row ``(views, numbers + 1)``: points, then the lower and the upper
end, and its label as the last number of each, since the last layer must know it. So a
loss is a function of one example, whatever makes its gradient. The layers share their
parameters with the network that is trained, which is what is exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from security.errors import TrainingError
from security.training.gradients import Batch, by_unit
from security.training.layer_gradients import (
    ROUNDING,
    Held,
    Part,
    patches,
    weight_shape,
)

__all__ = [
    "BoundedConvolution",
    "BoundedLinear",
    "BoundedNetwork",
    "Margins",
    "check_boundable",
    "convolution_rule",
    "linear_rule",
    "margins_rule",
    "views_of",
]

# They do not fall where their input grows, so that each end stays an end.
_MONOTONE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)
_KNOWN = "Linear, Conv2d, Flatten, ReLU, ReLU6, Hardtanh and Identity"


class BoundedLinear(nn.Module):
    """A linear layer over ``(n, views, features)``: points, lower end, upper end."""

    def __init__(self, layer: nn.Linear) -> None:
        """Share the layer's parameters."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, views: Tensor) -> Tensor:
        """The same views of what comes out.

        Raises:
            TrainingError: an example has several rows: a layer over positions.
        """
        if views.dim() != 3:
            raise TrainingError("adversarial.certified: Linear over positions")
        plain, radius = _halved(views)
        return _joined(
            functional.linear(plain, self.weight, self.bias),
            functional.linear(radius, self.weight.abs()),
        )


class BoundedConvolution(nn.Module):
    """A convolution over ``(n, views, channels, height, width)``."""

    def __init__(self, layer: nn.Conv2d) -> None:
        """Share the layer's parameters."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        # Padding by name is refused before.
        self.padding: Any = layer.padding
        self.dilation = layer.dilation
        self.groups = layer.groups

    def forward(self, views: Tensor) -> Tensor:
        """The same views of what comes out."""
        plain, radius = _halved(views)
        moved = self._convolved(plain.flatten(0, 1), self.weight, self.bias)
        spread = self._convolved(radius, self.weight.abs(), None)
        return _joined(moved.reshape(*plain.shape[:2], *moved.shape[1:]), spread)

    def _convolved(self, images: Tensor, weight: Tensor, bias: Any) -> Tensor:
        where = self.stride, self.padding, self.dilation, self.groups
        made: Tensor = functional.conv2d(images, weight, bias, *where)
        return made


class Margins(nn.Module):
    """The last layer: logits of the points, and how far the right class is ahead.

    Takes ``(n, views, features + 1)`` with the label last; gives ``(n, points + 1,
    classes)``, of which the last row is the least of the right class' logit minus
    each, 0 for itself.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Share the layer's parameters."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, views: Tensor) -> Tensor:
        """Logits, then margins."""
        labels = views[:, 0, -1].long()
        plain, radius = _halved(views[..., :-1])
        logits = functional.linear(plain, self.weight, self.bias)
        apart = self.weight[labels].unsqueeze(1) - self.weight
        spread = torch.einsum("ncd,nd->nc", apart.abs(), radius)
        right = logits[:, -1].gather(1, labels.unsqueeze(1))
        margins = right - logits[:, -1] - spread
        return torch.cat([logits[:, :-1], margins.unsqueeze(1)], dim=1)


class BoundedNetwork(nn.Module):
    """A network's layers, sharing its parameters, over what `views_of` makes.

    Attributes:
        shape: of one input of the network.
    """

    def __init__(self, body: nn.Module, shape: tuple[int, ...]) -> None:
        """Share the parameters of a network.

        Raises:
            TrainingError: as `check_boundable`.
        """
        super().__init__()
        *layers, last = check_boundable(body)
        self.shape = shape
        self.layers = nn.ModuleList(map(_bounded, layers))
        self.last = Margins(last)

    def forward(self, views: Tensor) -> Tensor:
        """Logits of the points and margins, ``(n, points + 1, classes)``."""
        labels = views[..., -1:]
        value = views[..., :-1].reshape(*views.shape[:2], *self.shape)
        for layer in self.layers:
            value = layer(value)
        result: Tensor = self.last(torch.cat([value.flatten(2), labels], dim=2))
        return result


def views_of(points: list[Tensor], low: Tensor, high: Tensor, labels: Tensor) -> Tensor:
    """What a `BoundedNetwork` takes: ``(n, points + 2, numbers + 1)``.

    Args:
        points: inputs, each ``(n, …)``.
        low: lower ends of each example's box, of the same shape.
        high: upper ends.
        labels: int64 ``(n,)``.
    """
    flat = torch.stack([item.flatten(1) for item in (*points, low, high)], dim=1)
    named = labels.to(flat.dtype)[:, None, None].expand(-1, flat.shape[1], 1)
    return torch.cat([flat, named], dim=2)


def check_boundable(body: nn.Module) -> list[Any]:
    """A network's layers in order, all of which can be bounded.

    >>> check_boundable(nn.Sequential(nn.Linear(4, 2)))
    [Linear(in_features=4, out_features=2, bias=True)]

    Raises:
        TrainingError: a layer has no bounds here, or is used twice, or the last one is
            not linear.
    """
    layers = list(_leaves(body))
    for layer in layers:
        wrong = _unbounded(layer)
        if wrong:
            raise TrainingError(f"adversarial.certified: {wrong}")
    if len({id(layer) for layer in layers}) != len(layers):
        raise TrainingError("adversarial.certified: a layer is used twice")
    if not layers or type(layers[-1]) is not nn.Linear:
        raise TrainingError("adversarial.certified: the last layer must be Linear")
    return layers


def _unbounded(layer: nn.Module) -> str:
    """Why a layer cannot be bounded here; empty where it can."""
    name = type(layer).__name__
    if type(layer) not in (nn.Linear, nn.Conv2d, nn.Flatten, *_MONOTONE):
        return f"no bounds for {name}: it takes nn.Sequential of {_KNOWN}"
    if getattr(layer, "inplace", False):
        return f"{name} works in place"
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return "Flatten must take all of an example"
    if isinstance(layer, nn.Conv2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return "Conv2d must pad with zeros, so many as a number says"
    return ""


def linear_rule(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    """What `bookkeeping` needs of a `BoundedLinear`."""
    (deep, radius), (wide, spread) = _halved(into), _returned(out)
    signs = layer.weight.detach().sign()
    if batch.count == len(into):
        yield layer.weight, _Signed(wide, deep, spread, radius, signs)
    else:
        made = wide.transpose(1, 2) @ deep
        made += signs * (spread[:, :, None] * radius[:, None])
        yield layer.weight, Held(by_unit(made, batch))
    if layer.bias is not None:
        yield layer.bias, Held(by_unit(wide.sum(1), batch))


def convolution_rule(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    """What `bookkeeping` needs of a `BoundedConvolution`."""
    (deep, radius), (wide, spread) = _halved(into), _returned(out)
    views = deep.shape[1]
    made = _kernels(layer, deep.flatten(0, 1), wide.flatten(0, 1))
    made = made.reshape(-1, views, *made.shape[1:]).sum(1)
    made += layer.weight.detach().sign() * _kernels(layer, radius, spread)
    yield layer.weight, Held(by_unit(made, batch))
    if layer.bias is not None:
        yield layer.bias, Held(by_unit(wide.sum((1, 3, 4)), batch))


def margins_rule(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    """What `bookkeeping` needs of `Margins`."""
    labels = into[:, 0, -1].long()
    plain, radius = _halved(into[..., :-1])
    points, ahead = out[:, :-1], out[:, -1]
    weight = layer.weight.detach()
    signs = (weight[labels][:, None] - weight).sign()
    # The margin over a class is at the middle, less what the half width takes.
    least = ahead[..., None] * (plain[:, -1:] - signs * radius[:, None])
    made = points.transpose(1, 2) @ plain[:, :-1] - least
    rows = torch.arange(len(labels), device=labels.device)
    made[rows, labels] += least.sum(1)
    yield layer.weight, Held(by_unit(made, batch))
    if layer.bias is not None:
        given = points.sum(1) - ahead
        given[rows, labels] += ahead.sum(1)
        yield layer.bias, Held(by_unit(given, batch))


@dataclass(frozen=True, eq=False)
class _Signed:
    """Gradients of a weight that is used as it is, and by its absolute values.

    They are a sum of outer products ``out[i, v]`` times ``into[i, v]``, and of
    ``spread[i]`` times ``radius[i]`` with the signs of the weight, never multiplied.
    """

    out: Tensor
    into: Tensor
    spread: Tensor
    radius: Tensor
    signs: Tensor

    def squares(self) -> Tensor:
        """In float64, with the most that rounding takes: the parts may cancel."""
        out, into, spread, radius, signs = (
            item.double()
            for item in (self.out, self.into, self.spread, self.radius, self.signs)
        )
        products = (out @ out.transpose(1, 2)) * (into @ into.transpose(1, 2))
        both = ((out * spread[:, None]) @ signs) * into
        crossed = torch.einsum("nvd,nd->n", both, radius)
        own = ((spread.square() @ signs.square()) * radius.square()).sum(1)
        lengths = products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().sum(1)
        lengths += own.sqrt()
        total = products.sum((1, 2)) + 2 * crossed + own
        total = total.clamp_min(0) + ROUNDING * lengths.square()
        return total.to(self.out.dtype)

    def total(self, factors: Tensor) -> Tensor:
        """Their sum, each by its factor."""
        scaled = (self.out * factors[:, None, None]).flatten(0, 1)
        widened = (self.spread * factors[:, None]).T @ self.radius
        return scaled.T @ self.into.flatten(0, 1) + self.signs * widened


def _leaves(body: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested `nn.Sequential`, in the order in which they are used."""
    if type(body) is nn.Sequential:
        for layer in body:
            yield from _leaves(layer)
    else:
        yield body


def _bounded(layer: Any) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return BoundedLinear(layer)
    if isinstance(layer, nn.Conv2d):
        return BoundedConvolution(layer)
    # Of views, there is one more dimension that is kept.
    return nn.Flatten(2) if isinstance(layer, nn.Flatten) else layer


def _halved(views: Tensor) -> tuple[Tensor, Tensor]:
    """The points and the middle; and half of the width."""
    low, high = views[:, -2:-1], views[:, -1:]
    plain = torch.cat([views[:, :-2], (high + low) / 2], dim=1)
    return plain, ((high - low) / 2).squeeze(1)


def _joined(plain: Tensor, radius: Tensor) -> Tensor:
    """The other way round."""
    middle, spread = plain[:, -1:], radius.unsqueeze(1)
    return torch.cat([plain[:, :-1], middle - spread, middle + spread], dim=1)


def _returned(out: Tensor) -> tuple[Tensor, Tensor]:
    """From gradients at the views to those at points and middle, and at the width."""
    low, high = out[:, -2:-1], out[:, -1:]
    return torch.cat([out[:, :-2], low + high], dim=1), (high - low).squeeze(1)


def _kernels(layer: Any, into: Tensor, out: Tensor) -> Tensor:
    """Each image's gradient of a convolution's weight, ``(m, *weight.shape)``."""
    came = out.reshape(len(out), layer.groups, -1, *out.shape[2:]).flatten(3)
    return weight_shape(layer)(came @ patches(layer, into))
