"""`python -m security package`: from an assessed bundle to a Bento."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from models.bundle import MODEL_CARD_FILE, VERDICT_FILE, read_bundle, report_file
from tests.conftest import TAG, check_security, run_security
from tests.support.bundles import POLICY, Keys, write_bundle
from tests.support.servers import ROOT, bentoml, environment
from tests.support.timestamps import serving, time_authority

pytestmark = pytest.mark.slow

STEPS = "keys signed signed admitted verdict documents stored names built"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """No key, and a bundle that was assessed and that nobody has signed."""
    home = tmp_path / "home"
    write_bundle(home / "bundle", Keys.generate(), admit=False)
    shutil.rmtree(home / "bundle" / "attestations")
    (home / "policy.toml").write_bytes(POLICY)
    return home


def package(home: Path, *more: str, **extra: str):
    policy = ("--policy", str(home / "policy.toml"))
    return run_security(home, "package", str(home / "bundle"), *policy, *more, **extra)


def steps(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines()]


def locks(home: Path) -> list[dict]:
    found = (home / "bentoml" / "bentos").glob("*/*/src/admission.lock.json")
    return [json.loads(path.read_bytes())["models"] for path in found]


def test_in_development_it_does_all_that_is_left(home: Path) -> None:
    result = package(home)
    assert result.returncode == 0, result.stderr
    assert steps(result.stdout) == STEPS.split()
    assert "signed    privacy as trainer\n" in result.stdout
    assert "signed    structure, quality as assessor\n" in result.stdout
    assert {VERDICT_FILE, MODEL_CARD_FILE} <= read_bundle(home / "bundle").files.keys()
    assert [list(models) for models in locks(home)] == [[TAG]]
    # The settings that a developer starts with name another model.
    assert result.stdout.splitlines()[-1].startswith("built     sealgate:")

    verdict = (home / "bundle" / VERDICT_FILE).read_bytes()
    again = package(home)
    assert again.returncode == 0, again.stderr
    assert f"admitted  {TAG} already" in again.stdout
    assert f"stored    {TAG} already" in again.stdout
    assert (home / "bundle" / VERDICT_FILE).read_bytes() == verdict


def test_what_it_signs_is_stamped(home: Path, tmp_path: Path) -> None:
    """A folder cannot be stored before it has the stamps that the policy demands."""
    needed = POLICY.replace(b"version = 1\n", b'version = 1\ntimestamps = "required"\n')
    (home / "policy.toml").write_bytes(needed)
    tsa = time_authority(tmp_path / "tsa")
    check_security(home, "keygen")
    check_security(home, "keys", "add-authority", "TSA", str(tsa.folder / "ca.pem"))
    with serving(tsa) as (url, requests):
        result = package(home, "--timestamp-url", url)
    assert result.returncode == 0, result.stderr
    signed = list((home / "bundle" / "attestations").iterdir())
    assert len(requests) == len(signed)
    assert [list(models) for models in locks(home)] == [[TAG]]


def test_what_the_policy_refuses_is_not_stored(home: Path) -> None:
    (home / "bundle" / report_file("quality")).unlink()
    result = package(home)
    assert result.returncode == 1
    assert result.stderr == "refused: quality report is missing\n"
    assert not (home / "bundle" / VERDICT_FILE).exists()
    assert not list((home / "bentoml" / "models").glob("*"))
    assert locks(home) == []


def test_a_folder_that_is_no_bundle_makes_no_keys(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_security(tmp_path / "home", "package", str(tmp_path / "empty"))
    assert result.returncode == 1
    assert result.stderr == "refused: model.onnx is missing\n"
    assert not (tmp_path / "home" / "keys").exists()


def test_in_production_no_hand_holds_several_roles(home: Path) -> None:
    run_security(home, "keygen")
    production = {
        "SEALGATE_SERVICE_ENVIRONMENT": "production",
        "SEALGATE_ACCESS_ISSUER": "https://issuer.example",
        "SEALGATE_ACCESS_RESOURCE": "",
    }
    result = package(home, **production)
    assert result.returncode == 2
    assert "privacy-officer, release, monitor are in one hand" in result.stderr
    assert not (home / "bundle" / VERDICT_FILE).exists()

    # Each role signs elsewhere, by its own command.
    keys = home / "keys"
    for role in ("trainer", "assessor"):
        signed = run_security(
            home, "sign", str(home / "bundle"), "--role", role,
            "--policy", str(home / "policy.toml"),
        )  # fmt: skip
        assert signed.returncode == 0, signed.stderr
        (keys / f"{role}.pem").unlink()
    for role in ("privacy-officer", "monitor"):
        (keys / f"{role}.pem").unlink()
    release = (keys / "release.pem").rename(home / "release.pem")
    result = package(home, **production)
    assert result.returncode == 2
    assert "no key of release is in" in result.stderr

    release.rename(keys / "release.pem")
    result = package(home, **production)
    assert result.returncode == 0, result.stderr
    assert "keys      of release\n" in result.stdout
    assert "signed" not in result.stdout
    assert [list(models) for models in locks(home)] == [[TAG]]


def build(home: Path, **extra: str):
    policy = {"SEALGATE_ADMISSION_POLICY": str(home / "policy.toml")}
    return subprocess.run(
        bentoml("build"),
        cwd=ROOT,
        env=environment(home, policy | extra),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_build_says_what_it_leaves_out(home: Path) -> None:
    assert package(home).returncode == 0
    refused = build(home)
    assert refused.returncode == 1
    assert f"service.models does not name {TAG} of the model store" in refused.stderr

    shutil.rmtree(home / "bundle")
    write_bundle(home / "bundle", Keys.generate(), name="other", admit=False)
    shutil.rmtree(home / "bundle" / "attestations")
    assert package(home).returncode == 0
    built = build(home, SEALGATE_SERVICE_MODELS=TAG)
    assert built.returncode == 0, built.stderr
    assert "notice: service.models does not name other:1.0.0" in built.stderr
