"""Evasion beside torchattacks' AutoAttack: one run, one model, the same rows.

The digits network of the tests; L-infinity 0.1 and L2 0.5. Seconds of processor time of
one thread, which a busy machine disturbs less than a clock.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import privacy_attacks
from benchmarks.timing import alternate, table
from models.data.held_out import Holdout
from security.assessment.art_library import art
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.certified import prover_of
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.engine.registry import check_of
from security.assessment.engine.runner import run_units
from security.assessment.engine.store import RunStore
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import DataConfig
from security.assessment.torch_graph.module import OnnxModule
from tests.support.scanned import digits, digits_cnn, digits_onnx, fit, to_onnx

RADIUS = 0.1
# Certified and attacked: rows, radii, hidden layers.
CERTIFIED_ROWS, CERTIFIED_RADII = 400, (0.01, 0.02, 0.05)
CERTIFIED_HIDDEN = ((64,), (64, 64), (256, 256, 256))
QUICK_ROWS, THOROUGH_ROWS = 500, 100


def run() -> None:
    torch.set_num_threads(1)
    art()  # its import is not what is measured
    _against_autoattack()
    _interpreter()
    _processes()
    _certificates()
    privacy_attacks.run()


def _context(profile: str, rows: int, jobs: int = 1) -> Context:
    _, _, x, y = digits()
    options = Options(profile=profile, max_rows=rows, jobs=jobs, radius_linf=RADIUS)
    source = TargetSource("onnx", "digits", digits_onnx())
    job, target = prepare(source, Holdout("digits", x[:rows], y[:rows]), options)
    context = Context(job, target)
    white_box_of(context)
    return context


def _measured(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _scan(context: Context, norm: str) -> float:
    """Robust accuracy at the stated radius, by one norm's units."""
    check = EvasionCheck()
    units = [u for u in check.units(context) if f"/{norm}/" in u.key]
    outcomes = {unit.key: check.run(unit, context) for unit in units}
    metrics = check.conclude(context, outcomes).metrics
    return float(metrics[f"robust_accuracy_{norm}"].value)


def _autoattack(rows: int) -> float:
    import torchattacks  # noqa: PLC0415  (seconds, and only needed here)

    _, _, x, y = digits()
    images, labels = torch.as_tensor(x[:rows]), torch.as_tensor(y[:rows])
    model = digits_cnn()
    attack = torchattacks.AutoAttack(
        model, norm="Linf", eps=RADIUS, n_classes=10, seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = attack(images, labels)
    with torch.no_grad():
        return float((model(made).argmax(1) == labels).float().mean())


def _against_autoattack() -> None:
    rows = []
    for profile, count in (("quick", QUICK_ROWS), ("thorough", THOROUGH_ROWS)):
        theirs_s, theirs = _measured(lambda count=count: _autoattack(count))
        context = _context(profile, count)
        ours_s, ours = _measured(lambda context=context: _scan(context, "linf"))
        both_s, _ = _measured(lambda context=context: _scan(context, "l2"))
        rows.append(
            (
                f"{profile}, {count} rows",
                f"{ours:.3f}",
                f"{theirs:.3f}",
                f"{ours_s:.1f}",
                f"{ours_s + both_s:.1f}",
                f"{theirs_s:.1f}",
                f"{ours_s / theirs_s:.2f}",
            )
        )
    header = ("profile", "robust accuracy", "AutoAttack's", "s", "s with L2")
    table((*header, "AutoAttack's s", "ratio"), rows)


def _interpreter() -> None:
    """Forward and backward, as an attack uses it."""
    graph = OnnxModule(digits_onnx(tail=()), dtype=torch.float32)
    native = digits_cnn().requires_grad_(False)
    images = torch.as_tensor(digits()[2][:250])

    def step(model: Callable[[torch.Tensor], torch.Tensor]) -> None:
        points = images.clone().requires_grad_(True)
        torch.autograd.grad(model(points).sum(), points)

    seconds = alternate(
        {
            "native": lambda: step(native),
            "interpreter": lambda: step(lambda points: graph(points)["scores"]),
        },
        rounds=15,
        repeat=5,
    )
    ratio = seconds["interpreter"] / seconds["native"]
    print(f"\ninterpreter against native torch, 250 rows: {ratio:.2f}")


def _processes() -> None:
    """Wall time of the same units by one process and by two."""
    ratios = []
    for _ in range(3):
        seconds = {}
        for jobs in (1, 2):
            context = _context("standard", QUICK_ROWS, jobs)
            check = EvasionCheck()
            units = check.units(context)
            with TemporaryDirectory() as folder:
                store = RunStore(Path(folder) / "work", {})
                began = time.monotonic()
                run_units(context, units, store, check_of)
                seconds[jobs] = time.monotonic() - began
        ratios.append(seconds[1] / seconds[2])
    print(f"\ntwo processes against one, wall: {statistics.median(ratios):.2f}")


def _perceptron(hidden: tuple[int, ...]) -> bytes:
    torch.manual_seed(0)
    x, y, _, _ = digits()
    layers: list[nn.Module] = [nn.Flatten()]
    width = 64
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    net = nn.Sequential(*layers, nn.Linear(width, 10))
    return to_onnx(fit(net, x, y, epochs=20, rate=1e-3), (1, 8, 8))


def _certificates() -> None:
    """What is proved beside what the quick profile leaves standing, of one ball."""
    rows = [row for hidden in CERTIFIED_HIDDEN for row in _certified(hidden)]
    table(("hidden", "radius", "certified", "attacked", "between", "s"), rows)


def _certified(hidden: tuple[int, ...]) -> list[tuple[str, ...]]:
    _, _, x, y = digits()
    held = Holdout("digits", x[:CERTIFIED_ROWS], y[:CERTIFIED_ROWS])
    options = Options(radius_linf=CERTIFIED_RADII, checks=("evasion",), norms=("linf",))
    source = TargetSource("onnx", "digits", _perceptron(hidden))
    job, target = prepare(source, held, options, DataConfig(low=0.0, high=1.0))
    context, check = Context(job, target), EvasionCheck()
    outcomes = {u.key: check.run(u, context) for u in check.units(context)}
    pairs = check.conclude(context, outcomes).public["certificate"]["by_radius"]
    both = {pair["radius"]: pair["interval"] for pair in pairs}
    prover, every = prover_of(job), np.arange(CERTIFIED_ROWS)
    rows = []
    for radius in CERTIFIED_RADII:
        prove = functools.partial(prover.proved, every, (radius,))
        seconds, _ = _measured(prove)
        certified, attacked = both[radius]
        figures = (certified, attacked, attacked - certified)
        shown = [f"{figure:.4f}" for figure in figures]
        rows.append(
            ("x".join(map(str, hidden)), f"{radius:g}", *shown, f"{seconds:.2f}")
        )
    return rows
