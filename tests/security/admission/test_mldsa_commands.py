"""ML-DSA-65 through the commands: a role gets a second key, signs with it, loses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from models.bundle import (
    SEALED_ATTESTATION_FILE,
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
)
from models.files import write_atomic
from sealgate.protocol.dsse import ML_DSA_65, key_hint, public_pem
from sealgate.protocol.hpke import PrivateKey
from security.admission.keys import load_mldsa_key
from security.admission.trust import ROLES, trust_document
from security.admission.trust_store import load_trust
from security.commands import main
from security.key_files import write_private, write_secret
from tests.conftest import run_security
from tests.support.bundles import POLICY, Keys, write_bundle

QUALITY = attestation_file("quality")
SECRET = "correct horse"


@pytest.fixture
def home(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SEALGATE_HOME as an earlier release left it: keys and trust root of one kind."""
    for role in ROLES:
        write_private(tmp_path / "keys" / f"{role}.pem", keys.signers(role).ecdsa)
    pems = {
        role: [public_pem(key) for key in of.values()]
        for role, of in keys.trust.roles.items()
    }
    write_atomic(tmp_path / "trust.json", trust_document(pems))
    rules = b'[waivers]\nsigners = ["release"]\nmax_days = 9\nkinds = ["quality"]\n'
    write_atomic(tmp_path / "policy.toml", POLICY + rules)
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    monkeypatch.setenv("SEALGATE_ADMISSION_POLICY", str(tmp_path / "policy.toml"))
    write_bundle(tmp_path / "bundle", keys, policy_bytes=POLICY + rules)
    return tmp_path


def run(*arguments: str | Path) -> int:
    return main([str(item) for item in arguments])


def schema(home: Path) -> str:
    return str(json.loads((home / "trust.json").read_bytes())["schema"])[-2:]


def second(home: Path, role: str) -> str:
    path = home / "keys" / f"{role}.mldsa.pem"
    return key_hint(load_mldsa_key(path).public_key())


