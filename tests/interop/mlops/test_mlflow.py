"""Models from a real MLflow server and back: ``make interop-mlops``.

The server and the data scientist have an environment of their own. The command has the
project's, with MLflow's modules behind it; where both have a library, the project's.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.bundle import VERDICT_FILE, read_bundle
from tests.support import small_training
from tests.support.servers import ROOT, environment, free_port

if os.environ.get("INTEROP") != "mlops":
    pytest.skip("run by make interop-mlops", allow_module_level=True)

HERE = Path(__file__).parent
PART = Path(os.environ["INTEROP_PART"])
PYTHON = PART / "bin" / "python"
POLICY = ("--policy", str(ROOT / "deploy" / "policies" / "imported.toml"))
START_TIMEOUT_S = 600


def modules(place: Path) -> str:
    """Where an environment of this very Python keeps what is installed in it."""
    base = {"base": str(place), "platbase": str(place)}
    return sysconfig.get_path("purelib", vars=base)


@dataclass(frozen=True)
class Tracking:
    """A server, and the state of whoever works with it.

    Attributes:
        url: of the server.
        home: for keys, ledger and files.
        artifacts: folder that the server keeps artifacts in.
        logged: what the data scientist logged.
    """

    url: str
    home: Path
    artifacts: Path
    logged: dict[str, object]

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """`python -m security …`."""
        path = os.pathsep.join([str(ROOT), modules(Path(sys.prefix)), modules(PART)])
        settings = {"MLFLOW_TRACKING_URI": self.url, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-m", "security", *arguments],
            cwd=self.home,
            env=environment(self.home, settings | extra),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        said = done.stderr.splitlines(keepends=True)
        done.stderr = "".join(line for line in said if " s so far" not in line)
        return done

    def done(self, *arguments: str, **extra: str) -> str:
        """As `run`, of what must not fail."""
        result = self.run(*arguments, **extra)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def refused(self, code: int, *arguments: str, **extra: str) -> str:
        """As `run`, of what must fail with one line."""
        result = self.run(*arguments, **extra)
        assert result.returncode == code, result.stdout + result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        return result.stderr

    def read(self, *arguments: str) -> dict[str, object]:
        """What MLflow's own client says."""
        return theirs(self.url, "read.py", *arguments)


