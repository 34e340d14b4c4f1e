"""Operators that need more than a line: what moves values, and affine layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.bounds.files import Node
from security.bounds.steps import Dense
from security.bounds.values import Const, Sym, Value, spread
from security.errors import UnboundedModel

__all__ = [
    "AFFINE",
    "MAX_COMPUTED",
    "MOVES",
    "affine",
    "check_counted",
    "dense_of",
    "folded",
    "known",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Rest = Sequence[Array | None]
Move = Callable[[Any], Any]

# A matrix of doubles: 128 MiB. Convolutions are written out as one.
_MAX_MATRIX = 1 << 24
MAX_COMPUTED = 1 << 24
"""Values of constants that are computed, each and together."""


def known(value: Value | None, node: Node) -> Array:
    """A constant.

    Raises:
        UnboundedModel: it depends on the input.
    """
    if not isinstance(value, Const):
        raise UnboundedModel(f"{node.operator} by a value has no bound here")
    return value.array


def _stated(node: Node, name: str, rest: Rest, place: int = 0) -> list[int] | None:
    """Whole numbers of an attribute, or of an input since later operator sets."""
    if name in node.attributes:
        return [int(item) for item in np.ravel(node.attributes[name])]
    given = rest[place] if len(rest) > place else None
    return None if given is None else [int(item) for item in np.ravel(given)]


def _reshape(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    sizes = _stated(node, "shape", rest) or []
    zero = bool(node.attributes.get("allowzero", 0))

    def run(value: Any) -> Any:
        wanted = [
            value.shape[place] if not size and not zero else size
            for place, size in enumerate(sizes)
        ]
        return value.reshape(wanted)

    return run


def _flatten(node: Node, rest: Rest, opset: int) -> Move:
    del rest, opset
    axis = int(node.attributes.get("axis", 1))
    return lambda value: value.reshape(math.prod(value.shape[:axis]), -1)


def _transpose(node: Node, rest: Rest, opset: int) -> Move:
    del rest, opset
    return lambda value: np.transpose(value, node.attributes.get("perm"))


def _squeeze(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    axes = _stated(node, "axes", rest)
    return lambda value: np.squeeze(value, None if axes is None else tuple(axes))


def _unsqueeze(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    return lambda value: np.expand_dims(value, tuple(_stated(node, "axes", rest) or ()))


def _gather(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    axis = int(node.attributes.get("axis", 0))
    if axis == 0:
        raise UnboundedModel("the graph mixes the rows of a batch")
    return lambda value: np.take(value, np.asarray(rest[0]), axis=axis)


def _slice(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    starts, ends = (_stated(node, n, rest, i) or [] for i, n in enumerate(_SLICE[:2]))
    axes = _stated(node, "axes", rest, 2) or list(range(len(starts)))
    strides = _stated(node, "steps", rest, 3) or [1] * len(starts)

    def run(value: Any) -> Any:
        cut = [slice(None)] * value.ndim
        for axis, first, end, stride in zip(axes, starts, ends, strides, strict=True):
            cut[axis] = slice(first, _end(end, stride), stride)
        return value[tuple(cut)]

    return run


def _end(end: int, stride: int) -> int | None:
    return None if stride < 0 and end < -(1 << 31) else end


_SLICE = ("starts", "ends")


def _same(node: Node, rest: Rest, opset: int) -> Move:
    del opset
    if node.operator == "Dropout" and len(rest) > 1 and np.any(rest[1]):
        raise UnboundedModel("Dropout that draws, as in training, has no bound here")
    return lambda value: value


MOVES: Mapping[str, Callable[[Node, Rest, int], Move]] = {
    "Dropout": _same,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _same,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By operator: what it does to an array, with its other inputs."""


def constant_of(node: Node, given: Sequence[Array], opset: int) -> Array:
    """What an operator gives of constants alone, in the precision that they have.

    A server folds them so: large numbers that cancel leave what their digits leave.

    Raises:
        UnboundedModel: it is none of the few that are computed.
    """
    if node.operator == "Constant":
        return _constant(node)
    if node.operator in MOVES and node.operator != "Gather":
        return np.asarray(MOVES[node.operator](node, given[1:], opset)(given[0]))
    function = _COMPUTED.get(node.operator)
    if function is not None and _size_of(node, given) > MAX_COMPUTED:
        raise UnboundedModel("a computed constant is too large for bounds")
    if function is None:
        raise UnboundedModel(f"{node.operator[:60]} of constants is not computed here")
    return np.asarray(function(node, given))


