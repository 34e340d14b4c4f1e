"""A graph and a box for each row, to steps of a network.

Constants are computed. Until something mixes a row's values, intervals are
(`security.bounds.boxes`): preprocessing may be anything there, column by column. From
the first mixing on there are steps: affine maps, ReLU, the logistic function and tanh.
Whatever else depends on the input is named, and there is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.bounds import boxes
from security.bounds.files import Graph, Node
from security.bounds.layers import (
    AFFINE,
    MAX_COMPUTED,
    MOVES,
    affine,
    check_counted,
    dense_of,
    folded,
    known,
)
from security.bounds.steps import (
    SINGLE,
    Curve,
    Dense,
    Join,
    Pick,
    Relu,
    Scale,
    Source,
    Step,
    Sum,
)
from security.bounds.values import (
    Box,
    Const,
    Sym,
    Value,
    joined,
    picked,
    spread,
    stretched,
)
from security.errors import UnboundedModel

__all__ = ["Program", "ended", "lower"]

# Of a row, of all nodes together: 16 MiB of doubles.
_MAX_VALUES = 1 << 21
# Doubles of all layers: 512 MiB.
_MAX_WEIGHTS = 1 << 26

Floats = NDArray[np.float64]
Ends = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a network, for some rows.

    Attributes:
        steps: in an order in which they can be done.
        output: the step that gives the wanted value.
        shape: of a row there.
        rows: how many.
        loose: an interval stands for what is not all in it, such as a category that
            may become another one: bounds hold, and need not be reached.
        safety: how often the rounding of single precision counts; 0 for not at all.
        size: values of a row, of all nodes.
    """

    steps: tuple[Step, ...]
    output: int
    shape: tuple[int, ...]
    rows: int
    loose: bool = False
    safety: float = 0.0
    size: int = 0

    @property
    def linear(self) -> bool:
        """Whether no step bends: then bounds are reached."""
        return not any(isinstance(step, Relu | Curve) for step in self.steps)


def lower(
    graph: Graph, wanted: str, low: Floats, high: Floats, *, safety: float = 1.0
) -> Program:
    """Steps that give a value of a graph, for rows in boxes.

    Args:
        graph: that was read.
        wanted: the value.
        low: ``(n, d)``, raw: the lower ends; NaN at both is a missing value.
        high: the upper ends.
        safety: how often the rounding of single precision counts; 0 for not at all.

    Raises:
        UnboundedModel: names the operator of which no bound is known.
    """
    shape = _shape(graph, low.shape[1])
    work = _Lowering(graph, 2 * SINGLE * safety)
    work.values[graph.input] = Box(low, high, shape)
    with np.errstate(all="ignore"):
        for node in graph.needed([wanted]):
            work.run(node)
        value = work.sym(work.values[wanted])
    steps = tuple(work.steps)
    return Program(
        steps, value.step, value.shape, len(low), work.loose, safety, work.size
    )


def ended(graph: Graph, value: str, output: str, given: Ends) -> Ends:
    """What comes of one value in the end, where only its own values are transformed.

    Args:
        graph: that was read.
        value: that bounds are known of.
        output: made of it by operators that take each value by itself.
        given: the bounds ``(n, width)``.

    Raises:
        UnboundedModel: names the operator of which no bound is known.
    """
    work = _Lowering(graph, 2 * SINGLE)
    width = given[0].shape[1]
    work.values[value] = Box(*given, (width,))
    needed, names, fixed = [], {value}, set(work.values)
    for node in graph.needed([output]):
        if names & set(node.inputs):
            names.update(node.outputs)
            needed.append(node)
        elif all(name in fixed for name in node.inputs if name):
            fixed.update(node.outputs)
            needed.append(node)
    with np.errstate(all="ignore"):
        for node in needed:
            work.run(node)
    made = work.values[output]
    if not isinstance(made, Box):
        raise UnboundedModel("the answer does not depend on the input")
    return made.low, made.high


