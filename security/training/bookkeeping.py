"""Per-unit clipping for little more than the price of one ordinary pass.

A layer's gradient for one example is made of what went into the layer and of the
loss' gradient at what came out. Both are at hand after one pass backwards, so the norm
of every example's gradient follows without holding the gradients of a linear layer:
the norm of an outer product is the product of the norms. The clipped sum is then one
matrix product, as in training without privacy (Bu, Wang, Zha and Karypis 2023,
"Differentially Private Optimization on Large Model at Small Cost").

What is clipped is what is summed: if a network used a weight outside of its layer, that
part of the gradient would be missing, and the rest still bounded. `supports` refuses
the networks where this could happen unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from security.errors import TrainingError
from security.training.gradients import (
    Batch,
    Clipped,
    Clipping,
    Objective,
    by_unit,
    finite_norms,
    no_units,
)
from security.training.stacked import StackedLinear, stacked_rule

__all__ = ["BookkeepingMethod", "supports"]

# Gradients of a convolution that are made at once, in numbers: they stay in the cache.
_PIECE = 1 << 19


class _Part(Protocol):
    """One parameter's gradients, of every unit."""

    def squares(self) -> Tensor:
        """Their squared norms, shape ``(count,)``."""

    def total(self, factors: Tensor) -> Tensor:
        """Their sum, each by its factor."""


@dataclass(frozen=True, eq=False)
class _Held:
    """Gradients that are held, shape ``(count, …)``.

    Attributes:
        known: their squared norms, where somebody has them already.
    """

    gradients: Tensor
    known: Tensor | None = None

    def squares(self) -> Tensor:
        return _squares(self.gradients) if self.known is None else self.known

    def total(self, factors: Tensor) -> Tensor:
        flat = factors @ self.gradients.flatten(1)
        return flat.view(self.gradients.shape[1:])


@dataclass(frozen=True, eq=False)
class _Outer:
    """Gradients of a linear layer: ``out[i]`` times ``into[i]``, never multiplied.

    Attributes:
        known: squared norms of ``out``.
    """

    out: Tensor
    into: Tensor
    known: Tensor

    def squares(self) -> Tensor:
        return self.known * _squares(self.into)

    def total(self, factors: Tensor) -> Tensor:
        return (self.out * factors[:, None]).T @ self.into


@dataclass(eq=False)
class _Record:
    """What one pass showed of a layer."""

    layer: Any
    into: Tensor
    out: Tensor
    version: int


# (layer, what went in, gradient at what came out, batch) -> parameters, gradients.
_Rule = Callable[[Any, Tensor, Tensor, Batch], Iterator[tuple[Any, _Part]]]


def _linear(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, _Part]]:
    """Rows ``(m, …, features)``; places between are positions of one example."""
    if into.dim() == 2 and batch.count == len(into):
        squares = _squares(out)
        yield layer.weight, _Outer(out, into, squares)
        if layer.bias is not None:
            yield layer.bias, _Held(out, squares)
        return
    into = into.flatten(1, -2) if into.dim() > 2 else into[:, None]
    wide = out.flatten(1, -2) if out.dim() > 2 else out[:, None]
    gradients = torch.bmm(wide.transpose(1, 2), into)
    yield layer.weight, _Held(by_unit(gradients, batch))
    if layer.bias is not None:
        bias = out if out.dim() == 2 else out.flatten(1, -2).sum(1)
        yield layer.bias, _Held(by_unit(bias, batch))


def _convolution(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, _Part]]:
    """Images ``(m, channels, height, width)``: every example's gradient.

    As one convolution with a group per example, which torch differentiates for about
    the price of the ordinary sum; cutting out patches costs three times as much.
    """
    gradients = into.new_empty((len(into), *layer.weight.shape))
    rows = max(1, _PIECE // layer.weight.numel())
    pieces = (torch.split(whole, rows) for whole in (gradients, into, out))
    for held, seen, came in zip(*pieces):
        held.copy_(_grouped(layer, seen, came).view_as(held))
    yield layer.weight, _Held(by_unit(gradients, batch))
    if layer.bias is not None:
        yield layer.bias, _Held(by_unit(out.flatten(2).sum(2), batch))


def _grouped(layer: Any, into: Tensor, out: Tensor) -> Tensor:
    wide, *rest = layer.weight.shape
    result: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]  # torch has none
        into.reshape(1, -1, *into.shape[2:]),
        [len(into) * wide, *rest],
        out.reshape(1, -1, *out.shape[2:]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=len(into) * layer.groups,
    )
    return result


def _group_norm(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, _Part]]:
    if layer.affine:
        normal = functional.group_norm(into, layer.num_groups, eps=layer.eps)
        places = tuple(range(2, out.dim()))
        yield from _affine(layer, normal, out, batch, places=places)


def _layer_norm(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, _Part]]:
    if layer.elementwise_affine:
        normal = functional.layer_norm(into, layer.normalized_shape, eps=layer.eps)
        places = tuple(range(1, out.dim() - len(layer.normalized_shape)))
        yield from _affine(layer, normal, out, batch, places=places)


