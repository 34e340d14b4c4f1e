"""ONNX graphs as torch modules, for gradients: an interpreter with a short allow-list.

Attacks that follow the gradient need one, and onnxruntime gives none. What the
interpreter does not know, it refuses; what it computes is compared with onnxruntime
before anyone relies on it. Only what the wanted outputs need is run, and what depends
on no input is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from security.assessment.torch_graph.operators import ML_OPERATORS, OPERATORS
from security.errors import AssessmentError

__all__ = ["OPERATORS", "Node", "OnnxModule", "needed_nodes", "read_nodes"]

_OPSETS = range(7, 26)
_DOMAINS: Mapping[str, Mapping[str, Any]] = {"": OPERATORS, "ai.onnx.ml": ML_OPERATORS}
_MANY_OUTPUTS = frozenset(("DynamicQuantizeLinear", "LinearClassifier", "Split"))
# Their first output is the layer's; the others are for training.
_FIRST_OUTPUT = frozenset(("BatchNormalization", "Dropout", "MaxPool"))


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        op: the operator.
        domain: "" or "ai.onnx.ml".
        inputs, outputs: names of values; "" where an optional one is left out.
        attributes: by name.
    """

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(repr=False)


class OnnxModule(nn.Module):
    """A graph with one input, run operator by operator.

    Attributes:
        input_name: of the graph's one input.
        output_names: of what is computed, in order.
    """

    def __init__(
        self,
        model: bytes,
        *,
        outputs: Sequence[str] = (),
        dtype: torch.dtype = torch.float64,
        soft: bool = False,
    ) -> None:
        """Read a model that has passed structural inspection.

        Args:
            model: the file's bytes.
            outputs: values to compute, any of the graph's; none for its outputs.
            dtype: what floats are computed in. In single precision a softmax that
                saturates hides its gradient.
            soft: give rounding and comparisons a gradient.

        Raises:
            AssessmentError: an operator, operator set or structure it does not run.
        """
        super().__init__()
        proto = onnx.load_model_from_string(model)
        opset = _opset(proto)
        graph = proto.graph
        stored = {item.name: _tensor(item, dtype) for item in graph.initializer}
        inputs = [item.name for item in graph.input if item.name not in stored]
        if len(inputs) != 1:
            raise AssessmentError(f"the graph has {len(inputs)} inputs, not one")
        self.input_name: str = inputs[0]
        self.output_names = tuple(outputs) or tuple(item.name for item in graph.output)
        self.dtype = dtype
        batch = _fixed_batch(graph, self.input_name)
        extra = {"_dtype": dtype, "_opset": opset, "_soft": soft, "_batch": batch}
        nodes = needed_nodes(read_nodes(proto, dtype), self.output_names)
        self._nodes = [_step(node, extra) for node in nodes]
        self._stored: dict[str, Tensor | None] = {"": None, **stored}
        self._fold()

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Run the graph on ``(n, …)`` of any float type; outputs by name."""
        values: dict[str, Any] = {
            **self._stored,
            self.input_name: features.to(self.dtype),
        }
        for function, inputs, outputs, attributes in self._nodes:
            result = function([values[item] for item in inputs], attributes)
            if len(outputs) == 1:
                values[outputs[0]] = result
            else:
                values.update(zip(outputs, result))
        return {name: values[name] for name in self.output_names}

    def narrow(self, outputs: Sequence[str]) -> None:
        """Compute only some of the values that were wanted, from now on."""
        wanted, kept = set(outputs), []
        for step in reversed(self._nodes):
            _, inputs, made, _ = step
            if wanted & set(made):
                kept.append(step)
                wanted.update(inputs)
        self._nodes, self.output_names = kept[::-1], tuple(outputs)

    def _fold(self) -> None:
        """Compute once what depends on no input."""
        left = []
        with torch.no_grad():
            for step in self._nodes:
                function, inputs, outputs, attributes = step
                if any(name not in self._stored for name in inputs):
                    left.append(step)
                    continue
                result = function([self._stored[name] for name in inputs], attributes)
                many = len(outputs) > 1
                self._stored.update(
                    zip(outputs, result) if many else {outputs[0]: result}
                )
        self._nodes = left


def read_nodes(proto: Any, dtype: torch.dtype = torch.float64) -> list[Node]:
    """The nodes of a model's graph, in order."""
    return [
        Node(
            node.op_type,
            "" if node.domain == "ai.onnx" else node.domain,
            tuple(node.input),
            tuple(node.output),
            _attributes(node, dtype),
        )
        for node in proto.graph.node
    ]


def needed_nodes(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """What some values are computed from, in order."""
    wanted = set(outputs)
    chosen = []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            chosen.append(node)
            wanted.update(node.inputs)
    return chosen[::-1]


def _opset(proto: Any) -> int:
    versions = {item.domain: item.version for item in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None and "ai.onnx.ml" in versions:
        return int(_OPSETS.start)  # nothing of the standard's own is used
    if version not in _OPSETS:
        raise AssessmentError(
            f"operator set {version or 0} is not supported for gradients, "
            f"{_OPSETS.start} to {_OPSETS.stop - 1} are"
        )
    return int(version or 0)


def _fixed_batch(graph: Any, name: str) -> int | None:
    """The first axis of the input, where the file fixes it."""
    (item,) = (entry for entry in graph.input if entry.name == name)
    sizes = item.type.tensor_type.shape.dim
    return int(sizes[0].dim_value) or None if sizes else None


def _step(node: Node, extra: Mapping[str, Any]) -> Any:
    """A node as what is run: function, inputs, outputs, attributes."""
    attributes = {**node.attributes, **extra, "_outputs": len(node.outputs)}
    if node.op == "Constant" and not node.domain:
        value = _constant(node.attributes, extra["_dtype"])
        return (lambda *_: value), (), node.outputs, attributes
    function = _DOMAINS.get(node.domain, {}).get(node.op)
    if function is None:
        raise AssessmentError(
            f"operator {node.op[:60]!a} is not supported for gradients"
        )
    outputs = node.outputs
    if node.op in _FIRST_OUTPUT:
        outputs = outputs[:1]
    elif len(outputs) != 1 and node.op not in _MANY_OUTPUTS:
        raise AssessmentError(f"{node.op} has {len(outputs)} outputs")
    return function, node.inputs, outputs, attributes


def _tensor(proto: Any, dtype: torch.dtype) -> Tensor:
    array = np.array(onnx.numpy_helper.to_array(proto))
    if array.dtype.kind not in "biuf":
        raise AssessmentError("a stored tensor holds no numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _attributes(node: Any, dtype: torch.dtype) -> dict[str, Any]:
    values = {
        item.name: onnx.helper.get_attribute_value(item) for item in node.attribute
    }
    return {
        name: _tensor(value, dtype) if isinstance(value, onnx.TensorProto) else value
        for name, value in values.items()
    }


def _constant(attributes: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    for name, value in attributes.items():
        match name:
            case "value":
                return torch.as_tensor(value)
            case "value_float" | "value_floats":
                return torch.tensor(value, dtype=dtype)
            case "value_int" | "value_ints":
                return torch.tensor(value, dtype=torch.int64)
    raise AssessmentError("Constant without a number is not supported")
