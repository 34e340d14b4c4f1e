"""What a model file says of itself: who made it, of what, and texts that nobody runs.

Written by strangers, so every text is shortened and in ASCII, and lists are bounded.
Nothing here refuses a file; the rules do.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import onnx

from security.inspection.calls import domain_of, graphs_of, show
from security.inspection.findings import StructureLimits

__all__ = ["describe"]

_SHOWN = 50
# Shorter values of attributes and tensors are names of classes and categories.
_LONG = 100


def describe(model: Any, limits: StructureLimits) -> dict[str, dict[str, str | int]]:
    """Describe a parsed model, whatever rules it breaks.

    Args:
        model: an onnx.ModelProto, hostile.
        limits: on depth and on the nodes that are looked at.

    Returns:
        ``model`` (producer, IR version, …), ``opsets`` (versions by domain),
        ``operators`` (how often, the most frequent first), ``inputs`` and ``outputs``
        (types and shapes by name), ``strings`` (by place: documentation, metadata and
        long texts, which no rule reads).
    """
    weights = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    producer = f"{model.producer_name} {model.producer_version}".strip()
    facts = {
        "producer": producer,
        "graph": model.graph.name,
        "domain": model.domain,
    }
    numbers = {"ir_version": model.ir_version, "model_version": model.model_version}
    counted = Counter(map(_operator, _nodes(model, limits)))
    # most_common would import a module, and the process can open no file by now.
    operators = sorted(counted.items(), key=lambda item: -item[1])[:_SHOWN]
    strings = dict(_bounded(_texts(model, limits)))
    return {
        "model": {key: _name(text) for key, text in facts.items() if text} | numbers,
        "opsets": {
            _name(domain_of(item.domain) or "ai.onnx"): item.version
            for item in model.opset_import[:_SHOWN]
        },
        "operators": dict(operators),
        "inputs": dict(map(_value, inputs[:_SHOWN])),
        "outputs": dict(map(_value, model.graph.output[:_SHOWN])),
        "strings": strings,
    }


def _name(text: str | bytes) -> str:
    return show(text)[1:-1]


def _operator(node: Any) -> str:
    domain = domain_of(node.domain)
    return _name(f"{domain}.{node.op_type}" if domain else node.op_type)


def _value(entry: Any) -> tuple[str, str]:
    kind = entry.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return _name(entry.name), kind.removesuffix("_type")
    tensor = entry.type.tensor_type
    known = onnx.TensorProto.DataType.values()
    element = tensor.elem_type
    name = onnx.TensorProto.DataType.Name(element) if element in known else str(element)
    if not tensor.HasField("shape"):
        return _name(entry.name), f"{name}, of any shape"
    sizes = ", ".join(map(_size, tensor.shape.dim[:8]))
    return _name(entry.name), f"{name}[{sizes}]"


def _size(dimension: Any) -> str:
    if dimension.HasField("dim_value"):
        return str(dimension.dim_value)
    return _name(dimension.dim_param) or "?"


def _graphs(model: Any, limits: StructureLimits) -> Iterator[tuple[Any, str]]:
    """Every graph and function, outermost first, with its place; bounded."""
    functions = model.functions[: limits.max_functions]
    waiting = deque([(model.graph, "graph", 1)])
    waiting += [(item, f"function {show(item.name)}", 1) for item in functions]
    nodes = 0
    while waiting:
        graph, where, depth = waiting.popleft()
        yield graph, where
        nodes += len(graph.node)
        if nodes > limits.max_nodes or depth > limits.max_depth:
            return
        for index, node in enumerate(graph.node):
            for attribute in node.attribute:
                waiting += [
                    (inner, f"{where}/node[{index}]/{_name(attribute.name)}", depth + 1)
                    for inner in graphs_of(attribute)
                ]


def _nodes(model: Any, limits: StructureLimits) -> Iterator[Any]:
    for graph, _ in _graphs(model, limits):
        yield from graph.node


def _texts(model: Any, limits: StructureLimits) -> Iterator[tuple[str, str | bytes]]:
    """Texts that have no effect, and values so long that they are no category."""
    yield from _notes(model, "model")
    for graph, where in _graphs(model, limits):
        yield from _notes(graph, where)
        for kind in ("input", "output", "value_info", "initializer"):
            for item in getattr(graph, kind, ()):  # of a function, these are names
                place = f"{where} {kind} {show(getattr(item, 'name', ''))}"
                yield from _notes(item, place)
                yield from _long(place, getattr(item, "string_data", ()))
        for index, node in enumerate(graph.node):
            yield from _notes(node, f"{where}/node[{index}]")
            for attribute in node.attribute:
                place = f"{where}/node[{index}]/{_name(attribute.name)}"
                yield from _notes(attribute, place)
                yield from _long(place, (attribute.s, *attribute.strings))
                for tensor in (attribute.t, *attribute.tensors):
                    yield from _long(place, tensor.string_data)


def _long(where: str, texts: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((where, text) for text in texts if len(text) > _LONG)


def _notes(item: Any, where: str) -> Iterator[tuple[str, str]]:
    if getattr(item, "doc_string", ""):
        yield f"{where} doc_string", item.doc_string
    for entry in getattr(item, "metadata_props", ()):
        yield f"{where} metadata {show(entry.key)}", entry.value


def _bounded(texts: Iterator[tuple[str, str | bytes]]) -> Iterator[tuple[str, str]]:
    """The first of them shown; how many more there are."""
    more = 0
    for count, (where, text) in enumerate(texts):
        if count < _SHOWN:
            yield where[:200], f"{len(text)} characters: {show(text)}"
        else:
            more += 1
    if more:
        yield "and more", f"{more} texts"
