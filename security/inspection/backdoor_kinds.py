"""What each value of a model is made of: an abstract interpretation of its steps.

Four kinds, each above the last:

CONST     the same for every input
SHAPE     depends on the inputs' shapes only
DECISION  computed from nothing but results of tests on the inputs' values
DATA      carries the inputs' values

And a base: two values with one base are functions of the same single element, position
by position. A test and what it chooses between with one base is an activation function
of that element, whatever operators spell it: ReLU as Where, clipping, imputation,
zeroing the embeddings of padding. Only tests that reach elsewhere are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from security.inspection.backdoor_flow import ABSENT, Flow, Step, attribute
from security.inspection.backdoor_operators import (
    LINEAR,
    POINTWISE,
    RAGGED,
    ROUNDING,
    SATURATING,
    SCALINGS,
    SHAPED,
    TESTS,
    VIEWS,
)

__all__ = [
    "CONST",
    "DATA",
    "DECISION",
    "SHAPE",
    "Kinds",
    "State",
    "interpret",
]

CONST, SHAPE, DECISION, DATA = range(4)

_STEEP = 1e4
_FEW_LEVELS = 4
_MAX_PASSES = 20


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a value.

    Attributes:
        kind: `CONST`, `SHAPE`, `DECISION` or `DATA`.
        base: a number; equal for functions of one element; None for constants.
        mixed: whether a linear layer is behind it.
        ragged: whether values decide how many elements it has.
    """

    kind: int = CONST
    base: int | None = None
    mixed: bool = False
    ragged: bool = False


