"""Drift is found; a version is trained, tried and promoted, and can be taken back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.bundle import Bundle, read_bundle
from models.sessions import make_session
from security.monitoring.layout import layout_of
from tests.conftest import run_security
from tests.support.in_process import security_code, security_result
from tests.support.live import reports, wait_for
from tests.support.released import known_noise, past, put_counts
from tests.support.servers import ROOT, environment, serve
from tests.support.small_training import write_config, write_rows

POLICY = """
version = 1
[verdict]
signers = ["release"]
max_age_days = 30
[require.provenance]
signers = ["trainer"]
max_age_days = 30
[require.reference]
signers = ["trainer"]
max_age_days = 30
[require.privacy]
signers = ["trainer"]
max_age_days = 30
[require.privacy.metrics]
epsilon = { max = 3.0 }
[promotion.comparison]
min_n = 30
[promotion.comparison.metrics]
worse = { max = 0 }
accuracy_loss = { max = 0.05, bound = "interval" }
[promotion.agreement]
signers = ["monitor"]
max_age_days = 7
min_n = 50
[promotion.agreement.conditions]
trial = "shadow"
[promotion.agreement.metrics]
disagreement = { max = 0.9, bound = "interval" }
failed = { max = 0.2, bound = "interval" }
[promotion.monitoring]
signers = ["monitor"]
max_age_days = 21
[promotion.monitoring.metrics]
drift_alarms = { max = 0 }
"""
SETTINGS = {
    "SEALGATE_SERVICE_MODELS": "small:1.0.0",
    "SEALGATE_QUOTAS_TABLE": str(ROOT / "tests" / "support" / "quotas.toml"),
    "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    "SEALGATE_DEPLOYMENT_POLL_S": "0.1",
    "SEALGATE_MONITORING_ENABLED": "true",
}
Run = Callable[..., int]
Served = Callable[..., "tuple[int, str]"]


@pytest.fixture
def home(within_a_day: None, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_text(POLICY)
    return home


@pytest.fixture
def run(home: Path) -> Run:
    extra = SETTINGS | {"SEALGATE_ADMISSION_POLICY": str(home / "policy.toml")}
    return lambda *words: security_code(home, *words, extra=extra)


@pytest.fixture
def served(home: Path) -> Served:
    """A command that imports BentoML, in a process of its own: code and output."""
    extra = SETTINGS | {"SEALGATE_ADMISSION_POLICY": str(home / "policy.toml")}

    def run(*words: str) -> tuple[int, str]:
        done = run_security(home, *words, **extra)
        return done.returncode, done.stdout + done.stderr

    return run


def admit(run: Run, served: Served, bundle: Path, config: Path, *, seed: int) -> None:
    with known_noise(seed):
        words = ("--config", str(config), "--epsilon", "1")
        assert run("reference", str(bundle), *words) == 0
    assert run("sign", str(bundle), "--role", "trainer") == 0
    assert run("admit", str(bundle)) == 0
    assert served("store", str(bundle))[0] == 0


def rows_of(path: Path) -> list[tuple[float, str]]:
    with path.open() as file:
        return [(float(row["age"]), row["job"]) for row in csv.DictReader(file)]


def count_week(home: Path, bundle: Bundle, asked: Path, *, back: int) -> None:
    """Release a past week in which these rows were asked, as the server counts them.

    Args:
        home: of the deployment, whose ledger keeps the release.
        bundle: that answered.
        asked: one row of each subject.
        back: 1 is last week.
    """
    manifest, rows = bundle.manifest, rows_of(asked)
    jobs = ("baker", "nurse", "smith")
    features = np.array([[age, jobs.index(job)] for age, job in rows], np.float32)
    inputs = {manifest.inputs[0].spec.name: features}
    session = make_session(bundle.model)
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, inputs), strict=True))
    layout = layout_of(manifest)
    counts = layout.counts(layout.codes(inputs, answers, slice(0, len(rows))))
    week = past("weekly", back, now=time.time())
    folder = home / "monitoring"
    put_counts(folder, manifest, week, counts, seed=back, subjects=len(rows))


def look(home: Path, bundle: Path) -> tuple[int, str]:
    """Sign what monitoring found of a version, read from its folder: code and output.

    The folder, as the store needs BentoML, and that a process of its own.
    """
    extra = SETTINGS | {
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "SEALGATE_SERVICE_MODELS": f"path:{bundle}",
    }
    done = security_result(home, "monitor", "--sign", extra=extra)
    return done.returncode, done.stdout + done.stderr


class Asking:
    """Somebody who asks for answers to rows, one a request."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        inputs = self._client.get("/v2/models/small").json()["inputs"]
        self._inputs = {item["name"]: item for item in inputs}

    def __call__(self, rows: list[tuple[float, str]]) -> set[str]:
        """Which versions answered."""
        return {self._version(row) for row in rows}

    def _version(self, row: tuple[float, str]) -> str:
        answer = self._client.post("/v2/models/small/infer", json=self._body(row))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model_version"])

    def _body(self, row: tuple[float, str]) -> dict[str, object]:
        (name,) = self._inputs
        job = ("baker", "nurse", "smith").index(row[1])
        data = [row[0], float(job)]
        tensor = {"name": name, "datatype": "FP32", "shape": [1, 2], "data": data}
        return {"inputs": [tensor]}


