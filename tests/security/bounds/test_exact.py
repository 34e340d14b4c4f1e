"""Bounds beside the exact worst case, which a mixed-integer program finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from security.bounds.files import read_graph
from security.bounds.proofs import bounds, margins
from security.bounds.scores import Rule
from tests.support.relu_networks import (
    RELU,
    Conv,
    Cut,
    Dense,
    answers,
    least,
    onnx_of,
)

# HiGHS holds constraints and whole numbers to 1e-6.
CLOSE = 1e-4
RADII = (0.02, 0.1, 0.3)
SEEDS = range(8)


def dense(rng, before, after, scale=1.0):
    weight = scale * rng.normal(size=(after, before)) / np.sqrt(before)
    bias = 0.3 * rng.normal(size=after)
    return Dense(weight.astype(np.float32), bias.astype(np.float32))


def perceptron(rng, cut=RELU):
    sizes = [3, *rng.integers(3, 7, size=rng.integers(1, 4)), 3]
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [dense(rng, before, after, 1.5), cut]
    return layers[:-1], 3


def clipped(rng):
    return perceptron(rng, Cut(-0.3, 0.6))


def capped(rng):
    return perceptron(rng, Cut(0.0, 0.7))


def convolution(rng):
    kernel = (0.6 * rng.normal(size=(2, 1, 2, 2))).astype(np.float32)
    bias = (0.2 * rng.normal(size=2)).astype(np.float32)
    first = Conv(kernel, bias, (1, 3, 3), stride=2, pad=1)
    return [first, RELU, dense(rng, 8, 4), RELU, dense(rng, 4, 3)], 9


def linear(rng):
    return [dense(rng, 4, 5), dense(rng, 5, 3)], 4


KINDS = {item.__name__: item for item in (perceptron, clipped, capped, convolution)}


def boxes(rng, width):
    point = rng.uniform(-1, 1, size=width).astype(np.float32).astype(np.float64)
    for radius in RADII:
        yield point, point - radius, point + radius


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_are_near(kind):
    """Each number's least and most: never inside of what is exact, and not far out."""
    widths, gaps = [], []
    for seed in SEEDS:
        rng = np.random.default_rng([seed, *kind.encode()])
        layers, width = KINDS[kind](rng)
        graph = read_graph(onnx_of(layers, width))
        for point, low, high in boxes(rng, width):
            ends = bounds(graph, "y", low[None], high[None])
            own = answers(layers, point[None])[0]
            exact = np.array([_exact(layers, low, high, one) for one in np.eye(3)])
            assert (exact[:, 0] - CLOSE <= own).all()
            assert (own <= exact[:, 1] + CLOSE).all()
            assert (ends[0][0] <= exact[:, 0] + CLOSE).all(), (kind, seed)
            assert (ends[1][0] >= exact[:, 1] - CLOSE).all(), (kind, seed)
            if high[0] - low[0] < 0.05:
                widths.append(exact[:, 1] - exact[:, 0])
                gaps.append(ends[1][0] - ends[0][0] - widths[-1])
    # Bounds of nothing would pass all of that.
    assert np.sum(gaps) <= 0.25 * np.sum(widths)


def _exact(layers, low, high, one):
    under, at = least(layers, low, high, one)
    reached = answers(layers, at[None])[0] @ one
    assert reached == pytest.approx(under, abs=CLOSE)  # the program's own check
    return under, -least(layers, low, high, -one)[0]


@pytest.mark.parametrize("kind", [*KINDS, "linear"])
def test_certificates_agree_with_what_is_exact(kind):
    """Proved where the exact lead is positive alone, and for most of those."""
    proved = robust = 0
    make = linear if kind == "linear" else KINDS[kind]
    for seed in SEEDS:
        rng = np.random.default_rng([seed, 7, *kind.encode()])
        layers, width = make(rng)
        graph = read_graph(onnx_of(layers, width))
        for point, low, high in boxes(rng, width):
            label = int(answers(layers, point[None])[0].argmax())
            named = np.array([label])
            found = margins(graph, Rule("y"), low[None], high[None], named)
            leads = [
                least(layers, low, high, np.eye(3)[label] - np.eye(3)[other])[0]
                for other in range(3)
                if other != label
            ]
            assert found.low[0] <= min(leads) + CLOSE
            assert not (found.proved[0] and min(leads) < -CLOSE)
            proved += int(found.proved[0])
            robust += min(leads) > CLOSE
            if kind == "linear":
                assert found.exact[0]
                assert found.low[0] >= min(leads) - CLOSE
    assert robust >= 8  # of 24: otherwise nothing was tried
    assert proved >= (0.95 if kind == "linear" else 0.7) * robust, (proved, robust)