class Kinds:
    """The states of a flow's values, and who computes and who reads each."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.states: dict[int, State] = {}
        self.producer = {value: step for step in flow.steps for value in step.outputs}
        self._bases: dict[tuple[Any, ...], int] = {}
        for value in flow.inputs:
            self.states[value] = State(DATA, self._base("value", value))

    def __getitem__(self, value: int) -> State:
        return self.states.get(value, State())

    def run(self) -> None:
        """Repeat until nothing changes: loops feed back."""
        for _ in range(_MAX_PASSES):
            changed = [self._apply(step) for step in self.flow.steps]
            if not any(changed):
                return

    def aligned(self, values: list[int]) -> bool:
        """Whether these are functions of one element, position by position."""
        bases = {self[value].base for value in values}
        return len(bases) == 1 and None not in bases

    def _apply(self, step: Step) -> bool:
        changed = False
        for index, value in enumerate(step.outputs):
            state = self._transfer(step, index)
            changed |= state != self[value]
            self.states[value] = state
        return changed

    def _transfer(self, step: Step, index: int) -> State:
        inputs = [self[value] for value in step.inputs if value != ABSENT]
        kind = max((item.kind for item in inputs), default=CONST)
        if step.op == "Slot":
            kind = SHAPE
        if kind == CONST:
            return State()
        ragged = any(item.ragged for item in inputs) or self._is_ragged(step)
        if step.op in ("Shape", "Size"):
            kind = DECISION if ragged else SHAPE
            return State(kind, self._own(step, index))
        if kind == DATA and self._is_test(step, index):
            kind = DECISION
        if self._picks_constants(step):
            kind = min(kind, DECISION)
        return State(
            kind=kind,
            base=self._next_base(step, index),
            mixed=step.op in LINEAR or any(item.mixed for item in inputs),
            ragged=ragged,
        )

    def _picks_constants(self, step: Step) -> bool:
        """Where and If over constants only: a decision in other words."""
        controls = step.controls or (step.op == "Where")
        options = step.inputs[controls:]
        return bool(controls) and all(self[v].kind <= SHAPE for v in options)

    def _is_ragged(self, step: Step) -> bool:
        if step.op in RAGGED:
            return True
        if step.op == "Loop":
            return any(self[value].kind >= DECISION for value in step.inputs[:2])
        first = 0 if step.op == "ConstantOfShape" else 1
        shaped = step.op == "Range" or step.op in SHAPED
        operands = step.inputs if step.op == "Range" else step.inputs[first:]
        return shaped and any(self[value].kind >= DECISION for value in operands)

    def _is_test(self, step: Step, index: int) -> bool:
        if step.op in TESTS:
            return True
        if step.op == "TopK":
            return index == 1
        if step.op == "Cast" and attribute(step, "to") == onnx.TensorProto.BOOL:
            return True
        if step.op in SATURATING and self._gain(step) >= _STEEP:
            return True
        return step.op in ROUNDING and self._levels(step) < _FEW_LEVELS

    def _gain(self, step: Step) -> float:
        """By how much constants multiply what reaches a saturating step."""
        if step.op in ("Min", "Max") and not self._constants(step):
            return 0.0
        return self._behind(step)[0] * float(attribute(step, "alpha", 1.0))

    def _levels(self, step: Step) -> float:
        """How many whole numbers a rounding step can give; infinite if not bounded."""
        if step.op == "Cast" and attribute(step, "to") in _FLOATING:
            return float("inf")
        gain, bounded = self._behind(step)
        return gain * self._span(bounded)

    def _behind(self, step: Step) -> tuple[float, Step | None]:
        """The factor of scalings before a step, and the first step before those."""
        gain, value = 1.0, step.inputs[0]
        for _ in range(16):
            before = self.producer.get(value)
            if before is None or before.op not in SCALINGS:
                return gain, before
            data = [v for v in before.inputs if self[v].kind > SHAPE]
            if len(data) != 1:
                return gain, before
            gain *= self._factor(before)
            value = data[0]
        return gain, None

    def _factor(self, step: Step) -> float:
        constants = self._constants(step)
        if step.op not in ("Mul", "Div") or not constants or not constants[0].size:
            return 1.0
        sizes = np.abs(constants[0].astype(np.float64))
        if step.op == "Mul":
            return float(sizes.min())
        return float(1.0 / max(sizes.max(), 1e-300))

    def _constants(self, step: Step) -> list[Any]:
        found = [self.flow.constant(value) for value in step.inputs if value != ABSENT]
        return [item for item in found if item is not None and item.dtype.kind in "iuf"]

    def _span(self, step: Step | None) -> float:
        if step is None:
            return float("inf")
        if step.op == "Clip" and len(step.inputs) == 3:
            limits = [item for item in self._constants(step) if item.size == 1]
            if len(limits) == 2:
                return float(limits[1].reshape(-1)[0] - limits[0].reshape(-1)[0])
        if step.op == "Clip" and attribute(step, "max") is not None:
            return float(attribute(step, "max") - attribute(step, "min", -np.inf))
        return _SPANS.get(step.op, float("inf"))

    # --- bases

    def _base(self, *key: Any) -> int:
        return self._bases.setdefault(key, len(self._bases))

    def _own(self, step: Step, index: int) -> int:
        return self._base("value", step.outputs[index])

    def _next_base(self, step: Step, index: int) -> int:
        varying = [v for v in step.inputs if self[v].kind > SHAPE]
        bases = {self[value].base for value in varying}
        base = bases.pop() if len(bases) == 1 else None
        if base is None:
            return self._own(step, index)
        if step.op in POINTWISE or step.op == "Phi":
            return base
        trailing = self._trailing(step)
        if trailing is not None:
            return self._trail(base, trailing)
        if step.op in VIEWS and varying == [step.inputs[0]]:
            return self._view(step, index, base)
        return self._own(step, index)

    def _view(self, step: Step, index: int, base: int) -> int:
        """Another view of a base: the same number for the same view."""
        operands: list[Any] = []
        for value in step.inputs[1:]:
            array = self.flow.constant(value) if value in self.flow.constants else None
            # An operand that is no small constant is equal to itself only.
            operands.append(value if array is None else (array.shape, array.tobytes()))
        attributes = [
            item.SerializeToString(deterministic=True) for item in step.node.attribute
        ]
        return self._base(step.op, base, index, *operands, *sorted(attributes))

    def _trailing(self, step: Step) -> int | None:
        """How many dimensions a step appends, each element staying where it is."""
        if step.op == "Gather" and attribute(step, "axis", 0) == 0:
            table = step.inputs[0]
            if self[table].kind == CONST and table in self.flow.ranks:
                return self.flow.ranks[table] - 1
        if step.op == "Unsqueeze":
            return self._appended(step)
        return None

    def _appended(self, step: Step) -> int | None:
        axes = attribute(step, "axes")
        if axes is None and len(step.inputs) > 1:
            array = self.flow.constant(step.inputs[1])
            axes = None if array is None else array.reshape(-1).tolist()
        if axes is None:
            return None
        wanted = sorted(int(axis) for axis in axes)
        if wanted == list(range(-len(wanted), 0)):
            return len(wanted)
        rank = self.flow.ranks.get(step.inputs[0])
        if rank is not None and wanted == list(range(rank, rank + len(wanted))):
            return len(wanted)
        return None

    def _trail(self, base: int, more: int) -> int:
        if more == 0:
            return base
        return self._trail(self._base("trail", base), more - 1)


_FLOATING = frozenset(
    (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    )
)
_SPANS = {
    "Sigmoid": 1.0,
    "HardSigmoid": 1.0,
    "Softmax": 1.0,
    "Tanh": 2.0,
    "Erf": 2.0,
    "Softsign": 2.0,
}


def interpret(flow: Flow) -> Kinds:
    """Interpret a flow."""
    kinds = Kinds(flow)
    kinds.run()
    return kinds
