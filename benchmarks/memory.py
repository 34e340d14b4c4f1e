"""Memory of all processes of a server, and CPU until it is ready, by how it is started.

Each way of starting is taken in turn, several rounds, forwards and backwards; figures
are medians. After 100 requests RSS and PSS of all processes are read from
/proc/PID/smaps_rollup: RSS counts a page that processes share once for each of them,
PSS once in all. CPU is that of all processes until the first answer that it is ready,
and from the death of a worker (SIGKILL) until another one has announced itself.

`--base FOLDER` measures another checkout in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.deployments import admit
from benchmarks.server import BODY, PATH, READY, http_request, take_answer
from benchmarks.timing import table
from tests.conftest import check_security, make_deployment, mint, toy_settings
from tests.support import bundles
from tests.support.servers import environment, free_port

REQUESTS = 100
SIZES_MB = (1, 10, 100)
_DEADLINE_S = 120
_HEADERS = {"content-type": "application/json"}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Start:
    """A way to start a server.

    Attributes:
        arguments: of Python; the address follows.
        workers: processes that answer.
        parent: whether another process starts them.
    """

    arguments: tuple[str, ...]
    workers: int = 1
    parent: bool = True


_BENTOML = ("-m", "bentoml", "serve", "service.app:Sealgate")
_SERVE = ("-m", "security", "serve")
STARTS = {
    "bentoml serve, 1 worker": Start(_BENTOML),
    "bentoml serve, 2 workers": Start(_BENTOML, workers=2),
    "security serve, one process": Start(_SERVE, parent=False),
    "security serve, 2 workers": Start((*_SERVE, "--workers", "2"), workers=2),
}


@dataclass(frozen=True)
class Figures:
    """What one start took.

    Attributes:
        rss_mb, pss_mb: of all processes after the requests.
        cpu_s: of all processes until it was ready.
        again_s: CPU seconds from the death of a worker until the next one is there.
    """

    rss_mb: float
    pss_mb: float
    cpu_s: float
    again_s: float


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory", description=__doc__
    )
    parser.add_argument("--base", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    trees = {"": Path(__file__).resolve().parents[1]}
    if options.base is not None:
        trees["base: "] = options.base.resolve()
    with tempfile.TemporaryDirectory() as folder:
        _starts(trees, Path(folder), options.rounds)
        _models(trees, Path(folder), options.rounds)


def _starts(trees: Mapping[str, Path], folder: Path, rounds: int) -> None:
    home = folder / "toy"
    make_deployment(home)
    cases = {
        f"{label}{name}": (lambda t=tree, s=start: _measure(t, s, home))
        for name, start in STARTS.items()
        for label, tree in reversed(trees.items())
    }
    found = _medians(cases, rounds)
    first = next(iter(found.values()))
    rows = [
        (
            name,
            *_beside(one.rss_mb, first.rss_mb, "{:.0f}"),
            *_beside(one.pss_mb, first.pss_mb, "{:.0f}"),
            *_beside(one.cpu_s, first.cpu_s, "{:.2f}"),
            *_beside(one.again_s, first.again_s, "{:.2f}"),
        )
        for name, one in found.items()
    ]
    heads = ("RSS, MB", "PSS, MB", "CPU to ready, s", "CPU of a restart, s")
    table(("start", *(part for head in heads for part in (head, "ratio"))), rows)


def _models(trees: Mapping[str, Path], folder: Path, rounds: int) -> None:
    """What a model of so many MB adds to a server of one process."""
    start, homes = STARTS["security serve, one process"], {}
    for size in (0, *SIZES_MB):
        homes[size] = folder / f"model-{size}"
        _deploy(homes[size], size)
    cases = {
        f"{label}{size} MB": (lambda t=tree, h=home: _measure(t, start, h))
        for size, home in homes.items()
        for label, tree in reversed(trees.items())
    }
    found = _medians(cases, rounds)
    print()
    rows = []
    for label in reversed(trees):
        least = found[f"{label}0 MB"]
        for size in SIZES_MB:
            one = found[f"{label}{size} MB"]
            more = one.pss_mb - least.pss_mb
            rows.append((f"{label}{size} MB", f"{more:.1f}", f"{more / size:.2f}"))
    table(("model", "PSS beyond that of a tiny one, MB", "over its size"), rows)


def _beside(value: float, first: float, form: str) -> tuple[str, str]:
    if not value:
        return "", ""
    return form.format(value), f"{value / first:.2f}"


def _medians(
    cases: Mapping[str, Callable[[], Figures]], rounds: int
) -> dict[str, Figures]:
    """Of alternating rounds; one before them is not counted: it compiles modules."""
    found: dict[str, list[Figures]] = {name: [] for name in cases}
    forwards = list(cases.items())
    for number in range(rounds + 1):
        for name, measure in forwards if number % 2 else reversed(forwards):
            figures = measure()
            if number:
                found[name].append(figures)
    return {
        name: Figures(
            *(
                statistics.median(getattr(one, part) for one in every)
                for part in ("rss_mb", "pss_mb", "cpu_s", "again_s")
            )
        )
        for name, every in found.items()
    }


def _measure(tree: Path, start: Start, home: Path) -> Figures:
    with _running(tree, start, home) as (process, url):
        _wait(lambda: _ready(url))
        cpu_s = cpu_of(process.pid)
        _wait(lambda: len(_announced(home, process.pid)) == start.workers)
        _ask(url, _token(home))
        rss_mb, pss_mb = memory_of(process.pid)
        again_s = _again(process.pid, home, start.workers) if start.parent else 0.0
    return Figures(rss_mb, pss_mb, cpu_s, again_s)


@cache
def _token(home: Path) -> str:
    return mint(home, f"infer:{bundles.NAME}")


@contextmanager
def _running(
    tree: Path, start: Start, home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    extra = toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "PYTHONPATH": str(tree),
        # Compiled, as in an image, and without a trace in either checkout.
        "PYTHONPYCACHEPREFIX": str(home.parent / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
        "BENTOML_CONFIG_OPTIONS": f"services.sealgate.workers={start.workers}",
    }
    command = [sys.executable, *start.arguments, "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environment(home, extra),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _again(pid: int, home: Path, workers: int) -> float:
    """Kill a worker; the CPU until another one is there."""
    dead = _announced(home, pid)[0]
    before = cpu_of(pid)
    os.kill(dead, signal.SIGKILL)
    _wait(lambda: len({*_announced(home, pid)} - {dead}) == workers)
    return cpu_of(pid) - before


def _announced(home: Path, pid: int) -> list[int]:
    """The workers that have loaded their models: their reports say so."""
    alive = {one.pid for one in _family(pid)}
    files = (home / "deployment" / "workers").glob("*.json")
    found = {int(path.name.partition("-")[0]) for path in files}
    return sorted(found & alive)


def _family(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    every = [first, *first.children(recursive=True)]
    return [one for one in every if one.status() != psutil.STATUS_ZOMBIE]


def cpu_of(pid: int) -> float:
    """CPU seconds of a server's processes, and of those that they waited for."""
    ticks = 0
    for one in _family(pid):
        fields = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def memory_of(pid: int) -> tuple[float, float]:
    """RSS and PSS of a server's processes together, MB."""
    sums = {"Rss": 0, "Pss": 0}
    for one in _family(pid):
        for line in Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in sums:
                sums[name] += int(rest.split()[0])
    return sums["Rss"] / 1024, sums["Pss"] / 1024


