"""A model as one list of steps: functions inlined, branches and loops joined.

After this there are no scopes and no names to hide behind. An If is a step that chooses
between the values its branches compute; a Loop chooses between the value it starts from
and the value its body computes. One If deeper, or one function away, looks the same.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from security.inspection.calls import call_key, function_keys, graphs_of, show

__all__ = ["ABSENT", "Flow", "Step", "attribute", "flatten"]

ABSENT = -1
# What holds no shape, index or threshold is not read: a weight is a weight.
_MAX_READ_ELEMENTS = 4096
_Scope = ChainMap[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator applied to values, which are numbers into a `Flow`.

    Attributes:
        op: its type; "Phi" joins a loop's start with its next round, "Slot" is what a
            body is given and that no input determines (a counter).
        inputs, outputs: values; `ABSENT` for an optional one left out.
        where: path in the file.
        node: the onnx.NodeProto.
        controls: how many of the first inputs decide rather than flow.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    where: str
    node: Any = None
    controls: int = 0

    @property
    def label(self) -> str:
        """Operator and name, quoted, as a reviewer finds it in the file."""
        name = getattr(self.node, "name", "")
        return f"{self.op} {show(name)}" if name else f"{self.op} at {self.where}"


@dataclass
class Flow:
    """Steps and values of a whole model.

    Attributes:
        steps: in an order in which all but the inputs of "Phi" are computed before.
        inputs: a graph input's name by its value.
        ranks: number of dimensions of an input, where declared.
        constants: the tensor by value; None where it was too large to keep.
        outputs: name and value of the graph's outputs.
        loops: where each Loop is, and its rounds times those of the loops around it;
            None where no constant says them.
        replaceable: constants in whose place a caller may send others.
        types: element types of graph inputs and constants.
    """

    steps: list[Step] = field(default_factory=list)
    inputs: dict[int, str] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    loops: list[tuple[str, int | None]] = field(default_factory=list)
    replaceable: set[int] = field(default_factory=set)
    types: dict[int, int] = field(default_factory=dict)
    values: int = 0

    def new(self) -> int:
        """A value that nothing has yet."""
        self.values += 1
        return self.values - 1

    def constant(self, value: int) -> NDArray[Any] | None:
        """The elements of a constant that is small, and not text."""
        tensor = self.constants.get(value)
        if tensor is None:
            return None
        if isinstance(tensor, np.ndarray):
            return tensor
        if int(np.prod(list(tensor.dims))) > _MAX_READ_ELEMENTS:
            return None
        return np.asarray(onnx.numpy_helper.to_array(tensor))


def attribute(step: Step, name: str, default: Any = None) -> Any:
    """An attribute's value, or the default."""
    for item in getattr(step.node, "attribute", ()):
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def flatten(model: Any, weights: Mapping[str, int]) -> Flow:
    """Flatten a model that ONNX's checker has accepted.

    Args:
        model: an onnx.ModelProto whose calls do not recurse and are bounded.
        weights: names of graph inputs that were initializers, with their ranks.
    """
    return _Flattener(model, weights).run()


