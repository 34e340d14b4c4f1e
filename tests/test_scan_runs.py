"""Scans repeated, shared between processes, killed, cut; and scans of a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from security.assessment.scan.options import PROFILES
from security.commands import main
from tests.bundles import NAME, WEIGHTS
from tests.conftest import check_security, toy_settings
from tests.scanned import digits, digits_onnx, linear_onnx, save_npz
from tests.servers import ROOT


@pytest.fixture
def toy(tmp_path):
    """A linear model and 60 rows."""
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


def without_times(document):
    return {name: value for name, value in document.items() if name != "times"}


EVASION = ("--check", "answers", "--check", "evasion")


def test_the_same_seed_gives_the_same_bytes(toy, monkeypatch):
    effort = replace(PROFILES["quick"], chunk=15, square_queries=10, iterations=8)
    monkeypatch.setitem(PROFILES, "quick", effort)
    assert scan(toy, "one", "--jobs", "1", *EVASION) == 0
    assert scan(toy, "two", "--jobs", "1", *EVASION) == 0
    first, second = report(toy, "one"), report(toy, "two")
    assert json.dumps(without_times(first)) == json.dumps(without_times(second))
    for name in ("adversarial-linf.npy", "adversarial-l2.npy"):
        assert (toy / "one" / name).read_bytes() == (toy / "two" / name).read_bytes()


@pytest.mark.slow
def test_processes_change_nothing_and_a_kill_loses_little(toy):
    _, _, x, y = digits()
    (toy / "m.onnx").write_bytes(digits_onnx())
    save_npz(toy / "r.npz", x, y)
    command = [
        *(sys.executable, "-m", "security", "scan", str(toy / "m.onnx")),
        *("--data", str(toy / "r.npz"), "--max-rows", "500", *EVASION),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(out, jobs):
        return subprocess.Popen(
            [*command, "--out", str(toy / out), "--jobs", jobs],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    work = toy / "killed" / "work"
    child = run("killed", "1")
    deadline = time.monotonic() + 300
    while len(list(work.glob("*.npz"))) < 2 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    if not (toy / "killed" / "scan.json").exists():
        saved = {path: path.stat().st_mtime_ns for path in work.glob("*.npz")}
        assert saved
        # Two processes finish what one began; what was done is not done again.
        child = run("killed", "2")
        assert child.wait(600) == 0
    assert run("whole", "1").wait(600) == 0
    assert not work.exists()
    killed, whole = report(toy, "killed"), report(toy, "whole")
    assert without_times(killed) == without_times(whole)


def test_no_time_is_no_report_of_robustness(toy, capsys):
    assert scan(toy, "out", "--jobs", "1", "--max-minutes", "1e-9", *EVASION) == 0
    results = {r["check"]: r for r in report(toy, "out")["results"]}
    assert results["evasion"]["status"] == "skipped"
    assert "budget" in results["evasion"]["reason"]
    assert "the same command with more goes on" in capsys.readouterr().out
    assert (toy / "out" / "work").exists()


def test_damaged_work_is_done_again(toy):
    assert scan(toy, "out", "--jobs", "1", "--max-minutes", "1e-9", *EVASION) == 0
    for path in (toy / "out" / "work").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:40])
    assert scan(toy, "out", "--jobs", "1", "--check", "answers") == 2  # another plan


@pytest.fixture
def endpoint(server, deployment, tmp_path):
    """A profile of the running server, and rows with their classes."""
    check_security(
        deployment,
        *("profile", "--url", server.url, "--model", NAME),
        *("--out", str(tmp_path / "profile.json"), "--lifetime", "3600"),
        **toy_settings(deployment),
    )
    return server.url, str(tmp_path / "profile.json")


def remote(endpoint, folder, rows, *more):
    url, profile = endpoint
    return main(
        [
            *("scan", url, "--client-profile", profile, "--data", str(rows)),
            *("--out", str(folder / "out"), "--max-rows", "30", *EVASION, *more),
        ]
    )


def test_an_endpoint_is_attacked_sealed_and_within_its_budget(
    endpoint, tmp_path, capsys
):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.argmax(x @ WEIGHTS, axis=1)
    rows = save_npz(tmp_path / "r.npz", x, y)
    code = remote(endpoint, tmp_path, rows, "--max-queries", "4000")
    assert code == 0, capsys.readouterr()
    document = report(tmp_path, "out")
    assert document["target"]["kind"] == "remote"
    assert document["target"]["sha256"] is None
    results = {r["check"]: r for r in document["results"]}
    assert results["answers"]["metrics"]["clean_accuracy"]["value"] == 1.0
    evasion = results["evasion"]
    assert evasion["details"]["access"] == "black box"
    assert evasion["conditions"]["counted"] == "rechecked_on_endpoint"
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["token"] not in (tmp_path / "out" / "scan.json").read_text()


def test_too_few_queries_conclude_nothing(endpoint, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    rows = save_npz(tmp_path / "r.npz", x, np.argmax(x @ WEIGHTS, axis=1))
    assert remote(endpoint, tmp_path, rows, "--max-queries", "300") == 0
    results = {r["check"]: r for r in report(tmp_path, "out")["results"]}
    assert results["evasion"]["status"] in ("skipped", "partial")


def test_an_endpoint_that_is_not_there(endpoint, tmp_path, capsys):
    _, path = endpoint
    profile = json.loads(Path(path).read_text())
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    rows = save_npz(tmp_path / "r.npz", x, np.argmax(x @ WEIGHTS, axis=1))
    assert remote(("https://other.example", path), tmp_path, rows) == 2
    assert "is for another URL" in capsys.readouterr().err
    profile["url"] = "http://127.0.0.1:9"
    (tmp_path / "dead.json").write_text(json.dumps(profile))
    dead = ("http://127.0.0.1:9", str(tmp_path / "dead.json"))
    assert remote(dead, tmp_path, rows) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not answer" in line
    assert "go on" in line
    assert not (tmp_path / "out" / "scan.json").exists()
