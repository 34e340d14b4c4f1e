"""A usage or configuration error costs at most half a second of CPU, in every command.

Torch alone takes seconds to import: what needs it is imported after all that can be
refused without it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from security.commands import COMMANDS
from tests.support.trained import EXAMPLE

pytestmark = pytest.mark.slow  # a hundred processes

# On a machine that imports this in a fifth of a second; elsewhere in proportion.
MOST_S = 0.5
UNIT, UNIT_S = "import argparse, asyncio, ssl, numpy", 0.2
# Beside other work on the same cores, a process needs up to twice its CPU time.
TRIES = 10

BAD = "[modle]\nname = 1\n"
MISUSED = {name: [name, "--no-such-option"] for name in COMMANDS}
WRONG = {
    "no command": ["trian"],
    "train": ["train", "bad.toml", "--out", "out"],
    "train out": ["train", "good.toml", "--out", "."],
    "check": ["check", "bad.toml"],
    "canaries": ["canaries", "bad.toml"],
    "assess": ["assess", "none", "--config", "bad.toml"],
    "assess rows": ["assess", "none", "--data", "rows.csv"],
    "assess data": [
        "assess",
        "none",
        "--data",
        "rows.csv",
        "--data-config",
        "bad.toml",
    ],
    "scan": ["scan", "none.onnx", "--data", "rows.csv"],
    "scan data": ["scan", "a.onnx", "--data", "rows.csv", "--data-config", "bad.toml"],
    "scan training": ["scan", "a.onnx", "--data", "rows.csv", "--training", "bad.toml"],
    "scan predictions": ["scan", "--predictions", "none.csv"],
    "retrain": ["retrain", "none", "--data", "rows.csv", "--out", "out"],
    "ledger": ["ledger", "cap", "d", "--epsilon", "-1"],
    "compare": ["compare", "none", "none"],
    "report": ["report", "none", "--format", "html"],
    "import": [
        "import",
        "none.onnx",
        "--name",
        "a",
        "--version",
        "1.0.0",
        "--out",
        "b",
    ],
    "inspect": ["inspect", "none.onnx"],
    "sign": ["sign", "none", "--role", "trainer"],
    "admit": ["admit", "none"],
    "verify": ["verify", "./none"],
    "store": ["store", "none"],
    "history": ["history", "none"],
    "documents": ["documents", "none"],
    "policy": ["policy", "explain", "bad.toml"],
    "init": ["init", "none.csv", "--label", "label"],
    "settings": ["config"],
    "package": ["package", "none"],
    "serve": ["serve", "none"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("errors")
    (path / "bad.toml").write_text(BAD)
    (path / "good.toml").write_bytes(EXAMPLE.read_bytes())
    (path / "rows.csv").write_text("a,label\n1,x\n2,y\n")
    (path / "a.onnx").write_bytes(b"no model")
    (path / "service.toml").write_text("[service]\nno_such_key = 1\n")
    return path


def cpu_of(command, **how):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, done


def most_s():
    """For a process of right now: what runs beside it changes from test to test."""
    unit_s, _ = cpu_of([sys.executable, "-c", UNIT])
    return MOST_S * max(1.0, unit_s / UNIT_S)


def check_cost(folder, arguments):
    """A process must refuse for as little as it may take, once in a few tries."""
    environment = os.environ | {
        "PYTHONPATH": os.getcwd(),
        "SEALGATE_HOME": str(folder / "home"),
        "SEALGATE_CONFIG": str(folder / "service.toml"),
        "COVERAGE_PROCESS_START": "",
    }
    if arguments != ["config"]:
        del environment["SEALGATE_CONFIG"]
    seen = []
    for _ in range(TRIES):
        command = [sys.executable, "-m", "security", *arguments]
        spent, done = cpu_of(command, cwd=folder, env=environment)
        assert done.returncode in (1, 2), done
        assert "Traceback" not in done.stderr
        most = MOST_S if spent <= MOST_S else most_s()
        seen.append(f"{spent:.2f} of {most:.2f} s")
        if spent <= most:
            return
    raise AssertionError(seen)


@pytest.mark.parametrize("name", MISUSED)
def test_misuse(folder, name):
    check_cost(folder, MISUSED[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done(folder, name):
    check_cost(folder, WRONG[name])
