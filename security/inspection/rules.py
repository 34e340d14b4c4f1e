"""What is checked in a parsed model before ONNX's checker or shape inference sees it.

The walk goes into every graph within a node's attributes and every function: what is
refused at the top is refused one level deeper too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx

from security.inspection.calls import (
    check_calls,
    domain_of,
    graphs_of,
    show,
    uncalled,
)
from security.inspection.findings import Finding, StructureLimits
from security.inspection.tensors import STORES, holds

__all__ = ["walk_model"]

# onnxruntime still loads IR 3, of ONNX 1.0; below it, initializers had no place.
_MIN_IR_VERSION = 3
_DOMAINS = ("", "ai.onnx.ml")
# Standard operators that are not allowed: a decoder of image files is one more parser
# of hostile bytes, and no service of tensors needs it.
_DENIED = frozenset({("", "ImageDecoder")})
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_ATTRIBUTE = onnx.AttributeProto
_TENSOR = onnx.TensorProto


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


class _Stop(Exception):  # noqa: N818  (a count is over its limit: no reason to go on)
    """Ends the walk."""


class _Walk:
    """One pass over one model. Findings collect; a count over its limit ends it."""

    def __init__(self, model: Any, limits: StructureLimits) -> None:
        self.model = model
        self.limits = limits
        self.findings: list[Finding] = []
        self.counts = {"nodes": 0, "initializers": 0, "functions": 0}
        self._functions = {
            (domain_of(item.domain), item.name): item for item in model.functions
        }
        self._opsets: dict[str, int] = {}
        self._used: set[str] = set()
        self._constants: dict[str, Any] = {}
        self._shadow: frozenset[str] = frozenset()
        self._trips = 1

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
        if not _MIN_IR_VERSION <= model.ir_version <= onnx.IR_VERSION:
            self._add("ir-version", "", f"IR version {model.ir_version}")
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
            if domain in opsets:
                self._add("opset-missing", where, f"{show(domain)} is imported twice")
            opsets[domain] = entry.version
            newest = _NEWEST.get(domain)
            if newest is not None and not 1 <= entry.version <= newest:
                self._add(
                    "opset-version",
                    where,
                    f"{domain or 'ai.onnx'} {entry.version}, known are 1 to {newest}",
                )
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
            if domain_of(function.domain) in _NEWEST:
                self._add("function-name", where, "in the domain of standard operators")
        self._calls()
        for function in functions:
            where = f"function {show(function.name)}"
            outer, self._opsets = (
                self._opsets,
                self._imports(function.opset_import, where),
            )
            for attribute in function.attribute_proto:
                self._attribute(attribute, where, 1)
            with self._scope(shadow=()):
                self._constants = {}
                self._names(function.output, where)
                self._nodes(function.node, where, 1)
            self._opsets = outer

    def _calls(self) -> None:
        problem = check_calls(self.model, self._functions, self.limits)
        if problem:
            self._add(*problem)
            raise _Stop
        for _, name in uncalled(self.model, self._functions, self.limits):
            self._add("function-unused", f"function {show(name)}", "never called")

    def _graph(self, graph: Any, where: str, depth: int) -> None:
        if depth > self.limits.max_depth:
            self._add(
                "nesting", where, f"graphs nest over {self.limits.max_depth} deep"
            )
            raise _Stop
        self._names([entry.name for entry in graph.output], where)
        with self._scope(shadow=[entry.name for entry in graph.input]):
            self._graph_parts(graph, where, depth)

    @contextmanager
    def _scope(self, shadow: Iterable[str]) -> Iterator[None]:
        """Constants named inside are not seen outside; inputs are not constants."""
        outer, hidden = self._constants, self._shadow
        self._constants, self._shadow = dict(outer), frozenset(shadow)
        for name in self._shadow:
            self._constants.pop(name, None)
        try:
            yield
        finally:
            self._constants, self._shadow = outer, hidden

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
            # A caller may replace what is also an input: no constant.
            if tensor.name not in self._shadow:
                self._constants[tensor.name] = tensor
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
            outer = self._trips
            if node.op_type == "Loop":
                self._loop(node, place)
            for attribute in node.attribute:
                self._attribute(attribute, place, depth)
                if node.op_type == "Constant" and node.output:
                    self._constants[node.output[0]] = attribute
            self._trips = outer

    def _operator(self, node: Any, where: str) -> None:
        domain, name = domain_of(node.domain), node.op_type
        self._used.add(domain)
        if name == "EPContext":
            self._add("ep-context", where, "EPContext")
        elif (domain, name) in self._functions:
            pass  # its body is walked like any graph
        elif domain not in _DOMAINS:
            self._add("domain", where, f"{show(domain)}, operator {show(name)}")
        elif domain not in self._opsets:
            self._add("opset-missing", where, f"none of {domain or 'ai.onnx'}")
        elif not _allowed(domain, name, self._opsets[domain]):
            version = self._opsets[domain]
            self._add("operator", where, f"{show(name)} in operator set {version}")
        elif name in _RANDOM:
            self._add("operator-random", where, name)

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

    def _loop(self, node: Any, where: str) -> None:
        bound = self._constants.get(node.input[0]) if node.input else None
        count = None if bound is None else _scalar(bound)
        if count is None:
            self._add("loop-open", where, "only the server's deadline ends it")
            return
        self._trips *= max(1, count)
        if self._trips > self.limits.max_trip_count:
            self._add("loop-bound", where, f"{self._trips} iterations")

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
            self._add("external-data", where, show(tensor.name))
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


def _newest() -> dict[str, int]:
    versions: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known = versions.get(schema.domain, 0)
        versions[schema.domain] = max(known, schema.since_version)
    # An operator set may add nothing to one domain's newest schema.
    versions[""] = max(versions[""], onnx.defs.onnx_opset_version())
    return versions


_NEWEST = _newest()


def _allowed(domain: str, name: str, version: int) -> bool:
    if (domain, name) in _DENIED:
        return False
    try:
        onnx.defs.get_schema(name, max(1, min(version, 1 << 30)), domain)
    except onnx.defs.SchemaError:
        return False
    return True


def _scalar(constant: Any) -> int | None:
    """The integer in an initializer or in a Constant's attribute, if it is one."""
    try:
        if isinstance(constant, _ATTRIBUTE):
            if constant.type == _ATTRIBUTE.INT:
                return int(constant.i)
            constant = constant.t
        values = onnx.numpy_helper.to_array(constant).reshape(-1)
    except (TypeError, ValueError):
        return None
    return int(values[0]) if values.size == 1 and values.dtype.kind in "iu" else None
