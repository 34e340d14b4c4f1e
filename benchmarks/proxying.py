"""gRPC through the sealing proxy beside HTTP through it, in one run.

tritonclient's two clients ask the toy model for a row, and for 64. Both proxies run at
once, in processes of their own, in front of one sealed-only server; rounds alternate.
Requests a second are those of 4 threads; CPU is the proxy's.
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.server import cpu_of
from benchmarks.timing import table
from tests.conftest import make_deployment, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.servers import ROOT, serve

REQUESTS = 240
ROUNDS = 7
THREADS = 4
ROWS = {"1 row": 1, "64 rows": 64}


@dataclass(frozen=True)
class Case:
    """A client's way through a proxy."""

    module: ModuleType
    address: str
    pid: int


def run() -> None:
    """Print the table."""
    clients = [import_module(f"tritonclient.{name}") for name in ("http", "grpc")]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{NAME}")
        server = serve("service.app:Sealgate", home, extra=toy_settings(home))
        url = stack.enter_context(server).url
        profile = Path(folder) / "profile.json"
        profile.write_text(f'{{"url": "{url}", "token": "{token}"}}')
        profile.chmod(0o600)
        cases = {
            name: Case(module, *stack.enter_context(_proxy(profile, option)))
            for name, module, option in (
                ("HTTP", clients[0], "--listen"),
                ("gRPC", clients[1], "--grpc"),
            )
        }
        rows = [
            row for name, count in ROWS.items() for row in _rows(name, count, cases)
        ]
    table(("request", "through", "req/s", "of HTTP", "proxy's CPU, µs"), rows)


def _rows(name: str, count: int, cases: dict[str, Case]) -> list[tuple[str, ...]]:
    rates: dict[str, list[float]] = {case: [] for case in cases}
    cpu: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(ROUNDS + 1):
        for way, case in cases.items():
            before = cpu_of(case.pid)
            seconds = _send(case, count)
            if number:  # the first one warms up
                rates[way].append(REQUESTS / seconds)
                cpu[way].append((cpu_of(case.pid) - before) / REQUESTS * 1e6)
    found = []
    for way in cases:
        ratio = statistics.median(a / b for a, b in zip(rates[way], rates["HTTP"]))
        rate, used = statistics.median(rates[way]), statistics.median(cpu[way])
        found.append((name, way, f"{rate:.0f}", f"{ratio:.2f}", f"{used:.0f}"))
    return found


def _send(case: Case, count: int) -> float:
    """Seconds that all threads take for their part of the requests."""
    values = np.ones((count, 3), np.float32)

    def work(ready: threading.Barrier) -> None:
        module = case.module
        with module.InferenceServerClient(case.address) as client:
            given = [module.InferInput("features", list(values.shape), "FP32")]
            given[0].set_data_from_numpy(values)
            client.infer(NAME, given)
            ready.wait()
            for _ in range(REQUESTS // THREADS):
                client.infer(NAME, given)

    return _timed(work)


def _timed(work: Callable[[threading.Barrier], None]) -> float:
    ready = threading.Barrier(THREADS + 1)
    threads = [threading.Thread(target=work, args=(ready,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


@contextmanager
def _proxy(profile: Path, option: str) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "sealgate", "proxy", "--profile", str(profile)]
    process = subprocess.Popen(
        [*command, option, "127.0.0.1:0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        where = process.stdout.readline().split()[1]
        yield where.partition("://")[2], process.pid
    finally:
        process.terminate()
        process.communicate()
