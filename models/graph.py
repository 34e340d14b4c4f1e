"""The little of an ONNX file's graph that exact explanations need, read without onnx.

The server has no ONNX library, and explains tree ensembles by their own numbers: those
are attributes of one node. The bytes are the admitted ones: inspected before they were
signed, in one unambiguous encoding (`security.inspection.wire`). All the same nothing
is trusted: what does not read is a model without such a node, explained otherwise, and
what does is held to the session's answers. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Node", "attributes", "nodes"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
# Of AttributeProto: a name, one value, or lists of them.
_NAME, _INT, _STRING, _FLOATS, _INTS, _STRINGS = 1, 3, 4, 7, 8, 9
# A second or so of reading; beyond it a node is none.
_MAX_NODE_BYTES = 4 << 20
_MAX_NODES = 10_000

_Field = tuple[int, int, Any]


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        operator: its name, ``TreeEnsembleClassifier`` for example.
        inputs, outputs: names of values.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    _attributes: tuple[memoryview, ...] = field(repr=False, default=())


def nodes(model: bytes) -> list[Node]:
    """The nodes of a model's own graph, in their order; none if it cannot be read."""
    try:
        found = []
        for graph in _messages(memoryview(model), _GRAPH):
            for node in _messages(graph, _NODE):
                found.append(_node(node))
                if len(found) > _MAX_NODES:
                    return []
    except (ValueError, IndexError):
        return []
    return found


def attributes(node: Node) -> Mapping[str, Any]:
    """What a node states, by name: integers, or lists of numbers or of bytes.

    Raises:
        ValueError: it cannot be read, or is too long for that.
    """
    if sum(map(len, node._attributes)) > _MAX_NODE_BYTES:  # noqa: SLF001  (its reader)
        raise ValueError("too long")
    try:
        return dict(map(_attribute, node._attributes))  # noqa: SLF001  (as above)
    except (IndexError, struct.error):
        raise ValueError("cut off") from None


def _node(data: memoryview) -> Node:
    inputs, outputs, held = [], [], []
    operator = ""
    for number, _, value in _fields(data):
        if number == _INPUT:
            inputs.append(bytes(value).decode())
        elif number == _OUTPUT:
            outputs.append(bytes(value).decode())
        elif number == _OPERATOR:
            operator = bytes(value).decode()
        elif number == _ATTRIBUTE:
            held.append(value)
    return Node(operator, tuple(inputs), tuple(outputs), tuple(held))


def _attribute(data: memoryview) -> tuple[str, Any]:
    name = ""
    single: Any = None
    values: list[Any] = []
    for number, wire, value in _fields(data):
        if number == _NAME:
            name = bytes(value).decode()
        elif number == _INT:
            single = _signed(value)
        elif number == _STRING:
            single = bytes(value)
        elif number == _STRINGS:
            values.append(bytes(value))
        elif number == _FLOATS:
            values += struct.unpack(f"<{len(value) // 4}f", value)
        elif number == _INTS:
            whole = _packed(value) if wire == _LENGTH else [value]
            values += map(_signed, whole)
    return name, values if single is None else single


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, wire, value in _fields(data):
        if number == wanted and wire == _LENGTH:
            yield value


def _fields(data: memoryview) -> Iterator[_Field]:
    """Number, kind and value of each field of a message.

    Raises:
        ValueError, IndexError: the bytes are none.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, wire, value
            continue
        if wire == _LENGTH:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("a group")
        if size > end - at:
            raise ValueError("beyond the end")
        yield tag >> 3, wire, data[at : at + size]
        at += size


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = data[at]
    if result < 0x80:  # nearly all
        return result, at + 1
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
