"""The logistic function and tanh: lines that hold them, and kernels that give them."""

from __future__ import annotations

import numpy as np
import pytest

from security.bounds.curves import CURVES, curve_lines
from security.bounds.files import read_graph
from security.bounds.lowering import lower
from security.bounds.proofs import bounds, linear, margins
from security.bounds.scores import Rule
from security.bounds.steps import Curve
from tests.support.relu_networks import Dense, Squash, onnx_of, served

RNG = np.random.default_rng(5)
SPOTS = np.concatenate([np.linspace(0, 1, 301), RNG.random(200)])


def intervals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """From far shorter than single precision tells apart to far beyond saturation."""
    middle = RNG.normal(size=count) * 10.0 ** RNG.uniform(-3, 2, count)
    reach = 10.0 ** RNG.uniform(-12, 3, count)
    skew = RNG.random(count)
    low, high = middle - reach * skew, middle + reach * (1 - skew)
    sides = np.array([-30.0, -5.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 5.0, 30.0])
    first, second = (grid.ravel() for grid in np.meshgrid(sides, sides))
    kept = first <= second
    return np.append(low, first[kept]), np.append(high, second[kept])


@pytest.mark.parametrize("operator", CURVES)
def test_lines_hold_the_function_between_them(operator: str) -> None:
    low, high = intervals(3000)
    below, above, drop, shift = (
        item[:, None] for item in curve_lines(operator, low, high)
    )
    points = low[:, None] + (high - low)[:, None] * SPOTS
    points = np.minimum(np.maximum(points, low[:, None]), high[:, None])
    truth = CURVES[operator][0](points)
    assert (below * points + drop <= truth).all()
    assert (truth <= above * points + shift).all()


@pytest.mark.parametrize("operator", CURVES)
def test_lines_are_near_where_the_function_hardly_bends(operator: str) -> None:
    """Not a strip as high as the interval is wide: the lines take the slope."""
    low = np.linspace(-4, 4, 200)
    high = low + 0.1
    below, above, drop, shift = curve_lines(operator, low, high)
    for point in (low, high, low + 0.05):
        gap = (above - below) * point + shift - drop
        assert (gap < 0.1**2).all()


@pytest.mark.parametrize("operator", CURVES)
def test_kernels_come_within_what_is_counted(operator: str) -> None:
    """All that onnxruntime answers, from tiny numbers to the largest."""
    model = onnx_of([Squash(operator)], 1)
    tiny = np.geomspace(1e-40, 3e38, 40_000)
    usual = np.linspace(-40, 40, 160_001)
    rows = np.concatenate([-tiny, usual, tiny]).astype(np.float32)
    found = served(model, rows[:, None])[:, 0].astype(np.float64)
    exact = rows.astype(np.float64)[:, None]
    step = Curve((0,), operator, 1)
    (low, high), off = step.forward([(exact, exact)]), step.rounding([(exact, exact)])
    assert (found >= (low - off)[:, 0]).all()
    assert (found <= (high + off)[:, 0]).all()


def two_layers(operator: str) -> bytes:
    first = Dense(
        (1.5 * RNG.normal(size=(8, 3))).astype(np.float32),
        RNG.normal(size=8).astype(np.float32),
    )
    second = Dense(
        RNG.normal(size=(3, 8)).astype(np.float32), np.zeros(3, dtype=np.float32)
    )
    return onnx_of([first, Squash(operator), second], 3)


@pytest.mark.parametrize("operator", CURVES)
def test_what_bends_is_not_called_linear(operator: str) -> None:
    graph, row = read_graph(two_layers(operator)), np.zeros((1, 3))
    assert not linear(graph, "y", row - 0.1, row + 0.1)
    kinds = [type(step).__name__ for step in lower(graph, "y", row, row).steps]
    assert kinds.count("Curve") == 1


@pytest.mark.parametrize("operator", CURVES)
def test_an_infinite_end_proves_nothing(operator: str) -> None:
    graph = read_graph(two_layers(operator))
    low, high = np.full((1, 3), -np.inf), np.full((1, 3), np.inf)
    ends = bounds(graph, "y", low, high)
    assert all(np.isnan(end).all() or np.isinf(end).all() for end in ends)
    found = margins(graph, Rule("y"), low, high, np.array([0]))
    assert not found.proved.any()