def check_counted(node: Node, given: Sequence[Value | None]) -> None:
    """Only the first of a new shape may be the number of rows.

    Raises:
        UnboundedModel: something else is.
    """
    for place, item in enumerate(given):
        if isinstance(item, Const) and item.counted is not None:
            shape = node.operator == "Reshape" and place == 1
            if not shape or item.counted.reshape(-1)[1:].any():
                raise UnboundedModel("an answer that hangs on how many rows there are")


def folded(node: Node, given: Sequence[Const], opset: int) -> Const:
    """A constant of constants; where it is the number of rows, that is kept in mind.

    Raises:
        UnboundedModel: it cannot be computed, or is computed of the number of rows.
    """
    arrays, counted = [item.array for item in given], [item.counted for item in given]
    made = constant_of(node, arrays, opset)
    if all(item is None for item in counted):
        return Const(made)
    joins = node.operator == "Concat"
    if not joins and any(item is not None for item in counted[1:]):
        raise UnboundedModel("an answer that hangs on how many rows there are")
    if node.operator == "Cast" and made.dtype.kind == "i":
        return Const(made, counted[0])
    if not joins and node.operator not in MOVES:
        raise UnboundedModel("an answer that hangs on how many rows there are")
    masks = [
        np.zeros(array.shape, bool) if mask is None else mask
        for array, mask in zip(arrays, counted, strict=True)
    ]
    mask = constant_of(node, masks if joins else [masks[0], *arrays[1:]], opset)
    return Const(made, mask if mask.any() else None)


