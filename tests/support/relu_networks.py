"""Small networks whose worst answer in a box can be found exactly.

The same layers three times: as an ONNX file, as numpy in double precision, and as a
mixed-integer program (Tjeng, Xiao, Tedrake 2019), of which HiGHS finds the least value
of a linear function, or the closest point at which another class leads. They share
nothing with the bounds and attacks that they are to judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import lil_array

from models.sessions import make_session
from tests.support.scanned import onnx_model

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
        stored[name] = np.asarray(array, dtype)
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
    model = onnx_model(nodes, stored, shape=[width], outputs=("y",), opset=OPSET)
    onnx.checker.check_model(model)
    return model


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

    def solved(self, goal: dict[int, float], gap: float = 0.0) -> OptimizeResult:
        """HiGHS's answer to what is least, to a relative gap.

        Raises RuntimeError where it neither finds nor refutes a point.
        """
        matrix = lil_array((max(1, len(self.rows)), len(self.low)))
        ends = np.array([(low, high) for _, low, high in self.rows] or [(0, 0)])
        for row, (terms, _, _) in enumerate(self.rows):
            for place, factor in terms.items():
                matrix[row, place] = factor
        cost = np.zeros(len(self.low))
        for place, factor in goal.items():
            cost[place] = factor
        found = milp(
            cost,
            integrality=np.array(self.whole),
            bounds=Bounds(np.array(self.low), np.array(self.high)),
            constraints=LinearConstraint(matrix.tocsr(), ends[:, 0], ends[:, 1]),
            options={"mip_rel_gap": gap},
        )
        if found.status not in (0, _NO_POINT):
            raise RuntimeError(found.message)
        return found


# Of scipy's `milp`: it is proven that no point fulfils the constraints.
_NO_POINT = 2


def least(
    layers: list[Layer], low: np.ndarray, high: np.ndarray, spec: np.ndarray
) -> tuple[float, np.ndarray]:
    """The least ``spec @ answer`` of one box, and where."""
    program = _Program()
    inputs = [program.variable(float(a), float(b)) for a, b in zip(low, high)]
    value = _through(program, layers, inputs, (low, high))
    found = program.solved(_sum(value, spec))
    assert found.success, found.message
    return float(found.fun), np.clip(found.x[inputs], low, high)


def closest(
    layers: list[Layer], row: np.ndarray, box: tuple[np.ndarray, np.ndarray], spec
) -> float:
    """L-infinity distance of a box's closest point with ``spec @ answer >= 0``.

    Proven from below, to a relative gap of 1e-4; inf if the box has no such point.
    """
    program = _Program()
    radius = program.variable(0.0, math.inf)
    inputs = [program.variable(float(a), float(b)) for a, b in zip(*box)]
    for place, own in zip(inputs, map(float, row)):
        program.held({place: 1.0, radius: -1.0}, -math.inf, own)
        program.held({place: 1.0, radius: 1.0}, own, math.inf)
    value = _through(program, layers, inputs, box)
    program.held(_sum(value, spec), 0.0, math.inf)
    found = program.solved({radius: 1.0}, gap=1e-4)
    return math.inf if found.status == _NO_POINT else float(found.mip_dual_bound)


def _sum(value: list[int], factors: np.ndarray) -> dict[int, float]:
    """A weighted sum of variables, of which one may stand there twice."""
    terms: dict[int, float] = {}
    for place, factor in zip(value, factors):
        terms[place] = terms.get(place, 0.0) + float(factor)
    return terms


def _through(program, layers, value, box) -> list[int]:
    """The variables of what the layers make of others, whose ranges are a box."""
    ends = tuple(np.asarray(end, np.float64) for end in box)
    for layer in layers:
        if not isinstance(layer, Cut):
            value, ends = _mapped(program, value, ends, _affine(layer))
            continue
        for bound, above in ((layer.low, True), (layer.high, False)):
            value, ends = _bounded(program, value, ends, bound, above=above)
    return value


def _mapped(program, value, ends, dense):
    weight, bias = dense.weight.astype(np.float64), dense.bias.astype(np.float64)
    middle, reach = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    centre, spread = weight @ middle + bias, np.abs(weight) @ reach
    made = [program.variable(*pair) for pair in zip(centre - spread, centre + spread)]
    for place, row, shift in zip(made, weight, bias):
        terms = _sum(value, row) | {place: -1.0}
        program.held(terms, -float(shift), -float(shift))
    return made, (centre - spread, centre + spread)


def _bounded(program, value, ends, bound, *, above):
    """Each value, or a bound where the value lies below it (``above``) or over it.

    A value that may lie on either side takes a whole number: 0 on the side where it
    stays, and 1 on the other. Each big M is the most that its side of the range allows.
    """
    made = []
    for source, low, high in zip(value, *map(np.ndarray.tolist, ends)):
        if (low >= bound) if above else (high <= bound):
            made.append(source)
            continue
        one, other = sorted((bound, high if above else low))
        if (high <= bound) if above else (low >= bound):
            made.append(program.variable(bound, bound))
            continue
        place = program.variable(one, other)
        cut = program.variable(0, 1, whole=True)
        sign = 1.0 if above else -1.0
        stays, goes = (
            (high - bound, bound - low) if above else (bound - low, high - bound)
        )
        # In the mirror, where ``above`` is False: -place is -source or -bound.
        program.held({place: sign, source: -sign}, 0.0, math.inf)
        program.held({place: sign, source: -sign, cut: -goes}, -math.inf, 0.0)
        program.held({place: sign, cut: stays}, -math.inf, sign * bound + stays)
        made.append(place)
    limit = np.maximum if above else np.minimum
    return made, tuple(limit(end, bound) for end in ends)
