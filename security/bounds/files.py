"""An ONNX file as nodes and constants; what no bound is known of is named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from security.errors import UnboundedModel

__all__ = ["Graph", "Node", "read_graph"]

_OPSETS = range(7, 27)
_WHOLE = frozenset(range(2, 8)) | {12, 13}
_MAX_CONSTANTS = 1 << 27
_MAX_NODES = 10_000


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        operator: its name, with the domain before it where that is not ONNX's own.
        inputs, outputs: names of values; "" where an optional one is left out.
        attributes: by name; tensors as arrays.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Graph:
    """A model's graph.

    Attributes:
        nodes: in an order in which they can be run.
        constants: stored arrays, by name.
        input: name of the one input.
        shape: of one row; None is a size that may vary.
        batch: the input's first axis where the file fixes it, otherwise None.
        outputs: names, in order.
        opset: version of ONNX's own operators.
        whole: the input is of whole numbers.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)
    input: str
    shape: tuple[int | None, ...]
    batch: int | None
    outputs: tuple[str, ...]
    opset: int
    whole: bool = False

    def made_by(self) -> dict[str, Node]:
        """The node that gives each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    def needed(self, names: Sequence[str]) -> list[Node]:
        """What some values are computed from, in order."""
        wanted = set(names)
        chosen = []
        for node in reversed(self.nodes):
            if wanted & set(node.outputs):
                chosen.append(node)
                wanted.update(node.inputs)
        return chosen[::-1]


def read_graph(model: bytes) -> Graph:
    """Read a model that has passed structural inspection.

    Raises:
        UnboundedModel: several inputs, an unknown operator set, or no tensor of
            numbers.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    if graph.sparse_initializer or proto.functions:
        raise UnboundedModel("sparse tensors and functions have no bounds here")
    if sum(len(item.raw_data) for item in graph.initializer) > _MAX_CONSTANTS:
        raise UnboundedModel("the model is too large for bounds")
    if len(graph.node) > _MAX_NODES:
        raise UnboundedModel(f"{len(graph.node)} nodes are too many for bounds")
    stored = {item.name: _array(item) for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in stored]
    if len(inputs) != 1:
        raise UnboundedModel(f"the graph has {len(inputs)} inputs, not one")
    sizes = [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
    if not sizes:
        raise UnboundedModel("the input has no axis for rows")
    return Graph(
        nodes=tuple(_node(item) for item in graph.node),
        constants=stored,
        input=inputs[0].name,
        shape=tuple(sizes[1:]),
        batch=sizes[0],
        outputs=tuple(item.name for item in graph.output),
        opset=_opset(proto),
        whole=_whole(graph, inputs[0]),
    )


def _whole(graph: Any, given: Any) -> bool:
    """Whether the input is of whole numbers, which must become floats at once.

    Raises:
        UnboundedModel: whole numbers are divided or compared as such, or it is neither.
    """
    kind = given.type.tensor_type.elem_type
    if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return False
    readers = [node for node in graph.node if given.name in node.input]
    if kind not in _WHOLE or any(node.op_type != "Cast" for node in readers):
        raise UnboundedModel("arithmetic of the input's element type has no bound here")
    return True


def _opset(proto: Any) -> int:
    versions = {item.domain or "ai.onnx": item.version for item in proto.opset_import}
    version = int(versions.get("ai.onnx", _OPSETS.start))
    if version not in _OPSETS:
        raise UnboundedModel(f"operator set {version} has no bounds here")
    return version


def _node(node: Any) -> Node:
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    values = {
        item.name: onnx.helper.get_attribute_value(item) for item in node.attribute
    }
    read = {
        name: _array(value) if isinstance(value, onnx.TensorProto) else value
        for name, value in values.items()
    }
    return Node(domain + node.op_type, tuple(node.input), tuple(node.output), read)


def _array(proto: Any) -> NDArray[Any]:
    array = np.array(onnx.numpy_helper.to_array(proto))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize == 2:
        raise UnboundedModel("a stored tensor holds no numbers of usual precision")
    return array
