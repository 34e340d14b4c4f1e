"""A long run: plaintext and sealed requests mixed, memory and p99 over time."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers import contenders as sides
from benchmarks.peers import report
from benchmarks.peers.contenders import Contender, Place
from benchmarks.peers.load import play, require_wrk, write_requests
from benchmarks.peers.processes import usage
from benchmarks.peers.sealer import Sealer
from benchmarks.peers.workloads import deploy, workloads, write_models

RESULTS = Path(__file__).with_name("soak.json")
PLOT = report.ROOT / "docs" / "soak.svg"
CONNECTIONS = 16
SLICES = 20
# Of the requests, those before memory is expected to be flat: caches fill.
WARM_UP = 0.2


@dataclass(frozen=True)
class Slice:
    """What was so after another part of the requests.

    Attributes:
        requests: answered so far.
        rss_bytes: resident memory of the server's processes.
        p50_s: of this part.
        p99_s: of this part.
        failures: so far.
    """

    requests: int
    rss_bytes: int
    p50_s: float
    p99_s: float
    failures: int


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks soak`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak", description=__doc__
    )
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument(
        "--write", action="store_true", help="update docs/performance.md"
    )
    args = parser.parse_args(arguments)
    if args.requests < SLICES * 100:
        parser.error(f"--requests: at least {SLICES * 100}")
    require_wrk()
    slices = measure(args.requests)
    print(markdown(slices))
    if args.write:
        RESULTS.write_text(json.dumps([asdict(item) for item in slices], indent=1))
        plot(slices, PLOT)
        text = f"![Memory and p99 over the requests]({PLOT.name})\n\n{markdown(slices)}"
        report.replace(report.ROOT / "docs" / "performance.md", "soak", text)


def measure(requests: int) -> list[Slice]:
    """Half in plaintext, a quarter sealed with each KEM, one worker."""
    chosen = {"mlp": workloads()["mlp"]}
    with tempfile.TemporaryDirectory(prefix="sealgate-soak-") as name:
        folder = Path(name)
        write_models(folder / "models", chosen)
        settings = deploy(folder / "home", chosen)
        place = Place(
            models=folder / "models",
            work=folder,
            home=folder / "home",
            settings=settings,
            workers=1,
            workloads=chosen,
        )
        opened = contextmanager(sides.sealgate)(place)
        with opened as ways, Sealer() as sealer:
            return _slices(ways, place, sealer, requests // SLICES)


def _slices(
    ways: list[Contender], place: Place, sealer: Sealer, size: int
) -> list[Slice]:
    work = place.workloads["mlp"]
    plain, *sealed = ways
    url, pid, done = plain.url, plain.pid, 0
    slices: list[Slice] = []
    failures = 0
    for _ in range(SLICES):
        orders = [way.order(work) for way in sealed if way.order is not None]
        files = sealer.write(place.work, orders, size // 2)
        _mix(files, plain.request(work))
        load = play(url, files, connections=CONNECTIONS, seconds=300, once=True)
        failures += load.failures
        done += load.requests
        refused = failures + plain.refused()
        # Memory is asked for when nothing is in work.
        time.sleep(0.2)
        rss = usage(pid).rss_bytes
        slices.append(Slice(done, rss, load.p50_s, load.p99_s, refused))
        print(f"{done} requests, {rss / 1e6:.1f} MB, {refused} failed", flush=True)
        for file in files:
            file.unlink()
    return slices


def _mix(files: list[Path], plain: bytes) -> None:
    """Put a plaintext request behind each sealed one."""
    for path in files:
        mixed = []
        with path.open("rb") as file:
            while line := file.readline():
                mixed += [file.read(int(line)), plain]
        write_requests(path, mixed)


def slope(slices: Sequence[Slice]) -> float:
    """Bytes of memory per request, by least squares, what warms up left out.

    >>> parts = [Slice(n, 1000 + 2 * n, 0, 0, 0) for n in (100, 200, 300, 400)]
    >>> round(slope(parts), 6)
    2.0
    """
    last = slices[-1].requests
    kept = [item for item in slices if item.requests > WARM_UP * last]
    return float(
        np.polyfit([i.requests for i in kept], [i.rss_bytes for i in kept], 1)[0]
    )


def markdown(slices: Sequence[Slice]) -> str:
    """The slope in words, and every second part."""
    lines = [
        f"{slices[-1].requests:,} requests, {slices[-1].failures} failed. Memory, by "
        f"least squares behind the first fifth: {slope(slices):+.1f} bytes per request "
        f"({slope(slices) * 1e5 / 1e6:+.2f} MB per 100,000).",
        "",
        "| requests | RSS of all processes, MB | p50, ms | p99, ms |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {item.requests:,} | {item.rss_bytes / 1e6:.1f} "
        f"| {item.p50_s * 1e3:.1f} | {item.p99_s * 1e3:.1f} |"
        for item in slices[1::2]
    ]
    return "\n".join(lines)


def plot(slices: Sequence[Slice], path: Path) -> None:
    """Memory and p99 over the requests."""
    with report.canvas() as plt:
        figure, axes = plt.subplots(2, 1, figsize=(7.6, 3.6), sharex=True)
        counts = [item.requests for item in slices]
        axes[0].plot(counts, [i.rss_bytes / 1e6 for i in slices], color=report.OURS)
        axes[0].set_ylabel("RSS, MB")
        axes[1].plot(counts, [i.p99_s * 1e3 for i in slices], color=report.OURS)
        axes[1].set_ylabel("p99, ms")
        axes[1].set_xlabel("requests")
        for axis in axes:
            axis.set_ylim(bottom=0)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)
