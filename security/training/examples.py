"""What is trained on, in tensors: whose each example is, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from security.training.distributed import processes, share_of
from security.training.gradients import Batch

__all__ = ["Examples", "parts"]


@dataclass(frozen=True)
class Examples:
    """What is trained on, preprocessed.

    Attributes:
        inputs: float32 ``(n, …)``, in a range that is public.
        labels: ``(n,)``: classes, int64; or shares of a target's range, float32.
        units: int64 ``(n,)``, from 0 without gaps: whose each example is; None where
            each is its own.
        clamped: float64 ``(count,)``: of each unit, the share of its targets that were
            clamped to their range; None where that is not counted.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    units: Tensor | None = field(default=None, repr=False)
    clamped: Tensor | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many units."""
        if self.units is None:
            return len(self.labels)
        return int(self.units.max()) + 1 if len(self.units) else 0

    def share(self) -> Examples:
        """Those whose units this process owns: all of them, where it is the only one.

        Units keep their numbers' order, and are numbered again without gaps.
        """
        if processes() == 1:
            return self
        given = torch.arange(len(self.labels)) if self.units is None else self.units
        own = share_of(given)
        units = None if self.units is None else given[own] // processes()
        clamped = self.clamped
        if clamped is not None:
            clamped = clamped[share_of(torch.arange(len(clamped)))]
        return Examples(self.inputs[own], self.labels[own], units, clamped)

    def batch(self, chosen: Tensor) -> Batch:
        """The examples of the chosen units, a boolean for each, sorted by unit."""
        if self.units is None:
            rows = chosen.nonzero().flatten()
            units = torch.arange(len(rows))
            return Batch(self.inputs[rows], self.labels[rows], units, len(rows))
        rows = chosen[self.units].nonzero().flatten()
        rows = rows[torch.argsort(self.units[rows], stable=True)]
        names, units = torch.unique_consecutive(self.units[rows], return_inverse=True)
        return Batch(self.inputs[rows], self.labels[rows], units, len(names))


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """Physical batches of at most so many examples, never through a unit.

    An empty batch is one part: a step without units is a step of noise alone.
    """
    if not size or len(batch.labels) <= size:
        yield batch
        return
    if batch.count == len(batch.labels):  # each its own unit
        split = torch.split(batch.inputs, size), torch.split(batch.labels, size)
        for inputs, labels in zip(*split):
            yield Batch(inputs, labels, batch.units[: len(labels)], len(labels))
        return
    counts = torch.bincount(batch.units, minlength=batch.count)
    ends = torch.cumsum(counts, 0).tolist()
    first = start = 0
    for unit, end in enumerate(ends):
        last = unit + 1 == len(ends)
        if last or ends[unit + 1] - start > size:
            rows = slice(start, end)
            units = batch.units[rows] - first
            yield Batch(batch.inputs[rows], batch.labels[rows], units, unit + 1 - first)
            start, first = end, unit + 1
