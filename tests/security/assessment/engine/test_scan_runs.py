"""Scans repeated, shared between processes, killed, cut."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from security.assessment.engine import runner
from security.assessment.engine.store import RunStore
from security.commands import main
from tests.support.bundles import WEIGHTS
from tests.support.scanned import linear_onnx, save_npz
from tests.support.servers import ROOT


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A linear model and 60 rows."""
    tmp_path = tmp_path_factory.mktemp("toy")
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.argmax(x @ WEIGHTS, axis=1)
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS))
    save_npz(tmp_path / "r.npz", x, y)
    return tmp_path


def scan(folder, out, *more):
    return main(
        [
            *("scan", str(folder / "m.onnx"), "--data", str(folder / "r.npz")),
            *("--out", str(folder / out), "--max-rows", "30", *more),
        ]
    )


def report(folder, out):
    return json.loads((folder / out / "scan.json").read_text())


EVASION = ("--check", "answers", "--check", "evasion")
# Written by a scan, and the same whoever did the work, but for times.
TIMES = re.compile(rb'"times":\{[^{}]*\}')
ARRAYS = ("adversarial-linf.npy", "adversarial-l2.npy")


def same(first: Path, second: Path) -> None:
    """Two scans' folders, byte for byte except times."""
    for name in ARRAYS:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, other = ((folder / "scan.json").read_bytes() for folder in (first, second))
    assert TIMES.search(one)
    assert TIMES.sub(b"", one) == TIMES.sub(b"", other)


# A scan that a signal hits right after it has saved so many units.
STRUCK = """
import os, sys
from security.assessment.engine.store import RunStore
from security.commands import main
left, number = int(sys.argv[1]), int(sys.argv[2])
save = RunStore.save
def struck(self, key, outcome):
    global left
    save(self, key, outcome)
    left -= 1
    if not left:
        os.kill(os.getpid(), number)
RunStore.save = struck
sys.exit(main(sys.argv[3:]))
"""


def struck(folder, out, number, *more, units=2):
    return subprocess.run(
        [
            *(sys.executable, "-c", STRUCK, str(units), str(int(number))),
            *("scan", str(folder / "m.onnx"), "--data", str(folder / "r.npz")),
            *("--out", str(folder / out), "--max-rows", "30", "--jobs", "1", *more),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole(toy):
    """A scan by one process, start to end."""
    assert scan(toy, "whole", "--jobs", "1", *EVASION) == 0
    return toy / "whole"


def test_the_same_seed_gives_the_same_bytes_in_two_processes(toy, whole):
    assert scan(toy, "one", "--jobs", "1", *EVASION) == 0
    assert scan(toy, "two", "--jobs", "2", *EVASION) == 0
    same(whole, toy / "one")
    same(whole, toy / "two")
    assert not (toy / "two" / "work").exists()


def test_processes_start_once_what_is_left_is_worth_it(toy, whole, monkeypatch):
    began = []
    real = runner._in_processes

    def watched(job, units, checks, jobs):
        began.append([unit.key for unit in units])
        yield from real(job, units, checks, jobs)

    monkeypatch.setattr(runner, "_in_processes", watched)
    monkeypatch.setattr(runner, "_processors", lambda: 2)
    monkeypatch.setattr(runner, "_WORTH_S", 1e9)
    assert scan(toy, "short", *EVASION) == 0
    assert began == []
    monkeypatch.setattr(runner, "_WORTH_S", 0.0)
    assert scan(toy, "long", *EVASION) == 0
    assert len(began) == 1
    assert began[0]
    same(whole, toy / "short")
    same(whole, toy / "long")


LOADED = """
import sys
from security.commands import main
code = main(sys.argv[1:])
heavy = ("art", "scipy.stats", "sklearn", "torch._dynamo")
print("loaded:", *(name for name in heavy if name in sys.modules))
sys.exit(code)
"""


def test_a_quick_scan_loads_no_compiler_and_no_library_that_it_does_not_use(toy):
    done = subprocess.run(
        [
            *(sys.executable, "-c", LOADED, "scan", str(toy / "m.onnx")),
            *("--data", str(toy / "r.npz"), "--out", str(toy / "light")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_what_was_finished_before_a_kill_is_not_done_again(toy, whole, monkeypatch):
    assert struck(toy, "killed", signal.SIGKILL, *EVASION).returncode == -9
    saved = sorted((toy / "killed" / "work").glob("*.npz"))
    assert len(saved) == 2
    assert not (toy / "killed" / "scan.json").exists()
    done = []
    save = RunStore.save
    monkeypatch.setattr(RunStore, "save", lambda *a: (done.append(a[1]), save(*a)))
    assert scan(toy, "killed", "--jobs", "1", *EVASION) == 0
    assert done == ["evasion/l2/0000"]
    same(whole, toy / "killed")


def test_damaged_work_is_done_again_and_another_scans_is_refused(toy, whole):
    assert struck(toy, "damaged", signal.SIGKILL, *EVASION).returncode == -9
    assert scan(toy, "damaged", "--jobs", "1", "--check", "answers") == 2
    for path in (toy / "damaged" / "work").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    assert scan(toy, "damaged", "--jobs", "1", *EVASION) == 0
    same(whole, toy / "damaged")


def test_ctrl_c_is_one_line_and_work_is_kept(toy):
    stopped = struck(toy, "stopped", signal.SIGINT, "--check", "answers", units=1)
    assert stopped.returncode == 130
    assert stopped.stderr.strip().splitlines()[-2:] == [
        "finished work is kept: the same command goes on",
        "error: interrupted",
    ]
    assert len(list((toy / "stopped" / "work").glob("*.npz"))) == 1


def test_no_time_is_no_report_of_robustness_and_more_goes_on(toy, whole, capsys):
    assert scan(toy, "out", "--jobs", "1", "--max-minutes", "1e-9", *EVASION) == 0
    results = {r["check"]: r for r in report(toy, "out")["results"]}
    assert results["evasion"]["status"] == "skipped"
    assert "budget" in results["evasion"]["reason"]
    assert "the same command with more goes on" in capsys.readouterr().out
    assert (toy / "out" / "work").exists()
    assert scan(toy, "out", "--jobs", "1", *EVASION) == 0
    same(whole, toy / "out")
