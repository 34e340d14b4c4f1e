"""CPU of the two commands that attack: a quick `scan`, and `assess`, beside a base.

A perceptron of 795 weights on iris, 150 rows; and a table of 30,000 rows of 23 columns,
of which 7,500 are held out. Each command is a process; all its processes count, those
that a fork server started too. Rounds alternate between this checkout and the base.
Each has its bytecode compiled, as an installed package has: a round of each before the
first fills a folder of its own with it, and is not counted.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.datasets import load_iris, make_classification
from torch import nn

from benchmarks.timing import table
from tests.support.scanned import fit, to_onnx

HERE = Path(__file__).resolve().parent.parent
ROWS, COLUMNS = 30_000, 23
# Whoever loses its parent becomes this process's child, so that its time counts.
_MEASURED = """
import contextlib, ctypes, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
code = subprocess.run([sys.executable, "-m", "security", *sys.argv[1:]],
                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime)
"""


def main(arguments: list[str]) -> None:
    """`--base FOLDER`: another checkout, measured in the same rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks assessment")
    parser.add_argument("--base", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    if not (given.base / "security").is_dir():
        parser.error(f"{given.base} is no checkout: it has no folder security")
    if given.rounds < 1:
        parser.error("--rounds must be positive")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        _compare({"this": HERE, "base": given.base.resolve()}, given.rounds, folder)


def _compare(checkouts: Mapping[str, Path], rounds: int, folder: str) -> None:
    place = Path(folder)
    commands = {
        "quick scan, 150 x 4, 795 weights": _iris(place),
        "assess, 7,500 x 23": _table(place),
    }
    rows = []
    for title, command in commands.items():
        seconds: dict[str, list[float]] = {name: [] for name in checkouts}
        for number in range(-1, rounds):
            for name in (*checkouts,) if number % 2 else reversed((*checkouts,)):
                out = str(place / f"out-{name}-{len(rows)}-{number}")
                used = [item.replace("{out}", out) for item in command]
                seconds[name].append(_cpu(checkouts[name], used, place))
        own, base = (statistics.median(seconds[name][1:]) for name in ("this", "base"))
        rows.append((title, f"{own:.1f}", f"{base:.1f}", f"{own / base:.2f}"))
    table(("command", "CPU, s", "base, s", "ratio"), rows)


def _cpu(checkout: Path, command: list[str], place: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command],
        cwd=place,
        env={**_compiled(place), "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    code, seconds = done.stdout.split()
    if code != "0":
        raise SystemExit(f"{checkout}: {' '.join(command)} ended with {code}")
    return float(seconds)


def _compiled(place: Path) -> dict[str, str]:
    """This environment, with a folder of bytecode that processes may write."""
    kept = {**os.environ, "PYTHONPYCACHEPREFIX": str(place / "bytecode")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept


def _iris(place: Path) -> list[str]:
    rows, classes = load_iris(return_X_y=True)
    rows = rows.astype(np.float32)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 99), nn.ReLU(), nn.Linear(99, 3))
    model = fit(layers, rows, classes, epochs=60, rate=1e-2)
    (place / "iris.onnx").write_bytes(to_onnx(model, [4], tail=("Softmax",)))
    _write(place / "iris.csv", [*"abcd", "class"], rows, classes)
    return ["scan", "iris.onnx", "--data", "iris.csv", "--out", "{out}"]


def _table(place: Path) -> list[str]:
    rows, classes = make_classification(
        ROWS, COLUMNS, n_informative=10, flip_y=0.2, random_state=0
    )
    names = [*(f"c{index}" for index in range(COLUMNS)), "label"]
    _write(place / "rows.csv", names, rows.round(4), classes)
    _run(place, "init", "rows.csv", "--label", "label", "--public")
    settings = place / "rows.toml"
    text = settings.read_text().replace("holdout = 0.2", "holdout = 0.25")
    settings.write_text(text)
    _run(place, "train", "rows.toml", "--out", "rows")
    policy = HERE / "deploy/policies/public-data.toml"
    return ["assess", "rows", "--config", "rows.toml", "--policy", str(policy)]


def _run(place: Path, *command: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "security", *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _write(path: Path, names: list[str], rows: np.ndarray, classes: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row, own in zip(rows.tolist(), classes.tolist(), strict=True):
            writer.writerow([*row, int(own)])
