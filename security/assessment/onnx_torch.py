"""ONNX graphs as torch modules, for gradients: an interpreter with a short allow-list.

Attacks that follow the gradient need one, and onnxruntime gives none. This runs the
operators that tabular classifiers are made of, in double precision, so that a softmax
that saturates in single precision does not hide the gradient. What it does not know, it
refuses; what it computes is compared with onnxruntime before anyone relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from security.errors import AssessmentError

__all__ = ["OPERATORS", "OnnxModule"]

# Softmax and the reductions mean something else before 13.
_OPSETS = range(13, 26)

_Attributes = Mapping[str, Any]
_Operator = Callable[[Sequence[Any], _Attributes], Tensor]

_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
)
_INTEGERS: Mapping[int, torch.dtype] = {
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


class OnnxModule(nn.Module):
    """A graph with one input, run operator by operator in double precision.

    Attributes:
        input_name: of the graph's one input.
        output_names: of its outputs, in order.
    """

    def __init__(self, model: bytes) -> None:
        """Read a model that has passed structural inspection.

        Raises:
            AssessmentError: an operator, operator set or structure it does not run.
        """
        super().__init__()
        proto = onnx.load_model_from_string(model)
        _check_supported(proto)
        graph = proto.graph
        stored = {item.name: _tensor(item) for item in graph.initializer}
        inputs = [item.name for item in graph.input if item.name not in stored]
        if len(inputs) != 1:
            raise AssessmentError(f"the graph has {len(inputs)} inputs, not one")
        self.input_name: str = inputs[0]
        self.output_names: tuple[str, ...] = tuple(item.name for item in graph.output)
        self._stored: dict[str, Tensor | None] = {"": None, **stored}
        self._nodes = [
            (node.op_type, list(node.input), node.output[0], _attributes(node))
            for node in graph.node
        ]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Run the graph on ``(n, d)`` of any float type; outputs by name."""
        values: dict[str, Any] = {**self._stored, self.input_name: features.double()}
        for name, inputs, output, attributes in self._nodes:
            arguments = [values[item] for item in inputs]
            values[output] = OPERATORS[name](arguments, attributes)
        return {name: values[name] for name in self.output_names}


