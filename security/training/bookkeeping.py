"""Per-unit clipping for little more than the price of one ordinary pass.

A layer's gradient for one example is made of what went into the layer and of the
loss' gradient at what came out. Both are at hand after one pass backwards, so the norm
of every example's gradient follows without holding the gradients of a linear layer:
the norm of an outer product is the product of the norms. A convolution is a linear
layer on patches; where it has more weights than there are numbers at its places, its
norms follow without gradients, too. The clipped sum is then one matrix product, as in
training without privacy (Bu, Wang, Zha and Karypis 2023, "Differentially Private
Optimization on Large Model at Small Cost"). On a processor, a batch is looked at in
pieces that stay near it: the sums are the same, and memory does not grow with it.

What is clipped is what is summed: if a network used a weight outside of its layer, that
part of the gradient would be missing, and the rest still bounded. `supports` refuses
the networks where this could happen unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from security.errors import TrainingError
from security.training.examples import parts
from security.training.gradients import (
    Batch,
    Clipped,
    Clipping,
    Objective,
    by_unit,
    finite_norms,
    no_units,
)
from security.training.intervals import (
    BoundedConvolution,
    BoundedLinear,
    Margins,
    convolution_rule,
    linear_rule,
    margins_rule,
)
from security.training.layer_gradients import (
    ROUNDING,
    Held,
    Part,
    patches,
    squares,
    weight_shape,
)
from security.training.stacked import StackedLinear, stacked_rule

__all__ = ["BookkeepingMethod", "supports"]

# Numbers that a pass keeps at once, on a processor: they stay near it.
_KEPT = 1 << 22
# Rows that are tried to see how many numbers each of them keeps.
_TRIED = 8


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
        return self.known * squares(self.into)

    def total(self, factors: Tensor) -> Tensor:
        return (self.out * factors[:, None]).T @ self.into


@dataclass(frozen=True, eq=False)
class _Products:
    """Gradients of a weight that is used at many places: sums of outer products.

    Attributes:
        out: what came back at each place, ``(m, groups, places, wide)``.
        into: what went in there, ``(m, groups, places, features)``.
        shape: of the total ``(groups, wide, features)``, as the weight has it.
    """

    out: Tensor
    into: Tensor
    shape: Callable[[Tensor], Tensor]

    def squares(self) -> Tensor:
        """The product of what any two places have in common, before and after.

        Where places cancel, rounding may take away more than what is left, and too
        short a norm would not clip. In float32 that is a hundred thousandth of what
        cancels, and grows with the features; so they are float64, and the most that
        its rounding takes is added.
        """
        deep, wide = self.into.double(), self.out.double()
        products = (deep @ deep.transpose(2, 3)) * (wide @ wide.transpose(2, 3))
        lengths = products.diagonal(dim1=2, dim2=3).clamp_min(0).sqrt().sum(2)
        total = products.sum((1, 2, 3)) + ROUNDING * lengths.square().sum(1)
        return total.to(self.out.dtype)

    def total(self, factors: Tensor) -> Tensor:
        scaled = self.out * factors[:, None, None, None]
        groups = self.out.shape[1]
        out, into = (
            v.transpose(0, 1).reshape(groups, -1, v.shape[3])
            for v in (scaled, self.into)
        )
        return self.shape(out.transpose(1, 2) @ into)


def _products(
    out: Tensor, into: Tensor, shape: Callable[[Tensor], Tensor], batch: Batch
) -> Part:
    """The smaller of two: gradients, or what they are made of.

    It is also the sooner made: with p places, a gradient takes p products for each of
    its numbers, and what any two places have in common p for each number at a place.
    """
    places, wide, features = out.shape[2], out.shape[3], into.shape[3]
    single = batch.count == len(out)
    if single and places * (wide + features) < wide * features:
        return _Products(out, into, shape)
    made = by_unit(out.transpose(2, 3) @ into, batch)
    return Held(made, shape)


@dataclass(eq=False)
class _Record:
    """What one pass showed of a layer."""

    layer: Any
    into: Tensor
    out: Tensor
    version: int


# (layer, what went in, gradient at what came out, batch) -> parameters, gradients.
_Rule = Callable[[Any, Tensor, Tensor, Batch], Iterator[tuple[Any, Part]]]


def _linear(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    """Rows ``(m, …, features)``; places between are positions of one example."""
    if into.dim() == 2 and batch.count == len(into):
        lengths = squares(out)
        yield layer.weight, _Outer(out, into, lengths)
        if layer.bias is not None:
            yield layer.bias, Held(out, known=lengths)
        return
    places = tuple(range(1, out.dim() - 1))
    wide, deep = (v.reshape(len(v), 1, -1, v.shape[-1]) for v in (out, into))
    yield layer.weight, _products(wide, deep, lambda total: total[0], batch)
    if layer.bias is not None:
        bias = out.sum(places) if places else out
        yield layer.bias, Held(by_unit(bias, batch))


def _convolution(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    """Images ``(m, channels, height, width)``: a linear layer on patches of them."""
    groups, wide = layer.groups, len(layer.weight)
    came = out.reshape(len(out), groups, wide // groups, -1).transpose(2, 3)
    made = _products(came, patches(layer, into), weight_shape(layer), batch)
    yield layer.weight, made
    if layer.bias is not None:
        yield layer.bias, Held(by_unit(out.sum((2, 3)), batch))


def _group_norm(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    if layer.affine:
        normal = functional.group_norm(into, layer.num_groups, eps=layer.eps)
        places = tuple(range(2, out.dim()))
        yield from _affine(layer, normal, out, batch, places=places)


def _layer_norm(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, Part]]:
    if layer.elementwise_affine:
        normal = functional.layer_norm(into, layer.normalized_shape, eps=layer.eps)
        places = tuple(range(1, out.dim() - len(layer.normalized_shape)))
        yield from _affine(layer, normal, out, batch, places=places)


def _affine(
    layer: Any, normal: Tensor, out: Tensor, batch: Batch, *, places: tuple[int, ...]
) -> Iterator[tuple[Any, Part]]:
    """Scale and shift, the same at all places of an example."""
    if layer.weight is not None:
        # A product of matrices, not element by element: no map of products is written.
        summed = _dot(out, normal, places)
        yield layer.weight, Held(by_unit(summed, batch))
    if layer.bias is not None:
        yield layer.bias, Held(by_unit(out.sum(places) if places else out, batch))


def _dot(left: Tensor, right: Tensor, places: tuple[int, ...]) -> Tensor:
    """The sum of products over some dimensions; the products where there are none."""
    if not places:
        return left * right
    letters = "nabcdefgh"[: left.dim()]
    kept = "".join(c for i, c in enumerate(letters) if i not in places)
    return torch.einsum(f"{letters},{letters}->{kept}", left, right)


_RULES: Mapping[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    StackedLinear: stacked_rule,
    BoundedLinear: linear_rule,
    BoundedConvolution: convolution_rule,
    Margins: margins_rule,
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
        self._rows = 0  # not known yet
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
        if batch.labels.device.type != "cpu":
            return self._at_once(batch, clipping)
        if not self._rows:
            self._rows = self._fitting(next(parts(batch, _TRIED)))
        return _joined(self._at_once(p, clipping) for p in parts(batch, self._rows))

    def _at_once(self, batch: Batch, clipping: Clipping) -> Clipped:
        found, losses = self._found(batch)
        squares = torch.stack([part.squares() for part in found.values()])
        norms = finite_norms(squares.sum(0).sqrt())
        factors = clipping.factors(norms)
        sums = [
            found[id(p)].total(factors) if id(p) in found else torch.zeros_like(p)
            for p in self._parameters
        ]
        return Clipped(sums, norms * factors, by_unit(losses, batch))

    def _fitting(self, batch: Batch) -> int:
        """How many rows to look at together: as many as keep `_KEPT` numbers."""
        with self._kept() as records:
            self._objective(self._body, batch.inputs, batch.labels)
        numbers = sum(r.into.numel() + 2 * r.out.numel() for r in records)
        return max(_TRIED, _KEPT * len(batch.labels) // max(1, numbers))

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

    def _found(self, batch: Batch) -> tuple[dict[int, Part], Tensor]:
        """Every parameter's gradients, by its identity; and the losses."""
        with self._kept() as records:
            losses = self._objective(self._body, batch.inputs, batch.labels)
        _check(records, len(batch.labels))
        outputs = [record.out for record in records]
        # Asked for these alone, torch computes no gradient of any weight.
        gradients = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        found: dict[int, Part] = {}
        for record, gradient in zip(records, gradients):
            if gradient is None:
                continue  # what came out was not used
            rule = _RULES[type(record.layer)]
            # In float32, whatever the pass computed in: what is clipped is what is
            # summed, so the bound does not depend on the pass' precision.
            given = record.into.float(), gradient.float()
            for parameter, part in rule(record.layer, *given, batch):
                if parameter.requires_grad:
                    found[id(parameter)] = part
        if not found:
            raise TrainingError("the loss does not depend on any trainable layer")
        return found, losses.detach()


def _joined(pieces: Iterator[Clipped]) -> Clipped:
    """What was made of a batch's pieces, added up; one piece's sums at a time."""
    whole = next(pieces)
    norms, losses = [whole.norms], [whole.losses]
    for piece in pieces:
        for total, more in zip(whole.sums, piece.sums):
            total.add_(more)
        norms.append(piece.norms)
        losses.append(piece.losses)
    return Clipped(whole.sums, torch.cat(norms), torch.cat(losses))


def _check(records: Sequence[_Record], rows: int) -> None:
    if len({id(record.layer) for record in records}) != len(records):
        raise TrainingError("a layer is used twice in one pass: take 'hooks'")
    for record in records:
        if record.out._version != record.version:  # noqa: SLF001  (see above)
            raise TrainingError("a layer's output is changed in place: take 'hooks'")
        if len(record.into) != rows:
            raise TrainingError("a layer sees other rows than the batch's: take hooks")
