"""A TPM 2.0, in software, under the real commands and a real server.

``make interop-tpm`` runs these: not in CI, for what they install. What a TPM of silicon
would do otherwise is its own state's business, not the protocol's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import VERDICT_FILE, read_bundle
from sealgate import Client, TransportError
from sealgate.attestation import Tpm2Verifier
from sealgate.errors import AttestationError
from sealgate.options import options_of
from sealgate.profile import Profile
from sealgate.protocol.dsse import key_hint, public_pem
from sealgate.protocol.tpm2 import Evidence, extended, verify_evidence
from security.admission.confidential import open_admission
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.trust_store import load_trust
from security.attestation.quotes import TpmAttester, create_attestation_key
from security.attestation.sealed import seal_secret, unseal_secret
from security.errors import AdmissionRefused, TpmError
from tests.conftest import check_security, mint, run_security, toy_settings
from tests.support.bundles import NAME, policy
from tests.support.servers import ROOT, bentoml, environment, sealgate, serve
from tests.support.tpms import SoftTpm, soft_tpm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "tpm", reason="tpm: run make interop-tpm"
    ),
]
NONCE = hashlib.sha256(b"nonce").digest()
HANDLE = "0x81010002"
BENTO, ELSE = b"the Bento's archive", b"something else"


@pytest.fixture
def tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftTpm]:
    with soft_tpm(tmp_path / "tpm") as running:
        monkeypatch.setenv("TPM2TOOLS_TCTI", running.tcti)
        yield running


@pytest.fixture
def attester(tpm: SoftTpm, tmp_path: Path) -> TpmAttester:
    key = create_attestation_key(HANDLE, tmp_path / "attestation.pem")
    return TpmAttester(key, HANDLE, (7, 15))


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# Quotes.


def test_a_quote_of_what_was_measured(tpm: SoftTpm, attester: TpmAttester) -> None:
    tpm.extend(15, digest(BENTO))
    verifier = Tpm2Verifier.from_object(
        {
            "keys": [public_pem(attester.key)],
            "measured": {"15": [digest(BENTO).hex()], "7": []},
        }
    )
    evidence = attester.attest(NONCE)
    assert verifier.verify(evidence, nonce=NONCE)
    assert len(json.dumps(evidence)) < 1024
    with pytest.raises(AttestationError, match="over another nonce"):
        verifier.verify(evidence, nonce=digest(b"another nonce"))
    tpm.extend(15, digest(ELSE))
    assert verifier.verify(evidence, nonce=NONCE)  # as old as its nonce, no older
    with pytest.raises(AttestationError, match="PCR 15 does not hold"):
        verifier.verify(attester.attest(NONCE), nonce=NONCE)


def test_workers_take_turns(tpm: SoftTpm, attester: TpmAttester) -> None:
    nonces = [digest(bytes([i])) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(attester.attest, nonces))
    trusted = {key_hint(attester.key): attester.key}
    for nonce, evidence in zip(nonces, found, strict=True):
        verify_evidence(Evidence.from_object(evidence), trusted, nonce=nonce)


def test_a_key_under_the_name_of_another(
    tpm: SoftTpm, attester: TpmAttester, tmp_path: Path
) -> None:
    other = create_attestation_key("0x81010003", tmp_path / "other.pem")
    with pytest.raises(TpmError, match="does not verify"):
        TpmAttester(other, HANDLE, (15,)).attest(NONCE)
    with pytest.raises(TpmError, match="TPM: evictcontrol"):
        create_attestation_key(HANDLE, tmp_path / "third.pem")
    assert not (tmp_path / "third.pem").exists()


def test_a_key_whose_public_half_cannot_be_kept(tpm: SoftTpm, tmp_path: Path) -> None:
    """The handle stays free for the next attempt."""
    (file := tmp_path / "keys").touch()
    with pytest.raises(TpmError, match=r"keys/attestation\.pem: "):
        create_attestation_key(HANDLE, file / "attestation.pem")
    create_attestation_key(HANDLE, tmp_path / "attestation.pem")


def test_a_tpm_that_is_away(
    attester: TpmAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", "swtpm:path=/nowhere/tpm")
    with pytest.raises(TpmError, match="TPM: quote"):
        attester.attest(NONCE)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TpmError, match="tpm2-tools is not installed"):
        attester.attest(NONCE)


def test_that_a_tpm_made_the_key(
    tpm: SoftTpm, attester: TpmAttester, tmp_path: Path
) -> None:
    """The steps of docs/attested-keys.md: who pins a key gives its TPM a challenge."""
    (tmp_path / "challenge").write_bytes(b"a fresh challenge")
    (tmp_path / "pinned.pem").write_text(public_pem(attester.key))
    environ = {**os.environ, "TPM2TOOLS_TCTI": tpm.tcti}
    page = (ROOT / "docs" / "attested-keys.md").read_text()
    steps = page.split("<!-- enrolment -->")[1].split("```")[1].partition("\n")[2]
    for line in steps.replace("\\\n", "").splitlines():
        subprocess.run(
            ["bash", "-euc", f"{line}; tpm2 flushcontext -t"],
            cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=30,
        )  # fmt: skip
    assert (tmp_path / "answer").read_bytes() == b"a fresh challenge"


# Secrets and model keys.


def test_a_secret_in_one_state_of_one_tpm(tpm: SoftTpm, tmp_path: Path) -> None:
    tpm.extend(15, digest(BENTO))
    sealed = seal_secret(b"secret", (15,))
    assert b"secret" not in sealed.private + sealed.public
    assert unseal_secret(sealed) == b"secret"
    tpm.extend(16, digest(ELSE))  # another register than the policy's
    assert unseal_secret(sealed) == b"secret"
    tpm.extend(15, digest(ELSE))
    with pytest.raises(TpmError, match="a policy check failed") as caught:
        unseal_secret(sealed)
    assert "secret" not in str(caught.value)
    with soft_tpm(tmp_path / "another") as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPM2TOOLS_TCTI", other.tcti)
        other.extend(15, digest(BENTO))
        with pytest.raises(TpmError, match="TPM: load"):
            unseal_secret(sealed)


def test_a_restart_gives_it_back(tmp_path: Path) -> None:
    state = tmp_path / "tpm"
    with pytest.MonkeyPatch.context() as patch:
        with soft_tpm(state) as tpm:
            patch.setenv("TPM2TOOLS_TCTI", tpm.tcti)
            tpm.extend(15, digest(BENTO))
            sealed = seal_secret(b"secret", (15,))
            tpm.extend(15, digest(ELSE))
            tpm.run("shutdown", "-c")
        with soft_tpm(state) as again:
            patch.setenv("TPM2TOOLS_TCTI", again.tcti)
            with pytest.raises(TpmError, match="a policy check failed"):
                unseal_secret(sealed)
            again.extend(15, digest(BENTO))
            assert unseal_secret(sealed) == b"secret"


@pytest.fixture
def home(pristine: Path, tmp_path: Path, tpm: SoftTpm) -> Path:
    """A deployment whose store holds the toy model sealed, its key sealed to a TPM."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    shutil.rmtree(home / "bentoml" / "models")
    (tmp_path / "bento").write_bytes(BENTO)
    settings = toy_settings(home)
    said = check_security(home, "tpm", "measure", str(tmp_path / "bento"), **settings)
    assert said == f"{digest(BENTO).hex()}  {tmp_path / 'bento'}  PCR 15\n"
    sealed = home / "keys" / "model.tpm"
    said = check_security(home, "tpm", "seal-key", "--out", str(sealed), **settings)
    assert said.startswith(f"sealed    {sealed}  PCR 15\n")
    assert sealed.stat().st_mode & 0o777 == 0o600
    public = home / "model.pub.pem"
    public.write_text(check_security(home, "keys", "public", "--model", **settings))
    (home / "keys" / "model.pem").unlink()
    check_security(
        home, "seal", str(home / "bundle"), "--to", str(public),
        "--out", str(home / "sealed"), **settings,
    )  # fmt: skip
    check_security(home, "store", str(home / "sealed"), **settings)
    return home