def _check_supported(proto: Any) -> None:
    versions = {item.domain: item.version for item in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if version not in _OPSETS:
        raise AssessmentError(
            f"operator set {version} is not supported for gradients, "
            f"{_OPSETS.start} to {_OPSETS.stop - 1} are"
        )
    for node in proto.graph.node:
        domain = node.domain if node.domain != "ai.onnx" else ""
        if domain or node.op_type not in OPERATORS:
            raise AssessmentError(
                f"operator {node.op_type[:60]!a} is not supported for gradients"
            )
        if len(node.output) != 1:
            raise AssessmentError(f"{node.op_type} has {len(node.output)} outputs")


def _tensor(proto: Any) -> Tensor:
    array = np.array(onnx.numpy_helper.to_array(proto))
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def _attributes(node: Any) -> dict[str, Any]:
    values = {
        item.name: onnx.helper.get_attribute_value(item) for item in node.attribute
    }
    return {
        name: _tensor(value) if isinstance(value, onnx.TensorProto) else value
        for name, value in values.items()
    }


def _unary(function: Callable[[Tensor], Tensor]) -> _Operator:
    return lambda inputs, _: function(inputs[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> _Operator:
    return lambda inputs, _: function(inputs[0], inputs[1])


def _div(left: Tensor, right: Tensor) -> Tensor:
    if left.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> _Operator:
    def run(inputs: Sequence[Any], _: _Attributes) -> Tensor:
        result: Tensor = inputs[0]
        for item in inputs[1:]:
            result = function(result, item)
        return result

    return run


def _clip(inputs: Sequence[Any], _: _Attributes) -> Tensor:
    low, high = (*inputs[1:], None, None)[:2]
    return torch.clamp(inputs[0], low, high)


def _cast(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    wanted = attributes["to"]
    source: Tensor = inputs[0]
    if wanted in _FLOATS:
        return source.double()
    if wanted not in _INTEGERS:
        raise AssessmentError(f"Cast to element type {wanted} is not supported")
    return source.to(_INTEGERS[wanted])


def _constant(_: Sequence[Any], attributes: _Attributes) -> Tensor:
    for name, value in attributes.items():
        match name:
            case "value":
                return torch.as_tensor(value)
            case "value_float" | "value_floats":
                return torch.tensor(value, dtype=torch.float64)
            case "value_int" | "value_ints":
                return torch.tensor(value, dtype=torch.int64)
    raise AssessmentError("Constant without a number is not supported")


def _gemm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    left, right = inputs[0], inputs[1]
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    result: Tensor = attributes.get("alpha", 1.0) * (left @ right)
    if len(inputs) > 2 and inputs[2] is not None:
        result = result + attributes.get("beta", 1.0) * inputs[2]
    return result


def _argmax(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    if attributes.get("select_last_index"):
        raise AssessmentError("ArgMax of the last index is not supported")
    keep = bool(attributes.get("keepdims", 1))
    return torch.argmax(inputs[0], dim=attributes.get("axis", 0), keepdim=keep)


def _isinf(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    positive = torch.isposinf(inputs[0]) & bool(attributes.get("detect_positive", 1))
    negative = torch.isneginf(inputs[0]) & bool(attributes.get("detect_negative", 1))
    return positive | negative


def _reshape(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    shape = [int(size) for size in inputs[1]]
    if not attributes.get("allowzero"):
        shape = [
            source.shape[axis] if size == 0 else size for axis, size in enumerate(shape)
        ]
    return source.reshape(shape)


def _flatten(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    axis = attributes.get("axis", 1) % (source.dim() + 1)
    rows = int(np.prod(source.shape[:axis], dtype=np.int64))
    return source.reshape(rows, -1)


def _unsqueeze(inputs: Sequence[Any], _: _Attributes) -> Tensor:
    result: Tensor = inputs[0]
    rank = result.dim() + len(inputs[1])
    for axis in sorted(int(item) % rank for item in inputs[1]):
        result = result.unsqueeze(axis)
    return result


def _squeeze(inputs: Sequence[Any], _: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    if len(inputs) < 2 or inputs[1] is None:
        return source.squeeze()
    return source.squeeze([int(item) for item in inputs[1]])


def _transpose(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    return source.permute(list(attributes.get("perm") or range(source.dim())[::-1]))


def _gather(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, index = inputs[0], inputs[1]
    axis = attributes.get("axis", 0) % source.dim()
    flat = source.index_select(axis, index.reshape(-1) % source.shape[axis])
    shape = (*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])
    return torch.reshape(flat, shape)


def _reduce(function: Callable[..., Tensor]) -> _Operator:
    def run(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
        given = inputs[1] if len(inputs) > 1 else attributes.get("axes")
        if given is None:
            if attributes.get("noop_with_empty_axes"):
                raise AssessmentError("reduction over no axis is not supported")
            given = range(inputs[0].dim())
        axes = [int(item) for item in given]
        return function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return run


OPERATORS: Mapping[str, _Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": _argmax,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "Constant": _constant,
    "Div": _binary(_div),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Identity": _unary(lambda value: value),
    "IsInf": _isinf,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": lambda inputs, attributes: nn.functional.leaky_relu(
        inputs[0], attributes.get("alpha", 0.01)
    ),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": lambda inputs, attributes: torch.log_softmax(
        inputs[0], attributes.get("axis", -1)
    ),
    "MatMul": _binary(torch.matmul),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Shape": _unary(lambda value: torch.tensor(value.shape, dtype=torch.int64)),
    "Sigmoid": _unary(torch.sigmoid),
    "Softmax": lambda inputs, attributes: torch.softmax(
        inputs[0], attributes.get("axis", -1)
    ),
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, _: torch.where(inputs[0], inputs[1], inputs[2]),
}
