"""Evasion beside torchattacks' AutoAttack: one run, one model, the same rows.

The digits network of the tests; L-infinity 0.1 and L2 0.5. Seconds of processor time of
one thread, which a busy machine disturbs less than a clock.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import privacy_attacks
from benchmarks.timing import alternate, table
from models.data.held_out import Holdout
from security.assessment.art_library import art
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.check import EvasionCheck
from security.assessment.engine.registry import check_of
from security.assessment.engine.runner import run_units
from security.assessment.engine.store import RunStore
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.torch_graph.module import OnnxModule
from tests.support.scanned import digits, digits_cnn, digits_onnx

RADIUS = 0.1
QUICK_ROWS, THOROUGH_ROWS = 500, 100


def run() -> None:
    torch.set_num_threads(1)
    art()  # its import is not what is measured
    _against_autoattack()
    _interpreter()
    _processes()
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
