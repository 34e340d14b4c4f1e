"""Key configurations of the second version: two signatures, and evidence."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.dsse import key_hint
from sealgate.protocol.signedkeys import verify_keys_v2
from security.attestation.attesters import load_attester
from security.errors import AttesterError, KeyFileError, SettingsError, TpmError
from security.sealing.keyring import KeyRing, generate_key, load_keyring
from security.sealing.publish import (
    Publication,
    generate_identity,
    generate_mldsa_identity,
    load_identities,
    load_identity,
    load_publication,
)
from security.settings.attestation import AttestationSettings, check_attestation
from security.settings.sealing import SealingSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generate_key(tmp_path / "hpke", 1)
    return tmp_path / "hpke"


class Times:
    def __init__(self) -> None:
        self.now = 1_800_000_000

    def __call__(self) -> float:
        return float(self.now)


def publication(times: Times, **changes: object) -> Publication:
    return Publication(**{"overlap_s": 7200, "cache_s": 3600, "clock": times} | changes)


class Machine:
    """An `Attester`: says what it was asked, or cannot."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.away = False
        self.fault: Exception = AttesterError("away")

    def attest(self, nonce: bytes) -> dict[str, str]:
        self.asked.append(nonce)
        if self.away:
            raise self.fault
        return {"type": "of-tests", "nonce": nonce.hex()}


def test_documents_of_the_second_version(folder: Path) -> None:
    identity, times = ec.generate_private_key(ec.SECP256R1()), Times()
    mldsa = MLDSA65PrivateKey.generate()
    trusted = {key_hint(k.public_key()): k.public_key() for k in (identity, mldsa)}
    machine = Machine()
    how = {"identity": identity, "mldsa": mldsa, "attester": machine, "overlap_s": 100}
    signing, ring = publication(times, **how), load_keyring(folder)
    first = signing.signed_v2(ring)
    signed = verify_keys_v2(first.content, trusted, now=times.now)
    assert (signed.not_before, signed.not_after) == (times.now, times.now + 100)
    assert set(signed.hints) == set(trusted)
    assert signed.attestation == {"type": "of-tests", "nonce": signed.nonce.hex()}
    times.now += 59
    assert signing.signed_v2(ring).content == first.content
    assert machine.asked == [signed.nonce]
    times.now += 1
    again = verify_keys_v2(signing.signed_v2(ring).content, trusted, now=times.now)
    assert machine.asked == [signed.nonce, again.nonce]
    assert len(set(machine.asked)) == 2


def test_no_evidence_is_no_document(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = ec.generate_private_key(ec.SECP256R1())
    times, machine = Times(), Machine()
    signing = publication(times, identity=identity, attester=machine)
    ring = load_keyring(folder)
    machine.away = True
    for elapsed in (0, 4):  # a machine that failed is not asked again at once
        times.now += elapsed
        with pytest.raises(AttesterError):
            signing.signed_v2(ring)
    assert len(machine.asked) == 1
    assert caplog.messages == ["no evidence for the key configurations: away"]
    assert signing.signed(ring) is not None  # which never had any
    machine.away = False
    times.now += 1
    assert signing.signed_v2(ring) is not None


def test_an_attester_that_is_broken(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another package's faults are no more than evidence that is not there."""
    times, machine = Times(), Machine()
    identity = ec.generate_private_key(ec.SECP256R1())
    signing = publication(times, identity=identity, attester=machine)
    ring = load_keyring(folder)
    machine.away, machine.fault = True, KeyError("collateral of this machine")
    for _ in range(2):
        with pytest.raises(AttesterError):
            signing.signed_v2(ring)
    assert len(machine.asked) == 1
    why = "the attester raised KeyError"
    assert caplog.messages == [f"no evidence for the key configurations: {why}"]


def test_a_clock_that_was_put_back_after_a_failure(folder: Path) -> None:
    times, machine = Times(), Machine()
    identity = ec.generate_private_key(ec.SECP256R1())
    signing = publication(times, identity=identity, attester=machine)
    ring, machine.away = load_keyring(folder), True
    with pytest.raises(AttesterError):
        signing.signed_v2(ring)
    machine.away = False
    times.now -= 86_400
    assert signing.signed_v2(ring) is not None


def test_the_mldsa_identity_key(tmp_path: Path) -> None:
    classical, lattice = tmp_path / "identity.pem", tmp_path / "identity.mldsa.pem"
    settings = SealingSettings(identity=classical, identity_mldsa=lattice)
    assert load_publication(settings).signed_v2(KeyRing([])) is None
    with pytest.raises(KeyFileError, match="it signs attestation's evidence"):
        load_publication(settings, AttestationSettings(type="tpm2"))
    generate_mldsa_identity(lattice)
    with pytest.raises(KeyFileError, match="which signs beside it"):
        load_publication(settings)
    generate_identity(classical)
    keys = {key_hint(key): key for key in load_identities(settings)}
    assert len(keys) == 2
    document = load_publication(settings).signed_v2(KeyRing([]))
    assert len(json.loads(document.content)["signatures"]) == 2
    lattice.write_bytes(classical.read_bytes())
    with pytest.raises(KeyFileError, match="not an ML-DSA-65 key"):
        load_publication(settings)
    lattice.unlink()
    assert load_identities(settings) == (load_identity(classical).public_key(),)


def test_who_makes_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_attester(AttestationSettings()) is None
    with pytest.raises(SettingsError, match="0 packages make evidence of type 'sev'"):
        load_attester(AttestationSettings(type="sev"))
    with pytest.raises(TpmError, match="no-such"):
        load_attester(AttestationSettings(type="tpm2", public_key=Path("no-such")))
    metadata = tmp_path / "attester_of_tests-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: attester-of-tests\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[sealgate.attesters]\nsev = attester_of_tests:make\n"
    )
    (tmp_path / "attester_of_tests.py").write_text(
        "class Attester:\n"
        "    def attest(self, nonce): return {'type': 'sev', 'n': nonce.hex()}\n"
        "def make(settings): return Attester()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    attester = load_attester(AttestationSettings(type="sev"))
    assert attester is not None
    assert attester.attest(b"n") == {"type": "sev", "n": "6e"}
    sys.modules.pop("attester_of_tests")


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "0x80000001"},
        {"key": "owner"},
        {"pcrs": ""},
        {"pcrs": "24"},
        {"pcrs": "7,7"},
        {"pcrs": "7,16"},
        {"pcrs": "23"},
        {"pcrs": "sha1:7"},
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, str]) -> None:
    (name,) = changes
    with pytest.raises(SettingsError, match=f"attestation.{name}"):
        check_attestation(AttestationSettings(type="tpm2", **changes))
    check_attestation(AttestationSettings(**changes))  # where nothing is attested


def test_the_first_version_stays_what_clients_of_release_0_1_read(folder: Path) -> None:
    identity, times = ec.generate_private_key(ec.SECP256R1()), Times()
    mldsa = MLDSA65PrivateKey.generate()
    signing = publication(times, identity=identity, mldsa=mldsa, attester=Machine())
    envelope = json.loads(signing.signed(load_keyring(folder)).content)
    assert envelope.keys() == {"payload", "payloadType", "signatures"}
    assert envelope["payloadType"] == "application/vnd.sealgate.ohttp-keys+json"
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == key_hint(identity.public_key())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert payload.keys() == {"keys", "not_after", "not_before"}
