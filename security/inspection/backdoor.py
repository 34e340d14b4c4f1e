"""Suspicious branches: where a test of the input decides what a model answers.

A graph backdoor (ShadowLogic and its relatives) is a test of the input, a value that
takes another's place, and a way to an output. Names and operators vary; the flow of
data does not. This looks for every place at which the result of a test meets values
that are computed elsewhere:

1. a choice: If, Loop, Where, and indices into computed values;
2. arithmetic between a test's result and other values: masks, added answers;
3. outputs that no input determines, and code that no output needs.

A finding asks a person to look. No finding proves nothing: a trigger may be hidden in
weights, or in arithmetic that only a solver would understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from security.inspection.backdoor_flow import ABSENT, Flow, Step, flatten
from security.inspection.backdoor_kinds import (
    CONST,
    DATA,
    DECISION,
    SHAPE,
    Kinds,
    interpret,
)
from security.inspection.backdoor_operators import (
    COLLECTS,
    INDEXED,
    SCATTERS,
    SELECTS,
)
from security.inspection.backdoor_paths import Paths
from security.inspection.execution import examine_execution
from security.inspection.findings import Finding, StructureLimits

__all__ = ["analyse"]

_MAX_FINDINGS = 40
_MAX_EXPLANATION = 1500


def analyse(
    model: Any, limits: StructureLimits, weights: Mapping[str, int]
) -> tuple[Finding, ...]:
    """Look for suspicious branches in a model that ONNX's checker has accepted.

    Args:
        model: an onnx.ModelProto; hostile, but well-formed and bounded.
        limits: on the iterations of nested loops.
        weights: graph inputs that stand for large initializers, with their ranks.
    """
    flow = flatten(model, weights)
    kinds = interpret(flow)
    search = _Search(flow, kinds)
    search.run()
    return (*examine_execution(kinds, limits), *search.findings)


class _Search:
    """Every step of a flow, looked at once."""

    def __init__(self, flow: Flow, kinds: Kinds) -> None:
        self.flow = flow
        self.kinds = kinds
        self.paths = Paths(kinds)
        self.findings: list[Finding] = []
        self._left_out = 0

    def run(self) -> None:
        live = self._live()
        for step in self.flow.steps:
            if step.controls or step.op == "Where":
                self._choice(step)
            else:
                self._meeting(step)
        self._outputs()
        self._dead(live)
        if self._left_out:
            rest = f"{self._left_out} more of the same kinds"
            self.findings.append(Finding("branch-select", rest, "graph"))

    # 1. choices

    def _choice(self, step: Step) -> None:
        count = step.controls or 1
        controls = [value for value in step.inputs[:count] if value != ABSENT]
        options = [value for value in step.inputs[count:] if value != ABSENT]
        control = max(controls, key=lambda v: self.kinds[v].kind, default=ABSENT)
        kind = self.kinds[control].kind
        if control == ABSENT or kind == CONST:
            return
        computed = any(self.kinds[value].kind > SHAPE for value in options)
        if kind == SHAPE:
            if computed and not self._harmless_shape(step, control, options):
                self._branch("branch-shape", step, control, options)
        elif step.controls:
            self._branch("branch-if", step, control, options)
        elif computed:
            self._where(step, control, options)

    def _harmless_shape(self, step: Step, control: int, options: list[int]) -> bool:
        return (
            self.paths.same_data(options)
            or len(options) == 1
            or step.op == "Loop"
            or self._masks_attention(step, control)
        )

    def _masks_attention(self, step: Step, control: int) -> bool:
        return step.op in ("Where", "Add", "Sub") and self.paths.is_attention(
            step, control
        )

    def _where(self, step: Step, control: int, options: list[int]) -> None:
        varying = [v for v in options if self.kinds[v].kind > SHAPE]
        if self.kinds.aligned([control, *varying]):
            if len(varying) == 1 and self.paths.is_equality(control):
                self._branch("sentinel", step, control, options)
        elif self._masks_attention(step, control):
            self._branch("attention-mask", step, control, options)
        else:
            self._branch("branch-select", step, control, options)

    # 2. meetings

    def _meeting(self, step: Step) -> None:
        varying = [v for v in step.inputs if v != ABSENT and self.kinds[v].kind > SHAPE]
        tests = [v for v in varying if self.kinds[v].kind == DECISION]
        others = [v for v in varying if v not in tests]
        if not others and len({self.kinds[v].mixed for v in tests}) == 2:
            others = [v for v in tests if self.kinds[v].mixed]
            tests = [v for v in tests if not self.kinds[v].mixed]
        if step.op in INDEXED | SCATTERS and self._indexes(step):
            tests = tests or [step.inputs[1]]
            others = [value for value in varying if value not in tests]
        elif not tests or not others:
            return
        if self.kinds.aligned(varying) or self._collects(step, tests, others):
            return
        if self._masks_attention(step, tests[0]):
            self._branch("attention-mask", step, tests[0], others)
        elif step.op in SELECTS:
            self._branch("branch-select", step, tests[0], others)
        else:
            self._branch("branch-mask", step, tests[0], others)

    def _indexes(self, step: Step) -> bool:
        """Whether an input decides where computed values are read or written."""
        data, index = (self.kinds[value].kind for value in step.inputs[:2])
        written = step.op in SCATTERS
        return index >= DECISION and (written or data >= DECISION)

    def _collects(self, step: Step, tests: list[int], others: list[int]) -> bool:
        """Features side by side are no branch, unless a late value meets a raw test."""
        late = any(self.kinds[value].mixed for value in others)
        raw = any(not self.kinds[value].mixed for value in tests)
        return step.op in COLLECTS and not (step.op == "Concat" and late and raw)

    # 3. outputs

    def _outputs(self) -> None:
        for name, value in self.flow.outputs:
            if self.kinds[value].kind <= SHAPE:
                what = self.paths.describe_value(value)
                self._add("output-constant", "graph", f"{_quote(name)} is {what}")

    def _live(self) -> set[int]:
        live: set[int] = set()
        waiting = [value for _, value in self.flow.outputs]
        loops: dict[int, Step] = self.kinds.producer
        while waiting:
            value = waiting.pop()
            if value not in live:
                live.add(value)
                step = loops.get(value)
                waiting += step.inputs if step else ()
        return live

    def _dead(self, live: set[int]) -> None:
        dead = [
            step
            for step in self.flow.steps
            if step.node is not None and not live.intersection(step.outputs)
        ]
        if dead:
            labels = ", ".join(step.label for step in dead[:3])
            self._add("dead-code", dead[0].where, f"{len(dead)} nodes: {labels}")
        unused = [name for value, name in self.flow.inputs.items() if value not in live]
        if unused:
            names = ", ".join(_quote(name) for name in unused[:3])
            self._add("input-unused", "graph", f"{len(unused)} inputs: {names}")

    def _branch(self, rule: str, step: Step, test: int, options: list[int]) -> None:
        if sum(item.rule == rule for item in self.findings) >= _MAX_FINDINGS // 4:
            self._left_out += rule not in ("sentinel", "attention-mask")
            return
        told = " or ".join(self.paths.describe_value(value) for value in options)
        kind = self.kinds[test].kind
        what = "the shape" if kind == SHAPE else "a test" if kind < DATA else "a value"
        verb = "is combined with" if rule == "branch-mask" else "chooses"
        source = self.paths.describe_trigger(test)
        explanation = (
            f"Trigger: {source} -> {step.label}. "
            f"At stake: {told}. Reaches: {self.paths.describe_reach(step.outputs[0])}."
        )
        message = f"{step.label}: {what} of the input {verb} {told}"
        self._add(rule, step.where, message, explanation)

    def _add(self, rule: str, where: str, message: str, explanation: str = "") -> None:
        self.findings.append(
            Finding(rule, message[:390], where[:300], explanation[:_MAX_EXPLANATION])
        )


def _quote(name: str) -> str:
    return ascii(name[:60])