@pytest.fixture
def ask(home: Path, run: Run, served: Served, tmp_path: Path) -> Iterator[Asking]:
    """The first version, trained, admitted and served."""
    assert run("keygen") == 0
    one = tmp_path / "one"
    config = write_config(tmp_path)
    assert run("train", str(config), "--out", str(one)) == 0
    admit(run, served, one, config, seed=1)
    token = security_result(home, "token", "--scope", "infer:small").stdout.strip()
    extra = SETTINGS | {"SEALGATE_ADMISSION_POLICY": str(home / "policy.toml")}
    with serve("small:1.0.0", home, extra=extra, own=()) as server:
        wait_for(lambda: len(reports(home)) == 1)
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
            yield Asking(client)


def scheduled(home: Path, *words: Path) -> str:
    """What the script of examples/retraining says, as a scheduler runs it."""
    extra = {
        **SETTINGS,
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        [ROOT / "examples" / "retraining" / "retrain.sh", *words],
        cwd=ROOT,
        env=environment(home, extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def counted(home: Path) -> int:
    return sum(
        trial["same"] + trial["different"]
        for report in reports(home)
        for trial in report["trials"]
    )


@pytest.mark.slow
def test_from_drift_to_the_next_default_and_back(
    run: Run,
    tmp_path: Path,
    served: Served,
    ask: Asking,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, one, two = (tmp_path / name for name in ("home", "one", "two"))
    new = write_rows(tmp_path / "new.csv", rows=600, seed=1, oldest=60, buys_above=25)
    retrain = ("retrain", str(one), "--data", str(new), "--out", str(two))
    deployment = home / "deployment"

    # Nobody has looked; then somebody has, and nothing has changed.
    assert run(*retrain, "--if-drifted") == 1
    assert "no report about small:1.0.0" in capsys.readouterr().err
    bundle = read_bundle(one)
    same = write_rows(tmp_path / "same.csv", rows=1200, seed=7)
    count_week(home, bundle, same, back=2)
    code, told = look(home, one)
    assert code == 1, told
    assert "was not released" in told
    assert run(*retrain, "--if-drifted") == 3
    assert not two.exists()

    # What is asked now is something else.
    assert ask(rows_of(new)[:5]) == {"1.0.0"}
    count_week(home, bundle, new, back=1)
    code, told = look(home, one)
    assert code == 4, told
    assert "input/age" in told
    told = scheduled(home, one, new, two)
    assert " about small:1.0.0" in told
    assert "better" in told
    config = write_config(tmp_path, version='"1.0.1"', source='"new.csv"')
    admit(run, served, two, config, seed=2)

    # Admitted is not enough.
    code, told = served("promote", "small:1.0.1", "--dry-run")
    assert code == 1
    assert "refused    agreement" in told
    assert served("models", "shadow", "small:1.0.1", "--percent", "100")[0] == 0
    assert ask(rows_of(new)[:80]) == {"1.0.0"}
    wait_for(lambda: counted(home) >= 80)
    assert served("agreement", "small:1.0.1")[0] == 0
    code, told = served("promote", "small:1.0.1")
    assert code == 0, told
    assert "small:1.0.1 in place of small:1.0.0" in told
    assert "refused" not in told
    assert "small:1.0.1 was trained" in told
    assert ask(rows_of(new)[:5]) == {"1.0.1"}

    # Everything the decision rests on is kept, and its digest is in the audit log.
    (kept,) = (deployment / "promotions").glob("*.json")
    record = json.loads(kept.read_bytes())
    assert record["before_sha256"] == bundle.subject.root_sha256
    assert {item["role"] for item in record["signed"].values()} == {"monitor"}
    logged = b"".join(path.read_bytes() for path in (home / "audit").glob("*.jsonl"))
    actions = Counter(json.loads(line)["action"] for line in logged.splitlines())
    assert actions["promotion"] == actions["retraining"] == 1
    assert actions["no-retraining"] == actions["agreement"] == 1

    # The old version stays, and going back asks the gate alone.
    for path in (deployment / "observations").rglob("*.json"):
        path.unlink()
    assert served("models", "rollback", "small")[0] == 0
    assert ask(rows_of(new)[:5]) == {"1.0.0"}
