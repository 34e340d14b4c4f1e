"""Small networks whose worst answer in a box can be found exactly.

The same layers three times: as an ONNX file, as numpy in double precision, and as a
mixed-integer program, of which HiGHS finds the least value of a linear function. They
share nothing with the bounds that they are to judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import Bounds, LinearConstraint, milp

from models.sessions import make_session

OPSET = 17


@dataclass(frozen=True, eq=False)
class Dense:
    """``weight @ row + bias``, in single precision as it is stored."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution of images ``shape``, flat before and after."""

    kernel: np.ndarray
    bias: np.ndarray
    shape: tuple[int, int, int]
    stride: int = 1
    pad: int = 0

    @property
    def made(self) -> tuple[int, int, int]:
        """Shape of an image that comes out."""
        sizes = [
            (size + 2 * self.pad - tap) // self.stride + 1
            for size, tap in zip(self.shape[1:], self.kernel.shape[2:])
        ]
        return len(self.kernel), sizes[0], sizes[1]

    def dense(self) -> Dense:
        """The same as a matrix: what it makes of every unit image."""
        width = math.prod(self.shape)
        images = np.eye(width).reshape(width, *self.shape)
        weight = self.of(images).reshape(width, -1).T
        _, rows, columns = self.made
        return Dense(weight, np.repeat(self.bias, rows * columns))

    def of(self, images: np.ndarray) -> np.ndarray:
        """Without its bias, a window at a time."""
        edge = [(0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)]
        padded = np.pad(images, edge)
        channels, rows, columns = self.made
        result = np.zeros((len(images), channels, rows, columns))
        high, wide = self.kernel.shape[2:]
        for row in range(rows):
            for column in range(columns):
                top, left = row * self.stride, column * self.stride
                window = padded[:, :, top : top + high, left : left + wide]
                flat = window.reshape(len(images), -1)
                kernels = self.kernel.reshape(channels, -1).T
                result[:, :, row, column] = flat @ kernels
        return result


@dataclass(frozen=True)
class Cut:
    """Each value cut to a range: ReLU is from 0 to infinity."""

    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class Squash:
    """Each value by an operator, "Sigmoid" or "Tanh": no program finds its least."""

    operator: str


Layer = Dense | Conv | Cut | Squash
RELU = Cut()


def _affine(layer: Dense | Conv) -> Dense:
    return layer.dense() if isinstance(layer, Conv) else layer


def answers(layers: list[Layer], rows: np.ndarray) -> np.ndarray:
    """What a network answers, in double precision."""
    value = np.asarray(rows, np.float64)
    for layer in layers:
        if isinstance(layer, Cut):
            value = np.clip(value, layer.low, layer.high)
        elif isinstance(layer, Squash):
            tanh = layer.operator == "Tanh"
            value = np.tanh(value) if tanh else 1 / (1 + np.exp(-value))
        else:
            dense = _affine(layer)
            value = value @ dense.weight.T.astype(np.float64) + dense.bias
    return value


