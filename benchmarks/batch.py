"""Batch jobs beside a plain loop of pyarrow and onnxruntime, over the same files.

Each round runs both, every other one backwards; a ratio is of two neighbours, so that a
busy machine disturbs both alike. The loop verifies, books and records nothing. It has a
thread for each core, as pyarrow and onnxruntime have by default; and one, since threads
that wait for each other are slower on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.deployments import admit
from benchmarks.peers.processes import usage
from benchmarks.peers.workloads import workloads
from benchmarks.timing import table
from models.manifest import Column, Manifest, Tensor
from models.sessions import make_session
from sealgate.protocol.tensors import TensorSpec
from tests.conftest import check_security, toy_settings
from tests.support.bundles import POLICY
from tests.support.servers import ROOT, environment

COLUMNS = [f"c{number}" for number in range(30)]
_GROUP, _BATCH = 1 << 20, 1 << 16
_LOOPS = ("the loop, one thread", "the loop, a thread a core")


@dataclass(frozen=True)
class Run:
    """What a program took: seconds, seconds of CPU, and bytes of all its processes."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks batch`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks batch", description=__doc__
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[2_000_000, 10_000_000], metavar="N"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.plain:
        model, source, out, threads = args.plain
        plain(Path(model), Path(source), Path(out), threads=int(threads))
        return
    lines = []
    with tempfile.TemporaryDirectory() as name:
        home = _deployment(Path(name) / "home")
        for rows in args.rows:
            source = _write(Path(name) / "in.parquet", rows)
            lines += _measured(home, source, rows, args.rounds)
    head = (
        "rows",
        "",
        "rows/s",
        *(f"of {name}" for name in _LOOPS),
        "CPU, s",
        "RSS, MB",
    )
    table(head, lines)


def plain(model: Path, source: Path, out: Path, *, threads: int) -> None:
    """The loop."""
    import pyarrow as pa  # noqa: PLC0415  (of the loop alone)
    from pyarrow import parquet  # noqa: PLC0415  (as above)

    session = make_session(model.read_bytes(), intra_op_threads=threads)
    writer = None
    batches = parquet.ParquetFile(source).iter_batches(_BATCH, use_threads=threads > 1)
    for batch in batches:
        rows = np.stack([batch[name].to_numpy() for name in COLUMNS], axis=1)
        (scores,) = session.run(None, {"x": rows})
        answers = {"id": batch["id"], "no": scores[:, 0], "yes": scores[:, 1]}
        answered = pa.table(answers)
        writer = writer or parquet.ParquetWriter(out, answered.schema)
        writer.write_table(answered)
    if writer is not None:
        writer.close()


def _deployment(home: Path) -> Path:
    settings = toy_settings(home)
    home.mkdir()
    (home / "policy.toml").write_bytes(POLICY)
    (home / "quotas.toml").write_text("[batch.default]\n")
    check_security(home, "keygen", **settings)
    manifest = Manifest(
        name="mlp",
        version="1.0.0",
        inputs=(
            Tensor(
                TensorSpec("x", "FP32", (-1, len(COLUMNS))),
                columns=tuple(Column(name, -10.0, 10.0) for name in COLUMNS),
            ),
        ),
        outputs=(Tensor(TensorSpec("y", "FP32", (-1, 2)), labels=("no", "yes")),),
        max_rows=1024,
    )
    admit(home, workloads()["mlp"].model, manifest, settings)
    return home


def _write(path: Path, rows: int) -> Path:
    import pyarrow as pa  # noqa: PLC0415  (as above)
    from pyarrow import parquet  # noqa: PLC0415  (as above)

    random, writer = np.random.default_rng(5), None
    for start in range(0, rows, _GROUP):
        count = min(_GROUP, rows - start)
        columns = {"id": np.arange(start, start + count)}
        for name in COLUMNS:
            columns[name] = random.standard_normal(count, dtype=np.float32)
        made = pa.table(columns)
        writer = writer or parquet.ParquetWriter(path, made.schema)
        writer.write_table(made)
    if writer is not None:
        writer.close()
    return path


def _measured(
    home: Path, source: Path, rows: int, rounds: int
) -> list[tuple[str, ...]]:
    out = source.parent / "out"
    job = ["-m", "security", "batch", str(home / "mlp"), "--input", str(source)]
    model = str(home / "mlp" / "model.onnx")
    loop = [
        "-m",
        "benchmarks",
        "batch",
        "--plain",
        model,
        str(source),
        f"{out}.parquet",
    ]
    threads = ("1", str(len(os.sched_getaffinity(0))))
    cases = {
        **{name: [*loop, count] for name, count in zip(_LOOPS, threads)},
        "batch, to a folder": [*job, "--keep", "id", "--out", str(out)],
        "batch, to a file": [*job, "--keep", "id", "--out", f"{out}.parquet"],
    }
    found: dict[str, list[Run]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases) if number % 2 else list(reversed(cases))
        for name in order:
            found[name].append(_run(home, cases[name]))
            for path in source.parent.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [_line(rows, name, found) for name in cases]


def _line(rows: int, name: str, found: dict[str, list[Run]]) -> tuple[str, ...]:
    runs = found[name]
    rate = rows / statistics.median(run.wall_s for run in runs)
    return (
        f"{rows:,}",
        name,
        f"{rate:,.0f}",
        *(f"{_ratio(found[loop], runs):.2f}" for loop in _LOOPS),
        f"{statistics.median(run.cpu_s for run in runs):.1f}",
        f"{max(run.rss_bytes for run in runs) / 1e6:.0f}",
    )


def _ratio(loops: list[Run], runs: list[Run]) -> float:
    return statistics.median(a.wall_s / b.wall_s for a, b in zip(loops, runs))


def _run(home: Path, command: list[str]) -> Run:
    env = environment(home, toy_settings(home)) | {
        "SEALGATE_QUOTAS_TABLE": str(home / "quotas.toml"),
        "PYTHONPATH": str(ROOT),
    }
    began, cpu_s, rss = time.monotonic(), 0.0, 0
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        try:
            now = usage(process.pid)
        except (psutil.NoSuchProcess, OSError):
            break
        cpu_s, rss = max(cpu_s, now.cpu_s), max(rss, now.rss_bytes)
        time.sleep(0.1)
    assert process.wait() == 0
    return Run(time.monotonic() - began, cpu_s, rss)
