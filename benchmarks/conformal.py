"""What intervals and sets cost an answer, and how often they hold the truth.

Costs are of `Release` alone, in one process, beside the same outputs without them.
Coverage is of the bike hours of `../shared`: calibrated on rows of 2011, measured on
others of 2011 and on 2012.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.timing import alternate, table
from models.conformal import Conformal, quantile, residuals
from models.manifest import Tensor
from models.output_policy import ALL_SCORES, OutputPolicy
from models.release import Release
from models.sessions import make_session
from sealgate.protocol.tensors import TensorSpec
from security.assessment.calibration import BINS, noisy_quantile
from security.monitoring.guarantee import rho_of
from security.monitoring.noise import rounded_gaussian
from tests.support import bikes

ROUNDS, REPEAT, REPETITIONS = 9, 400, 20
_PRICE = Tensor(TensorSpec("y", "FP32", (-1, 1)), bounds=(0.0, 1000.0))
_SCORES = Tensor(TensorSpec("p", "FP32", (-1, 10)), labels=tuple("abcdefghij"))
_LABEL = Tensor(TensorSpec("label", "INT64", (-1,)))


def run() -> None:
    """Print both tables."""
    _costs()
    if bikes.FILE.exists():
        _coverage()
    else:
        print(f"no coverage: {bikes.FILE} is not there")


def _member(output: str, scale: str, half: float) -> Conformal:
    return Conformal(output, scale, 0.9, half, 999, "0" * 64, "0" * 32, 0.5)


def _costs() -> None:
    lines = []
    for rows in (1, 64, 1024):
        random = np.random.default_rng(0)
        number = {"y": random.uniform(0, 900, (rows, 1)).astype(np.float32)}
        scores = random.dirichlet(np.ones(10), rows).astype(np.float32)
        classes = {"p": scores, "label": scores.argmax(axis=1)}
        root, lac = _member("y", "sqrt", 2.9), _member("p", "probability", 0.7)
        abstain = OutputPolicy(abstain=True)
        found = alternate(
            {
                "number": _answer(Release(ALL_SCORES, (_PRICE,)), number),
                "interval": _answer(Release(ALL_SCORES, (_PRICE,), root), number),
                "scores": _answer(Release(ALL_SCORES, (_SCORES, _LABEL)), classes),
                "set": _answer(Release(ALL_SCORES, (_SCORES, _LABEL), lac), classes),
                "abstain": _answer(Release(abstain, (_SCORES, _LABEL), lac), classes),
            },
            rounds=ROUNDS,
            repeat=REPEAT,
        )
        lines.append((str(rows), *(f"{value * 1e6:.1f}" for value in found.values())))
    columns = ("number", "interval", "scores", "set", "abstaining")
    table(("rows; µs of CPU for each answer", *columns), lines)


def _answer(release: Release, given: dict[str, np.ndarray]) -> Callable[[], object]:
    names = release.names
    own = {name: given[name] for name in release.sources(names)}
    return lambda: release.answer(names, own)


def _coverage() -> None:
    x, y, years = bikes.hours()
    old, new = np.flatnonzero(years == 0), np.flatnonzero(years == 1)
    session = make_session(bikes.model(x[old[:4000]], y[old[:4000]]))
    given = session.run(["lent"], {"x": x})[0][:, 0].astype(float)
    lines = []
    for scale, epsilon in (
        *(("identity", None), ("sqrt", None), ("log", None)),
        *(("sqrt", 8.0), ("sqrt", 3.0), ("sqrt", 1.0)),
    ):
        figures = [
            _measured(scale, epsilon, (given, y), (old[4000:], new), seed)
            for seed in range(REPETITIONS)
        ]
        shown = np.mean(figures, axis=0)
        cost = "none" if epsilon is None else f"{epsilon:g}"
        lines.append((scale, cost, *(f"{v:.3f}" for v in shown[:4]), f"{shown[4]:.0f}"))
    head = ("90% on", "epsilon", "covers 2011", "quiet hours", "busy hours")
    table((*head, "covers 2012", "mean width"), lines)


def _measured(
    scale: str,
    epsilon: float | None,
    rows: tuple[np.ndarray, np.ndarray],
    parts: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> tuple[float, ...]:
    """Shares inside, of several kinds of rows, and the mean width of 2011."""
    (given, truth), (held, new) = rows, parts
    order = np.random.default_rng(seed).permutation(held)
    calibrating, rest = order[:2300], order[2300:]
    far = residuals(given[calibrating], truth[calibrating], scale, bikes.RANGE)
    half = quantile(far, 0.9) if epsilon is None else _noisy(far, scale, epsilon)
    low, high = _member("lent", scale, half).ends(given, bikes.RANGE)
    inside = (low <= truth) & (truth <= high)
    quiet, busy = (np.quantile(given[rest], share) for share in (0.25, 0.75))
    return (
        float(inside[rest].mean()),
        float(inside[rest][given[rest] <= quiet].mean()),
        float(inside[rest][given[rest] >= busy].mean()),
        float(inside[new].mean()),
        float((high - low)[rest].mean()),
    )


def _noisy(far: np.ndarray, scale: str, epsilon: float) -> float:
    low, high = np.array(bikes.RANGE[:1]), np.array(bikes.RANGE[1:])
    edges = np.linspace(0, residuals(high, low, scale)[0], BINS + 1)[1:]
    places = np.minimum(np.searchsorted(edges, far, side="left"), BINS)
    table_ = rounded_gaussian((1.0 / rho_of(epsilon, 1e-6)) ** 0.5)
    counts = np.append(np.bincount(places, minlength=BINS + 1), len(far))
    noisy = (counts + table_.sample(BINS + 2)).astype(float)
    return float(edges[noisy_quantile(noisy, table_.sigma, 0.9)])
