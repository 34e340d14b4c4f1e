"""tests.support.warm: a forked command is what a new interpreter would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.servers import ROOT, environment

TELLING = (sys.executable, "-m", "tests.support.telling")
OPTIONS = {"BENTOML_CONFIG_OPTIONS": "services.sealgate.workers=3"}
By = Callable[..., warm.Process]


def ended(
    home: Path, *arguments: str, by: By, command: tuple[str, ...] = TELLING
) -> subprocess.CompletedProcess[str]:
    variables = environment(home, OPTIONS | {"SEALGATE_SERVICE_MODELS": "toy:1"})
    command = (*command, *arguments)
    return warm.run(command, cwd=ROOT, env=variables, timeout=120, by=by)


def told(home: Path, by: By) -> dict:
    done = ended(home, "one", "é", by=by)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[1])


def test_what_it_finds_itself_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables, folder, signals, streams, modules, BentoML's home and options."""
    new = told(tmp_path, warm.start_fresh)
    monkeypatch.setenv("SEALGATE_SERVICE_MODELS", "of the tests' own process")
    first, second = told(tmp_path, warm.fork), told(tmp_path, warm.fork)
    assert first["same"] == second["same"] == new["same"]
    assert new["same"]["home"] == str(tmp_path / "bentoml")
    assert new["same"]["options"]["workers"] == 3
    assert new["same"]["variables"]["SEALGATE_SERVICE_MODELS"] == "toy:1"
    assert new["same"]["threads"] == [1, 1]
    own = zip(new["own"], first["own"], second["own"])
    assert all(len({*values}) == 3 for values in own)  # random numbers, too


def test_what_one_changes_is_not_there_for_the_next(tmp_path: Path) -> None:
    """Two homes, one after the other: of BentoML's store, and in the environment."""
    for name in ("one", "two"):
        same = told(tmp_path / name, warm.fork)["same"]
        assert same["home"] == str(tmp_path / name / "bentoml")
        assert same["variables"]["SEALGATE_HOME"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("raise", 1, "LookupError: nothing is here"),
        ("exit", 1, "said at the end"),
        ("else", 0, ""),
    ],
)
def test_how_it_ends(tmp_path: Path, how: str, code: int, last: str) -> None:
    ends = [ended(tmp_path, how, by=by) for by in (warm.fork, warm.start_fresh)]
    for end in ends:
        assert end.returncode == code
        assert end.stdout.startswith("begun\n")
        assert end.stderr.rstrip("\n").rpartition("\n")[2] == last
    assert ("Traceback" in ends[0].stderr) == (how == "raise")


@pytest.mark.parametrize("by", [warm.fork, warm.start_fresh])
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("-m", "security", "--version"), "security "),
        (("-c", "import os, sys; print(os.getcwd(), sys.argv)"), "/ ['-c']"),
        (("-c", "import os; print(os.environ['SEALGATE_HOME'])"), "/nowhere"),
    ],
)
def test_what_it_executes(
    tmp_path: Path, by: By, command: tuple[str, ...], said: str
) -> None:
    """In the same process, which a command of ours goes on in without a new start."""
    end = ended(tmp_path, "become", *command, by=by)
    assert end.returncode == 0, end.stderr
    begun, line = end.stdout.splitlines()
    assert begun == "begun"
    assert said in line


@pytest.fixture(params=[warm.fork, warm.start_fresh])
def waiting(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[warm.Process, Path]]:
    """A process that waits for a signal, and what it has said on its streams."""
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = request.param(
            (*TELLING, "wait"),
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 60
        while b"begun" not in said.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process, said
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGHUP", "SIGINT"])
def test_signals(waiting: tuple[warm.Process, Path], name: str) -> None:
    process, said = waiting
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait(timeout=60) == process.poll() == process.returncode == -number
    process.send_signal(number)  # it is gone, and nobody else gets it
    assert ("KeyboardInterrupt" in said.read_text()) == (name == "SIGINT")


def test_who_takes_too_long_is_killed(tmp_path: Path) -> None:
    pids = []

    def by(*args, **options) -> warm.Forked:
        process = warm.fork(*args, **options)
        pids.append(process.pid)
        return process

    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(
            (*TELLING, "wait"),
            cwd=ROOT,
            env=environment(tmp_path),
            timeout=0.2,
            by=by,
        )
    (pid,) = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_says_the_same(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "security")
    for arguments in (("--version",), ("models",), ("nonsense",), ("verify", "none")):
        one, other = (
            ended(tmp_path, *arguments, by=by, command=command)
            for by in (warm.start, warm.start_fresh)
        )
        assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
        assert one.stderr == other.stderr


SERVE = (sys.executable, "-m", "service", "--port", "1")


def fits(*command: str, cwd: Path = ROOT, extra: dict[str, str] | None = None) -> bool:
    # Those of the start: what tests before have left in the process is not asked here.
    variables = {**warm._VARIABLES, "SEALGATE_HOME": "home", **(extra or {})}
    return warm.fits(command, cwd, variables)


def test_what_is_forked() -> None:
    assert fits(*SERVE)
    assert fits(*SERVE, extra=OPTIONS | {"SEALGATE_TLS_CERT": "x", "KMP_X": "1"})
    assert fits(sys.executable, "-m", "security", "models", cwd=Path("/"))


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "bentoml", "serve", "service.app:Sealgate"),
        (sys.executable, "-m", "bentoml", "build"),
        (sys.executable, "-m", "sealgate"),
        (sys.executable, "-c", "security"),
        ("python", "-m", "security"),
    ],
)
def test_other_commands_are_new_interpreters(command: tuple[str, ...]) -> None:
    assert not fits(*command)


def test_what_imports_depend_on_is_a_new_interpreter(tmp_path: Path) -> None:
    """Variables of Python's, of libraries' and of no one's; sources in the folder."""
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "BENTOML_CONFIG", "HOME", "X"):
        assert not fits(*SERVE, extra={name: "7"}), name
    (tmp_path / "service").mkdir()
    assert not fits(*SERVE, cwd=tmp_path)