def _size_of(node: Node, given: Sequence[Array]) -> int:
    """Values of a constant that is about to be computed."""
    if node.operator == "Concat":
        return sum(item.size for item in given)
    if node.operator == "Gather":
        axis = int(node.attributes.get("axis", 0))
        if not -given[0].ndim <= axis < given[0].ndim:
            raise UnboundedModel("Gather: there is no such axis")
        return int(given[0].size // max(1, given[0].shape[axis]) * given[1].size)
    try:
        return math.prod(np.broadcast_shapes(*(item.shape for item in given)))
    except ValueError:
        raise UnboundedModel("shapes do not fit each other") from None


_PLAIN = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _constant(node: Node) -> Array:
    for name, value in node.attributes.items():
        if name == "value" or name.startswith(("value_float", "value_int")):
            return np.asarray(value, _PLAIN.get(name))
    raise UnboundedModel("Constant without a number has no bound here")


def _cast(node: Node, given: Sequence[Array]) -> Array:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
    kind = kinds.get(node.attributes["to"])
    if kind is None:
        raise UnboundedModel("Cast of a constant to this type is not computed here")
    return np.asarray(given[0]).astype(kind)


def _quotient(one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return np.asarray(one / other)
    if not np.all(other):
        raise UnboundedModel("Div of constants by 0 is not computed here")
    # Toward 0, where numpy goes down.
    down = one // other
    return np.asarray(down + ((down < 0) & (down * other != one)))


_COMPUTED: Mapping[str, Callable[[Node, Sequence[Array]], Any]] = {
    "Add": lambda _, given: given[0] + given[1],
    "Cast": _cast,
    "Concat": lambda node, given: np.concatenate(given, node.attributes["axis"]),
    "Div": lambda _, given: _quotient(*given),
    "Gather": lambda node, given: np.take(
        given[0], given[1], axis=node.attributes.get("axis", 0)
    ),
    "Mul": lambda _, given: given[0] * given[1],
    "Neg": lambda _, given: -given[0],
    "Sqrt": lambda _, given: np.sqrt(given[0]),
    "Sub": lambda _, given: given[0] - given[1],
}


def affine(operator: str, other: Floats, *, first: bool) -> tuple[Floats, Floats]:
    """Factor and shift of a value, by an operator with a constant.

    Args:
        operator: its name.
        other: the constant, as long as a row.
        first: the value stands before it.

    Raises:
        UnboundedModel: it is none of sums, differences, products and quotients.
    """
    ones, none = np.ones_like(other), np.zeros_like(other)
    if operator == "Mul":
        return other, none
    if operator == "Div" and first:
        return 1 / other, none
    if operator in ("Add", "Sum"):
        return ones, other
    if operator == "Sub":
        return (ones, -other) if first else (-ones, other)
    raise UnboundedModel(f"{operator} by a value has no bound here")


def dense_of(
    node: Node, source: Sym, rest: Rest, opset: int
) -> tuple[Dense, tuple[int, ...]]:
    """An affine operator as a matrix, and the shape it gives a row.

    Raises:
        UnboundedModel: it is too large, or reaches across rows.
    """
    return AFFINE[node.operator](node, source, rest, opset)


def _gemm(
    node: Node, source: Sym, rest: Rest, opset: int
) -> tuple[Dense, tuple[int, ...]]:
    del opset
    if len(source.shape) != 1 or node.attributes.get("transA"):
        raise UnboundedModel("Gemm across rows has no bound here")
    weight = _matrix(rest[0])
    weight = weight if node.attributes.get("transB") else weight.T
    weight = float(node.attributes.get("alpha", 1.0)) * weight
    bias = np.zeros(len(weight))
    if len(rest) > 1 and rest[1] is not None:
        try:
            added, shape = spread(np.asarray(rest[1], np.float64), bias.shape)
        except UnboundedModel as error:
            raise UnboundedModel(f"Gemm: {error}") from None
        if shape != bias.shape:
            raise UnboundedModel("Gemm: its bias does not fit its matrix")
        bias = bias + float(node.attributes.get("beta", 1.0)) * added
    return _dense(source, weight, bias), (len(weight),)


def _matmul(
    node: Node, source: Sym, rest: Rest, opset: int
) -> tuple[Dense, tuple[int, ...]]:
    del node, opset
    if len(source.shape) != 1:
        raise UnboundedModel("MatMul of more than a row has no bound here")
    weight = _matrix(rest[0]).T
    return _dense(source, weight, np.zeros(len(weight))), (len(weight),)


def _linear_model(
    node: Node, source: Sym, rest: Rest, opset: int
) -> tuple[Dense, tuple[int, ...]]:
    """Scores of `LinearClassifier`, before what it makes probabilities of them.

    `LinearRegressor` is alike, and must not transform its numbers.
    """
    del rest, opset
    regressor = node.operator.endswith("LinearRegressor")
    if regressor and node.attributes.get("post_transform", b"NONE") != b"NONE":
        raise UnboundedModel("LinearRegressor with a transformation has no bound here")
    shift = np.asarray(node.attributes.get("intercepts", ()), np.float64)
    flat = np.asarray(node.attributes["coefficients"], np.float64)
    if len(source.shape) != 1 or flat.size % source.width:
        raise UnboundedModel("a linear model does not fit its input")
    weight = flat.reshape(-1, source.width)
    bias = shift if shift.size else np.zeros(len(weight))
    return _dense(source, weight, bias), (len(weight),)


def _matrix(array: Array | None) -> Floats:
    if array is None or array.ndim != 2:
        raise UnboundedModel("a layer without a matrix has no bound here")
    return np.asarray(array, np.float64)


def _dense(source: Sym, weight: Floats, bias: Floats, terms: int = 0) -> Dense:
    if weight.shape[1] != source.width or len(bias) != len(weight):
        raise UnboundedModel("a layer's matrix does not fit what comes before")
    return Dense(
        (source.step,), np.ascontiguousarray(weight), bias, terms or source.width
    )


def _conv(
    node: Node, source: Sym, rest: Rest, opset: int
) -> tuple[Dense, tuple[int, ...]]:
    """A convolution in two dimensions, written out as a matrix."""
    del opset
    kernel = np.asarray(rest[0], np.float64)
    if len(source.shape) != 3 or kernel.ndim != 4:
        raise UnboundedModel("Conv of other than images has no bound here")
    rows, columns = _sizes(node, source.shape, kernel.shape[2:])
    groups = int(node.attributes.get("group", 1))
    filters, depth, taps = *kernel.shape[:2], math.prod(kernel.shape[2:])
    places = rows * columns
    if depth * groups != source.shape[0] or filters % groups:
        raise UnboundedModel("a convolution's channels do not fit its groups")
    if max(filters * source.width, taps) * places > _MAX_MATRIX:
        raise UnboundedModel(
            f"a convolution of {source.width} to {filters * places} values is too "
            "large for bounds"
        )
    marks, inside = _windows(node, source.shape, kernel.shape[2:])
    area = source.shape[1] * source.shape[2]
    weight = np.zeros((filters, places, source.shape[0], area))
    seen, tap = np.nonzero(inside)
    flat, each = kernel.reshape(filters, depth, taps), filters // groups
    for group in range(groups):
        own, channels = (slice(group * n, (group + 1) * n) for n in (each, depth))
        part = weight[own, :, channels]  # a view: what is written stays
        part[:, seen, :, marks[seen, tap]] = np.moveaxis(flat[own][:, :, tap], 2, 0)
    bias = np.zeros(filters)
    if len(rest) > 1 and rest[1] is not None:
        bias = np.asarray(rest[1], np.float64)
    made = _dense(
        source,
        weight.reshape(filters * places, source.width),
        np.repeat(bias, places),
        depth * taps,
    )
    return made, (filters, rows, columns)


def _pads(
    node: Node, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]]:
    """Pads of an image (top, left, bottom, right), strides and dilations."""
    strides = [int(item) for item in node.attributes.get("strides", (1, 1))]
    dilations = [int(item) for item in node.attributes.get("dilations", (1, 1))]
    auto = node.attributes.get("auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b""):
        pads = [int(item) for item in node.attributes.get("pads", (0, 0, 0, 0))]
    elif auto == b"VALID":
        pads = [0, 0, 0, 0]
    else:
        needed = [
            max(0, (-(-size // stride) - 1) * stride + (tap - 1) * dilation + 1 - size)
            for size, stride, tap, dilation in zip(
                shape[1:], strides, kernel, dilations, strict=True
            )
        ]
        small, large = [n // 2 for n in needed], [n - n // 2 for n in needed]
        pads = [*small, *large] if auto == b"SAME_UPPER" else [*large, *small]
    return pads, strides, dilations


def _sizes(
    node: Node, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[int, int]:
    pads, strides, dilations = _pads(node, shape, kernel)
    rows, columns = (
        (shape[1 + i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1)
        // strides[i]
        + 1
        for i in range(2)
    )
    if rows < 1 or columns < 1:
        raise UnboundedModel("a convolution's windows do not fit the image")
    return rows, columns


def _windows(
    node: Node, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places in a channel that each window sees ``(places, taps)``, and which exist."""
    pads, strides, dilations = _pads(node, shape, kernel)
    rows, columns = _sizes(node, shape, kernel)
    tops = np.arange(rows) * strides[0] - pads[0]
    lefts = np.arange(columns) * strides[1] - pads[1]
    down, right = (np.arange(kernel[i]) * dilations[i] for i in range(2))
    y = (tops[:, None, None, None] + down[:, None]) + np.zeros(
        (1, columns, 1, kernel[1]), np.int64
    )
    x = (lefts[:, None, None] + right) + np.zeros((rows, 1, kernel[0], 1), np.int64)
    inside = (y >= 0) & (y < shape[1]) & (x >= 0) & (x < shape[2])
    marks = np.where(inside, y * shape[2] + x, 0)
    flat = (rows * columns, kernel[0] * kernel[1])
    return marks.reshape(flat), inside.reshape(flat)


AFFINE: Mapping[str, Callable[..., tuple[Dense, tuple[int, ...]]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ai.onnx.ml.LinearClassifier": _linear_model,
    "ai.onnx.ml.LinearRegressor": _linear_model,
}
"""Layers whose every value is a weighted sum of a row's values."""
