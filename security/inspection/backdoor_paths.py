"""Paths through a flow: what a trigger is made of, which outputs a value reaches."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from security.inspection.backdoor_flow import ABSENT, Step
from security.inspection.backdoor_kinds import (
    CONST,
    DATA,
    SHAPE,
    Kinds,
)
from security.inspection.backdoor_operators import LINEAR, POINTWISE, RESHAPES, VIEWS
from security.inspection.calls import show

__all__ = ["Paths"]

_SHOWN = 12
# -1e4 was the usual "minus infinity" in half precision.
_MASKED = -1e3


class Paths:
    """Questions about a flow that an explanation answers."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.flow = kinds.flow
        self._readers: dict[int, list[Step]] = defaultdict(list)
        for step in self.flow.steps:
            for value in set(step.inputs):
                self._readers[value].append(step)
        self._names = defaultdict(list)
        for name, value in self.flow.outputs:
            self._names[value].append(name)

    def readers(self, value: int) -> list[Step]:
        """The steps that read a value."""
        return self._readers[value]

    def trigger(self, value: int) -> list[Step]:
        """The shortest way from a graph input to a value: its steps, in order.

        What is made of values is followed through values, not through shapes.
        """
        least = min(self.kinds[value].kind, SHAPE + 1)
        came: dict[int, tuple[int, Step]] = {}
        queue, seen = deque([value]), {value}
        while queue:
            current = queue.popleft()
            if current in self.flow.inputs:
                return self._way(current, came)
            step = self.kinds.producer.get(current)
            for before in step.inputs if step else ():
                if before not in seen and self.kinds[before].kind >= least:
                    seen.add(before)
                    came[before] = (current, step)  # type: ignore[assignment]
                    queue.append(before)
        return []

    def _way(self, value: int, came: Mapping[int, tuple[int, Step]]) -> list[Step]:
        steps: list[Step] = []
        while value in came:
            value, step = came[value]
            steps.append(step)
        return steps

    def describe_trigger(self, value: int) -> str:
        """The way from an input to a value, in words."""
        steps = self.trigger(value)
        first = self._input_behind(steps, value)
        labels = [f"input {show(first)}", *(step.label for step in steps)]
        if len(labels) > _SHOWN:
            labels = [*labels[: _SHOWN - 4], "...", *labels[-3:]]
        return " -> ".join(labels)

    def _input_behind(self, steps: list[Step], value: int) -> str:
        candidates: Iterable[int] = steps[0].inputs if steps else (value,)
        names = [self.flow.inputs[v] for v in candidates if v in self.flow.inputs]
        return names[0] if names else "?"

    def describe_value(self, value: int) -> str:
        """What a value is, in words."""
        if self.kinds[value].kind == CONST:
            return self._describe_constant(value)
        if value in self.flow.inputs:
            return f"input {show(self.flow.inputs[value])}"
        step = self.kinds.producer.get(value)
        return f"the result of {step.label}" if step else "a value"

    def _describe_constant(self, value: int) -> str:
        array = self.flow.constant(value)
        if array is None:
            step = self.kinds.producer.get(value)
            return f"a constant computed by {step.label}" if step else "a constant"
        some = ", ".join(f"{item!s:.12}" for item in array.reshape(-1)[:4])
        more = ", ..." if array.size > 4 else ""
        return (
            f"a constant of shape {list(array.shape)[:6]} ({ascii(some + more)[1:-1]})"
        )

    def describe_reach(self, value: int) -> str:
        """Which outputs a value reaches, and how directly, in words."""
        reached = self._reach(value)
        if not reached:
            return "no output"
        told = []
        for name, steps in list(reached.items())[:3]:
            direct = not any(step.op in LINEAR for step in steps)
            ways = ", ".join(step.op for step in steps[:6]) or "nothing else"
            how = "directly" if direct else "after more layers"
            told.append(f"output {show(name)} {how} (through {ways})")
        return "; ".join(told)

    def _reach(self, value: int) -> dict[str, list[Step]]:
        found: dict[str, list[Step]] = {}
        queue: deque[tuple[int, list[Step]]] = deque([(value, [])])
        seen = {value}
        while queue:
            current, steps = queue.popleft()
            for name in self._names.get(current, ()):
                found.setdefault(name, steps)
            for step in self.readers(current):
                fresh = [item for item in step.outputs if item not in seen]
                seen.update(fresh)
                queue.extend((item, [*steps[:6], step]) for item in fresh)
        return found

    def is_attention(self, step: Step, value: int) -> bool:
        """Whether a step hides scores from a softmax over values of the input.

        The constant is very negative, the test is made position by position (of an
        input's values; of its shape, in any way: causal masks), and all that follows
        is a softmax that a product with other data consumes.
        """
        of_shape = self.kinds[value].kind == SHAPE
        plain = POINTWISE | VIEWS | {"Phi"}
        # The search for the trigger is the dearest, so it comes last.
        return (
            self._hides(step, value)
            and self._all_readers(step.outputs[0], self._is_softmax)
            and (of_shape or all(item.op in plain for item in self.trigger(value)))
        )

    def is_equality(self, value: int) -> bool:
        """Whether an Equal is among the last steps that computed a value."""
        step = self.kinds.producer.get(value)
        for _ in range(3):
            if step is None or step.op == "Equal":
                break
            step = self.kinds.producer.get(self._first_varying(step))
        return step is not None and step.op == "Equal"

    def _hides(self, step: Step, mask: int) -> bool:
        """Whether the constants in or just before a step are very negative."""
        before = [*step.inputs]
        producer = self.kinds.producer.get(mask)
        for _ in range(6):
            if producer is not None:
                before += producer.inputs
                producer = self.kinds.producer.get(self._first_varying(producer))
        arrays = [self.flow.constant(value) for value in before if value != ABSENT]
        return any(
            array is not None
            and array.dtype.kind == "f"
            and array.size == 1
            and float(np.min(array)) <= _MASKED
            for array in arrays
        )

    def _first_varying(self, step: Step) -> int:
        varying = [v for v in step.inputs if self.kinds[v].kind > CONST]
        return varying[0] if varying else ABSENT

    def _is_softmax(self, step: Step) -> bool:
        return step.op == "Softmax" and self._all_readers(
            step.outputs[0], self._is_weighting
        )

    def _is_weighting(self, step: Step) -> bool:
        return step.op == "MatMul" and all(
            self.kinds[value].kind == DATA for value in step.inputs
        )

    def _all_readers(self, value: int, wanted: Callable[[Step], bool]) -> bool:
        """Whether every reader is wanted, looking through what keeps elements apart."""
        queue, seen = [value], {value}
        any_found = False
        while queue:
            current = queue.pop()
            readers = self.readers(current)
            if current in self._names or not readers:
                return False
            for step in readers:
                if wanted(step):
                    any_found = True
                elif step.op in POINTWISE | VIEWS:
                    fresh = [item for item in step.outputs if item not in seen]
                    seen.update(fresh)
                    queue += fresh
                else:
                    return False
        return any_found

    def same_data(self, values: Iterable[int]) -> bool:
        """Whether values are views of one value: another shape, the same numbers."""
        return len({self._origin(value) for value in values}) == 1

    def _origin(self, value: int) -> int:
        for _ in range(32):
            step = self.kinds.producer.get(value)
            if step is None or step.op not in RESHAPES:
                return value
            if any(self.kinds[v].kind > SHAPE for v in step.inputs[1:]):
                return value
            value = step.inputs[0]
        return value