def theirs(url: str, script: str, *arguments: str) -> dict[str, object]:
    """The JSON that a script of the tracking side prints last."""
    done = subprocess.run(
        [str(PYTHON), str(HERE / script), *arguments],
        env={**tracking_environment(), "MLFLOW_TRACKING_URI": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def tracking_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(str(PYTHON), "-m", "mlflow", "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=tracking_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(url, process, folder / "server.log")
        logged = theirs(url, "log.py")
        home = folder / "home"
        home.mkdir()
        yield Tracking(url, home, folder / "artifacts", logged)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.5)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def holdout(tracking: Tracking) -> str:
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    path = tracking.home / "holdout.csv"
    lines = [",".join([*(f"c{i}" for i in range(30)), "label"])]
    for row, label in zip(source.data[284:], source.target[284:]):
        lines.append(",".join([*map(str, row), str(label)]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def admitted(tracking: Tracking, holdout: str) -> Path:
    """A model that came by its alias, assessed, signed and admitted."""
    tracking.done("keygen")
    said = ("--public-data", "Data that UCI has published")
    tracking.done(*importing("mlflow:models:/credit@champion", "credit"), *said)
    tracking.done("assess", "credit", "--data", holdout, *POLICY)
    roles = ("trainer", "assessor", "privacy-officer")
    named = [word for role in roles for word in ("--role", role)]
    tracking.done("sign", "credit", *POLICY, *named)
    tracking.done("admit", "credit", *POLICY)
    return tracking.home / "credit"


def importing(source: str, out: str, name: str = "credit") -> tuple[str, ...]:
    return ("import", source, "--name", name, "--version", "1.0.0", "--out", out)


def test_what_came_is_what_was_logged(tracking: Tracking, admitted: Path) -> None:
    bundle = read_bundle(admitted)
    assert bundle.subject.onnx_sha256 == tracking.logged["digests"][0]
    stated = bundle.report("provenance").conditions
    assert stated["source"] == "MLflow"
    assert stated["mlflow_uri"] == "models:/credit/1"
    assert stated["mlflow_alias"] == "champion"
    assert stated["mlflow_run_id"] == tracking.logged["run_id"]
    assert stated["mlflow_server"] == tracking.url
    assert str(stated["mlflow_model_id"]).startswith("m-")


def test_evidence_and_verdict_go_back(tracking: Tracking, admitted: Path) -> None:
    out = tracking.done("mlflow", "log", "credit", "--to", "models:/credit/1", *POLICY)
    assert "alias admitted names models:/credit/1" in out
    found = tracking.read("version", "credit", "1")
    bundle = read_bundle(admitted)
    assert sorted(found["aliases"]) == ["admitted", "champion"]
    tags = found["tags"]
    assert tags["sealgate.verdict"] == "admitted"
    assert tags["sealgate.root"] == f"sha256:{bundle.subject.root_sha256}"
    verdict = hashlib.sha256(bundle.files[VERDICT_FILE]).hexdigest()
    assert tags["sealgate.verdict_sha256"] == verdict
    assert found["run_tags"]["sealgate.root"] == tags["sealgate.root"]
    accuracy = bundle.report("quality").metrics["accuracy"].value
    assert found["metrics"]["sealgate.quality.accuracy"] == accuracy
    assert "sealgate.robustness.robust_accuracy" in found["metrics"]
    kept = {f"sealgate/{name}" for name in bundle.files if name != "model.onnx"}
    assert set(found["artifacts"]) == kept
    assert found["artifacts"][f"sealgate/{VERDICT_FILE}"] == verdict
    # The alias is an address like any other.
    tracking.done(*importing("mlflow:models:/credit@admitted", "again"))
    again = read_bundle(tracking.home / "again").subject
    assert again.root_sha256 == bundle.subject.root_sha256


def test_no_other_model_gets_the_alias(tracking: Tracking, admitted: Path) -> None:
    to = ("--to", "models:/credit/2", *POLICY)
    said = tracking.refused(1, "mlflow", "log", "credit", *to)
    digest = tracking.logged["digests"][1]
    assert f"models:/credit/2 has another model: sha256:{digest}" in said
    found = tracking.read("version", "credit", "2")
    assert not found["aliases"]
    assert not found["tags"]


def test_a_verdict_that_does_not_hold_is_not_logged(
    tracking: Tracking, admitted: Path
) -> None:
    default = ROOT / "deploy" / "policy.toml"
    to = ("--to", "models:/credit/1", "--policy", str(default), "--alias", "other")
    said = tracking.refused(1, "mlflow", "log", "credit", *to)
    assert said.startswith("refused: ")
    assert "other" not in tracking.read("version", "credit", "1")["aliases"]


def test_an_artifact_that_was_changed_on_the_server(
    tracking: Tracking, admitted: Path
) -> None:
    (place,) = [
        path
        for path in tracking.artifacts.rglob("model.onnx")
        if hashlib.sha256(path.read_bytes()).hexdigest()
        == tracking.logged["digests"][0]
    ]
    whole = place.read_bytes()
    at = whole.index(b"skl2onnx")
    place.write_bytes(whole[:at] + b"SKL2ONNX" + whole[at + 8 :])
    try:
        to = ("--to", "models:/credit/1", "--alias", "third", *POLICY)
        said = tracking.refused(1, "mlflow", "log", "credit", *to)
        assert "another model" in said
        assert "third" not in tracking.read("version", "credit", "1")["aliases"]
        place.write_bytes(b"\x80\x04cos\nsystem\n.")
        said = tracking.refused(1, *importing("mlflow:models:/credit/1", "bad"))
        assert said.startswith("refused: parse: ")
    finally:
        place.write_bytes(whole)


def test_weights_in_a_file_of_their_own(tracking: Tracking) -> None:
    tracking.done(*importing("mlflow:models:/split/1", "split"))
    known = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt")
    beside = set(tracking.logged["split"]) - {*known, "model.onnx"}
    assert len(beside) == 1
    model = read_bundle(tracking.home / "split").model
    assert np.arange(6, dtype=np.float32).tobytes() in model
    assert not any(name.encode() in model for name in beside)
    to = ("--to", "models:/split/1")
    assert "verdict: none" in tracking.done("mlflow", "log", "split", *to)
    found = tracking.read("version", "split", "1")
    assert found["tags"]["sealgate.verdict"] == "none"
    assert not found["aliases"]


def test_a_pickle_is_not_read(tracking: Tracking) -> None:
    said = tracking.refused(1, *importing("mlflow:models:/pickled/1", "no"))
    assert "no ONNX model, but python_function, sklearn" in said
    assert "mlflow.onnx.log_model" in said


def test_what_is_not_there(tracking: Tracking) -> None:
    said = tracking.refused(2, *importing("mlflow:models:/nobody/1", "no"))
    assert "not found" in said
    away = f"http://user:secret@127.0.0.1:{free_port()}"
    arguments = importing("mlflow:models:/credit/1", "no")
    said = tracking.refused(2, *arguments, MLFLOW_TRACKING_URI=away)
    assert said.startswith("error: MLflow: ")
    assert "secret" not in said
    again = tracking.refused(2, *arguments, "--tracking-uri", away)
    assert "secret" not in again


def test_a_training_is_a_run_with_its_model(tracking: Tracking) -> None:
    folder = tracking.home / "trained"
    folder.mkdir()
    small_training.write_rows(folder / "rows.csv")
    (folder / "small.toml").write_text(small_training.CONFIG)
    out = tracking.done(
        *("train", "trained/small.toml", "--out", "trained/bundle", "--mlflow"),
        MLFLOW_EXPERIMENT_NAME="trainings",
    )
    run_id = out.split("mlflow      run ")[1].strip()
    bundle = read_bundle(folder / "bundle")
    found = tracking.read("register", "small", run_id)
    assert found["params"]["privacy.epsilon"] == "2.0"
    assert found["params"]["data.label"] == "bought"
    metrics = bundle.report("privacy").metrics
    for name in ("epsilon", "delta"):
        assert found["metrics"][f"sealgate.privacy.{name}"] == metrics[name].value
    assert [step for step, _ in found["history"]] == list(range(1, 13))
    assert found["history"][-1][1] == pytest.approx(metrics["epsilon"].value, abs=0.1)
    assert found["artifacts"]["model/model.onnx"] == bundle.subject.onnx_sha256
    assert "sealgate/evidence/privacy.json" in found["artifacts"]
    text = json.dumps(found)
    assert not any(
        line in text for line in (folder / "rows.csv").read_text().splitlines()
    )
    tracking.done(*importing("mlflow:models:/small/1", "small", "small"))
    came = read_bundle(tracking.home / "small")
    assert came.subject.onnx_sha256 == bundle.subject.onnx_sha256
    tracking.done("mlflow", "log", "trained/bundle", "--to", f"runs:/{run_id}")


INSIDE = """
import sys, tempfile
from pathlib import Path
from security.errors import TrackingError
from security.tracking.addresses import parse_address
from security.tracking.client import connect

client = connect(None)
from mlflow.telemetry import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled() and get_telemetry_client() is None
address = parse_address("models:/credit/1")
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    whole = client.download(address, "model.onnx", folder, 1 << 20).stat().st_size
    assert whole > 1000
    (folder / "model.onnx").unlink()
    try:
        client.download(address, "model.onnx", folder, 1000)
    except TrackingError as error:
        print("refused", error)
    assert not list(folder.iterdir())
"""


def test_no_report_to_its_makers_and_no_longer_file(tracking: Tracking) -> None:
    path = os.pathsep.join([str(ROOT), modules(Path(sys.prefix)), modules(PART)])
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "CI")
    }
    done = subprocess.run(
        [sys.executable, "-c", INSIDE],
        env={**kept, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": tracking.url},
        cwd=tracking.home,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused MLflow: ")
