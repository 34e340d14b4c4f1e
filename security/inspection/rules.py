"""What is checked in a parsed model before ONNX's checker or shape inference sees it.

The walk goes into every graph within a node's attributes and every function: what is
refused at the top is refused one level deeper too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import onnx

from security.inspection.calls import (
    call_key,
    check_calls,
    domain_of,
    function_keys,
    graphs_of,
    show,
    uncalled,
)
from security.inspection.engine import (
    MAX_IR_VERSION,
    MIN_IR_VERSION,
    OPERATOR_SETS,
)
from security.inspection.findings import Finding, StructureLimits
from security.inspection.tensors import STORES, holds

__all__ = ["walk_model", "walk_sizes"]

_DOMAINS = ("", "ai.onnx.ml")
# Standard operators that are not allowed: a decoder of image files is one more parser
# of hostile bytes, and no service of tensors needs it.
_DENIED = frozenset({("", "ImageDecoder")})
_TENSOR = onnx.TensorProto
_EMBED = "embed it: onnx.save(onnx.load('model.onnx'), 'embedded.onnx')"


def walk_model(
    model: Any, limits: StructureLimits
) -> tuple[tuple[Finding, ...], dict[str, int]]:
    """Check a parsed model against every rule that needs no inference.

    Args:
        model: an onnx.ModelProto, hostile.
        limits: bounds on counts, depths and sizes.

    Returns:
        The findings, and counts of nodes, initializers and functions.
    """
    walk = _Walk(model, limits)
    walk.run()
    return tuple(walk.findings), walk.counts


def walk_sizes(model: Any, limits: StructureLimits) -> tuple[Finding, ...]:
    """Check the sizes that shape inference found: a small file can infer any.

    Args:
        model: an onnx.ModelProto that `walk_model` accepted before inference.
        limits: bounds on sizes and depths.
    """
    walk = _Walk(model, limits)
    with suppress(_Stop):
        walk.sizes(model.graph, "graph")
    return tuple(walk.findings)


class _Stop(Exception):  # noqa: N818  (a count is over its limit: no reason to go on)
    """Ends the walk."""


class _Walk:
    """One pass over one model. Findings collect; a count over its limit ends it."""

    def __init__(self, model: Any, limits: StructureLimits) -> None:
        self.model = model
        self.limits = limits
        self.findings: list[Finding] = []
        self.counts = {"nodes": 0, "initializers": 0, "functions": 0}
        self._functions = function_keys(model)
        self._opsets: dict[str, int] = {}
        self._used: set[str] = set()

    def run(self) -> None:
        """All rules, outermost first."""
        try:
            self._header()
            self._declared_functions()
            self._graph(self.model.graph, "graph", 1)
            self._unused_domains()
            self._overridable()
        except _Stop:
            return
        except TypeError:
            # Protobuf gives bytes where a name is not UTF-8, and no rule takes those.
            self.findings.append(Finding("parse", "a name is not UTF-8"))

    def _add(self, rule: str, where: str, message: str) -> None:
        self.findings.append(Finding(rule, message, where))
        if len(self.findings) >= 100:
            raise _Stop

    def _header(self) -> None:
        model = self.model
        if not MIN_IR_VERSION <= model.ir_version <= MAX_IR_VERSION:
            known = f"onnxruntime loads {MIN_IR_VERSION} to {MAX_IR_VERSION}"
            self._add("ir-version", "", f"IR version {model.ir_version}, {known}")
        if not model.opset_import:
            self._add("opset-missing", "", "no operator set is imported")
        self._opsets = self._imports(model.opset_import, "")
        for entry in model.metadata_props:
            # onnxruntime reads session options from this key when the file is loaded.
            if entry.key.lower().startswith("ort_"):
                self._add("session-options", "metadata", f"key {show(entry.key)}")
        if getattr(model, "configuration", ()):  # since IR 11
            self._add("device-configuration", "", "of the model")
        if model.training_info:
            self._add("training-graph", "", f"{len(model.training_info)} of them")

    def _imports(self, imports: Iterable[Any], where: str) -> dict[str, int]:
        opsets: dict[str, int] = {}
        for entry in imports:
            domain = domain_of(entry.domain)
            name = domain or "ai.onnx"
            if domain in opsets:
                same = opsets[domain] == entry.version
                versions = f"{opsets[domain]} and {entry.version}"
                rule = "opset-twice" if same else "opset-missing"
                self._add(rule, where, f"{show(name)} is imported twice: {versions}")
            opsets[domain] = entry.version
            newest = OPERATOR_SETS.get(domain)
            if newest is not None and not 1 <= entry.version <= newest:
                known = f"onnxruntime loads 1 to {newest}"
                self._add("opset-version", where, f"{name} {entry.version}, {known}")
        return opsets

    def _unused_domains(self) -> None:
        for domain in sorted(self._opsets.keys() - self._used - set(_DOMAINS)):
            self._add("domain-unused", "", f"{show(domain)} is imported, never used")

    def _overridable(self) -> None:
        graph = self.model.graph
        inputs = {entry.name for entry in graph.input}
        both = [item.name for item in graph.initializer if item.name in inputs]
        if both:
            names = ", ".join(show(name) for name in both[:3])
            self._add("weights-overridable", "graph", f"{len(both)}: {names}")

    def _declared_functions(self) -> None:
        functions = self.model.functions
        self._count("functions", len(functions), "function-count")
        if len(self._functions) != len(functions):
            self._add("function-name", "", "two functions have one name")
        for function in functions:
            where = f"function {show(function.name)}"
            if domain_of(function.domain) in OPERATOR_SETS:
                self._add("function-name", where, "in a domain of onnxruntime's own")
        self._calls()
        for function in functions:
            where = f"function {show(function.name)}"
            outer, self._opsets = (
                self._opsets,
                self._imports(function.opset_import, where),
            )
            for attribute in function.attribute_proto:
                self._attribute(attribute, where, 1)
            self._names(function.output, where)
            self._nodes(function.node, where, 1)
            self._opsets = outer

    def _calls(self) -> None:
        problem = check_calls(self.model, self._functions, self.limits)
        if problem:
            self._add(*problem)
            raise _Stop
        for _, name, _ in uncalled(self.model, self._functions, self.limits):
            self._add("function-unused", f"function {show(name)}", "never called")

    def _graph(self, graph: Any, where: str, depth: int) -> None:
        if depth > self.limits.max_depth:
            self._add(
                "nesting", where, f"graphs nest over {self.limits.max_depth} deep"
            )
            raise _Stop
        self._names([entry.name for entry in graph.output], where)
        self._graph_parts(graph, where, depth)

    def sizes(self, graph: Any, where: str) -> None:
        """The declared sizes of values, in a graph and those within it."""
        for entry in (*graph.value_info, *graph.output):
            self._value(entry, where)
        for index, node in enumerate(graph.node):
            for attribute in node.attribute:
                for inner in graphs_of(attribute):
                    self.sizes(inner, f"{where}/node[{index}]/{show(attribute.name)}")

    def _names(self, outputs: Sequence[str], where: str) -> None:
        if not outputs:
            self._add("output", where, "there is none")
        for name, count in Counter(outputs).items():
            if not name or count > 1:
                self._add("output", where, f"{show(name)} is named {count} times")

    def _graph_parts(self, graph: Any, where: str, depth: int) -> None:
        stored = len(graph.initializer) + len(graph.sparse_initializer)
        self._count("initializers", stored, "initializer-count")
        for index, tensor in enumerate(graph.initializer):
            self._tensor(tensor, f"{where}/initializer[{index}]")
        for index, sparse in enumerate(graph.sparse_initializer):
            self._sparse(sparse, f"{where}/sparse_initializer[{index}]")
        for entry in (*graph.input, *graph.output, *graph.value_info):
            self._value(entry, where)
        self._nodes(graph.node, where, depth)

    def _nodes(self, nodes: Iterable[Any], where: str, depth: int) -> None:
        for index, node in enumerate(nodes):
            self._count("nodes", 1, "node-count")
            place = f"{where}/node[{index}]"
            self._operator(node, place)
            names = Counter(attribute.name for attribute in node.attribute)
            for name in [name for name, count in names.items() if count > 1]:
                self._add("attribute-twice", place, show(name))
            if getattr(node, "device_configurations", ()):  # since IR 11
                self._add("device-configuration", place, "on a node")
            for attribute in node.attribute:
                self._attribute(attribute, place, depth)

    def _operator(self, node: Any, where: str) -> None:
        domain, name = domain_of(node.domain), node.op_type
        self._used.add(domain)
        if name == "EPContext":
            self._add("ep-context", where, "EPContext")
        elif call_key(node) in self._functions:
            pass  # its body is walked like any graph
        elif domain not in _DOMAINS:
            self._add("domain", where, f"{show(domain)}, operator {show(name)}")
        elif domain not in self._opsets:
            self._add("opset-missing", where, f"none of {domain or 'ai.onnx'}")
        elif not _allowed(domain, name, self._opsets[domain]):
            version = self._opsets[domain]
            self._add("operator", where, f"{show(name)} in operator set {version}")

    def _attribute(self, attribute: Any, where: str, depth: int) -> None:
        place = f"{where}/{show(attribute.name)}"
        # By field, not by declared type: a reader may go by either.
        for graph in graphs_of(attribute):
            self._graph(graph, place, depth + 1)
        if attribute.HasField("t"):
            self._tensor(attribute.t, place)
        for tensor in attribute.tensors:
            self._tensor(tensor, place)
        for declared in (attribute.tp, *attribute.type_protos):
            self._type(declared, place, 1)
        if attribute.HasField("sparse_tensor"):
            self._sparse(attribute.sparse_tensor, place)
        for sparse in attribute.sparse_tensors:
            self._sparse(sparse, place)

    def _sparse(self, sparse: Any, where: str) -> None:
        self._elements(sparse.dims, where)
        self._tensor(sparse.values, f"{where}/values")
        self._tensor(sparse.indices, f"{where}/indices")

    def _tensor(self, tensor: Any, where: str) -> None:
        if (
            tensor.data_location == _TENSOR.EXTERNAL
            or tensor.external_data
            or tensor.data_location not in (_TENSOR.DEFAULT, _TENSOR.EXTERNAL)
        ):
            self._add("external-data", where, f"{show(tensor.name)}; {_EMBED}")
            return
        if tensor.data_type not in STORES:
            self._add("tensor-type", where, f"element type {tensor.data_type}")
            return
        elements = self._elements(tensor.dims, where)
        if elements is not None and not holds(tensor, elements):
            self._add("tensor-bytes", where, f"shape {list(tensor.dims)[:8]}")

    def _elements(self, dims: Iterable[int], where: str) -> int | None:
        product = math.prod(dims)  # Python integers do not overflow
        if any(dim < 0 for dim in dims) or product > self.limits.max_elements:
            self._add("dimension", where, f"shape {list(dims)[:8]}")
            return None
        return product

    def _value(self, entry: Any, where: str) -> None:
        self._type(entry.type, f"{where}/{show(entry.name)}", 1)

    def _type(self, declared: Any, where: str, depth: int) -> None:
        kind = declared.WhichOneof("value")
        if depth > self.limits.max_depth:
            self._add("nesting", where, "types within types")
        elif kind in ("sequence_type", "optional_type"):
            self._type(getattr(declared, kind).elem_type, where, depth + 1)
        elif kind == "map_type":
            self._type(declared.map_type.value_type, where, depth + 1)
        elif kind in ("tensor_type", "sparse_tensor_type"):
            shape = getattr(declared, kind).shape
            # Old exporters write 0 or -1 for what is dynamic; onnxruntime reads it so.
            known = [dim.dim_value for dim in shape.dim if dim.dim_value > 0]
            self._elements(known, where)

    def _count(self, what: str, more: int, rule: str) -> None:
        self.counts[what] += more
        limit = getattr(self.limits, f"max_{what}")
        if self.counts[what] > limit:
            self._add(rule, "", f"more than {limit}")
            raise _Stop


def _allowed(domain: str, name: str, version: int) -> bool:
    if (domain, name) in _DENIED:
        return False
    try:
        onnx.defs.get_schema(name, max(1, min(version, 1 << 30)), domain)
    except onnx.defs.SchemaError:
        return False
    return True
