"""`python -m security`: every subcommand, its exit codes, and one line per error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from models.bundle import VERDICT_FILE, read_bundle
from models.files import write_atomic
from models.report import Metric
from sealgate.protocol import dsse
from security.admission.attest import verdict_payload
from security.admission.keys import load_signing_key
from security.admission.trust import ROLES
from security.admission.trust_store import load_trust
from security.commands import build_parser
from security.errors import AdmissionRefused
from security.key_files import read_secret
from tests.conftest import Command, run_security, toy_settings
from tests.support.bundles import POLICY, Keys, policy, rewrite_report, write_bundle
from tests.support.servers import ROOT

COMMANDS = (
    "keygen", "train", "assess", "sign", "admit", "verify", "store", "token", "profile",
    "audit", "config", "keys", "import", "inspect", "waive", "policy", "documents",
    "sbom", "seal", "history", "ledger", "access", "scan", "report", "compare",
    "models", "retrain", "canaries", "init", "check", "package", "serve", "agreement",
    "promote", "reference", "monitor", "feedback", "outputs", "mlflow",
    "push", "pull", "image", "batch", "timestamp", "trust", "tpm", "witness",
    "upgrade-evidence", "calibrate",
)  # fmt: skip


def failed(result, code: int, message: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert message in lines[0]


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the deployment that a test may change: keys, bundle, stored model."""
    return Path(shutil.copytree(pristine, tmp_path / "home"))


def run(home: Path, *arguments: str, **extra: str):
    return run_security(home, *arguments, **toy_settings(home) | extra)


