"""The scan against an oracle: what is breakable breaks, what is proven robust stands.

Each row has a radius of its own, a little above or below its exact distance to another
class, so that nearly everything here is on the edge. The networks are such that single
attacks fail on them: flat where the row is, with a class in one corner, in a spot
inside the ball or on another row, or with slopes that lead elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from models.data.held_out import Holdout
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import DataConfig
from tests.support.exact import Forest, ReluNet, distance
from tests.support.scanned import digits, fit

pytestmark = pytest.mark.usefixtures("one_thread")

UNIT = DataConfig(low=0.0, high=1.0)
RADIUS = 0.1
# Of the exact distance: what must stand, and what must fall.
BELOW, ABOVE = 0.98, 1.02
SEEDS = range(6)
# How exactly the oracle solves.
SOLVED = 1e-4


@dataclass(frozen=True, eq=False)
class Case:
    """Rows of one model, and how far another class is from each, up to a reach."""

    net: ReluNet | Forest
    x: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    reach: float

    @classmethod
    def of(cls, net, x, reach=RADIUS) -> Case:
        x = np.asarray(x, np.float32)
        labels = net.scores(x).argmax(axis=1)
        found = [distance(net, row, own, reach) for row, own in zip(x, labels)]
        return cls(net, x, labels, np.array(found), reach)


def spots(centres, widths, heights, slope=0.0, floor=-0.02):
    """Class 1 in spots: where one of several cones rises above the floor.

    A cone is ``height * relu(1 - |x - centre|_1 / width)``; one that stays below the
    floor leads attacks astray. Elsewhere class 1 lies lower by the floor, and by a
    slope of the first column.
    """
    width = len(centres[0])
    eye = np.eye(width)
    first = np.concatenate([np.concatenate([eye, -eye]) for _ in centres])
    shift = np.concatenate([np.concatenate([-c, c]) for c in map(np.asarray, centres)])
    first = np.concatenate([first, eye[:1]])  # the slope's own
    shift = np.append(shift, 0.0)
    second = np.zeros((len(centres) + 1, len(first)))
    for place, size in enumerate(widths):
        second[place, 2 * width * place : 2 * width * (place + 1)] = -1 / size
    second[-1, -1] = 1.0
    base = np.append(np.ones(len(centres)), 0.0)
    last = np.stack([np.zeros(len(base)), np.append(heights, slope)])
    return ReluNet.stack((first, shift), (second, base), (last, np.array([0.0, floor])))


def near():
    """Close to the row, but slopes elsewhere lead to corners that hold nothing."""
    row = np.full(4, 0.5)
    there = row + np.array([0.02, -0.01, 0.015, -0.02])
    away = [row + RADIUS * np.array(s) for s in ((1, 1, 1, 1), (-1, -1, -1, -1))]
    return spots([there, *away], [0.09, 0.5, 0.5], [0.025, 0.019, 0.019]), row


def inside():
    row = np.full(3, 0.5)
    return spots([row + np.array([0.05, -0.045, 0.055])], [0.05], [0.2]), row


def corner():
    row = np.full(6, 0.5)
    there = row + RADIUS * np.array([1, -1, -1, 1, -1, 1])
    return spots([there], [0.1], [0.2]), row


def astray():
    """A wide cone that never turns the class, a narrow one on the other side."""
    row = np.full(5, 0.5)
    there = row - np.array([0.06, 0.06, 0.06, 0.06, 0.06])
    return spots([row + 0.06, there], [0.8, 0.2], [0.0199, 0.1]), row


def sloped():
    """The whole ball slopes away from the spot."""
    row = np.full(4, 0.5)
    there = row + np.array([-0.07, 0.07, -0.07, -0.07])
    return spots([there], [0.08], [0.4], slope=-0.1), row


@cache
def made(shape) -> tuple[Case, ...]:
    net, row = shape()
    return (Case.of(net, [row]),)


@cache
def of_other_rows() -> tuple[Case, ...]:
    """Tiny spots around rows of another class, which only those rows give away."""
    random = np.random.default_rng(5)
    rows = 0.2 + 0.6 * random.random((4, 8))
    others = rows + random.uniform(-0.9, 0.9, rows.shape) * RADIUS
    net = spots(others, [0.004] * 4, [0.2] * 4)
    return (Case.of(net, np.concatenate([rows, others])),)


@cache
def trained() -> tuple[Case, ...]:
    """Networks that learnt something: four columns, and images of three digits."""
    random = np.random.default_rng(2)
    x = random.random((400, 4)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int) + (x[:, 1] + x[:, 2] > 1.2)
    torch.manual_seed(1)
    small = nn.Sequential(
        *(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    )
    fit(small, x, y, epochs=30, rate=1e-2)
    images, labels, held, _ = digits()
    chosen = np.isin(labels, (3, 8, 9))
    names = np.searchsorted((3, 8, 9), labels[chosen])
    images, held = (item.reshape(len(item), -1) for item in (images[chosen], held))
    wide = nn.Sequential(
        *(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    )
    fit(wide, images, names, epochs=30, rate=3e-3)
    return (
        Case.of(ReluNet.of(small), x[:12], reach=0.3),
        Case.of(ReluNet.of(wide), images[:6], reach=0.15),
    )


@cache
def trees() -> tuple[Case, ...]:
    """No gradient at all: small forests, of few columns and of more."""
    random = np.random.default_rng(3)
    found = []
    for width, depth in ((4, 4), (10, 4)):
        x = random.random((300, width)).astype(np.float32)
        y = (x[:, 0] * x[:, 1] + 0.5 * x[:, -1] > 0.45).astype(int)
        model = RandomForestClassifier(5, max_depth=depth, random_state=0).fit(x, y)
        found.append(Case.of(Forest.of(model), x[:24], reach=0.3))
    return tuple(found)


def attack(case: Case, radii, seed, **options):
    """Distances that the scan found, each row within its own radius."""
    source = TargetSource("onnx", "model.onnx", case.net.onnx())
    beside = {"radius": np.asarray(radii, np.float64)}
    holdout = Holdout("rows", case.x, case.labels, beside=beside)
    chosen = Options(seed=seed, checks=("evasion",), radius_linf="radius", **options)
    job, target = prepare(source, holdout, chosen, UNIT)
    context, check = Context(job, target), EvasionCheck()
    assert check.missing(context) is None
    units = [unit for unit in check.units(context) if "/linf/" in unit.key]
    outcomes = {unit.key: check.run(unit, context) for unit in units}
    rows = check.conclude(context, outcomes).details["norms"]["linf"]["rows"]
    assert all(row["correct"] for row in rows)
    return np.array([row["distance"] or np.inf for row in rows])


KINDS = {
    "near": lambda: made(near),
    "inside": lambda: made(inside),
    "corner": lambda: made(corner),
    "astray": lambda: made(astray),
    "sloped": lambda: made(sloped),
    "other rows": of_other_rows,
    "trained": trained,
    "trees": trees,
}


def breakable() -> int:
    return sum(
        int(np.isfinite(case.distances).sum())
        for made in KINDS.values()
        for case in made()
    )


def test_there_are_enough_instances():
    assert breakable() >= 23


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_breakable_is_broken(kind, seed):
    for case in KINDS[kind]():
        known = np.isfinite(case.distances)
        assert known.any()
        # Spots are the size that they are: the ball is the whole of it.
        tight = kind in ("trained", "trees")
        radii = np.where(known & tight, case.distances * ABOVE, RADIUS)
        found = attack(case, radii, seed)
        assert (found >= np.minimum(case.distances, case.reach) - SOLVED).all()
        assert (found[known] <= radii[known]).all(), (found / radii)[known]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proven_robust_stands(kind):
    for case in KINDS[kind]():
        known = np.isfinite(case.distances)
        radii = np.where(known, case.distances * BELOW, RADIUS)
        assert (attack(case, radii, 0) > radii).all()
