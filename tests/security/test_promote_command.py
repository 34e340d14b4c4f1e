"""`promote`, `models default`, `waive` and `agreement`, as an operator meets them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from security.admission import gate
from security.admission.observations import observation_file, write_observation
from security.admission.plan import PlanFolder
from security.commands.agreement import counts_of
from security.errors import AdmissionRefused, PlanError
from tests.conftest import run_security, toy_settings
from tests.support.bundles import Keys, policy, write_bundle
from tests.support.in_process import security_code
from tests.support.promotions import ASKING, monitoring

NEXT = "toy:2.0.0"


def keys_of(home: Path) -> Keys:
    return Keys.of(home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions in the store, under a policy that asks for everything."""
    home = tmp_path_factory.mktemp("promote") / "home"
    home.mkdir()
    (home / "policy.toml").write_bytes(ASKING)
    assert security_code(home, "keygen") == 0
    keys = keys_of(home)
    for name, version in (("toy", "1.0.0"), ("toy", "2.0.0"), ("fresh", "1.0.0")):
        folder = home / f"{name}-{version}"
        write_bundle(folder, keys, name=name, version=version, policy_bytes=ASKING)
        assert run(home, "store", str(folder)).returncode == 0
    return home


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_security(home, *words, **toy_settings(home))


def here(home: Path, *words: str) -> int:
    return security_code(home, *words, extra=toy_settings(home))


def audited(home: Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in (home / "audit").glob("*.jsonl"))
    records = [json.loads(line) for line in lines.splitlines()]
    ours = [record for record in records if record["action"] == "promotion"]
    return sorted(ours, key=lambda record: record["time_us"])


