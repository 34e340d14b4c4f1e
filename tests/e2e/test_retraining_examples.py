"""examples/retraining: the script runs, and what starts it is well-formed."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from models.bundle import read_bundle
from security.admission.observations import write_observation
from tests.conftest import toy_settings
from tests.support.bundles import Keys
from tests.support.live import wait_for
from tests.support.promotions import ASKING, monitoring
from tests.support.servers import ROOT, environment

FOLDER = ROOT / "examples" / "retraining"
SCRIPT = FOLDER / "retrain.sh"
TOKEN = "a-token-of-enough-bytes"
ALERT = {"version": "4", "alerts": [{"status": "firing", "labels": {}}]}


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    (home / "policy.toml").write_bytes(ASKING)
    return home


def seen(home: Path, alarms: int) -> None:
    signers = Keys.of(home).signers("monitor")
    subject = read_bundle(home / "bundle").subject
    write_observation(home / "deployment", monitoring(subject, alarms), signers)


def shell(home: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    python = {"PYTHON": sys.executable}
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environment(home, toy_settings(home) | python | extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_script_turns_codes_into_what_cron_understands(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (str(SCRIPT), str(home / "bundle"), "none.csv", str(out))
    refused = shell(home, *words)
    assert refused.returncode == 1
    assert "no report about toy:1.0.0" in refused.stderr
    seen(home, 0)
    quiet = shell(home, *words)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "nothing has drifted" in quiet.stdout
    with (tmp_path / "out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = shell(home, *words)
    assert (busy.returncode, "is at work" in busy.stdout) == (0, True)
    out.mkdir()
    there = shell(home, *words)
    assert (there.returncode, "is there already" in there.stdout) == (0, True)


def test_cron_calls_the_script() -> None:
    lines = (FOLDER / "crontab").read_text().splitlines()
    (job,) = [line for line in lines if re.match(r"[\d*]", line)]
    *when, command = job.split(None, 5)
    assert len(when) == 5
    assert all(re.fullmatch(r"\*|\d+", field) for field in when)
    script = command.split(" && ")[1].split()
    assert ROOT / script[0] == SCRIPT
    assert len(script) == 4


def test_the_workflow_runs_the_same_command(home: Path, tmp_path: Path) -> None:
    workflow = yaml.safe_load((FOLDER / "github-actions.yml").read_text())
    assert workflow[True].keys() == {"schedule", "workflow_dispatch"}  # YAML 1.1: on
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    _, step, upload = job["steps"]
    assert upload["if"] == "steps.retrain.outputs.drifted == 'true'"
    told = tmp_path / "output"
    extra = {
        "GITHUB_OUTPUT": str(told),
        "BUNDLE": str(home / "bundle"),
        "DATA": "none.csv",
    }
    bash = ("bash", "-e", "-o", "pipefail", "-c", step["run"])
    refused = shell(home, *bash, **extra)
    assert refused.returncode == 1
    assert "::error::refused" in refused.stdout
    seen(home, 0)
    assert shell(home, *bash, **extra).returncode == 0
    assert told.read_text() == "drifted=false\n"


def test_alertmanager_asks_the_webhook_of_drift_alone() -> None:
    config = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())
    receivers = {item["name"]: item for item in config["receivers"]}
    routes = config["route"]["routes"]
    assert {route["receiver"] for route in routes} <= receivers.keys()
    assert routes[0]["matchers"] == ['alertname="SealgateDrift"']
    (hook,) = receivers["retraining"]["webhook_configs"]
    assert hook["url"] == "http://127.0.0.1:9099/"
    assert hook["http_config"]["authorization"]["type"] == "Bearer"


@contextmanager
def webhook(folder: Path) -> Iterator[str]:
    """A receiver whose command waits for a file before it ends."""
    (folder / "token").write_text(TOKEN + "\n")
    command = 'echo ran >> "$1/ran"; while [ ! -e "$1/go" ]; do sleep 0.05; done'
    process = subprocess.Popen(
        [
            *(sys.executable, str(FOLDER / "webhook.py"), "--listen", "127.0.0.1:0"),
            *("--token-file", str(folder / "token"), "--"),
            *("sh", "-c", command, "sh", str(folder)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://{process.stdout.readline().split()[-1]}/"
    finally:
        (folder / "go").touch()
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


def too_long(url: str) -> int:
    """What a head is answered that announces a body beyond the bound."""
    address = httpx.URL(url)
    connection = HTTPConnection(address.host, address.port, timeout=20)
    try:
        connection.putrequest("POST", "/")
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.putheader("Content-Length", "1048577")
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_webhook_starts_one_run_and_believes_nobody(tmp_path: Path) -> None:
    def post(body: Any = ALERT, token: str = TOKEN, **headers: str) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"authorization": f"Bearer {token}", **headers}
        return httpx.post(url, content=content, headers=fields, timeout=20).status_code

    with webhook(tmp_path) as url:
        assert post(token="another-token-of-enough") == 401
        for body in (b"{", b"[]", {"version": "3"}, {"version": "4"}, b"[" * 100_000):
            assert post(body) == 400
        assert too_long(url) == 413
        resolved = {"version": "4", "alerts": [{"status": "resolved"}]}
        assert post(resolved) == 200
        assert not (tmp_path / "ran").exists()
        assert post() == 202
        wait_for((tmp_path / "ran").exists)
        assert [post(), post()] == [200, 200]  # it is at work
        (tmp_path / "go").touch()
        deadline = time.monotonic() + 20
        while post() != 202:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        wait_for(lambda: (tmp_path / "ran").read_text() == "ran\n" * 2)
