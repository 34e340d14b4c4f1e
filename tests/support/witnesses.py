"""A running witness: the real command, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers import ROOT, environment

ALGORITHMS = ("ed25519", "ml-dsa-44")


@dataclass(frozen=True)
class RunningWitness:
    """A witness on 127.0.0.1.

    Attributes:
        url: its submission and its monitoring prefix.
        vkeys: its verifier keys.
        state: its folder.
        log: what it told on standard error.
        process: the server.
    """

    url: str
    vkeys: Sequence[str]
    state: Path
    log: Path
    process: subprocess.Popen[str] = field(repr=False)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "security", "witness", *map(str, arguments)]


def generate_keys(
    folder: Path, name: str, algorithms: Sequence[str] = ALGORITHMS
) -> list[Path]:
    """Keys of a witness, those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for algorithm in algorithms:
        path = folder / f"{algorithm}.pem"
        if not path.exists():
            subprocess.run(
                command(
                    "keygen", "--name", name, "--key", path, "--algorithm", algorithm
                ),
                check=True,
                capture_output=True,
                cwd=ROOT,
                env=environment(folder),
                timeout=60,
            )
        paths.append(path)
    return paths


@contextmanager
def witness(
    folder: Path,
    logs: Sequence[object],
    *options: object,
    name: str = "witness.test/w1",
    algorithms: Sequence[str] = ALGORITHMS,
) -> Iterator[RunningWitness]:
    """Run one until the block ends; again in the same folder, it is the same one.

    Args:
        folder: of its keys and its state.
        logs: verifier keys.
        options: further ones of the command.
        name: its name.
        algorithms: a key for each.
    """
    keys = generate_keys(folder, name, algorithms)
    state, told = folder / "state", folder / "stderr"
    arguments: list[object] = ["--name", name, "--state", state]
    arguments += ["--listen", "127.0.0.1:0"]
    for path in keys:
        arguments += ["--key", path]
    for log in logs:
        arguments += ["--log", log]
    with (
        told.open("a") as errors,
        subprocess.Popen(
            command(*arguments, *options),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment(folder),
        ) as process,
    ):
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line.strip())
                if line.startswith("witness "):
                    break
            assert lines, told.read_text()
            url = lines.pop().rpartition(" on ")[2]
            yield RunningWitness(url, lines, state, told, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(20)
