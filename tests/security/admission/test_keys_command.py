"""`keys` and `history`: rotation, revocation, and what falls with a key."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle import VERDICT_FILE, read_bundle
from models.files import write_atomic
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65, key_hint, public_pem
from security.admission.keys import load_mldsa_key, load_signing_key
from security.admission.trust import ROLES, load_trust
from security.key_files import write_secret
from tests.conftest import Command, check_security, run_security, toy_settings
from tests.support.bundles import Keys, attest, rewrite_report, sign, write_bundle


def deployment_keys(home: Path) -> Keys:
    return Keys.of(home)


def hint_of(home: Path, role: str) -> str:
    return key_hint(load_signing_key(home / "keys" / f"{role}.pem").public_key())


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_security(home, *arguments, **toy_settings(home))


def check(home: Path, *arguments: str) -> str:
    return check_security(home, *arguments, **toy_settings(home))


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the deployment that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "own"))


def test_keygen_makes_a_key_for_every_role(home: Path) -> None:
    lines = check(home, "keys", "list").splitlines()
    others = ("  model  ", "sealing")
    signing = [line.split() for line in lines if not any(o in line for o in others)]
    keys = [
        (load(home / "keys" / f"{role}{name}.pem"), role, more)
        for role in ROLES
        for load, name, more in (
            (load_signing_key, "", []),
            (load_mldsa_key, ".mldsa", ["ml-dsa-65"]),
        )
    ]
    assert sorted(signing) == sorted(
        [key_hint(key.public_key()), role, "trusted", *more] for key, role, more in keys
    )


def test_public_keys(home: Path) -> None:
    pem = public_pem(deployment_keys(home).release.public_key())
    assert check(home, "keys", "public", "--role", "release") == pem
    model = check(home, "keys", "public", "--model")
    assert model.startswith("-----BEGIN PUBLIC KEY-----")
    assert model != pem


def test_a_rotated_key_stays_trusted(home: Path) -> None:
    old = hint_of(home, "release")
    check(home, "keys", "rotate", "--role", "release")
    fresh = hint_of(home, "release")
    assert fresh != old
    trust = load_trust(home / "trust.json")
    assert set(trust.keys(("release",), algorithm=ECDSA_P256)) == {old, fresh}
    assert len(trust.keys(("release",), algorithm=ML_DSA_65)) == 2
    check(home, "verify", "toy:1.0.0")
    aside = home / "keys" / f"release.{old[:16]}.pem"
    assert aside.stat().st_mode & 0o777 == 0o600
    assert not list((home / "keys").glob("*.next.pem"))


def test_a_rotation_that_stopped_half_way_goes_on(home: Path) -> None:
    before = hint_of(home, "release")
    check(home, "keys", "rotate", "--role", "release")
    (aside,) = (home / "keys").glob(f"release.{before[:16]}.pem")
    # As if the last two renames had not happened.
    (home / "keys" / "release.pem").rename(home / "keys" / "release.next.pem")
    aside.rename(home / "keys" / "release.pem")
    fresh = key_hint(load_signing_key(home / "keys" / "release.next.pem").public_key())
    check(home, "keys", "rotate", "--role", "release")
    assert hint_of(home, "release") == fresh
    trust = load_trust(home / "trust.json")
    assert len(trust.keys(("release",), algorithm=ECDSA_P256)) == 2


def test_a_revoked_key_takes_down_what_it_signed(home: Path) -> None:
    hint = hint_of(home, "release")
    check(home, "keys", "rotate", "--role", "release")
    result = run(home, "keys", "revoke", hint[:12], "--reason", "laptop lost")
    assert result.returncode == 1
    assert f"revoked   {hint}  release" in result.stdout
    assert "toy:1.0.0  signed verdict  refused: verdict" in result.stdout
    assert "stored models that no longer verify: 1" in result.stdout
    (record,) = json.loads((home / "trust.json").read_bytes())["revoked"]
    assert (record["hint"], record["reason"]) == (hint, "laptop lost")
    verified = run(home, "verify", "toy:1.0.0")
    assert verified.returncode == 1
    assert "not trusted" in verified.stderr
    assert "revoked" in check(home, "keys", "list")


def test_what_it_did_not_sign_stays(home: Path) -> None:
    hint = hint_of(home, "privacy-officer")
    result = run(home, "keys", "revoke", hint, "--reason", "left the company")
    assert result.returncode == 0
    assert "stored models that no longer verify: 0" in result.stdout
    check(home, "verify", "toy:1.0.0")


def test_a_revoked_key_does_not_come_back(home: Path) -> None:
    public = home / "old.pem"
    public.write_text(check(home, "keys", "public", "--role", "privacy-officer"))
    hint = hint_of(home, "privacy-officer")
    check(home, "keys", "revoke", hint, "--reason", "left the company")
    result = run(home, "keys", "add", str(public), "--role", "privacy-officer")
    assert result.returncode == 2
    assert f"{hint} was revoked: left the company" in result.stderr


def test_a_key_made_elsewhere(home: Path) -> None:
    other = Keys.generate().release.public_key()
    (home / "kms.pem").write_text(public_pem(other))
    check(home, "keys", "add", str(home / "kms.pem"), "--role", "release")
    assert key_hint(other) in load_trust(home / "trust.json").keys(("release",))
    result = run(home, "keys", "add", str(home / "kms.pem"), "--role", "trainer")
    assert result.returncode == 2
    assert "a key holds two roles" in result.stderr


@pytest.mark.parametrize(
    ("hint", "reason", "message"),
    [
        ("0" * 64, "x", "names 0 trusted keys, not one"),
        ("abc", "x", "give 8 characters or more"),
        (None, "a\nb", "reason is not one line"),
        (None, "", "reason is not one line"),
    ],
)
def test_refuses_to_revoke(
    home: Path, hint: str | None, reason: str, message: str
) -> None:
    before = (home / "trust.json").read_bytes()
    named = hint or hint_of(home, "release")
    result = run(home, "keys", "revoke", named, "--reason", reason)
    assert result.returncode == 2
    assert message in result.stderr
    assert (home / "trust.json").read_bytes() == before


def test_keys_with_a_passphrase(security: Command, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    write_secret(secret, b"correct horse\n")
    home = tmp_path / "home"
    settings = toy_settings(home)
    made = security("keygen", "--passphrase-file", str(secret), **settings)
    assert made.returncode == 0, made.stderr
    for role in ROLES:
        pem = (home / "keys" / f"{role}.pem").read_text()
        assert pem.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    without = security("keys", "rotate", "--role", "release", **settings)
    assert without.returncode == 2
    assert "is encrypted" in without.stderr
    by_variable = security(
        *("keys", "rotate", "--role", "release"),
        **settings,
        SEALGATE_KEY_PASSPHRASE_FILE=str(secret),
    )
    assert by_variable.returncode == 0, by_variable.stderr
    for result in (made, without, by_variable):
        assert "horse" not in result.stdout + result.stderr


# History.


def add_version(home: Path, version: str, accuracy: float) -> Path:
    """Another version, signed by the deployment's keys and stored."""
    keys = deployment_keys(home)
    folder = write_bundle(home / version, keys, version=version, admit=False)
    before = read_bundle(folder).report("quality").metrics["accuracy"]
    rewrite_report(
        folder, "quality", metrics={"accuracy": replace(before, value=accuracy)}
    )
    attest(folder, "quality", keys.signers("assessor"))
    sign(folder, keys)
    check(home, "store", str(folder))
    return folder


