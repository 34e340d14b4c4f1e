"""`monitor`: what it shows, signs and sends, and its exit codes."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from models.bundle import read_bundle
from security.admission.observations import observation_file, read_observation
from security.admission.rules import Requirement
from security.admission.trust import load_trust
from security.commands.policy import _unknown
from security.monitoring.estimate import BLIND
from tests.conftest import TAG
from tests.support.bundles import NAME, policy, scene_of
from tests.support.in_process import security_result
from tests.support.released import (
    WATCHED,
    beyond,
    monitored_settings,
    put_weeks,
    shifted,
    usual,
)


@pytest.fixture(scope="module")
def drifted(monitored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After three quiet weeks, one in which a column moved."""
    home = Path(shutil.copytree(monitored, tmp_path_factory.mktemp("drifted") / "home"))
    put_weeks(home, shifted, 1)
    return home


@pytest.fixture
def quiet(monitored: Path, tmp_path: Path) -> Path:
    home = Path(shutil.copytree(monitored, tmp_path / "home"))
    put_weeks(home, usual, 1)
    return home


def monitor(home: Path, *arguments: str, **extra: str) -> tuple[int, str, str]:
    # From a mounted folder, so that BentoML's store has no part in it.
    settings = monitored_settings(home) | extra
    done = security_result(home, "monitor", *arguments, extra=settings)
    return done.returncode, done.stdout, done.stderr


def test_a_quiet_model_exits_with_0(quiet: Path) -> None:
    code, out, _ = monitor(quiet)
    assert code == 0
    assert f"{TAG}: nothing drifted in " in out
    assert BLIND in out


def test_drift_exits_with_4_and_the_page_is_small(
    drifted: Path, tmp_path: Path
) -> None:
    page = tmp_path / "monitoring.html"
    code, out, _ = monitor(drifted, "--html", str(page))
    assert code == 4
    assert "input/a" in out
    text = page.read_text()
    assert len(text) < 1_000_000
    assert "input/a" in text
    assert BLIND in text
    assert "http://" not in text
    assert "https://" not in text


def test_what_cannot_be_told_exits_with_1(monitored: Path) -> None:
    code, out, _ = monitor(monitored)
    assert code == 1
    assert "was not released" in out


def test_errors_exit_with_2(monitored: Path, tmp_path: Path) -> None:
    code, _, said = monitor(monitored, SEALGATE_MONITORING_ENABLED="false")
    assert (code, said.count("\n")) == (2, 1)
    assert "monitoring.enabled" in said
    code, _, said = monitor(monitored, "other-model")
    assert code == 2
    assert "other-model is not served" in said
    gone = Path(shutil.copytree(monitored, tmp_path / "home"))
    (gone / "monitoring" / "ledger.sqlite").unlink()
    assert monitor(gone)[0] == 2


def test_documents_are_what_the_endpoint_answers(drifted: Path) -> None:
    code, out, _ = monitor(drifted, TAG, "--json")
    (document,) = json.loads(out)
    assert code == 4
    assert document["schema"] == "https://sealgate.dev/monitoring/v1"
    assert document["state"] == "drift"
    assert document["windows"][-1]["guarantee"]["unit"] == "subject"


def test_the_report_is_signed_and_believed(drifted: Path) -> None:
    code, out, said = monitor(drifted, "--sign")
    assert code == 4, said
    bundle = read_bundle(drifted / "bundle")
    path = observation_file(drifted / "deployment", bundle.subject, "monitoring")
    assert f"signed as monitor: {path}" in out
    trust = load_trust(drifted / "trust.json")
    needed = Requirement("monitoring", ("monitor",), timedelta(days=1), {}, ())
    scene = scene_of(bundle, trust)
    read = read_observation(drifted / "deployment", scene, needed)
    metrics = read.report.metrics
    assert metrics["drift_alarms"].value >= 1
    assert metrics["psi/input/a"].value > 0.1
    assert metrics["epsilon"].value < 8.0
    # An estimate that sees no changed relation is nothing that a policy may rest on.
    assert not any("without" in name or "estimate" in name for name in metrics)
    assert BLIND in str(read.report.details)