@pytest.mark.slow
def test_from_a_refusal_by_a_waiver_to_the_default_and_back(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing is signed yet: every requirement says so, and nothing changes.
    # A --force without a waiver is none.
    refused = run(home, "promote", NEXT, "--force")
    assert refused.returncode == 1, refused.stderr
    assert refused.stdout.count("refused    ") == 2
    assert "met        comparison accuracy_loss" in refused.stdout
    (line,) = refused.stderr.splitlines()
    assert line.startswith("refused: agreement: there is no report")
    assert PlanFolder(home / "deployment").read() is None

    # The very same decision is behind `models default`.
    again = run(home, "models", "default", NEXT)
    assert (again.returncode, again.stdout) == (1, refused.stdout)
    assert [item["outcome"] for item in audited(home)] == ["refuse"] * 2
    assert {item["reason"] for item in audited(home)} == {"check-40"}

    # Who may waive what is the policy's.
    waive = ("waive", str(home / "toy-2.0.0"), "--reason", "why", "--days")
    for days, kind, role, check in (
        ("3", "agreement", "trainer", 20),
        ("3", "monitoring", "privacy-officer", 22),
        ("8", "agreement", "privacy-officer", 22),
    ):
        asked = (*waive, days, "--kind", kind, "--role", role)
        assert here(home, *asked) == 1
        assert f"[check {check}]" in capsys.readouterr().err
    asked = (*waive, "3", "--kind", "agreement", "--role", "privacy-officer")
    assert here(home, *asked) == 0
    subject = read_bundle(home / "toy-2.0.0").subject
    assert observation_file(home / "deployment", subject, "waiver-agreement").exists()

    # It counts where the operator says so, and lifts nothing else.
    forced = run(home, "promote", NEXT, "--force")
    assert forced.returncode == 1
    assert forced.stderr.startswith("refused: monitoring: ")
    default = read_bundle(home / "toy-1.0.0").subject
    signers = keys_of(home).signers("monitor")
    write_observation(home / "deployment", monitoring(default), signers)
    done = run(home, "promote", NEXT, "--force")
    assert done.returncode == 0, done.stderr
    assert "waived     agreement" in done.stdout
    plan = PlanFolder(home / "deployment").read()
    assert plan is not None
    assert plan.change == f"default {NEXT} --force"
    assert plan.models["toy"].default == "2.0.0"
    path = home / "deployment" / "promotions" / f"{plan.generation:06}.json"
    record = json.loads(path.read_bytes())
    assert record["waivers"].keys() == {"agreement"}
    assert record["signed"]["monitoring"]["role"] == "monitor"
    assert audited(home)[-1]["outcome"] == "allow"

    # The old version is still there; back asks the gate alone.
    assert plan.models["toy"].versions.keys() == {"1.0.0", "2.0.0"}
    assert run(home, "models", "rollback", "toy").returncode == 0


def test_the_first_default_of_a_model_needs_the_gate_alone(home: Path) -> None:
    done = run(home, "models", "default", "fresh:1.0.0")
    assert done.returncode == 0, done.stderr
    assert "there is nothing to compare" in done.stdout


def test_a_signer_that_the_policy_does_not_name(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(home, "agreement", NEXT, "--role", "release") == 1
    assert "does not let release sign agreement" in capsys.readouterr().err


def test_retrain_reads_only_what_it_can_believe(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, keys = home / "fresh-1.0.0", keys_of(home)
    subject = read_bundle(bundle).subject
    asked = ("retrain", str(bundle), "--data", "x", "--out", str(tmp_path / "out"))

    def code(*, policy_text: bytes = ASKING) -> tuple[int, str]:
        (home / "policy.toml").write_bytes(policy_text)
        try:
            found = here(home, *asked, "--if-drifted")
        finally:
            (home / "policy.toml").write_bytes(ASKING)
        return found, capsys.readouterr().err

    assert code()[0] == 1  # there is none
    for report, role, said in (
        (monitoring(subject, 1), "trainer", "[check 40]"),
        (monitoring(subject, None), "monitor", "cannot tell of drift"),
    ):
        write_observation(home / "deployment", report, keys.signers(role))
        found, error = code()
        assert (found, said in error) == (1, True), error
    signers = keys.signers("monitor")
    write_observation(home / "deployment", monitoring(subject, 0), signers)
    assert code()[0] == 3
    plain = ASKING[: ASKING.index(b"[promotion.monitoring]")]
    found, error = code(policy_text=plain)
    assert (found, "nobody may say" in error) == (2, True), error
    assert not (tmp_path / "out").exists()


# What workers say


def trial(**changes: Any) -> dict[str, Any]:
    now = time.time()
    return {
        "kind": "shadow",
        "model": "toy",
        "version": "1.0.0",
        "tried": "2.0.0",
        "since": now - 60,
        "last": now - 1,
        "same": 8,
        "different": 2,
        "failed": 1,
        "skipped": 0,
        "default_s": 0.01,
        "tried_s": 0.02,
        "log_ratio": 7.0,
        "log_ratio_squares": 5.0,
        **changes,
    }


@pytest.fixture(scope="module")
def versions(home: Path) -> tuple[gate.Admission, gate.Admission]:
    from datetime import UTC, datetime

    trust = keys_of(home).trust
    one, two = (
        gate.verify(
            read_bundle(home / name), policy(ASKING), trust, now=datetime.now(UTC)
        )
        for name in ("toy-1.0.0", "toy-2.0.0")
    )
    return one, two


def of(versions: tuple[gate.Admission, gate.Admission]) -> Mapping[str, str]:
    default, tried = (item.bundle.subject.root_sha256 for item in versions)
    return {"root_sha256": tried, "beside_sha256": default}


def test_workers_are_added_up_by_digest(
    versions: tuple[gate.Admission, gate.Admission],
) -> None:
    default, tried = versions
    ours = of(versions)
    trials = [
        trial(**ours),
        trial(**ours, same=92, since=1.0),
        trial(**ours, kind="canary"),
        trial(**ours | {"root_sha256": "0" * 64}),
        trial(**ours | {"beside_sha256": "0" * 64}),
        "not one",
    ]
    counts = counts_of(trials, "shadow", tried, default)
    assert (counts.workers, counts.same, counts.different) == (2, 100, 4)
    assert counts.since == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"same": -1},
        {"same": True},
        {"same": 1e9},
        {"different": "2"},
        {"failed": None},
        {"default_s": -1.0},
        {"log_ratio": float("nan")},
        {"last": 1e12},
        {"since": "x"},
    ],
    ids=range(9),
)
def test_a_tally_that_cannot_be(
    versions: tuple[gate.Admission, gate.Admission], changes: dict[str, Any]
) -> None:
    default, tried = versions
    with pytest.raises(PlanError, match="cannot be"):
        counts_of([trial(**of(versions), **changes)], "shadow", tried, default)


def test_nothing_was_counted(
    versions: tuple[gate.Admission, gate.Admission],
) -> None:
    default, tried = versions
    none = trial(**of(versions), same=0, different=0, failed=0, last=0.0)
    for trials in ([], [none], [trial(**of(versions), kind="canary")]):
        with pytest.raises(AdmissionRefused, match=r"no running worker.*check 45"):
            counts_of(trials, "shadow", tried, default)
