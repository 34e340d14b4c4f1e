"""Measure all contenders in turn, in rounds: noise disturbs all of them alike."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers import contenders as sides
from benchmarks.peers import report
from benchmarks.peers.contenders import Contender, Place
from benchmarks.peers.environments import LeftOut
from benchmarks.peers.load import Load, play, require_wrk, write_requests
from benchmarks.peers.processes import usage
from benchmarks.peers.sealer import Sealer
from benchmarks.peers.workloads import Workload, deploy, workloads, write_models

CONNECTIONS = (1, 16)
# Requests made beforehand for one run: more do not fit on every disk.
MAX_SEALED_BYTES = 1 << 30


@dataclass(frozen=True)
class Run:
    """What to measure, and how long.

    Attributes:
        seconds: of each run of the load generator.
        rounds: medians are over so many, behind one that is not counted.
        only: contenders by name.
        chosen: workloads by name.
        workers: numbers of workers.
        connections: numbers of connections.
        base: a checkout of another commit, to be measured as "before".
    """

    seconds: int
    rounds: int
    only: tuple[str, ...]
    chosen: tuple[str, ...]
    workers: tuple[int, ...]
    connections: tuple[int, ...] = CONNECTIONS
    base: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks peers`."""
    args = _parser().parse_args(arguments)
    require_wrk()
    if args.base and not (args.base / "service" / "app.py").is_file():
        raise SystemExit(f"error: {args.base}: no checkout")
    others = [name for name in sides.CONTENDERS if args.base or name != "before"]
    run = Run(
        seconds=args.seconds,
        rounds=args.rounds,
        only=tuple(args.only or ("in-process", *others)),
        chosen=tuple(args.workload or workloads()),
        workers=tuple(args.workers or (1, 2)),
        connections=tuple(args.connections or CONNECTIONS),
        base=args.base and args.base.resolve(),
    )
    results = measure(run)
    if args.json is not None:
        results = report.merge(args.json, results)
    print(report.markdown(results))
    if args.write:
        report.write(report.merge(report.RESULTS, results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Sealgate beside other servers, on the same model files.",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=3, help="of each run (default 3)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=3, help="medians are over them (default 3)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=("in-process", *sides.CONTENDERS), metavar="NAME"
    )
    parser.add_argument(
        "--workload", nargs="+", choices=("mlp", "image", "tensor"), metavar="NAME"
    )
    parser.add_argument(
        "--base", type=Path, help="a checkout of another commit: `before` among NAMEs"
    )
    parser.add_argument("--workers", nargs="+", type=_positive, metavar="N")
    parser.add_argument("--connections", nargs="+", type=_positive, metavar="N")
    parser.add_argument(
        "--json", type=Path, help="results; what is in the file already is kept"
    )
    parser.add_argument(
        "--write", action="store_true", help="update docs/performance.md and README.md"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def measure(run: Run) -> report.Results:
    """Start the contenders, ask them in turn, and give the medians."""
    chosen = {name: workloads()[name] for name in run.chosen}
    with tempfile.TemporaryDirectory(prefix="sealgate-peers-") as name:
        folder = Path(name)
        write_models(folder / "models", chosen)
        ours = {"sealgate", "before"} & {*run.only}
        settings = deploy(folder / "home", chosen) if ours else {}
        rows: list[report.Row] = []
        left_out: dict[str, str] = {}
        with Sealer() as sealer:
            for workers in run.workers:
                place = Place(
                    models=folder / "models",
                    work=folder,
                    home=folder / "home",
                    settings=settings,
                    workers=workers,
                    workloads=chosen,
                    base=run.base,
                )
                rows += _with_workers(run, place, sealer, left_out)
    return report.Results(
        machine=f"{os.cpu_count()} cores, Python {platform.python_version()}",
        load=round(os.getloadavg()[2], 1),
        seconds=run.seconds,
        rounds=run.rounds,
        left_out=left_out,
        rows=rows,
    )


def _with_workers(
    run: Run, place: Place, sealer: Sealer, left_out: dict[str, str]
) -> Iterator[report.Row]:
    with ExitStack() as stack:
        started: list[Contender] = []
        for name in run.only:
            if name not in sides.OPENERS:
                continue
            try:
                started += stack.enter_context(sides.OPENERS[name](place))
            except LeftOut as reason:
                left_out[name] = str(reason)
                print(f"left out: {name}: {reason}", flush=True)
        for work in place.workloads.values():
            able = list(_able(started, work, left_out))
            for connections in run.connections:
                cell = Cell(run, place, sealer, work, connections)
                for contender, sample in cell.measure(able).items():
                    yield report.Row(
                        workload=work.name,
                        workers=place.workers,
                        connections=connections,
                        contender=contender,
                        **asdict(sample),
                    )


def _able(
    started: list[Contender], work: Workload, left_out: dict[str, str]
) -> Iterator[Contender]:
    for contender in started:
        try:
            sides.check_answer(contender, work)
        except LeftOut as reason:
            left_out[f"{contender.name}, {work.name}"] = str(reason)
            print(f"left out: {contender.name}: {reason}", flush=True)
        else:
            yield contender


@dataclass
class Cell:
    """One workload at one number of connections and workers."""

    run: Run
    place: Place
    sealer: Sealer
    work: Workload
    connections: int
    # Answers per second of our own plaintext: sealed requests are made for so many.
    expected: float = 1000.0

    def measure(self, able: list[Contender]) -> dict[str, report.Sample]:
        """The medians, by contender."""
        samples: dict[str, list[report.Sample]] = {}
        for number in range(self.run.rounds + 1):
            # Plaintext comes first in the round that is not counted.
            for contender in able if number % 2 == 0 else reversed(able):
                seconds = self.run.seconds if number else 1
                sample = self._one(contender, seconds)
                if number:
                    samples.setdefault(contender.name, []).append(sample)
            if number and "in-process" in self.run.only:
                samples.setdefault(sides.LIMIT, []).append(self._limit())
        medians = {name: _median(of) for name, of in samples.items()}
        for name, sample in medians.items():
            print(
                f"{self.work.name} w={self.place.workers} c={self.connections} "
                f"{name}: {sample.rate:.0f}/s, {sample.cpu_s * 1e6:.0f} us CPU, "
                f"{sample.failures:.0f} failed",
                flush=True,
            )
        return medians

    def _one(self, contender: Contender, seconds: int) -> report.Sample:
        files = self._files(contender, seconds)
        refused, before = contender.refused(), usage(contender.pid)
        load = play(
            contender.url,
            files,
            connections=self.connections,
            seconds=seconds,
            once=contender.order is not None,
        )
        after = usage(contender.pid)
        failures = load.failures + contender.refused() - refused
        for file in files:
            file.unlink()
        if contender.name == sides.OURS:
            self.expected = load.rate
        return _sample(load, after.cpu_s - before.cpu_s, after.rss_bytes, failures)

    def _files(self, contender: Contender, seconds: int) -> list[Path]:
        if contender.order is None:
            path = self.place.work / "requests"
            write_requests(path, [contender.request(self.work)])
            return [path]
        count = int(self.expected * seconds * 1.3) + 2 * self.connections
        most = MAX_SEALED_BYTES // (self.work.array.nbytes + 2048)
        order = contender.order(self.work)
        return self.sealer.write(self.place.work, [order], min(count, most))

    def _limit(self) -> report.Sample:
        parts = sides.in_process(self.place, self.work, self.run.seconds / 2)
        requests = sum(part["requests"] for part in parts)
        return report.Sample(
            rate=sum(part["requests"] / part["duration_s"] for part in parts),
            p50_s=statistics.median(part["p50_s"] for part in parts),
            p99_s=max(part["p99_s"] for part in parts),
            cpu_s=sum(part["cpu_s"] for part in parts) / requests,
            rss_bytes=sum(part["rss_bytes"] for part in parts),
            client_s=0.0,
            failures=0,
        )


def _sample(load: Load, cpu_s: float, rss_bytes: int, failures: int) -> report.Sample:
    answers = max(load.requests, 1)
    return report.Sample(
        rate=load.rate,
        p50_s=load.p50_s,
        p99_s=load.p99_s,
        cpu_s=cpu_s / answers,
        rss_bytes=rss_bytes,
        client_s=load.client_s / answers,
        failures=failures,
    )


def _median(samples: list[report.Sample]) -> report.Sample:
    """Medians of everything but failures, which are added up."""
    columns = {
        name: [getattr(sample, name) for sample in samples]
        for name in report.Sample.__dataclass_fields__
    }
    failures = sum(columns.pop("failures"))
    medians = {name: statistics.median(values) for name, values in columns.items()}
    return report.Sample(**medians, failures=failures)
