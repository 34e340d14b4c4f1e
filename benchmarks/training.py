"""A private step beside Opacus' own: the same network, batches, noise and accountant.

Each measurement is a process of its own that imports the same, draws the same kind of
batches and takes a few steps; its peak memory is what it took beyond its imports. The
processes of the three sides alternate. Opacus gets its batches as tensors, as we do:
its own loader, which stacks them row by row, is left out.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import table
from models.architectures import NetworkSpec, build_network
from security.training.accounting import Mechanism
from security.training.examples import Examples
from security.training.loop import Monitor, Recipe, StepReport
from security.training.mechanism import poisson
from security.training.noise import SystemRandomness
from security.training.trainer import train_private

__all__ = ["run", "steps"]

ROUNDS = int(os.environ.get("SEALGATE_ROUNDS", "5"))
THREADS = tuple(map(int, os.environ.get("SEALGATE_THREADS", "1,2").split(",")))
NOISE, NORM = 1.0, 1.0
# The first step probes the clipping, and fills torch's caches: it is not counted.
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A network, and batches of it.

    Attributes:
        name: in the table.
        architecture: of `build_network`.
        spec: of its inputs and layers.
        batch: examples of a step that are expected.
        physical: examples that are given to a network at once, at most.
    """

    name: str
    architecture: str
    spec: NetworkSpec
    batch: int
    physical: int

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return build_network(self.architecture, self.spec)

    def examples(self) -> Examples:
        rows, spec = 2 * self.batch, self.spec
        labels = torch.randint(0, spec.classes, (rows,))
        return Examples(torch.rand(rows, *spec.inputs), labels)


CASES: tuple[Case, ...] = (
    Case("MLP 784-256-128-10", "mlp", NetworkSpec((784,), 10, (256, 128)), 512, 512),
    Case("CNN 28 by 28", "cnn", NetworkSpec((1, 28, 28), 10), 512, 512),
    Case(
        "CNN 32 by 32",
        "cnn",
        NetworkSpec((3, 32, 32), 10, (32, 64, 128, 384)),
        2048,
        256,
    ),
)


class _Clock(Monitor):
    """Seconds of CPU and of the wall, of each step."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def before(self, step: int) -> None:
        del step
        self._began = time.process_time(), time.perf_counter()

    def after(self, report: StepReport, state: object) -> None:
        del report, state
        cpu, wall = self._began
        self.spans.append((time.process_time() - cpu, time.perf_counter() - wall))


def _ours(case: Case, clock: _Clock) -> None:
    train_private(
        case.network(),
        case.examples(),
        mechanism=Mechanism(0.5, NOISE, STEPS),
        recipe=Recipe(NORM, case.batch, 0.1, physical_batch=case.physical),
        randomness=SystemRandomness(),
        monitor=clock,
    )


def _opacus(mode: str) -> Callable[[Case, _Clock], None]:
    def train(case: Case, clock: _Clock) -> None:
        body, examples = case.network(), case.examples()
        engine = PrivacyEngine(accountant="prv")
        loader = DataLoader(
            TensorDataset(examples.inputs, examples.labels), batch_size=case.batch
        )
        made = engine.make_private(
            module=body,
            optimizer=torch.optim.SGD(body.parameters(), lr=0.1),
            data_loader=loader,
            criterion=nn.CrossEntropyLoss(),
            noise_multiplier=NOISE,
            max_grad_norm=NORM,
            grad_sample_mode=mode,
        )
        module, optimizer = made[0], made[1]
        criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()
        for step in range(STEPS):
            clock.before(step)
            taken = poisson(examples.count, 0.5, SystemRandomness())
            batch = examples.batch(taken)
            for inputs, labels, last in _pieces(
                batch.inputs, batch.labels, case.physical
            ):
                optimizer.zero_grad()
                optimizer.signal_skip_step(do_skip=not last)
                criterion(module(inputs), labels).backward()
                optimizer.step()
            clock.after(StepReport(step, None), None)

    return train


def _pieces(
    inputs: Tensor, labels: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    for at in range(0, len(labels), size):
        end = at + size
        yield inputs[at:end], labels[at:end], end >= len(labels)


OPACUS = ("hooks", "ghost")
SIDES = {"ours": _ours, **{mode: _opacus(mode) for mode in OPACUS}}


def run() -> None:
    """Print the table: seconds of ours, and how many times that of Opacus' they are."""
    header = ("network", "weights", "threads", "CPU of ours, ms", *_ratios("CPU"))
    header += (*_ratios("wall"), "peak of ours, MB", *_ratios("peak"))
    rows = []
    for number, case in enumerate(CASES):
        weights = sum(p.numel() for p in case.network().parameters())
        for threads in THREADS:
            cpu, wall, peak = _compared(number, threads)
            own = f"{cpu['ours'] * 1e3:.0f}", f"{peak['ours'] / 1e6:.0f}"
            ratios = [
                [f"{side['ours'] / side[other]:.2f}" for other in OPACUS]
                for side in (cpu, wall, peak)
            ]
            name = case.name, f"{weights:,}", str(threads)
            rows.append((*name, own[0], *ratios[0], *ratios[1], own[1], *ratios[2]))
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    table(header, rows)


def steps() -> dict[str, Callable[[], object]]:
    """Some steps of an MLP by ours, and by Opacus with its hooks, in this process."""
    torch.set_num_threads(1)
    return {
        name: partial(SIDES[side], CASES[0], _Clock())
        for name, side in (("ours", "ours"), ("Opacus", "hooks"))
    }


def _ratios(what: str) -> Iterator[str]:
    return (f"{what} / {mode}" for mode in OPACUS)


def _compared(number: int, threads: int) -> list[dict[str, float]]:
    """Medians over rounds, by side: seconds of CPU, of the wall, and bytes."""
    measured: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for turn in range(ROUNDS):
        for side in SIDES if turn % 2 else reversed(SIDES):
            measured[side].append(_measure(number, side, threads))
    return [
        {
            side: statistics.median(values[which] for values in rounds)
            for side, rounds in measured.items()
        }
        for which in range(3)
    ]


def _measure(number: int, side: str, threads: int) -> list[float]:
    command = (sys.executable, "-W", "ignore", "-m", __name__)
    done = subprocess.run(
        (*command, str(number), side, str(threads)),
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        stdout=subprocess.PIPE,
    )
    result: list[float] = json.loads(done.stdout)
    return result


def _child(number: int, side: str, threads: int) -> None:
    """One measurement, printed: seconds of the counted steps, and bytes at the peak."""
    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, clock = _bytes("VmRSS"), _Clock()
    SIDES[side](CASES[number], clock)
    cpu, wall = zip(*clock.spans[1:])
    print(
        json.dumps(
            [statistics.median(cpu), statistics.median(wall), _bytes("VmHWM") - before]
        )
    )


def _bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