def test_the_list_here_is_the_commands_list() -> None:
    text = build_parser().format_help()
    assert sorted(re.findall(r"^    ([\w-]+)", text, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m security {command}")
    assert len(text) > 100


def test_help_of_the_whole_and_wrong_usage(security: Command) -> None:
    result = security("--help")
    assert result.returncode == 0
    assert "Exit codes" in result.stdout
    for arguments in ((), ("nonsense",), ("sign",), ("token",), ("token", "--scop")):
        result = security(*arguments)
        assert result.returncode == 2
        assert "usage:" in result.stderr
        assert "Traceback" not in result.stderr


def test_keygen_makes_what_is_missing_and_keeps_the_rest(security: Command) -> None:
    first = security("keygen")
    assert first.returncode == 0, first.stderr
    lines = [line.split() for line in first.stdout.splitlines()]
    paths = {Path(line[1]) for line in lines}
    contents = {path: path.read_bytes() for path in paths}
    for path in paths:
        private = path.suffix in (".pem", ".key")
        assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644), path
    made = {path.stem for path in paths if path.suffix in (".pem", ".key")}
    assert {*ROLES, "issuer", "model", "audit"} <= made
    assert {"checkpoint", "checkpoint.mldsa"} <= made
    second = security("keygen")
    assert second.returncode == 0, second.stderr
    assert all(line.startswith("kept") for line in second.stdout.splitlines())
    assert contents == {path: path.read_bytes() for path in paths}
    (trust,) = (path for path in paths if path.name == "trust.json")
    assert set(load_trust(trust).roles) == set(ROLES)


def test_keygen_replaces_one_lost_key_only(home: Path) -> None:
    lost, kept = home / "keys" / "trainer.pem", home / "keys" / "release.pem"
    before = lost.read_bytes(), read_secret(kept)
    lost.unlink()
    result = run(home, "keygen")
    assert result.returncode == 0
    assert f"generated {lost}" in result.stdout
    assert lost.read_bytes() != before[0]
    assert read_secret(kept) == before[1]


def test_config_shows_paths_not_keys(home: Path) -> None:
    result = run(home, "config")
    settings = json.loads(result.stdout)
    assert settings["service"]["models"] == ["toy:1.0.0"]
    assert settings["audit"]["pseudonym_key"] == str(home / "keys" / "audit.key")
    for path in [*home.glob("keys/*.pem"), *home.glob("keys/hpke/*.pem")]:
        body = path.read_text().splitlines()[1]
        assert body not in result.stdout
    assert read_secret(home / "keys" / "audit.key").hex() not in result.stdout


def test_a_misspelt_setting_is_one_line(home: Path) -> None:
    result = run(home, "config", SEALGATE_SEALING_REQUIRE_SEALD="true")
    failed(result, 2, "did you mean 'SEALGATE_SEALING_REQUIRE_SEALED'")


def test_verify_prints_what_was_proved(home: Path) -> None:
    for target in (str(home / "bundle"), "toy:1.0.0"):
        result = run(home, "verify", target)
        assert result.returncode == 0, result.stderr
        assert "verified toy:1.0.0" in result.stdout
        assert "epsilon 2.5" in result.stdout


def test_verify_refuses_a_tampered_bundle(home: Path) -> None:
    bundle = home / "bundle"
    (bundle / "model.onnx").write_bytes(b"another model")
    message = "refused: structure attestation is about other bytes [check 3]"
    failed(run(home, "verify", str(bundle)), 1, message)
    (bundle / "model.onnx").unlink()
    failed(run(home, "verify", str(bundle)), 1, "refused: model.onnx is missing")
    failed(run(home, "verify", "toy:9.9.9"), 1, "not in the model store")


def test_the_wrong_role_signs_and_is_refused(home: Path) -> None:
    bundle = str(home / "bundle")
    key = str(home / "keys" / "trainer.pem")
    signed = run(home, "sign", bundle, "--role", "assessor", "--key", key)
    assert signed.returncode == 0
    message = "signed by a key that is not trusted for it [check 2]"
    failed(run(home, "verify", bundle), 1, message)
    failed(run(home, "admit", bundle), 1, message)


def test_sign_needs_a_key_and_a_report(home: Path) -> None:
    bundle = str(home / "bundle")
    result = run(home, "sign", bundle, "--role", "release")
    failed(result, 2, "the policy lets release sign no report")
    result = run(home, "sign", bundle, "--role", "assessor", "--kind", "fairness")
    failed(result, 1, "refused: fairness report is missing")
    result = run(home, "sign", bundle, "--role", "assessor", "--key", "/none.pem")
    failed(result, 2, "no such file")
    (home / "keys" / "assessor.pem").chmod(0o644)
    result = run(home, "sign", bundle, "--role", "assessor")
    failed(result, 2, "permissions 0644 let others in")


@pytest.mark.slow
def test_admit_writes_nothing_when_it_refuses(home: Path) -> None:
    bundle = home / "bundle"
    (bundle / VERDICT_FILE).unlink()
    # An honest signature under a claim that recomputing does not bear out.
    metrics = {"epsilon": Metric(1.0), "delta": Metric(1e-3)}
    rewrite_report(bundle, "privacy", metrics=metrics)
    run(home, "sign", str(bundle), "--role", "trainer")
    result = run(home, "admit", str(bundle))
    failed(result, 1, "when recomputed, 1 was claimed [check 10]")
    assert not (bundle / VERDICT_FILE).exists()


@pytest.mark.slow
def test_admit_needs_the_release_key(home: Path) -> None:
    bundle = home / "bundle"
    (bundle / VERDICT_FILE).unlink()
    key = home / "keys" / "assessor.pem"
    done = run(home, "admit", str(bundle), "--key", str(key))
    failed(done, 1, "does not hold the role release [check 11]")
    assert not (bundle / VERDICT_FILE).exists()
    # However it came to be signed, no door takes it.
    payload = verdict_payload(read_bundle(bundle), policy(), now=datetime.now(UTC))
    write_atomic(bundle / VERDICT_FILE, dsse.sign(payload, load_signing_key(key)))
    message = "verdict: signed by a key that is not trusted for it [check 11]"
    failed(run(home, "verify", str(bundle)), 1, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.5}, "the report states two deltas"),
        ({"steps": 50.5}, "steps are not a whole number"),
        ({"steps": "fifty"}, "epsilon cannot be recomputed"),
        ({"steps": 0}, "epsilon cannot be recomputed: 0 steps"),
        ({"sample_rate": 0}, "epsilon cannot be recomputed: sampling rate"),
        ({"sample_rate": "much"}, "epsilon cannot be recomputed"),
        ({"noise_multiplier": -1}, "epsilon cannot be recomputed: noise"),
        ({"noise_multiplier": None}, "does not state 'noise_multiplier'"),
        ({"delta": None}, "does not state 'delta'"),
        ({"group_size": 65}, "epsilon cannot be recomputed: groups of 65"),
    ],
)
def test_a_mechanism_that_cannot_bear_the_claim(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    from security.commands.admit import _numbers

    bundle = read_bundle(write_bundle(tmp_path, Keys.generate(), admit=False))
    stated = dict(bundle.report("privacy").conditions) | changes
    stated = {name: value for name, value in stated.items() if value is not None}
    report = rewrite_report(tmp_path, "privacy", conditions=stated)
    with pytest.raises(AdmissionRefused, match=message) as caught:
        _numbers(report)
    assert caught.value.check == 10


def test_store_keeps_what_is_there(home: Path) -> None:
    assert run(home, "store", str(home / "bundle")).returncode == 0
    other = write_bundle(home / "other", Keys.generate())
    failed(run(home, "store", str(other)), 1, "with other contents")


def test_token(home: Path) -> None:
    result = run(home, "token", "--scope", "infer:toy", "--scope", "metrics")
    assert result.returncode == 0
    assert result.stdout.count(".") == 2
    for arguments, message in (
        (("--scope", "a b"), "a scope is one word"),
        (("--scope", ""), "a scope is one word"),
        (("--scope", "x", "--lifetime", "0"), "lifetime must be 1 to 3600"),
        (("--scope", "x", "--lifetime", "3601"), "lifetime must be 1 to 3600"),
    ):
        failed(run(home, "token", *arguments), 2, message)


def test_no_token_in_production_or_for_another_issuer(home: Path) -> None:
    for name, value, message in (
        ("SERVICE_ENVIRONMENT", "production", "refused in production"),
        ("ACCESS_ISSUER", "https://issuer.example", "come from that issuer"),
    ):
        for command in (("token", "--scope", "x"), ("profile", "--model", "toy")):
            result = run(home, *command, **{f"SEALGATE_{name}": value})
            failed(result, 2, message)
            assert result.stdout == ""


@pytest.mark.slow
def test_a_classical_profile_has_what_release_0_1_knows(tmp_path: Path) -> None:
    """Its reader refused other fields, and keys other than ECDSA's."""
    home = tmp_path / "home"
    assert run(home, "keygen").returncode == 0
    out = str(home / "classical.json")
    where = ("--model", "toy", "--url", "http://127.0.0.1:1", "--out", out)
    assert run(home, "profile", "--classical", *where).returncode == 0
    document = json.loads((home / "classical.json").read_bytes())
    known = {"url", "token", "model", "key_configs", "trusted_keys", "identity_keys"}
    assert document.keys() == known
    for pem in document["trusted_keys"] + document["identity_keys"]:
        assert isinstance(load_pem_public_key(pem.encode()), EllipticCurvePublicKey)


def test_a_profile_is_for_its_owner(home: Path) -> None:
    result = run(home, "profile", "--model", "toy", "--url", "http://127.0.0.1:1")
    assert result.returncode == 0, result.stderr
    path = home / "profile.json"
    assert path.stat().st_mode & 0o777 == 0o600
    profile = json.loads(path.read_text())
    assert profile["model"] == "toy"
    assert profile["token"] not in result.stdout
    assert "PRIVATE" not in path.read_text()


def test_a_reader_who_has_enough(home: Path) -> None:
    command = f"{sys.executable} -u -m security policy explain"
    shell = command + " | true; echo ${PIPESTATUS[0]}"
    result = subprocess.run(
        ["bash", "-c", shell],
        cwd=ROOT,
        env=os.environ | toy_settings(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_a_policy_that_is_none(home: Path) -> None:
    (home / "policy.toml").write_bytes(POLICY.replace(b"max = 0", b"maxx = 0"))
    result = run(home, "verify", str(home / "bundle"))
    failed(result, 2, "unknown key 'maxx'; did you mean 'max'")


def test_one_person_signs_for_several_roles(home: Path) -> None:
    bundle = home / "bundle"
    for path in (bundle / "attestations").iterdir():
        path.unlink()
    signed = run(home, "sign", str(bundle), "--role", "assessor", "--role", "trainer")
    assert signed.returncode == 0, signed.stderr
    roles = {line.split()[-1] for line in signed.stdout.splitlines()}
    assert roles == {"assessor", "trainer"}
    key = str(home / "keys" / "trainer.pem")
    both = ("sign", str(bundle), "--role", "assessor", "--role", "trainer")
    failed(run(home, *both, "--key", key), 2, "are for one --role")