def _affine(
    layer: Any, normal: Tensor, out: Tensor, batch: Batch, *, places: tuple[int, ...]
) -> Iterator[tuple[Any, _Part]]:
    """Scale and shift, the same at all places of an example."""
    if layer.weight is not None:
        # A product of matrices, not element by element: no map of products is written.
        summed = _dot(out, normal, places)
        yield layer.weight, _Held(by_unit(summed, batch))
    if layer.bias is not None:
        yield layer.bias, _Held(by_unit(out.sum(places) if places else out, batch))


def _dot(left: Tensor, right: Tensor, places: tuple[int, ...]) -> Tensor:
    """The sum of products over some dimensions; the products where there are none."""
    if not places:
        return left * right
    letters = "nabcdefgh"[: left.dim()]
    kept = "".join(c for i, c in enumerate(letters) if i not in places)
    return torch.einsum(f"{letters},{letters}->{kept}", left, right)


def _squares(rows: Tensor) -> Tensor:
    """Squared norms of what each row holds; twice as fast as squaring first."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square()


_RULES: Mapping[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    StackedLinear: stacked_rule,
}


def supports(body: nn.Module) -> bool:
    """Whether every trainable parameter is in one layer that has a rule.

    >>> supports(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU()))
    True
    >>> supports(nn.LSTM(2, 2))
    False
    """
    owners = [
        parameter
        for layer in body.modules()
        for parameter in layer.parameters(recurse=False)
        if parameter.requires_grad
    ]
    once = len(owners) == len({id(parameter) for parameter in owners})
    return once and all(_has_rule(layer) for layer in body.modules())


def _has_rule(layer: nn.Module) -> bool:
    if getattr(layer, "inplace", False):
        return False  # it would overwrite what is kept here
    if not any(p.requires_grad for p in layer.parameters(recurse=False)):
        return True
    if isinstance(layer, nn.Conv2d):
        plain = layer.padding_mode == "zeros"
        return type(layer) in _RULES and plain and not isinstance(layer.padding, str)
    return type(layer) in _RULES  # not a subclass, which may compute something else


class BookkeepingMethod:
    """One pass backwards; see the module."""

    name = "bookkeeping"

    def __init__(self, body: nn.Module, objective: Objective) -> None:
        if not supports(body):
            raise TrainingError("bookkeeping has no rule for a layer: take 'hooks'")
        self._body, self._objective = body, objective
        self._parameters = [p for p in body.parameters() if p.requires_grad]
        # Attached once: for small networks it costs as much as a layer.
        self._records: list[_Record] | None = None
        self._handles = [
            layer.register_forward_hook(self._keep)
            for layer in body.modules()
            if type(layer) in _RULES
        ]

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """See `GradientMethod.clipped_sums`."""
        if not len(batch.labels):
            return no_units(self._parameters)
        with self._kept() as records:
            losses = self._objective(self._body, batch.inputs, batch.labels)
        parts = self._parts(records, losses, batch)
        squares = torch.stack([part.squares() for part in parts.values()])
        norms = finite_norms(squares.sum(0).sqrt())
        factors = clipping.factors(norms)
        sums = [
            parts[id(p)].total(factors) if id(p) in parts else torch.zeros_like(p)
            for p in self._parameters
        ]
        return Clipped(sums, norms * factors, by_unit(losses.detach(), batch))

    def close(self) -> None:
        """See `GradientMethod.close`."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def _kept(self) -> Iterator[list[_Record]]:
        records: list[_Record] = []
        self._records = records
        try:
            yield records
        finally:
            self._records = None

    def _keep(self, layer: nn.Module, into: tuple[Any, ...], out: Tensor) -> None:
        # Other passes, as an attack's between two batches, leave nothing behind.
        if self._records is not None:
            # Each use of a layer is its own record, so that none is overwritten.
            version = out._version  # noqa: SLF001  (torch's count of in-place changes)
            self._records.append(_Record(layer, into[0].detach(), out, version))

    def _parts(
        self, records: Sequence[_Record], losses: Tensor, batch: Batch
    ) -> dict[int, _Part]:
        """Every parameter's gradients, by its identity."""
        _check(records, len(batch.labels))
        outputs = [record.out for record in records]
        # Asked for these alone, torch computes no gradient of any weight.
        gradients = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        parts: dict[int, _Part] = {}
        for record, gradient in zip(records, gradients):
            if gradient is None:
                continue  # what came out was not used
            rule = _RULES[type(record.layer)]
            # In float32, whatever the pass computed in: what is clipped is what is
            # summed, so the bound does not depend on the pass' precision.
            given = record.into.float(), gradient.float()
            for parameter, part in rule(record.layer, *given, batch):
                if parameter.requires_grad:
                    parts[id(parameter)] = part
        if not parts:
            raise TrainingError("the loss does not depend on any trainable layer")
        return parts


def _check(records: Sequence[_Record], rows: int) -> None:
    if len({id(record.layer) for record in records}) != len(records):
        raise TrainingError("a layer is used twice in one pass: take 'hooks'")
    for record in records:
        if record.out._version != record.version:  # noqa: SLF001  (see above)
            raise TrainingError("a layer's output is changed in place: take 'hooks'")
        if len(record.into) != rows:
            raise TrainingError("a layer sees other rows than the batch's: take hooks")
