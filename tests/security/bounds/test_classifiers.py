"""Certificates of exported classifiers, preprocessing included, beside answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.architectures import (
    ImageClassifier,
    NetworkSpec,
    TabularClassifier,
    build_network,
    tabular_width,
)
from models.export import IMAGES, export_onnx, exported, recorded, run_onnx
from models.manifest import Column
from security.bounds.files import read_graph
from security.bounds.proofs import margins
from security.bounds.scores import head_of

COLUMNS = (
    Column("plain", -3.0, 5.0),
    Column("counts", 0.0, 4000.0),
    Column("sizes", 0.5, 2e6),
    Column("kind", 0.0, 2.0, ("a", "b", "c")),
    Column("narrow", 1.0, 1.0000002),
)
LOW = np.array([column.low for column in COLUMNS])
HIGH = np.array([column.high for column in COLUMNS])
HELD = np.array([bool(column.categories) for column in COLUMNS])
POINTS = 300


def drawn(body):
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.8)
    return body.eval()


def table(hidden, *, flags=False, logs=("counts", "sizes")):
    width = tabular_width(COLUMNS, missing_flags=flags)
    spec = NetworkSpec((width,), 3, hidden)
    body = drawn(build_network("mlp" if hidden else "linear", spec))
    return TabularClassifier(
        COLUMNS, body, missing_flags=flags, centre=0.3, logs=logs
    ).eval()


def rows_of(rng, count):
    rows = rng.uniform(LOW, HIGH, size=(count, len(LOW)))
    rows[:, 2] = np.exp(rng.uniform(np.log(0.5), np.log(2e6), size=count))
    rows[:, 3] = rng.integers(0, 3, size=count)
    rows = rows.astype(np.float32)
    missing = rng.random(rows.shape) < 0.1
    rows[missing] = np.nan
    # Outside of the public range, where the network cuts.
    rows[0, 0], rows[1, 1] = 90.0, -5.0
    return rows


def box(rows, radius):
    reach = np.where(HELD, 0.0, radius * (HIGH - LOW))
    raw = rows.astype(np.float64)
    low = np.where(raw > LOW, np.maximum(raw - reach, LOW), raw)
    high = np.where(raw < HIGH, np.minimum(raw + reach, HIGH), raw)
    return (np.where(np.isnan(raw), raw, end) for end in (low, high))


def tried(rng, low, high):
    """Points of a box in single precision, corners among them; NaN stays NaN."""
    share = rng.random((POINTS, len(low)))
    share[: POINTS // 2] = np.round(share[: POINTS // 2])
    points = (low + share * (high - low)).astype(np.float32)
    outer = [np.float32(low), np.float32(high)]
    inside = [np.nextafter(outer[0], np.float32(np.inf)), outer[1]]
    inside[1] = np.nextafter(outer[1], np.float32(-np.inf))
    floor = np.where(outer[0] < low, inside[0], outer[0])
    ceiling = np.where(outer[1] > high, inside[1], outer[1])
    return np.minimum(np.maximum(points, floor), np.maximum(floor, ceiling))


def checked(model, rows, ends, seed):
    """How many rows are proved; every one of them stays what it is at every point."""
    graph = read_graph(model)
    score, label = graph.outputs
    rule = head_of(graph, score, label=label, lead=0.0, single=False)
    clean = run_onnx(model, rows)[1]
    low, high = ends
    proved = margins(graph, rule, low, high, clean).proved
    rng = np.random.default_rng(seed)
    for place in np.flatnonzero(proved):
        points = tried(rng, low[place].reshape(-1), high[place].reshape(-1))
        found = run_onnx(model, points.reshape(-1, *rows.shape[1:]))[1]
        assert (found == clean[place]).all(), place
    return int(proved.sum())


TABLES = {
    "linear": {"hidden": ()},
    "perceptron": {"hidden": (8,)},
    "deep, flags of what is missing": {"hidden": (8, 6), "flags": True},
    "without logarithms": {"hidden": (8,), "logs": ()},
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    torch.manual_seed(0)
    module = table(**TABLES[name])
    rng = np.random.default_rng(4)
    rows = rows_of(rng, 40)
    model = export_onnx(module, COLUMNS)
    counts = [checked(model, rows, tuple(box(rows, r)), 5) for r in (0.0, 0.01, 0.05)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 35  # of 40: at the row itself nearly all can be proved
    assert counts[1] >= 15
    assert counts[2] < 40


@pytest.mark.parametrize("architecture", ["mlp", "plain-cnn"])
def test_images(architecture):
    torch.manual_seed(1)
    spec = NetworkSpec((1, 8, 8), 4, (6, 8))
    body = drawn(build_network(architecture, spec))
    module = ImageClassifier((0.0, 16.0), mean=0.3, std=0.5, body=body).eval()
    rng = np.random.default_rng(6)
    rows = rng.uniform(0, 16, size=(30, 1, 8, 8)).astype(np.float32)
    model = exported(recorded(module, rows.shape[1:]), IMAGES)
    flat = rows.reshape(30, -1).astype(np.float64)
    counts = []
    for radius in (0.0, 0.01, 0.1):
        ends = tuple(np.clip(flat + s * 16 * radius, 0, 16) for s in (-1, 1))
        counts.append(checked(model, rows, ends, 7))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 28
    assert counts[1] >= 5
    assert counts[2] < 30
