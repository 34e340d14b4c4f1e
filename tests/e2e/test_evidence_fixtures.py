"""What came with two algorithms, time stamps and one witnessed log is read, for good.

The files are in tests/fixtures/evidence-2, where NOTES.md says how each was made. What
reads them also refuses them after a change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import (
    VERDICT_FILE,
    Bundle,
    attestation_file,
    mldsa_file,
    read_bundle,
)
from sealgate.errors import ReceiptError, SealedFileError, StatementError
from sealgate.keys import load_identity_keys
from sealgate.protocol import sealedfile
from sealgate.protocol.cosignatures import parse_note_key
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65
from sealgate.protocol.offers import key_leaf, offer_of, offers_trust
from sealgate.protocol.receipts import LogTrust, open_cosigned, verify_receipt
from sealgate.protocol.signedkeys import verify_keys, verify_keys_v2
from sealgate.receipts import read_numbers
from security.admission.confidential import open_admission, open_bundle
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.model_keys import load_model_key
from security.admission.policy import load_policy
from security.admission.trust_chain import follow, parse
from security.admission.trust_store import load_trust
from security.audit.journal import load_log_verifiers, load_verifier
from security.audit.verify import LogReport, verify_log
from security.audit.verify_tree import Demand
from security.audit.witnesses import make_quorum
from security.errors import (
    AdmissionRefused,
    AuditError,
    TrustRefused,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evidence-2"
NOW = datetime(2026, 11, 30, 19, tzinfo=UTC)
KINDS = ("structure", "quality", "privacy")
BOTH = (ECDSA_P256, ML_DSA_65)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may change, readable by its owner alone."""
    copied = Path(shutil.copytree(FIXTURES, tmp_path / "evidence-2"))
    for path in [copied, *copied.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return copied


def admitted(folder: Path, bundle: Bundle) -> Admission:
    policy, trust = (
        load_policy(folder / "policy.toml"),
        load_trust(folder / "trust.json"),
    )
    return verify_with(bundle, policy, trust, now=NOW)


def flipped(data: bytes, at: int = -1) -> bytes:
    """The bytes, and in one of them another bit."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def change(path: Path, to: Callable[[bytes], bytes] = flipped) -> None:
    path.write_bytes(to(path.read_bytes()))


def test_it_is_small() -> None:
    sizes = [path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()]
    assert sum(sizes) < 300_000


# The bundle.


def test_the_bundle_verifies_with_both_signatures_and_stamps(folder: Path) -> None:
    admission = admitted(folder, read_bundle(folder / "bundle"))
    assert set(admission.reports) == set(KINDS)
    assert {*admission.signatures.values()} == {BOTH}
    assert set(admission.signatures) == {
        VERDICT_FILE,
        *(attestation_file(kind) for kind in KINDS),
    }


@pytest.mark.parametrize("kind", [*KINDS, "verdict"])
def test_half_of_it_is_refused(folder: Path, kind: str) -> None:
    (folder / "bundle" / mldsa_file(attestation_file(kind))).unlink()
    with pytest.raises(AdmissionRefused, match="ML-DSA-65 signature is missing"):
        admitted(folder, read_bundle(folder / "bundle"))


def test_without_its_stamps_it_is_refused(folder: Path) -> None:
    path = folder / "bundle" / mldsa_file(attestation_file("quality"))
    document = json.loads(path.read_bytes())
    del document["verificationMaterial"]["timestampVerificationData"]
    path.write_text(json.dumps(document))
    with pytest.raises(AdmissionRefused, match="ML-DSA-65: it has no time stamp"):
        admitted(folder, read_bundle(folder / "bundle"))


def test_a_changed_report_is_refused(folder: Path) -> None:
    path = folder / "bundle" / "evidence" / "quality.json"
    change(path, lambda data: data.replace(b"0.95", b"0.96"))
    with pytest.raises(AdmissionRefused, match="changed after it was signed"):
        admitted(folder, read_bundle(folder / "bundle"))


# The sealed model.


def sealed_bundle(folder: Path) -> Path:
    """The same bundle with the sealed file in the model's place."""
    path = Path(shutil.copytree(folder / "bundle", folder / "sealed-bundle"))
    (path / "model.onnx").unlink()
    shutil.copy(folder / "sealed" / "model.onnx.sealed", path)
    shutil.copytree(
        folder / "sealed" / "attestations", path / "attestations", dirs_exist_ok=True
    )
    return path


def test_the_sealed_model_opens(folder: Path) -> None:
    bundle = read_bundle(sealed_bundle(folder))
    assert bundle.sealed_kind == "X-Wing"
    key_file = folder / "sealed" / "TEST-ONLY-model-key.pem"
    opened = open_admission(admitted(folder, bundle), key_file).bundle
    plain = read_bundle(folder / "bundle").model
    assert opened.model == open_bundle(bundle, load_model_key(key_file)).model == plain


def test_a_changed_sealed_model_is_refused(folder: Path) -> None:
    path = sealed_bundle(folder)
    change(path / "model.onnx.sealed")
    with pytest.raises(AdmissionRefused, match="changed after it was signed"):
        admitted(folder, read_bundle(path))


def test_a_sealed_file_of_the_next_version_says_so() -> None:
    data = (FIXTURES / "sealed" / "model.onnx.sealed").read_bytes()
    assert data[7] == 2
    later = data[:7] + b"\x03" + data[8:]
    message = "version 3 is not known here, only 1 and 2: a newer release is needed"
    with pytest.raises(SealedFileError, match=message):
        sealedfile.parse_header(later)


# The trust root.


def test_signed_trust_roots_are_followed() -> None:
    first, second = (
        parse((FIXTURES / "trust" / f"{n}.trust.json").read_bytes(), f"version {n}")
        for n in (1, 2)
    )
    newest = follow(first, [second], now=NOW)
    assert (first.version, newest.version) == (1, 2)
    assert newest.root.root is not None
    assert newest.root.root.keys != (first.root.root or newest.root.root).keys
    with pytest.raises(TrustRefused):
        follow(second, [first], now=NOW)


def test_a_changed_trust_root_is_refused() -> None:
    first = parse((FIXTURES / "trust" / "1.trust.json").read_bytes(), "version 1")
    document = json.loads((FIXTURES / "trust" / "2.trust.json").read_bytes())
    document["signatures"] = document["signatures"][1:]
    changed = parse(json.dumps(document).encode(), "version 2")
    with pytest.raises(TrustRefused, match="signed by"):
        follow(first, [changed], now=NOW)


# Key configurations.


def test_signed_key_configurations() -> None:
    folder = FIXTURES / "keyconfig"
    at = float((folder / "fetched-at").read_text())
    keys = load_identity_keys([(folder / "identity.pub.pem").read_text()])
    second = (folder / "sealgate-keys-v2.json").read_bytes()
    plain = (folder / "ohttp-keys").read_bytes()
    assert verify_keys_v2(second, keys, now=at).document == plain
    first = (folder / "sealgate-keys.json").read_bytes()
    assert verify_keys(first, keys, now=at).document == plain
    document = json.loads(second)
    document["signatures"] = document["signatures"][:1]
    half = json.dumps(document).encode()
    for data, verify in ((half, verify_keys_v2), (first, verify_keys_v2)):
        with pytest.raises(StatementError):
            verify(data, keys, now=at)
    with pytest.raises(StatementError, match="not valid any more"):
        verify_keys_v2(second, keys, now=at + 30 * 86400)


# The audit log.


def witnesses() -> list[str]:
    return (FIXTURES / "audit" / "witnesses.txt").read_text().split()


def verified(folder: Path) -> LogReport:
    audit = folder / "audit"
    quorum = make_quorum(witnesses(), 1)
    return verify_log(
        [audit],
        verifier=load_verifier(audit / "audit.vkey"),
        log_verifiers=load_log_verifiers(audit / "audit.mldsa.vkey"),
        demand=Demand(quorum, NOW.timestamp(), 300),
    )


def test_the_witnessed_log_verifies(folder: Path) -> None:
    report = verified(folder)
    assert sum(report.records.values()) == sum(report.signed.values()) == 9
    assert report.tree is not None
    assert report.tree.size == report.tree.cosigned_size == 7
    assert report.tree.witnessed_s is not None


@pytest.mark.parametrize("name", ["checkpoints", "log.leaves", "log.cosigned"])
def test_a_changed_log_is_refused(folder: Path, name: str) -> None:
    path = folder / "audit" / name
    at = path.read_bytes().index(b"\n") + 1
    change(path, lambda data: data[:at] + b"9" + data[at + 1 :])
    with pytest.raises(AuditError):
        verified(folder)


def test_the_log_of_the_state_before_verifies(folder: Path) -> None:
    audit = folder / "audit-linked"
    verifier = load_verifier(audit / "audit.vkey")
    report = verify_log([audit], verifier=verifier)
    assert sum(report.records.values()) == sum(report.signed.values()) == 8
    assert not any("bind no other writer's" in line for line in report.notices)
    path = max(audit.glob("*.jsonl"))
    path.write_bytes(path.read_bytes().rpartition(b'{"action"')[0])
    with pytest.raises(AuditError):
        verify_log([audit], verifier=verifier)


# Receipts and offers.


def log_trust() -> LogTrust:
    audit = FIXTURES / "audit"
    names = ("audit.vkey", "audit.mldsa.vkey")
    log = tuple(parse_note_key((audit / name).read_text().strip()) for name in names)
    return LogTrust(log, make_quorum(witnesses(), 1).keys, 1)


def test_the_receipt_verifies() -> None:
    (number,) = read_numbers(FIXTURES / "receipts" / "numbers.jsonl")
    path = FIXTURES / "receipts" / f"{number.request_id}.receipt"
    data = path.read_bytes()
    proven = verify_receipt(data, log_trust(), request_id=number.request_id)
    root = read_bundle(FIXTURES / "bundle").subject.root_sha256
    assert proven.model_sha256 == root
    assert verify_receipt(
        data, log_trust(), request_id=number.request_id, model_sha256=root
    )
    for at in (30, 200, len(data) // 2):
        with pytest.raises(ReceiptError):
            verify_receipt(flipped(data, at), log_trust(), request_id=number.request_id)
    later = data.replace(b"receipt@v1", b"receipt@v2", 1)
    with pytest.raises(ReceiptError, match=r"version 2 .* a newer release is needed"):
        verify_receipt(later, log_trust(), request_id=None)


def test_the_log_of_offers() -> None:
    note = (FIXTURES / "audit" / "offers.cosigned").read_bytes()
    checkpoint, seen = open_cosigned(note, offers_trust(log_trust()))
    assert checkpoint.size == 4
    assert seen
    leaves = (FIXTURES / "audit" / "offers.leaves").read_bytes()
    decoder, text, found = json.JSONDecoder(), leaves.decode(), []
    while text:
        _, end = decoder.raw_decode(text)
        found.append(offer_of(text[:end].encode()))
        text = text[end:]
    assert [item["kind"] for item in found] == [
        *("key-configuration", "key-configuration"),
        *("release", "verdict"),
    ]
    assert key_leaf(b"another") not in leaves