def _shape(graph: Graph, width: int) -> tuple[int, ...]:
    fixed = math.prod(size for size in graph.shape if size is not None)
    free = graph.shape.count(None)
    if free > 1 or width % max(fixed, 1) or (not free and fixed != width):
        raise UnboundedModel("the rows do not fit the graph's input")
    return tuple(width // fixed if size is None else size for size in graph.shape)


class _Lowering:
    """The values of a graph so far, and the steps they became."""

    def __init__(self, graph: Graph, error: float) -> None:
        self.graph = graph
        # How many rows operators are tried on.
        self.counts = (graph.batch,) if graph.batch else (2, 5)
        self.size = self.computed = self.weights = 0
        self.error = error
        self.loose = False
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {
            name: Const(array) for name, array in graph.constants.items()
        }

    def run(self, node: Node) -> None:
        """What a node gives, from what is there."""
        if any(name and name not in self.values for name in node.inputs):
            raise UnboundedModel(f"an input of {node.operator[:40]} is not there")
        given = [self.values[name] for name in node.inputs if name]
        if node.operator == "Shape":
            result: Value = self._size(node, given[0])
        elif all(isinstance(item, Const) for item in given):
            stored = [item for item in given if isinstance(item, Const)]
            result = folded(node, stored, self.graph.opset)
        else:
            result = self._varying(node)
        scores = node.operator == "ai.onnx.ml.LinearClassifier"  # a label is first
        self.values[node.outputs[int(scores)]] = result
        self._weigh(result)

    def _weigh(self, value: Value) -> None:
        """Count what a value takes.

        Raises:
            UnboundedModel: all of them take too much memory.
        """
        if isinstance(value, Const):
            self.computed += value.array.size
        else:
            self.size += math.prod(value.shape)
        if self.computed > MAX_COMPUTED or self.size > _MAX_VALUES:
            raise UnboundedModel("the graph has too many values for bounds")

    def _varying(self, node: Node) -> Value:
        given = [None if not n else self.values[n] for n in node.inputs]
        check_counted(node, given)
        if node.operator in MOVES:
            return self._moved(node, given)
        if node.operator in AFFINE:
            return self._affine(node, given)
        special = _SPECIAL.get(node.operator)
        if special is not None:
            return special(self, node, [item for item in given if item is not None])
        present = [item for item in given if item is not None]
        if not any(isinstance(item, Sym) for item in present):
            made = self._boxed(node, present)
            if made is not None:
                return made
        raise UnboundedModel(f"operator {node.operator[:60]} has no bound here")

    def _size(self, node: Node, value: Value) -> Const:
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        if isinstance(value, Const):
            return Const(np.array(value.array.shape[start:end], dtype=np.int64))
        sizes = np.array((self.counts[0], *value.shape)[start:end], dtype=np.int64)
        counted = np.array((True, *(False for _ in value.shape))[start:end], bool)
        free = self.graph.batch is None and counted.any()
        return Const(sizes, counted if free else None)

    # From one kind of value to another.

    def sym(self, value: Value) -> Sym:
        """A value as a step; a box begins the network."""
        if isinstance(value, Sym):
            return value
        if isinstance(value, Const):
            raise UnboundedModel("the answer does not depend on the input")
        if value.low.dtype == bool:
            value = Box(value.low.astype(float), value.high.astype(float), value.shape)
        return self._add(Source(value.low, value.high), value.shape)

    def _add(self, step: Step, shape: tuple[int, ...]) -> Sym:
        if isinstance(step, Dense):
            self.weights += step.weight.size
            if self.weights > _MAX_WEIGHTS:
                raise UnboundedModel("the layers are too large for bounds")
        self.size += step.width
        if self.size > _MAX_VALUES:
            raise UnboundedModel("the graph has too many values for bounds")
        self.steps.append(step)
        return Sym(len(self.steps) - 1, shape)

    # Operators by kind.

    def _moved(self, node: Node, given: list[Value | None]) -> Value:
        value = given[0]
        if isinstance(value, Const) or value is None:
            raise UnboundedModel(f"{node.operator} by places that vary has no bound")
        for item in given[1:]:
            if item is not None:
                known(item, node)
        own = [item if isinstance(item, Const) else None for item in given[1:]]
        found = []
        for rows in self.counts:
            rest = [None if item is None else item.of(rows) for item in own]
            move = MOVES[node.operator](node, rest, self.graph.opset)
            found.append(picked(value.shape, rows, move))
        places, shape = found[0]
        if any(s != shape or (p != places).any() for p, s in found[1:]):
            raise UnboundedModel("the graph mixes the rows of a batch")
        if isinstance(value, Box):
            return value.take(places, shape)
        return self._add(Pick((value.step,), places, value.width), shape)

    def _affine(self, node: Node, given: list[Value | None]) -> Value:
        (value, *others) = [item for item in given if not isinstance(item, Const)]
        if others or value is None or given[0] is not value:
            raise UnboundedModel(f"{node.operator} of two values has no bound here")
        rest = [None if item is None else known(item, node) for item in given[1:]]
        source = self.sym(value)
        dense, shape = dense_of(node, source, rest, self.graph.opset)
        return self._add(dense, shape)

    def _boxed(self, node: Node, given: list[Value]) -> Value | None:
        """A value by itself, on intervals."""
        if node.operator in boxes.UNARY:
            (box,) = given
            if not isinstance(box, Box):
                return None
            one, rounds = boxes.UNARY[node.operator]
            given_ends = (box.low, box.high)
            ends = boxes.widened(*one(given_ends), rounds * self.error)
            uneven = boxes.UNEVEN.get(node.operator, 0) * self.error
            if uneven:
                ends = ends[0] - uneven, ends[1] + uneven
            return Box(*boxes.honest(node.operator, ends, [given_ends]), box.shape)
        if node.operator in boxes.BINARY:
            two, rounds = boxes.BINARY[node.operator]
            result = given[0]
            for item in given[1:]:
                first, second, shape = boxes.aligned(result, item)
                ends = boxes.widened(*two(first, second), rounds * self.error)
                ends = boxes.honest(node.operator, ends, [first, second])
                result = Box(*ends, shape)
            self._note(node, result)
            return result
        return None

    def _note(self, node: Node, value: Value) -> None:
        """Two intervals of one column, or a comparison that is open, are loose."""
        box = value if isinstance(value, Box) else None
        if box is not None and box.low.dtype == bool:
            self.loose |= bool((box.low != box.high).any())
        elif sum(not isinstance(self.values[n], Const) for n in node.inputs if n) > 1:
            self.loose = True

    def cast(self, node: Node, given: list[Value]) -> Value:
        """Truth to 0 and 1, or floats to floats; other casts cut something off."""
        kind, value = node.attributes["to"], given[0]
        if kind not in (1, 11):
            raise UnboundedModel(f"Cast to element type {kind} has no bound here")
        if isinstance(value, Box):
            low, high = (end.astype(np.float64) for end in (value.low, value.high))
            if value.low.dtype != bool and kind == 1:
                low, high = boxes.widened(low, high, self.error)
            return Box(low, high, value.shape)
        source = self.sym(value)
        ones = np.ones(source.width)
        return self._add(Scale((source.step,), ones, 0 * ones), source.shape)

    def where(self, node: Node, given: list[Value]) -> Value:
        """One of two values, as a third says."""
        if any(isinstance(item, Sym) for item in given):
            raise UnboundedModel("Where in the network has no bound here")
        (first, second, shape) = boxes.aligned(
            *boxes.one_box(given[1], given[2], given[0])
        )
        condition, _, shape = boxes.aligned(
            *boxes.one_box(given[0], Const(np.zeros(shape)), given[1])
        )
        ends = boxes.where(condition, first, second)
        self._note(node, Box(*condition, shape))
        count = max(len(end) for end in ends)
        wide = [np.broadcast_to(end, (count, math.prod(shape))) for end in ends]
        return Box(wide[0], wide[1], shape)

    def join(self, node: Node, given: list[Value]) -> Value:
        """Values side by side, along one axis."""
        shapes = [item.shape for item in given if not isinstance(item, Const)]
        axis = int(node.attributes["axis"])
        if axis % (len(shapes[0]) + 1) == 0:
            raise UnboundedModel("the graph mixes the rows of a batch")
        parts = [self._alike(item) for item in given]
        order, shape = joined([part.shape for part in parts], axis)
        if all(isinstance(part, Box) for part in parts):
            own = [part for part in parts if isinstance(part, Box)]
            ends = [np.concatenate([getattr(p, e) for p in own], axis=1) for e in _ENDS]
            return Box(ends[0][:, order], ends[1][:, order], shape)
        syms = [self.sym(part) for part in parts]
        widths = tuple(item.width for item in syms)
        made = self._add(Join(tuple(s.step for s in syms), widths), (sum(widths),))
        return self._add(Pick((made.step,), order, made.width), shape)

    def _alike(self, value: Value) -> Box | Sym:
        if not isinstance(value, Const):
            return value
        raise UnboundedModel("Concat of values and constants has no bound here")

    def relu(self, node: Node, given: list[Value]) -> Value:
        """ReLU, and leaky ReLU, whose leak is at least 0 and below 1."""
        leak = 0.0
        if node.operator == "LeakyRelu":
            leak = float(np.float32(node.attributes.get("alpha", 0.01)))
        if not 0 <= leak < 1:
            raise UnboundedModel("LeakyRelu with this alpha has no bound here")
        if isinstance(given[0], Box) and not leak:
            return self._boxed(node, given) or given[0]
        source = self.sym(given[0])
        return self._add(Relu((source.step,), leak, source.width), source.shape)

    def curve(self, node: Node, given: list[Value]) -> Value:
        """The logistic function and tanh."""
        if isinstance(given[0], Box):
            return self._boxed(node, given) or given[0]
        source = self.sym(given[0])
        step = Curve((source.step,), node.operator, source.width)
        return self._add(step, source.shape)

    def clip(self, node: Node, given: list[Value]) -> Value:
        """Cut to a range: in the network by two ReLUs."""
        ends = [self.values[n] if n else None for n in node.inputs[1:3]]
        stated = [None if end is None else float(known(end, node)) for end in ends]
        low, high = (*stated, None, None)[:2]
        low = node.attributes.get("min", low)
        high = node.attributes.get("max", high)
        value = given[0]
        if isinstance(value, Box):
            return boxes.clip(
                value, -np.inf if low is None else low, np.inf if high is None else high
            )
        made = self.sym(value)
        if low is not None:
            made = self._turned(made, 1.0, -low, shift=low, sign=1.0)
        if high is not None:
            made = self._turned(made, -1.0, high, shift=high, sign=-1.0)
        return made

    def _turned(
        self, value: Sym, factor: float, before: float, *, shift: float, sign: float
    ) -> Sym:
        """``sign * relu(factor * value + before) + shift``."""
        ones = np.ones(value.width)
        first = self._add(
            Scale((value.step,), factor * ones, before * ones), value.shape
        )
        bent = self._add(Relu((first.step,), 0.0, value.width), value.shape)
        return self._add(Scale((bent.step,), sign * ones, shift * ones), value.shape)

    def arithmetic(self, node: Node, given: list[Value]) -> Value:
        """Sums, differences, products and quotients: with constants, or of steps."""
        if not any(isinstance(item, Sym) for item in given):
            made = self._boxed(node, given)
            if made is None:
                raise UnboundedModel(f"{node.operator} has no bound here")
            return made
        if any(isinstance(item, Const) for item in given):
            return self._scaled(node, given)
        if node.operator not in ("Add", "Sub", "Sum"):
            raise UnboundedModel(f"{node.operator} of two values has no bound here")
        syms = [self.sym(item) for item in given]
        try:
            shape = boxes.together([item.shape for item in syms])
        except UnboundedModel as error:
            raise UnboundedModel(f"{node.operator}: {error}") from None
        wide = [self._stretched(item, shape) for item in syms]
        signs = (1, -1) if node.operator == "Sub" else (1,) * len(wide)
        steps = tuple(item.step for item in wide)
        return self._add(Sum(steps, signs, math.prod(shape)), shape)

    def _stretched(self, value: Sym, shape: tuple[int, ...]) -> Sym:
        if value.shape == shape:
            return value
        places = stretched(value.shape, shape)
        return self._add(Pick((value.step,), places, value.width), shape)

    def _scaled(self, node: Node, given: list[Value]) -> Sym:
        (value,) = (item for item in given if not isinstance(item, Const))
        (constant,) = (item for item in given if isinstance(item, Const))
        source, first = self.sym(value), given[0] is value
        array, shape = spread(constant.array, source.shape)
        source = self._stretched(source, shape)
        factor, shift = affine(node.operator, array.astype(np.float64), first=first)
        return self._add(Scale((source.step,), factor, shift), shape)

    def negated(self, node: Node, given: list[Value]) -> Value:
        """The negative."""
        if isinstance(given[0], Box):
            return self._boxed(node, given) or given[0]
        source = self.sym(given[0])
        ones = np.ones(source.width)
        return self._add(Scale((source.step,), -ones, 0 * ones), source.shape)

    def normalised(self, node: Node, given: list[Value]) -> Value:
        """BatchNormalization with stored statistics: factor and shift by channel."""
        if node.attributes.get("training_mode"):
            raise UnboundedModel("BatchNormalization of the batch has no bound here")
        source = self.sym(given[0])
        scale, shift, mean, variance = (
            known(item, node).astype(np.float64) for item in given[1:5]
        )
        epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
        factor = scale / np.sqrt(variance + epsilon)
        own = (slice(None), *(None,) * (len(source.shape) - 1))
        wide, _ = spread(factor[own], source.shape)
        moved, _ = spread((shift - mean * factor)[own], source.shape)
        # The two may cancel, and what was rounded of them stays.
        size, _ = spread((np.abs(shift) + np.abs(mean * factor))[own], source.shape)
        return self._add(Scale((source.step,), wide, moved, size), source.shape)


_ENDS = ("low", "high")


_Special = Callable[[_Lowering, Node, list[Value]], Value]
_SPECIAL: Mapping[str, _Special] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Sum"), _Lowering.arithmetic),
    "BatchNormalization": _Lowering.normalised,
    "Cast": _Lowering.cast,
    "Clip": _Lowering.clip,
    "Concat": _Lowering.join,
    "LeakyRelu": _Lowering.relu,
    "Neg": _Lowering.negated,
    "Relu": _Lowering.relu,
    "Sigmoid": _Lowering.curve,
    "Tanh": _Lowering.curve,
    "Where": _Lowering.where,
}