def test_history_shows_versions_signers_and_changes(home: Path) -> None:
    add_version(home, "1.10.0", 0.94)
    add_version(home, "1.9.0", 0.92)
    release = hint_of(home, "release")[:16]
    out = check(home, "history", "toy")
    tags = [line for line in out.splitlines() if line.startswith("toy:")]
    assert tags == [f"toy:{v}  admitted" for v in ("1.0.0", "1.9.0", "1.10.0")]
    assert out.count(f"verdict      release         {release}") == 3
    assert out.count("verdict.mldsa release") == 3
    (accuracy,) = [line for line in out.splitlines() if "quality accuracy" in line]
    assert accuracy.split() == [
        *("quality", "accuracy", "0.95", "0.92", "(-0.03)", "0.94", "(+0.02)")
    ]


def test_history_says_what_is_refused_and_by_whom_it_was_signed(home: Path) -> None:
    hint = hint_of(home, "assessor")
    run(home, "keys", "revoke", hint, "--reason", "left the company")
    out = check(home, "history", "toy")
    assert "toy:1.0.0  refused: " in out
    assert f"assessor        {hint[:16]}  revoked" in out


def test_history_believes_no_signature_it_cannot_check(home: Path) -> None:
    stored = home / "bentoml" / "models" / "toy" / "1.0.0"
    write_atomic(stored / VERDICT_FILE, b"{}")
    out = check(home, "history", "toy")
    assert "verdict      release" not in out


def test_history_of_nothing(home: Path) -> None:
    result = run(home, "history", "unknown")
    assert result.returncode == 1
    assert "unknown is not in the model store" in result.stderr


def test_a_stored_version_is_never_replaced(home: Path) -> None:
    keys = deployment_keys(home)
    other = write_bundle(home / "other", keys)  # the same tag, signed anew
    result = run(home, "store", str(other))
    assert result.returncode == 1
    assert "is in the model store already, with other contents" in result.stderr
    check(home, "verify", "toy:1.0.0")