def _ready(url: str) -> bool:
    try:
        return httpx.get(url + READY, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the server did not become ready")
        time.sleep(0.02)


def _ask(url: str, token: str) -> None:
    """On ten connections, so that every worker is met."""
    headers = _HEADERS | {"authorization": f"Bearer {token}"}
    request = http_request("POST", PATH, headers, json.dumps(BODY).encode())
    address = httpx.URL(url)
    for _ in range(10):
        with socket.create_connection((address.host, address.port or 80)) as one:
            for _ in range(REQUESTS // 10):
                one.sendall(request)
                if take_answer(one) != 200:
                    raise SystemExit("an inference was refused")


def _deploy(home: Path, size_mb: int) -> None:
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(bundles.POLICY)
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    admit(home, layered_model(size_mb), bundles.manifest(), settings)


def layered_model(size_mb: int) -> bytes:
    """The toy model's inputs and outputs, with layers of 1 MB of weights between."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    random, width = np.random.default_rng(0), 512

    def weights(name: str, *shape: int) -> object:
        data = random.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[0])
        return numpy_helper.from_array(data.astype(np.float32), name)

    held = [weights("first", 3, width), weights("last", width, 2)]
    nodes = [helper.make_node("MatMul", ["features", "first"], ["0"])]
    for number in range(size_mb):
        held.append(weights(f"w{number}", width, width))
        nodes.append(
            helper.make_node("MatMul", [str(number), f"w{number}"], [f"r{number}"])
        )
        nodes.append(helper.make_node("Relu", [f"r{number}"], [str(number + 1)]))
    nodes += [
        helper.make_node("MatMul", [str(size_mb), "last"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        ],
        held,
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())