class _Flattener:
    def __init__(self, model: Any, weights: Mapping[str, int]) -> None:
        self.model = model
        self.weights = weights
        self.flow = Flow()
        self._trips = 1
        self._functions = function_keys(model)
        self._given: Mapping[str, Any] = {}  # attributes of the call that is inlined

    def run(self) -> Flow:
        graph, flow = self.model.graph, self.flow
        scope: _Scope = ChainMap()
        stored = {item.name for item in graph.initializer}
        for entry in graph.input:
            if entry.name in stored:
                continue
            value = scope[entry.name] = flow.new()
            if entry.type.HasField("tensor_type"):
                flow.types[value] = entry.type.tensor_type.elem_type
            if entry.name in self.weights:
                flow.constants[value] = None
                flow.ranks[value] = self.weights[entry.name]
            else:
                flow.inputs[value] = entry.name
                if entry.type.tensor_type.HasField("shape"):
                    flow.ranks[value] = len(entry.type.tensor_type.shape.dim)
        results = self._graph(graph, scope, "graph")
        flow.outputs = list(zip((item.name for item in graph.output), results))
        return flow

    def _graph(self, graph: Any, scope: _Scope, where: str) -> list[int]:
        inputs = {entry.name for entry in graph.input}
        for tensor in graph.initializer:
            value = scope[tensor.name] = self._constant(tensor)
            if tensor.name in inputs:
                self.flow.replaceable.add(value)
        for sparse in graph.sparse_initializer:
            value = scope[sparse.values.name] = self.flow.new()
            self.flow.constants[value] = None
        self._nodes(graph.node, scope, where)
        return [self._read(item.name, scope) for item in graph.output]

    def _nodes(self, nodes: Sequence[Any], scope: _Scope, where: str) -> None:
        for index, node in enumerate(nodes):
            self._node(node, scope, f"{where}/node[{index}]")

    def _node(self, node: Any, scope: _Scope, where: str) -> None:
        node = self._with_attributes(node)
        inputs = [self._read(name, scope) for name in node.input]
        function = self._functions.get(call_key(node))
        if function is not None:
            results = self._call(function, node, inputs, where)
        elif node.op_type == "Constant":
            results = [self._constant(_literal(node))]
        else:
            results = self._operator(node, inputs, scope, where)
        for name, value in zip(node.output, results):
            if name:
                scope[name] = value

    def _call(
        self, function: Any, node: Any, inputs: list[int], where: str
    ) -> list[int]:
        actual = [*inputs, *[ABSENT] * (len(function.input) - len(inputs))]
        scope: _Scope = ChainMap(dict(zip(function.input, actual)))
        defaults = {item.name: item for item in function.attribute_proto}
        outer, self._given = (
            self._given,
            {
                **defaults,
                **{item.name: item for item in node.attribute},
            },
        )
        self._nodes(function.node, scope, f"{where}/{show(function.name)}")
        self._given = outer
        return [self._read(name, scope) for name in function.output]

    def _with_attributes(self, node: Any) -> Any:
        """A node with what the call gives in place of references to attributes.

        A reference to what no call gives is an attribute left out.
        """
        if not any(item.ref_attr_name for item in node.attribute):
            return node
        result = type(node)()
        result.CopyFrom(node)
        del result.attribute[:]
        for item in node.attribute:
            given = self._given.get(item.ref_attr_name) if item.ref_attr_name else item
            if given is not None:
                result.attribute.add().CopyFrom(given)
                result.attribute[-1].name = item.name
        return result

    def _operator(
        self, node: Any, inputs: list[int], scope: _Scope, where: str
    ) -> list[int]:
        if node.op_type == "If":
            return self._if(node, inputs, scope, where)
        if node.op_type == "Loop":
            return self._loop(node, inputs, scope, where)
        if node.op_type == "Scan":
            return self._scan(node, inputs, scope, where)
        bodies = [graph for item in node.attribute for graph in graphs_of(item)]
        extra: list[int] = []
        for body in bodies:
            inner = scope.new_child()
            for entry in body.input:
                inner[entry.name] = self._emit("Body", inputs, where)
            extra += self._graph(body, inner, f"{where}/body")
        outputs = tuple(self.flow.new() for _ in node.output)
        step = Step(node.op_type, (*inputs, *extra), outputs, where, node)
        self.flow.steps.append(step)
        return list(outputs)

    def _if(self, node: Any, inputs: list[int], scope: _Scope, where: str) -> list[int]:
        branches = {
            item.name: self._graph(item.g, scope.new_child(), f"{where}/{item.name}")
            for item in sorted(node.attribute, key=lambda item: item.name)
        }
        pairs = zip(branches["then_branch"], branches["else_branch"])
        return [
            self._emit("If", [*inputs, *pair], where, node=node, controls=1)
            for pair in pairs
        ]

    def _loop(
        self, node: Any, inputs: list[int], scope: _Scope, where: str
    ) -> list[int]:
        trip, condition, *start = [*inputs, ABSENT, ABSENT][: max(2, len(inputs))]
        outer, count = self._trips, self.flow.constant(trip)
        if count is not None and count.size == 1 and trip not in self.flow.replaceable:
            self._trips *= max(1, int(count.reshape(-1)[0]))
            self.flow.loops.append((where, self._trips))
        else:
            self.flow.loops.append((where, None))
        states = [condition, *start]
        body, inner = _body(node), scope.new_child()
        slots = [self.flow.new() for _ in states]
        counter = self._emit("Slot", [], where)
        for entry, value in zip(body.input, [counter, *slots]):
            inner[entry.name] = value
        results = self._graph(body, inner, f"{where}/body")
        self._trips = outer
        for slot, first, after in zip(slots, states, results):
            self._join(slot, first, after, where)
        # The condition at the start and after each round.
        controls = [trip, slots[0]]
        final = [
            self._emit("Loop", [*controls, *pair], where, node=node, controls=2)
            for pair in zip(start, results[1:])
        ]
        stacked = [
            self._emit("Loop", [*controls, value], where, node=node, controls=2)
            for value in results[1 + len(start) :]
        ]
        return [*final, *stacked]

    def _scan(
        self, node: Any, inputs: list[int], scope: _Scope, where: str
    ) -> list[int]:
        body, inner = _body(node), scope.new_child()
        slices = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
        split = len(inputs) - slices
        slots = [self.flow.new() for _ in inputs[:split]]
        parts = [
            self._emit("ScanSlice", [value], where, node=node)
            for value in inputs[split:]
        ]
        for entry, value in zip(body.input, [*slots, *parts]):
            inner[entry.name] = value
        results = self._graph(body, inner, f"{where}/body")
        for slot, first, after in zip(slots, inputs[:split], results):
            self._join(slot, first, after, where)
        return [
            *slots,
            *(self._emit("ScanStack", [v], where, node=node) for v in results[split:]),
        ]

    def _join(self, slot: int, first: int, after: int, where: str) -> None:
        self.flow.steps.append(Step("Phi", (first, after), (slot,), where))

    def _emit(
        self,
        op: str,
        inputs: Sequence[int],
        where: str,
        *,
        node: Any = None,
        controls: int = 0,
    ) -> int:
        value = self.flow.new()
        step = Step(op, tuple(inputs), (value,), where, node, controls)
        self.flow.steps.append(step)
        return value

    def _constant(self, tensor: Any) -> int:
        value = self.flow.new()
        self.flow.constants[value] = tensor
        if hasattr(tensor, "dims"):
            self.flow.ranks[value] = len(tensor.dims)
            self.flow.types[value] = tensor.data_type
        elif tensor is not None:
            kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
            self.flow.types[value] = kind
        return value

    def _read(self, name: str, scope: _Scope) -> int:
        return scope[name] if name else ABSENT


def _body(node: Any) -> Any:
    return next(item.g for item in node.attribute if item.name == "body")


def _literal(node: Any) -> Any:
    """What a Constant holds: a tensor, an array, or None for text and sparse."""
    for item in node.attribute:
        if item.name == "value":
            return item.t
        if item.name in ("value_float", "value_floats", "value_int", "value_ints"):
            return np.asarray(onnx.helper.get_attribute_value(item))
    return None