def test_a_role_gets_a_second_key(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = home / "bundle"
    assert run("verify", bundle) == 0
    assert schema(home) == "v1"
    signed = "signed with ecdsa-p256-sha256: "
    assert signed + "structure, quality, privacy, verdict\n" in capsys.readouterr().out
    # A key that keygen finds no trust root for is made; here there is one.
    assert run("keygen") == 0
    assert not [role for role in ROLES if (home / f"keys/{role}.mldsa.pem").exists()]
    capsys.readouterr()

    assert run("keys", "generate", "--role", "assessor") == 0
    assert (
        f"assessor.mldsa.pem  {second(home, 'assessor')}\n" in capsys.readouterr().out
    )
    assert schema(home) == "v2"
    assert run("keys", "generate", "--role", "assessor") == 2
    assert "exists already; `keys rotate` makes a fresh one" in capsys.readouterr().err
    assert run("keys", "list", "--role", "assessor") == 0
    assert "assessor         trusted  ml-dsa-65\n" in capsys.readouterr().out
    assert run("verify", bundle) == 1
    said = "structure attestation: the ML-DSA-65 signature is missing beside it"
    assert said in capsys.readouterr().err

    assert run("sign", bundle, "--role", "assessor") == 0
    assert run("admit", bundle) == 0
    capsys.readouterr()
    assert run("verify", bundle) == 0
    out = capsys.readouterr().out
    assert "signed with ecdsa-p256-sha256 and ml-dsa-65: structure, quality\n" in out
    assert "signed with ecdsa-p256-sha256: privacy, verdict\n" in out

    # What the second key signed falls with it, and with it the version.
    revoke = ("keys", "revoke", second(home, "assessor"), "--reason", "lost")
    assert run_security(home, *revoke).returncode == 0  # its warnings are BentoML's
    assert run("verify", bundle) == 1
    assert "ML-DSA-65: signed by a key that is not trusted" in capsys.readouterr().err


def test_without_the_second_key_at_hand(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "generate", "--role", "assessor")
    run("sign", home / "bundle", "--role", "assessor")
    assert (home / "bundle" / mldsa_file(QUALITY)).exists()
    (home / "keys" / "assessor.mldsa.pem").rename(home / "aside.pem")
    capsys.readouterr()
    assert run("sign", home / "bundle", "--role", "assessor") == 0
    assert "notice: assessor has an ML-DSA-65 key" in capsys.readouterr().err
    assert not (home / "bundle" / mldsa_file(QUALITY)).exists()
    named = ("--mldsa-key", home / "aside.pem")
    assert run("sign", home / "bundle", "--role", "assessor", *named) == 0
    assert (home / "bundle" / mldsa_file(QUALITY)).exists()


def test_a_verdict_that_no_door_would_take_is_not_signed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it take the place of one that is good."""
    bundle, aside = home / "bundle", home / "aside.pem"
    run("keys", "generate", "--role", "release")
    assert run("admit", bundle) == 0
    before = read_bundle(bundle).files
    made = home / "keys" / "release.mldsa.pem"
    made.rename(aside)
    capsys.readouterr()
    assert run("admit", bundle) == 1
    said = "release must sign with ML-DSA-65 too: --mldsa-key [check 11]"
    assert said in capsys.readouterr().err
    write_private(made, MLDSA65PrivateKey.generate())
    assert run("admit", bundle) == 1
    assert "is not one of release [check 11]" in capsys.readouterr().err
    assert run("admit", bundle, "--role", "trainer") == 1
    assert "does not hold the role release [check 11]" in capsys.readouterr().err
    assert read_bundle(bundle).files == before
    assert run("admit", bundle, "--mldsa-key", aside) == 0
    assert run("verify", bundle) == 0


def test_under_a_passphrase(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_secret(home / "passphrase", f"{SECRET}\n".encode())
    given = ("--passphrase-file", home / "passphrase")
    assert run("keys", "generate", "--role", "assessor", *given) == 0
    pem = (home / "keys" / "assessor.mldsa.pem").read_text()
    assert pem.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert run("sign", home / "bundle", "--role", "assessor") == 2
    assert run("sign", home / "bundle", "--role", "assessor", *given) == 0
    assert run("keys", "rotate", "--role", "assessor", *given) == 0
    pem = (home / "keys" / "assessor.mldsa.pem").read_text()
    assert pem.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err


def test_each_key_in_its_own_place(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "generate", "--role", "assessor")
    mine, other = (home / "keys" / f"assessor{x}.pem" for x in ("", ".mldsa"))
    sign = ("sign", home / "bundle", "--role", "assessor")
    assert run(*sign, "--key", other) == 2
    assert "not an ECDSA P-256 key" in capsys.readouterr().err
    assert run(*sign, "--mldsa-key", mine) == 2
    assert "not an ML-DSA-65 key" in capsys.readouterr().err


def test_a_key_service_signs_a_pre_hash(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """securesystemslib's form counts only where the trust root says so of the key."""
    run("keys", "generate", "--role", "assessor")
    path = home / "assessor.mldsa.pem"
    (home / "keys" / "assessor.mldsa.pem").rename(path)
    public = ("keys", "public", "--role", "assessor", "--algorithm", ML_DSA_65)
    capsys.readouterr()
    assert run(*public) == 0
    (home / "public.pem").write_text(capsys.readouterr().out)
    sign = ("sign", home / "bundle", "--role", "assessor")
    outside = ("--mldsa-key", f"file2:{path}")
    assert run(*sign, *outside) == 2
    assert "signs a pre-hash, and" in capsys.readouterr().err
    add = ("keys", "add", home / "public.pem", "--role", "assessor")
    assert run(*add, "--prehash") == 0
    assert list(load_trust(home / "trust.json").prehash)
    assert run("keys", "list", "--role", "assessor") == 0
    assert "trusted  ml-dsa-65, pre-hash\n" in capsys.readouterr().out
    assert run(*sign, *outside) == 0
    assert run("admit", home / "bundle") == 0
    assert run("verify", home / "bundle") == 0
    # The same key as a file signs the other form, which is said before it is refused.
    capsys.readouterr()
    assert run(*sign, "--mldsa-key", path) == 2
    assert "signs the encoding itself, and" in capsys.readouterr().err
    assert run(*add) == 0
    assert run("verify", home / "bundle") == 1
    assert "ML-DSA-65: signature does not verify" in capsys.readouterr().err


def test_a_pre_hash_is_of_ml_dsa_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "p.pem").write_text(public_pem(Keys.generate().release.public_key()))
    add = ("keys", "add", home / "p.pem", "--role", "release", "--prehash")
    assert run(*add) == 2
    assert "--prehash is for ML-DSA-65 keys" in capsys.readouterr().err


def test_whatever_release_signs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("keys", "generate", "--role", "release")
    bundle = home / "bundle"
    days = ("--days", "3", "--reason", "pilot")
    waive = ("waive", bundle, "--kind", "quality", *days, "--role", "release")
    assert run(*waive) == 0
    assert run("admit", bundle) == 0
    assert run("verify", bundle) == 0
    waiver = attestation_file("waiver-quality")
    for name in (waiver, VERDICT_FILE):
        half = bundle / mldsa_file(name)
        kept = half.read_bytes()
        half.unlink()
        assert run("verify", bundle) == 1
        assert "the ML-DSA-65 signature is missing" in capsys.readouterr().err
        half.write_bytes(kept)
    key = home / "to.pem"
    write_private(home / "keys" / "own.pem", PrivateKey.generate().key)
    assert run("keygen") == 0
    capsys.readouterr()
    assert run("keys", "public", "--model") == 0
    key.write_text(capsys.readouterr().out)
    assert run("seal", bundle, "--to", key, "--out", home / "sealed") == 0
    assert run("verify", home / "sealed") == 0
    (home / "sealed" / mldsa_file(SEALED_ATTESTATION_FILE)).unlink()
    assert run("verify", home / "sealed") == 1
    said = "sealed model's attestation: the ML-DSA-65 signature is missing"
    assert said in capsys.readouterr().err
    assert run("verify", home / "sealed", "--all") == 1
    assert f"refused: {said}" in capsys.readouterr().err
    # The documents that the verdict binds name the second signatures.
    run("keys", "generate", "--role", "assessor")
    run("sign", bundle, "--role", "assessor")
    assert run("admit", bundle) == 0
    files = read_bundle(bundle).files
    for name in ("MODEL_CARD.md", "bom.cdx.json"):
        assert mldsa_file(QUALITY).encode() in files[name]
        assert second(home, "assessor").encode() in files[name]