def test_retraining_reads_the_very_report(quiet: Path) -> None:
    assert monitor(quiet, "--sign")[0] == 0
    files = ("--data", "none.csv", "--out", str(quiet.parent / "next"))
    command = "retrain", str(quiet / "bundle"), "--if-drifted", *files
    done = security_result(quiet, *command, extra=monitored_settings(quiet))
    assert done.returncode == 3, done.stderr
    assert "drift_alarms 0 about toy:1.0.0" in done.stdout


def test_a_role_that_the_policy_does_not_name_signs_nothing(quiet: Path) -> None:
    code, _, said = monitor(quiet, "--sign", "--role", "assessor")
    assert code == 1
    assert "does not let assessor sign monitoring" in said
    assert not (quiet / "deployment" / "observations").exists()


def test_an_estimate_can_be_no_bound_of_a_policy() -> None:
    asked = b"[promotion.monitoring.metrics]\ndrift_alarms = { max = 0 }\n"
    extra = b"accuracy_without_labels = { min = 0.8 }\n"
    lines = list(_unknown(policy(WATCHED.replace(asked, asked + extra))))
    assert any("accuracy_without_labels" in line for line in lines)


@dataclass
class Receiver:
    """A webhook's other end."""

    status: int = 204
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    location: str = ""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append((dict(self.headers), body))
            self.send_response(receiver.status)
            if receiver.location:
                self.send_header("location", receiver.location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_event_is_sent_by_the_command(drifted: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc.def\n")
    token.chmod(0o600)
    with receiving(Receiver()) as receiver:
        options = ("--webhook", receiver.url, "--webhook-token-file", str(token))
        assert monitor(drifted, *options)[0] == 4
        assert monitor(drifted, *options)[0] == 4
    (headers, body), (_, again) = receiver.requests
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert headers["authorization"] == "Bearer abc.def"
    event = json.loads(body)
    assert event["specversion"] == "1.0"
    assert event["type"] == "dev.sealgate.monitoring.drift.v1"
    assert event["subject"] == TAG
    assert event["datacontenttype"] == "application/json"
    # Whoever got it before may drop it (CloudEvents 1.0.2, section 3.1.1).
    assert event["id"] == json.loads(again)["id"]
    data = event["data"]
    assert data["state"] == "drift"
    assert "input/a" in data["window"]["alarms"]
    assert "windows" not in data
    assert len(body) < 64_000


@pytest.mark.parametrize("status", [302, 307, 400, 500])
def test_an_event_that_is_not_taken_is_an_error(drifted: Path, status: int) -> None:
    elsewhere = Receiver()
    with receiving(elsewhere), receiving(Receiver(status)) as receiver:
        receiver.location = elsewhere.url
        code, _, said = monitor(drifted, "--webhook", receiver.url)
    assert code == 2
    assert f"answered {status}" in said
    assert receiver.url not in said
    # No redirect is followed.
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "http://127.0.0.1.example.org/",
        "https://user:secret@example.org/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https://",
    ],
)
def test_other_addresses_are_refused_before_anything_is_read(
    monitored: Path, url: str
) -> None:
    code, out, said = monitor(monitored, "--webhook", url)
    assert (code, out) == (2, "")
    assert "--webhook" in said
    assert "secret" not in said


def test_values_beyond_the_reference_withhold_the_estimate(
    monitored: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(monitored, tmp_path / "home"))
    put_weeks(home, beyond, 1)
    _, out, _ = monitor(home, NAME, "--json")
    told = json.loads(out)[0]["windows"][-1]["accuracy_without_labels"]
    assert told["estimate"] is None
    assert told["withheld"] == "drift beyond what the reference has: input/a"
