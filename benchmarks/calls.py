"""What a sealed call by the SDK takes of the caller's CPU, against a real server.

The caller is a process of its own. With ``--base FOLDER``, a checkout of another build,
a second one calls the same server by that build's SDK, in rounds that alternate: the
ratio of two neighbouring rounds is what holds on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.workloads import deploy, workloads
from benchmarks.timing import Spread, rounds_of, spread_of, table
from sealgate.protocol.kem import KEM_NAMES
from tests.conftest import mint
from tests.support.servers import ROOT, serve

# Model, calls in a round.
COUNTS = {"mlp": 100, "image": 20}
TITLES = {"mlp": "1 row", "image": "602 KB"}
KINDS = {"Client": "sync", "AsyncClient": "async"}


@dataclass(frozen=True)
class Case:
    """One kind of call.

    Attributes:
        kem_id: of the key that is sealed to; 0 for none.
        kind: a client's class, or "httpx".
        model: a workload's name.
    """

    kem_id: int
    kind: str
    model: str

    def __str__(self) -> str:
        if self == PLAIN:
            return f"{TITLES[self.model]}, plaintext JSON, httpx"
        kem = KEM_NAMES[self.kem_id]
        return f"{TITLES[self.model]}, {kem}, {KINDS[self.kind]}"


PLAIN = Case(0, "httpx", "mlp")
CASES = [
    PLAIN,
    *(
        Case(kem_id, kind, model)
        for model in COUNTS
        for kem_id in KEM_NAMES
        for kind in KINDS
    ),
]


class Caller:
    """A running caller."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, case: Case, count: int) -> float:
        """Seconds of CPU per call."""
        self._say([case.kem_id, case.kind, case.model, count])
        return float(self._hear()) / count

    def begin(self, place: object) -> None:
        """Say where to call."""
        self._say(place)
        self._hear()

    def _say(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("error: the caller ended; what it said is above")
        return line


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks calls`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks calls", description=__doc__
    )
    parser.add_argument("--base", type=Path, help="folder of another build")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    builds = {"now": ROOT} | ({"base": args.base} if args.base else {})
    found = measure(builds, CASES, rounds=args.rounds)
    rows = []
    for case in CASES:
        now = spread_of(found["now", case])
        row = [str(case), f"{now.median * 1e6:.0f}"]
        if args.base:
            row += against(found["now", case], found["base", case])
        rows.append(tuple(row))
    more = ("of the base", "least", "most") if args.base else ()
    table(("call", "client's CPU, µs", *more), rows)


def against(now: Sequence[float], base: Sequence[float]) -> list[str]:
    """The ratio of neighbours, as text: median, least, most."""
    ratio: Spread = spread_of([a / b for a, b in zip(now, base)])
    return [f"{value:.2f}" for value in (ratio.median, ratio.least, ratio.most)]


def measure(
    builds: dict[str, Path], cases: Sequence[Case], *, rounds: int
) -> dict[tuple[str, Case], list[float]]:
    """Seconds of CPU per call, of each build and case, a value for each round."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        chosen = {name: work for name, work in workloads().items() if name in COUNTS}
        settings = deploy(home, chosen)
        token = mint(home, *(f"infer:{name}" for name in chosen))
        server = stack.enter_context(
            serve("service.app:Sealgate", home, extra=settings)
        )
        place = {
            "url": server.url,
            "token": token,
            "models": {name: {"x": work.array.shape} for name, work in chosen.items()},
        }
        callers = {
            name: stack.enter_context(calling(build, place))
            for name, build in builds.items()
        }
        return rounds_of(
            {
                (name, case): lambda caller=caller, case=case: caller.call(
                    case, COUNTS[case.model]
                )
                for case in cases
                for name, caller in callers.items()
            },
            rounds=rounds,
        )


@contextmanager
def calling(build: Path, place: object) -> Iterator[Caller]:
    """A caller by the SDK of a build's folder, while it runs.

    Args:
        build: the folder.
        place: the server's ``url``, a ``token``, and of ``models`` the shapes of their
            inputs by name.
    """
    # From the folder of this file, whichever build it calls by.
    script = Path(__file__).with_name("caller.py")
    process = subprocess.Popen(
        [sys.executable, "-P", str(script)],
        cwd=build,
        env=os.environ | {"PYTHONPATH": str(build.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        caller = Caller(process)
        caller.begin(place)
        yield caller
    finally:
        process.communicate()