def onnx_of(layers: list[Layer], width: int) -> bytes:
    """The network as a file that takes ``x`` ``(n, width)`` and gives ``y``."""
    nodes, stored = [], {}

    def add(operator: str, inputs: list[str], **attributes: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def keep(array: np.ndarray, dtype: type = np.float32) -> str:
        name = f"c{len(stored)}"
        stored[name] = numpy_helper.from_array(np.asarray(array, dtype), name)
        return name

    value = "x"
    for layer in layers:
        if isinstance(layer, Dense):
            given = [value, keep(layer.weight), keep(layer.bias)]
            value = add("Gemm", given, transB=1)
        elif isinstance(layer, Conv):
            image = add("Reshape", [value, keep((-1, *layer.shape), np.int64)])
            given = [image, keep(layer.kernel), keep(layer.bias)]
            sides = {"strides": [layer.stride] * 2, "pads": [layer.pad] * 4}
            value = add("Flatten", [add("Conv", given, **sides)])
        elif isinstance(layer, Squash):
            value = add(layer.operator, [value])
        elif layer == RELU:
            value = add("Relu", [value])
        else:
            value = add("Clip", [value, keep(layer.low), keep(layer.high)])
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    size = width_of(layers, width)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])],
        list(stored.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def width_of(layers: list[Layer], width: int) -> int:
    """Numbers that a network answers with."""
    for layer in layers:
        if not isinstance(layer, Cut | Squash):
            width = len(_affine(layer).bias)
    return width


def served(model: bytes, rows: np.ndarray) -> np.ndarray:
    """What onnxruntime answers, in single precision."""
    session = make_session(model)
    return session.run(["y"], {"x": np.asarray(rows, np.float32)})[0]


class _Program:
    """Variables with ranges, and linear constraints on them."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []
        self.whole: list[int] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, low: float, high: float, *, whole: bool = False) -> int:
        self.low.append(low)
        self.high.append(high)
        self.whole.append(int(whole))
        return len(self.low) - 1

    def held(self, terms: dict[int, float], low: float, high: float) -> None:
        self.rows.append((terms, low, high))

    def least(self, goal: dict[int, float]) -> tuple[float, np.ndarray]:
        matrix = np.zeros((max(1, len(self.rows)), len(self.low)))
        ends = np.array([(low, high) for _, low, high in self.rows] or [(0, 0)])
        for row, (terms, _, _) in enumerate(self.rows):
            for place, factor in terms.items():
                matrix[row, place] += factor
        cost = np.zeros(len(self.low))
        for place, factor in goal.items():
            cost[place] += factor
        found = milp(
            cost,
            integrality=np.array(self.whole),
            bounds=Bounds(np.array(self.low), np.array(self.high)),
            constraints=LinearConstraint(matrix, ends[:, 0], ends[:, 1]),
            options={"mip_rel_gap": 0.0},
        )
        if not found.success:
            raise RuntimeError(found.message)
        return float(found.fun), found.x


def least(
    layers: list[Layer], low: np.ndarray, high: np.ndarray, spec: np.ndarray
) -> tuple[float, np.ndarray]:
    """The least ``spec @ answer`` of one box, and where: a mixed-integer program."""
    program = _Program()
    inputs = [program.variable(float(a), float(b)) for a, b in zip(low, high)]
    value, ends = inputs, (np.asarray(low, float), np.asarray(high, float))
    for layer in layers:
        if isinstance(layer, Cut):
            value, ends = _cut(program, value, ends, layer)
        else:
            value, ends = _mapped(program, value, ends, _affine(layer))
    goal: dict[int, float] = {}
    for place, factor in zip(value, spec):
        goal[place] = goal.get(place, 0.0) + float(factor)
    found, point = program.least(goal)
    return found, np.clip(point[inputs], low, high)


def _mapped(program, value, ends, dense):
    weight, bias = dense.weight.astype(np.float64), dense.bias.astype(np.float64)
    middle, reach = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    centre, spread = weight @ middle + bias, np.abs(weight) @ reach
    made = [program.variable(*pair) for pair in zip(centre - spread, centre + spread)]
    for place, row, shift in zip(made, weight, bias):
        terms = {place: -1.0}
        for source, factor in zip(value, row):
            terms[source] = terms.get(source, 0.0) + float(factor)
        program.held(terms, -float(shift), -float(shift))
    return made, (centre - spread, centre + spread)


def _cut(program, value, ends, layer):
    """Three pieces, one of which each value is in: below, between, above."""
    made = []
    for source, low, high in zip(value, *ends):
        if layer.low <= low and high <= layer.high:
            made.append(source)
            continue
        one, other = (float(np.clip(end, layer.low, layer.high)) for end in (low, high))
        place = program.variable(one, other)
        _piece(program, source, place, (low, high), layer)
        made.append(place)
    return made, tuple(np.clip(end, layer.low, layer.high) for end in ends)


def _piece(program, source, place, ends, layer):
    """``place`` is ``source`` cut, by big-M with a whole number for each piece."""
    low, high = map(float, ends)
    far = 2 * (high - low + abs(low) + abs(high) + 1)
    cuts = [end for end in (layer.low, layer.high) if math.isfinite(end)]
    far += 2 * sum(map(abs, cuts))
    names = [program.variable(0, 1, whole=True) for _ in range(3)]
    program.held(dict.fromkeys(names, 1.0), 1.0, 1.0)
    below, between, above = names
    if math.isfinite(layer.low):
        program.held({place: 1.0, below: far}, -math.inf, layer.low + far)
        program.held({place: 1.0, below: -far}, layer.low - far, math.inf)
        program.held({source: 1.0, below: far}, -math.inf, layer.low + far)
    else:
        program.held({below: 1.0}, 0.0, 0.0)
    program.held({place: 1.0, source: -1.0, between: far}, -math.inf, far)
    program.held({place: 1.0, source: -1.0, between: -far}, -far, math.inf)
    if math.isfinite(layer.high):
        program.held({place: 1.0, above: far}, -math.inf, layer.high + far)
        program.held({place: 1.0, above: -far}, layer.high - far, math.inf)
        program.held({source: 1.0, above: -far}, layer.high - far, math.inf)
    else:
        program.held({above: 1.0}, 0.0, 0.0)
