"""No point of a box gets past its bounds, in single precision, in any odd network."""

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
    Squash,
    answers,
    onnx_of,
    served,
)

SEEDS = range(25)
CLASSES = 4


def network(rng, width, *, cut=RELU, scale=1.0, deep=None):
    """A perceptron of random depth and widths; He's scale keeps its numbers alive."""
    deep = int(rng.integers(1, 6)) if deep is None else deep
    sizes = [width, *rng.integers(1, 33, size=deep), CLASSES]
    layers = []
    for before, after in itertools.pairwise(sizes):
        weight = scale * rng.normal(size=(after, before)) * np.sqrt(2 / before)
        bias = 0.2 * scale * rng.normal(size=after)
        layers += [Dense(weight.astype(np.float32), bias.astype(np.float32)), cut]
    return layers[:-1]


def ordinary(rng, width):
    return network(rng, width)


def cut_both_ways(rng, width):
    return network(rng, width, cut=Cut(-0.4, 0.8))


def logistic(rng, width):
    return network(rng, width, cut=Squash("Sigmoid"), scale=2.0)


def tanh(rng, width):
    return network(rng, width, cut=Squash("Tanh"))


def saturated_tanh(rng, width):
    return network(rng, width, cut=Squash("Tanh"), scale=30.0, deep=2)


def large_weights(rng, width):
    return network(rng, width, scale=30.0)


def small_weights(rng, width):
    return network(rng, width, scale=1e-3)


def linear(rng, width):
    return network(rng, width, deep=0)


def dead_and_saturated(rng, width):
    """Neurons that never answer, that always do, and that read nothing."""
    layers = network(rng, width, deep=3)
    for layer in layers:
        if isinstance(layer, Dense) and layer is not layers[-1]:
            kind = rng.integers(0, 4, size=len(layer.bias))
            layer.bias[kind == 0] -= 50
            layer.bias[kind == 1] += 50
            layer.weight[kind == 2] = 0
    return layers


def nearly_equal(rng, width):
    """Differences of large numbers, of which single precision keeps few digits."""
    layers = network(rng, width, deep=2)
    first = layers[0]
    twice = np.concatenate([first.weight, first.weight + np.float32(1e-6)])
    layers[0] = Dense(1000 * twice, np.concatenate([first.bias, first.bias]) * 1000)
    second = layers[2].weight
    layers[2] = Dense(np.concatenate([second, -second], axis=1), layers[2].bias)
    return layers


def convolutions(rng, width):
    side = int(np.sqrt(width))
    first = Conv(
        (0.5 * rng.normal(size=(3, 1, 3, 3))).astype(np.float32),
        (0.1 * rng.normal(size=3)).astype(np.float32),
        (1, side, side),
        stride=int(rng.integers(1, 3)),
        pad=int(rng.integers(0, 2)),
    )
    second = Conv(
        (0.3 * rng.normal(size=(4, 3, 2, 2))).astype(np.float32),
        (0.1 * rng.normal(size=4)).astype(np.float32),
        first.made,
        pad=1,
    )
    wide = int(np.prod(second.made))
    return [first, RELU, second, RELU, *network(rng, wide, deep=1)]


KINDS = {
    item.__name__: item
    for item in (
        ordinary,
        cut_both_ways,
        logistic,
        tanh,
        saturated_tanh,
        large_weights,
        small_weights,
        linear,
        dead_and_saturated,
        nearly_equal,
        convolutions,
    )
}


def box(rng, width):
    """A point and a box round it: some columns do not move, some are far from 0."""
    point = rng.uniform(-1, 1, size=width)
    point[rng.random(width) < 0.1] *= 100
    reach = rng.choice([1e-4, 0.01, 0.1, 0.5]) * np.ones(width)
    reach[rng.random(width) < 0.15] = 0
    low, high = (np.float32(point + sign * reach) for sign in (-1, 1))
    return np.float32(point), low.astype(np.float64), high.astype(np.float64)


def points(rng, low, high, layers, specs):
    """Points of the box: at random, corners, and for each function the worst corner
    that turning one column after another finds.
    """
    found = [rng.uniform(low, high, size=(200, len(low)))]
    corners = np.where(rng.random((200, len(low))) < 0.5, low, high)
    found.append(corners)
    for spec in specs:
        best = corners[(answers(layers, corners) @ spec).argmin()].copy()
        for _ in range(2):
            turned = np.repeat(best[None], len(low), axis=0)
            places = np.arange(len(low))
            turned[places, places] = np.where(best == low, high, low)
            values = answers(layers, np.concatenate([best[None], turned])) @ spec
            better = values[1:] < values[0]
            together = np.where(better, turned[places, places], best)
            both = np.stack([together, [best, *turned][values.argmin()]])
            best = both[(answers(layers, both) @ spec).argmin()].copy()
            found.append(best[None])
    rows = np.concatenate(found).astype(np.float32)
    return np.clip(rows, low.astype(np.float32), high.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_gets_past_the_bounds(kind):
    proved = 0
    for seed in SEEDS:
        rng = np.random.default_rng([seed, *kind.encode()])
        width = 16 if kind == "convolutions" else int(rng.integers(1, 20))
        layers = KINDS[kind](rng, width)
        model = onnx_of(layers, width)
        graph = read_graph(model)
        point, low, high = box(rng, width)
        specs = np.concatenate([np.eye(CLASSES), -np.eye(CLASSES)])
        label = int(served(model, point[None])[0].argmax())
        specs = np.concatenate([specs, np.eye(CLASSES)[label] - np.eye(CLASSES)])
        tried = points(rng, low, high, layers, specs)
        found = served(model, tried)
        # As served, to the last digit: the bounds are of single precision.
        ends = bounds(graph, "y", low[None], high[None])
        assert (found >= ends[0][0]).all(), (kind, seed)
        assert (found <= ends[1][0]).all(), (kind, seed)
        named = np.array([label])
        lead = margins(graph, Rule("y"), low[None], high[None], named)
        if lead.proved[0]:
            assert (found.argmax(1) == label).all(), (kind, seed)
            proved += 1
    assert proved >= 3, proved  # of 25: certificates were there to be broken
