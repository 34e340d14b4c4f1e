"""Operators of ONNX in torch: the short allow-list of what graphs may be made of.

Each takes its inputs and attributes and gives its output. Beside the node's own, the
attributes hold ``_dtype`` (what floats are computed in), ``_opset`` and ``_soft``:
then steps such as Round get the gradient of what they approximate, so that an attack is
not stopped by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from security.assessment.torch_graph.layers import LAYERS
from security.assessment.torch_graph.steps import compare, soft, stepped
from security.errors import AssessmentError

__all__ = ["ML_OPERATORS", "OPERATORS"]

_Attributes = Mapping[str, Any]
_Operator = Callable[[Sequence[Any], _Attributes], Any]

_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
)
_INTEGERS: Mapping[int, torch.dtype] = {
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


def _unary(function: Callable[[Tensor], Tensor]) -> _Operator:
    return lambda inputs, _: function(inputs[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> _Operator:
    return lambda inputs, _: function(inputs[0], inputs[1])


def _with(function: Callable[..., Tensor], **defaults: float) -> _Operator:
    """A function of one input and of attributes with defaults."""

    def run(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
        given = [attributes.get(name, value) for name, value in defaults.items()]
        return function(inputs[0], *given)

    return run


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


def _mean(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    total: Tensor = _fold(torch.add)(inputs, attributes)
    return total / len(inputs)


def _clip(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    low, high = (*inputs[1:], None, None)[:2]
    low = attributes.get("min", low)
    high = attributes.get("max", high)
    source: Tensor = inputs[0]
    if low is not None:
        source = torch.clamp(source, min=low)
    return source if high is None else torch.clamp(source, max=high)


def _cast(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    wanted = attributes["to"]
    source: Tensor = inputs[0]
    if wanted in _FLOATS:
        return source.to(attributes["_dtype"])
    if wanted not in _INTEGERS:
        raise AssessmentError(f"Cast to element type {wanted} is not supported")
    if soft(source, attributes) and wanted != onnx.TensorProto.BOOL:
        return stepped(source, torch.trunc(source))
    return source.to(_INTEGERS[wanted])


def _constant_of_shape(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    value = attributes.get("value")
    if value is None:
        value = torch.zeros(1, dtype=attributes["_dtype"])
    return value.reshape(()).expand([int(size) for size in inputs[0]]).clone()


def _gemm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    left, right = inputs[0], inputs[1]
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    third = inputs[2] if len(inputs) > 2 else None
    if third is None:
        result: Tensor = left @ right
        return result if alpha == 1 else alpha * result
    if alpha == 1 and beta == 1:
        return torch.addmm(third, left, right)
    return alpha * (left @ right) + beta * third


def _argmax(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    if attributes.get("select_last_index"):
        raise AssessmentError("ArgMax of the last index is not supported")
    keep = bool(attributes.get("keepdims", 1))
    return torch.argmax(inputs[0], dim=attributes.get("axis", 0), keepdim=keep)


def _isinf(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    positive, negative = (
        bool(attributes.get(f"detect_{sign}", 1)) for sign in ("positive", "negative")
    )
    if positive and negative:
        return torch.isposinf(inputs[0]) | torch.isneginf(inputs[0])
    if positive:
        return torch.isposinf(inputs[0])
    return torch.isneginf(inputs[0]) & negative


def _logical(function: Callable[..., Tensor], hard: Callable[..., Tensor]) -> _Operator:
    """Logic; on truth values that carry a gradient, its arithmetic."""

    def run(inputs: Sequence[Any], _: _Attributes) -> Tensor:
        if any(item.is_floating_point() for item in inputs):
            return function(*(item.to(torch.get_default_dtype()) for item in inputs))
        return hard(*inputs)

    return run


def _where(inputs: Sequence[Any], _: _Attributes) -> Tensor:
    chosen, left, right = inputs
    if chosen.is_floating_point():
        return torch.where(chosen > 0.5, left, right) + (
            (chosen - chosen.detach()) * (left - right).detach()
        )
    return torch.where(chosen, left, right)


def _round(function: Callable[[Tensor], Tensor]) -> _Operator:
    def run(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
        source: Tensor = inputs[0]
        result = function(source)
        return stepped(source, result) if soft(source, attributes) else result

    return run


def _softmax(function: Callable[[Tensor, int], Tensor]) -> _Operator:
    def run(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
        source: Tensor = inputs[0]
        if attributes["_opset"] >= 13:
            return function(source, attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % source.dim()
        rows = int(np.prod(source.shape[:axis], dtype=np.int64))
        return function(source.reshape(rows, -1), 1).reshape(source.shape)

    return run


def _axes(inputs: Sequence[Any], attributes: _Attributes) -> list[int] | None:
    """The axes of a node: an input since opset 13, an attribute before."""
    given = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return None if given is None else [int(item) for item in given]


def _reshape(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    shape = [int(size) for size in inputs[1]]
    if not attributes.get("allowzero"):
        shape = [
            source.shape[axis] if size == 0 else size for axis, size in enumerate(shape)
        ]
    if shape and source.dim() and shape[0] == attributes["_batch"]:
        # The file's own batch, written into the graph: here it is any.
        shape[0] = source.shape[0]
    return source.reshape(shape)


def _flatten(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    axis = attributes.get("axis", 1) % (source.dim() + 1)
    rows = int(np.prod(source.shape[:axis], dtype=np.int64))
    return source.reshape(rows, -1)


def _unsqueeze(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    result: Tensor = inputs[0]
    axes = _axes(inputs, attributes) or []
    rank = result.dim() + len(axes)
    for axis in sorted(item % rank for item in axes):
        result = result.unsqueeze(axis)
    return result


def _squeeze(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    axes = _axes(inputs, attributes)
    return source.squeeze() if axes is None else source.squeeze(axes)


def _transpose(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    return source.permute(list(attributes.get("perm") or range(source.dim())[::-1]))


def _gather(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, index = inputs[0], inputs[1].long()
    axis = attributes.get("axis", 0) % source.dim()
    flat = source.index_select(axis, index.reshape(-1) % source.shape[axis])
    shape = (*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])
    return torch.reshape(flat, shape)


def _concat(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    return torch.cat(list(inputs), attributes["axis"])


def _expand(inputs: Sequence[Any], _: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    # The larger of both sizes, axis by axis: what a sum with zeros would have.
    return source + torch.zeros([int(n) for n in inputs[1]], dtype=source.dtype)


def _slice(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    names = ("starts", "ends", "axes", "steps")
    given = (*inputs[1:], None, None, None, None)[:4]
    starts, ends, axes, steps = (
        attributes.get(name) if value is None else [int(item) for item in value]
        for name, value in zip(names, given)
    )
    places = range(len(starts or ())) if axes is None else axes
    for number, place in enumerate(places):
        step = 1 if steps is None else steps[number]
        size = source.shape[place]
        chosen = range(size)[slice((starts or [])[number], (ends or [])[number], step)]
        index = torch.tensor(list(chosen), dtype=torch.int64)
        source = source.index_select(place, index)
    return source


def _split(inputs: Sequence[Any], attributes: _Attributes) -> tuple[Tensor, ...]:
    source: Tensor = inputs[0]
    axis = attributes.get("axis", 0)
    given = inputs[1] if len(inputs) > 1 else attributes.get("split")
    if given is not None:
        return tuple(torch.split(source, [int(size) for size in given], axis))
    parts = attributes.get("num_outputs", attributes["_outputs"])
    size = -(-source.shape[axis] // parts)
    return tuple(torch.split(source, size, axis))


def _reduce(function: Callable[..., Tensor]) -> _Operator:
    def run(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
        axes = _axes(inputs, attributes)
        if axes is None:
            if attributes.get("noop_with_empty_axes"):
                raise AssessmentError("reduction over no axis is not supported")
            axes = list(range(inputs[0].dim()))
        return function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _norm2(source: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sqrt(torch.sum(source * source, axes, keepdim=keepdim))


def _square(source: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sum(source * source, axes, keepdim=keepdim)


def _hard_sigmoid(source: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * source + beta, 0, 1)


def _gelu(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    kind = attributes.get("approximate", b"none").decode()
    return nn.functional.gelu(inputs[0], approximate=kind)


def _selu(source: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * nn.functional.elu(source, alpha)


OPERATORS: Mapping[str, _Operator] = {
    **LAYERS,
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _logical(torch.mul, torch.logical_and),
    "ArgMax": _argmax,
    "Cast": _cast,
    "Ceil": _round(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(torch.cos),
    "Div": _binary(_div),
    "Dropout": _unary(lambda value: value),
    "Elu": _with(nn.functional.elu, alpha=1.0),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _round(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": compare(torch.gt, 1),
    "GreaterOrEqual": compare(torch.ge, 1),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": _unary(nn.functional.hardswish),
    "Identity": _unary(lambda value: value),
    "IsInf": _isinf,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": _with(nn.functional.leaky_relu, alpha=0.01),
    "Less": compare(torch.lt, -1),
    "LessOrEqual": compare(torch.le, -1),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _fold(torch.maximum),
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _logical(lambda value: 1 - value, torch.logical_not),
    "Or": _logical(torch.maximum, torch.logical_or),
    "PRelu": lambda inputs, _: torch.where(
        inputs[0] < 0, inputs[1] * inputs[0], inputs[0]
    ),
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(_norm2),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(_square),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Round": _round(torch.round),
    "Selu": _with(_selu, alpha=1.6732631921768188, gamma=1.0507010221481323),
    "Shape": _unary(lambda value: torch.tensor(value.shape, dtype=torch.int64)),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _round(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _unary(nn.functional.softplus),
    "Softsign": _unary(nn.functional.softsign),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda inputs, _: inputs[0].repeat([int(size) for size in inputs[1]]),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}


def _scaler(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0].to(attributes["_dtype"])
    offset = source.new_tensor(attributes.get("offset", [0.0]))
    return (source - offset) * source.new_tensor(attributes.get("scale", [1.0]))


def _imputer(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0].to(attributes["_dtype"])
    values = source.new_tensor(attributes.get("imputed_value_floats", [0.0]))
    replaced = attributes.get("replaced_value_float", 0.0)
    missing = source.isnan() if replaced != replaced else source == replaced  # noqa: PLR0124  (NaN)
    return torch.where(missing, values, source)


def _normalizer(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0].to(attributes["_dtype"])
    kind = attributes.get("norm", b"MAX").decode()
    if kind == "L1":
        size = source.abs().sum(dim=-1, keepdim=True)
    elif kind == "L2":
        size = source.norm(dim=-1, keepdim=True)
    else:
        size = source.amax(dim=-1, keepdim=True)
    return source / size.clamp_min(torch.finfo(source.dtype).tiny)


def _linear_classifier(inputs: Sequence[Any], attributes: _Attributes) -> Any:
    """Labels, which nothing here reads, and scores."""
    source: Tensor = inputs[0].to(attributes["_dtype"])
    weights = source.new_tensor(attributes["coefficients"])
    bias = source.new_tensor(attributes.get("intercepts", [0.0]))
    scores = source @ weights.reshape(-1, source.shape[1]).T + bias
    labels = attributes.get("classlabels_ints") or attributes.get("classlabels_strings")
    if scores.shape[1] == 1 and labels and len(labels) == 2:
        scores = torch.cat([-scores, scores], dim=1)
    kind = attributes.get("post_transform", b"NONE").decode()
    if kind == "SOFTMAX":
        scores = torch.softmax(scores, dim=1)
    elif kind == "LOGISTIC":
        scores = torch.sigmoid(scores)
    elif kind != "NONE":
        raise AssessmentError(f"LinearClassifier with {kind} is not supported")
    return None, scores


def _linear_regressor(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    if attributes.get("post_transform", b"NONE") != b"NONE":
        raise AssessmentError("a LinearRegressor with post_transform is not supported")
    source: Tensor = inputs[0].to(attributes["_dtype"])
    weights = source.new_tensor(attributes["coefficients"])
    bias = source.new_tensor(attributes.get("intercepts", [0.0]))
    return source @ weights.reshape(-1, source.shape[1]).T + bias


# Of the domain ai.onnx.ml: what linear models and networks of scikit-learn become.
ML_OPERATORS: Mapping[str, _Operator] = {
    "Imputer": _imputer,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
    "ZipMap": _unary(lambda value: value),
}