def admitted(home: Path) -> Admission:
    trust = load_trust(home / "trust.json")
    now = datetime.now(UTC)
    return verify_with(read_bundle(home / "sealed"), policy(), trust, now=now)


def tpm_settings(home: Path) -> dict[str, str]:
    return {
        **toy_settings(home),
        "SEALGATE_ADMISSION_MODEL_KEY": f"tpm:{home / 'keys' / 'model.tpm'}",
        "SEALGATE_ATTESTATION_TYPE": "tpm2",
    }


def test_a_server_that_is_attested_and_gets_its_model_key(
    home: Path, tpm: SoftTpm
) -> None:
    settings = tpm_settings(home)
    said = check_security(home, "tpm", "create-key", **settings)
    assert said.startswith(f"generated {HANDLE}  sha256:")
    twice = run_security(home, "tpm", "create-key", **settings)
    assert (twice.returncode, "never overwritten" in twice.stderr) == (2, True)
    token = mint(home, f"infer:{NAME}")
    rows = {"features": [[1.0, 2.0, 3.0]]}
    with serve("service.app:Sealgate", home, extra=settings, alone=True) as server:
        out = home / "profile.json"
        wanted = ("--url", server.url, "--model", NAME, "--out", str(out))
        check_security(home, "profile", *wanted, **settings)
        profile = Profile.load(out)
        state = {"15": extended([digest(BENTO)]).hex()}
        assert profile.attestation["types"]["tpm2"]["pcrs"] == state
        assert len(profile.identity_keys) == 2
        options = options_of(profile)
        with Client(server.url, token=token, options=options) as client:
            assert client.infer(NAME, rows)["label"].tolist() == [1]
            assert client.attested.claims == {"PCR 15": state["15"]}
        shown = sealgate("keys", "--profile", str(out))
        assert (
            "signed by the identity key: ecdsa-p256-sha256, ml-dsa-65" in shown.stdout
        )
        assert f"attested: tpm2  PCR 15 {state['15']}" in shown.stdout
        check_security(home, "profile", "--classical", *wanted, **settings)
        classical = options_of(Profile.load(out))
        assert (len(classical.identity_keys), classical.attestation) == (1, None)
        with Client(server.url, token=token, options=classical) as client:
            assert client.infer(NAME, rows)["label"].tolist() == [1]
    # The machine runs something else: it gets no key; nor would clients take it.
    tpm.extend(15, digest(ELSE))
    refused = subprocess.run(
        bentoml("serve", "service.app:Sealgate", "--port", "0"),
        cwd=ROOT, env=environment(home, settings), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "no key opens it" in line
    assert "TPM: unseal" in line
    assert "a policy check failed" in line
    plain = {**settings, "SEALGATE_ADMISSION_MODEL_KEY": "keys/copied.pem"}
    shutil.rmtree(home / "bentoml" / "models")
    check_security(home, "store", str(home / "bundle"), **plain)
    with (
        serve("service.app:Sealgate", home, extra=plain, alone=True) as server,
        Client(server.url, token=token, options=options) as client,
        pytest.raises(TransportError, match="PCR 15 does not hold"),
    ):
        client.infer(NAME, rows)


def test_a_server_whose_tpm_is_away_does_not_start(home: Path, tpm: SoftTpm) -> None:
    settings = tpm_settings(home)
    check_security(home, "tpm", "create-key", **settings)
    shutil.rmtree(home / "bentoml" / "models")
    check_security(home, "store", str(home / "bundle"), **settings)
    away = settings | {"TPM2TOOLS_TCTI": "swtpm:path=/nowhere/tpm"}
    result = subprocess.run(
        bentoml("serve", "service.app:Sealgate", "--port", "0"),
        cwd=ROOT, env=environment(home, away), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "TPM: quote: " in line


def test_no_key_for_a_model_whose_verdict_does_not_verify(
    home: Path, tpm: SoftTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TPM is not even asked: with none there, the refusal is the verdict's."""
    path = home / "sealed" / VERDICT_FILE
    value = json.loads(path.read_text())
    value["dsseEnvelope"]["signatures"][0]["sig"] = "MAYCAQECAQE="
    path.write_text(json.dumps(value))
    settings = tpm_settings(home) | {"TPM2TOOLS_TCTI": "swtpm:path=/nowhere/tpm"}
    settings["SEALGATE_SERVICE_MODELS"] = f"path:{home / 'sealed'}"
    refused = subprocess.run(
        bentoml("serve", "service.app:Sealgate", "--port", "0"),
        cwd=ROOT, env=environment(home, settings), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "signature does not verify" in refused.stderr
    assert "TPM" not in refused.stderr


def test_the_policy_is_the_tpms_not_the_files(home: Path, tpm: SoftTpm) -> None:
    """Whoever edits the registers in the file gains nothing."""
    path = home / "keys" / "model.tpm"
    tpm.extend(15, digest(ELSE))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pcrs": [16]}))
    with pytest.raises(AdmissionRefused, match="a policy check failed"):
        open_admission(admitted(home), f"tpm:{path}")
