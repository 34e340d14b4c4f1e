"""What running a model does besides computing: rounds, random numbers, divisions.

Looked for where functions are inlined and their attributes have the values of the
call, so that no bound or switch hides behind a name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

from security.inspection.backdoor_flow import ABSENT, Step, attribute
from security.inspection.backdoor_kinds import CONST, SHAPE, Kinds
from security.inspection.calls import domain_of
from security.inspection.findings import Finding, StructureLimits

__all__ = ["RANDOM", "examine_execution"]

RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_DROPOUT_HAS_SWITCH = 3  # inputs: data, ratio, training_mode
_DIVISIONS = ("Div", "Mod")
_MAX_FINDINGS = 10  # of one rule
_MAX_STEPS = 10_000
_TENSOR = onnx.TensorProto
_SIGNED = frozenset((_TENSOR.INT8, _TENSOR.INT16, _TENSOR.INT32, _TENSOR.INT64))
_UNSIGNED = frozenset((_TENSOR.UINT8, _TENSOR.UINT16, _TENSOR.UINT32, _TENSOR.UINT64))
# Which input's elements the result has, for steps that are no operators of ONNX.
_JOINED = {"Phi": 0, "Body": 0, "ScanSlice": 0, "ScanStack": 0, "If": 1, "Loop": 2}


def examine_execution(kinds: Kinds, limits: StructureLimits) -> tuple[Finding, ...]:
    """Look at loops, randomness and integer division.

    Args:
        kinds: of the values of a model that ONNX's checker has accepted.
        limits: on the rounds of nested loops.
    """
    search = _Search(kinds)
    search.loops(limits.max_trip_count)
    for step in kinds.flow.steps:
        if step.op in RANDOM or step.op == "Dropout":
            search.randomness(step)
        elif step.op in _DIVISIONS:
            search.division(step)
    return tuple(search.findings)


class _Search:
    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.flow = kinds.flow
        self.findings: list[Finding] = []
        self._told: Counter[str] = Counter()

    def _add(self, rule: str, where: str, message: str) -> None:
        self._told[rule] += 1
        if self._told[rule] <= _MAX_FINDINGS:
            self.findings.append(Finding(rule, message[:390], where[:300]))

    def loops(self, limit: int) -> None:
        """Rounds that are constants are bounded; others depend on the input."""
        for where, trips in self.flow.loops:
            if trips is None:
                self._add("loop-open", where, "only the server's deadline ends it")
            elif trips > limit:
                self._add("loop-bound", where, f"{trips} iterations")

    def randomness(self, step: Step) -> None:
        """Operators that draw; Dropout does while it trains."""
        if step.op in RANDOM:
            self._add("operator-random", step.where, step.op)
        elif self._trains(step):
            self._add("operator-random", step.where, "Dropout in training mode")

    def _trains(self, step: Step) -> bool:
        if len(step.inputs) < _DROPOUT_HAS_SWITCH:
            return False  # before operator set 12 onnxruntime has no training mode
        mode, ratio = step.inputs[2], self._fixed(step.inputs[1])
        if mode == ABSENT or (ratio is not None and not ratio.any()):
            return False
        switch = self._fixed(mode)
        return switch is None or bool(switch.any())

    def _fixed(self, value: int) -> Any:
        """The elements of a small constant that no caller can replace."""
        replaceable = value == ABSENT or value in self.flow.replaceable
        return None if replaceable else self.flow.constant(value)

    def division(self, step: Step) -> None:
        """Integers divided by 0, or the smallest by -1: a trap of the processor."""
        dividend, divisor = step.inputs[:2]
        kind = self._element_type(dividend) or self._element_type(divisor)
        if kind is not None and kind not in _SIGNED | _UNSIGNED:
            return
        values = self._fixed(divisor)
        if values is not None:
            varies = self.kinds[dividend].kind > CONST
            if not values.all():
                self._add("integer-division", step.where, f"{step.label} by 0")
            elif varies and kind not in _UNSIGNED and (values == -1).any():
                self._add("integer-division", step.where, f"{step.label} by -1")
        elif self._decided(divisor) and not self._positive(divisor):
            who = "shapes decide" if self.kinds[divisor].kind == SHAPE else "decides"
            message = f"{step.label}: a caller's input {who} the divisor"
            self._add("integer-division", step.where, message)

    def _decided(self, value: int) -> bool:
        return self.kinds[value].kind > CONST or value in self.flow.replaceable

    def _positive(self, value: int) -> bool:
        """Whether the last step before a value keeps it above 0."""
        step = self.kinds.producer.get(value)
        if step is None or step.op not in ("Max", "Clip"):
            return False
        floors = step.inputs if step.op == "Max" else step.inputs[1:2]
        known = [self._fixed(item) for item in floors]
        return any(item is not None and (item > 0).all() for item in known)

    def _element_type(self, value: int) -> int | None:
        """The element type of a value, where declarations and operators tell it."""
        for _ in range(_MAX_STEPS):
            step = self.kinds.producer.get(value)
            if value in self.flow.types or step is None:
                return self.flow.types.get(value)
            if step.op in _JOINED:
                value = step.inputs[_JOINED[step.op]]
                continue
            kind = _declared(step)
            if kind is not None or step.node is None:
                return kind
            kind, value = _by_schema(step, step.outputs.index(value))
            if value == ABSENT:
                return kind
        return None


def _declared(step: Step) -> int | None:
    """The element type that an operator's attributes name."""
    if step.op == "ConstantOfShape":
        tensor = attribute(step, "value")
        return _TENSOR.FLOAT if tensor is None else int(tensor.data_type)
    return attribute(step, "to") or attribute(step, "dtype")


def _by_schema(step: Step, index: int) -> tuple[int | None, int]:
    """The element type of a result, or else the input that has the same."""
    try:
        schema = onnx.defs.get_schema(step.op, domain=domain_of(step.node.domain))
    except onnx.defs.SchemaError:
        return None, ABSENT
    wanted = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
    for position, value in enumerate(step.inputs):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if formal.type_str == wanted and value != ABSENT:
            return None, value
    return _TYPE_NAMES.get(wanted), ABSENT


# As schemas write them: tensor(int64).
_TYPE_NAMES: Mapping[str, int] = {
    f"tensor({name.lower()})": number for name, number in _TENSOR.DataType.items()
}
