"""Requests that wait for a run of their model, and what they wait with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sealgate.errors import SealgateError
from sealgate.protocol.tensors import Array

__all__ = [
    "Budget",
    "InferenceTimeoutError",
    "Inputs",
    "Item",
    "OverloadedError",
    "classify",
    "expired",
    "resolve",
    "split",
]

Inputs = Mapping[str, Array]


class InferenceTimeoutError(SealgateError):
    """A run was stopped at its deadline, or never got its turn before it."""


class OverloadedError(SealgateError):
    """As many requests wait as may."""


class Budget:
    """Bytes of inputs in memory, over all models of a worker."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, size: int) -> None:
        """Reserve.

        Raises:
            OverloadedError: there are not so many left.
        """
        if size > self._left:
            raise OverloadedError("too many bytes wait")
        self._left -= size

    def give(self, size: int) -> None:
        """Return what was taken."""
        self._left += size


class Item:
    """One request, until its future is done.

    Attributes:
        future: of its outputs.
    """

    __slots__ = (
        "budget_s", "came", "deadline", "future", "inputs", "key", "note", "outputs",
        "rows", "size",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Inputs,
        outputs: Sequence[str],
        future: asyncio.Future[list[Array]],
        *,
        deadline: float,
        note: bytes,
    ) -> None:
        self.note = note
        self.inputs = inputs
        self.outputs = outputs
        self.future = future
        self.deadline = deadline
        self.came = time.perf_counter()
        self.rows, self.size = 1, 0
        # What requests of one run must have in common; None runs alone.
        self.key: tuple[Any, ...] | None = None
        # Of the run that is left to it after a shared one failed; None: until deadline.
        self.budget_s: float | None = None


def classify(item: Item, *, rows_apart: bool) -> None:
    """Count its rows, and say which requests it may share a run with."""
    lengths = [len(array) if array.ndim else 0 for array in item.inputs.values()]
    item.rows = max(1, *lengths)
    if rows_apart and min(lengths) == item.rows:
        item.key = tuple([(name, a.shape[1:]) for name, a in item.inputs.items()])


def split(items: list[Item], arrays: Mapping[str, Array]) -> list[list[Array]]:
    """Each one's rows of the outputs of a run that they shared."""
    results = []
    start = 0
    for item in items:
        end = start + item.rows
        results.append([arrays[name][start:end] for name in item.outputs])
        start = end
    return results


def resolve(items: list[Item], results: list[list[Array]]) -> None:
    """Let those go on that still wait."""
    for item, result in zip(items, results):
        if not item.future.done():
            item.future.set_result(result)


def expired(item: Item, now: float) -> bool:
    """Fail a request whose deadline is over."""
    if item.deadline > now:
        return False
    if not item.future.done():
        item.future.set_exception(InferenceTimeoutError("its turn came too late"))
    return True
