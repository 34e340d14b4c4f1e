"""Hostile statements, several signers, and mechanisms nobody can account for.

test_gate.py has one fault per check; here are the ways to make them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from models.bundle import VERDICT_FILE, attestation_file, read_bundle, report_file
from models.errors import BundleError
from models.files import write_atomic
from models.report import Metric
from sealgate.errors import StatementError
from sealgate.passport import verify_passport
from sealgate.protocol import dsse
from sealgate.protocol.dsse import key_hint, public_pem
from sealgate.protocol.statement import (
    SCAI_TYPE,
    TEST_RESULT_TYPE,
    Statement,
    VerificationSummary,
)
from security.admission import gate
from security.admission.attest import place, sign_report, sign_verdict
from security.admission.gate import Recomputed
from security.admission.trust import TrustRoot
from security.errors import AdmissionRefused
from tests.support.bundles import (
    POLICY,
    Keys,
    attest,
    evaluate,
    policy,
    rewrite_report,
    write_bundle,
)
from tests.support.mutations import changed

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
QUALITY = attestation_file("quality")


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    return write_bundle(tmp_path / "bundle", keys, now=NOW)


def refused(
    check: int,
    message: str,
    folder: Path,
    trust: TrustRoot,
    *,
    text: bytes = POLICY,
    now: datetime = NOW,
) -> None:
    bundle = read_bundle(folder)
    with pytest.raises(AdmissionRefused, match=message) as caught:
        gate.verify(bundle, policy(text), trust, now=now)
    assert caught.value.check == check
    found = gate.all_refusals(bundle, policy(text), trust, now=now)
    assert str(found[0]) == str(caught.value)


def document(folder: Path, name: str = QUALITY) -> Any:
    return json.loads((folder / name).read_bytes())


def statement(folder: Path, name: str = QUALITY) -> Any:
    return json.loads(
        base64.b64decode(document(folder, name)["dsseEnvelope"]["payload"])
    )


# Every field of a statement: changed under the old signature, and signed anew.

TAMPERED = [
    ("_type", "https://in-toto.io/Statement/v0.1", 3, "not an in-toto Statement v1"),
    ("subject", [], 3, "expected subjects"),
    ("subject.0.name", "toy:1.0.1", 3, "is about other bytes"),
    ("subject.0.digest.sha256", "0" * 64, 3, "is about other bytes"),
    ("subject.1.name", "other.onnx", 3, "is about other bytes"),
    ("subject.1.digest.sha256", "0" * 64, 3, "is about other bytes"),
    ("subject.1.digest", {"sha1": "0" * 40}, 3, "expected a name and a sha256 digest"),
    ("predicateType", "https://example.com/v1", 4, "not a test result"),
    ("predicate", [], 3, "expected a predicate"),
    ("predicate.result", "FAILED", 4, "says FAILED"),
    ("predicate.result", "passed", 4, "expected PASSED or FAILED"),
]


@pytest.mark.parametrize(("path", "value", "check", "message"), TAMPERED)
def test_a_tampered_field(
    folder: Path, keys: Keys, *, path: str, value: Any, check: int, message: str
) -> None:
    text = json.dumps(changed(statement(folder), path, value)).encode()
    unsigned = changed(
        document(folder), "dsseEnvelope.payload", base64.b64encode(text).decode()
    )
    write_atomic(folder / QUALITY, json.dumps(unsigned).encode())
    refused(2, "quality attestation: signature does not verify", folder, keys.trust)
    write_atomic(folder / QUALITY, dsse.sign(text, keys.assessor))
    refused(check, f"quality attestation.* {message}", folder, keys.trust)


def deep(levels: int) -> bytes:
    return b'{"mediaType":' + b"[" * levels + b"]" * levels + b"}"


ENVELOPES = [
    (lambda data: data[: len(data) // 2], "bundle: not JSON"),
    (lambda data: b"", "bundle: not JSON"),
    (lambda data: deep(100), "nested more than 32 levels deep"),
    (lambda data: deep(100_000), "nested too deeply"),
    (lambda data: b'{"mediaType":"",' + data[1:], "an object repeats a key"),
    (lambda data: data[:-1] + b',"n":NaN}', "NaN is not JSON"),
    (lambda data: data[:-1] + b',"n":1e999}', "too large for a double"),
    (lambda data: b"\xff" + data, "invalid UTF-8"),
]


@pytest.mark.parametrize(("change", "message"), ENVELOPES, ids=range(len(ENVELOPES)))
@pytest.mark.parametrize(
    ("name", "check"), [(QUALITY, 2), (VERDICT_FILE, 11)], ids=["report", "verdict"]
)
def test_a_hostile_envelope(
    folder: Path, keys: Keys, *, change: Any, message: str, name: str, check: int
) -> None:
    write_atomic(folder / name, change((folder / name).read_bytes()))
    refused(check, message, folder, keys.trust)


@pytest.mark.parametrize("field", ["payload", "signatures.0.sig"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.rstrip("=") + "\n", "malformed base64"),
        (lambda text: text[:8] + "\n" + text[8:], "malformed base64"),
        (lambda text: text.rstrip("="), "malformed base64|base64 is not canonical"),
        (lambda text: text[:-1] + "-", "malformed base64"),
        (lambda text: "AB==", "base64 is not canonical"),
    ],
    ids=["newline", "folded", "unpadded", "url", "loose bits"],
)
def test_another_base64(
    folder: Path, keys: Keys, field: str, change: Any, message: str
) -> None:
    given = document(folder)
    envelope = given["dsseEnvelope"]
    part = envelope if field == "payload" else envelope["signatures"][0]
    name = field.rpartition(".")[2]
    if part[name].endswith("=") or "|" not in message:
        part[name] = change(part[name])
    else:  # it needs no padding: then some is too much
        part[name] += "="
    write_atomic(folder / QUALITY, json.dumps(given).encode())
    refused(2, f"quality attestation: envelope: ({message})", folder, keys.trust)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"_type":1,"_type":2}', "an object repeats a key"),
        (b'{"_type":' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 32"),
        (b'{"_type":NaN}', "NaN is not JSON"),
    ],
)
def test_a_hostile_payload_with_a_good_signature(
    folder: Path, keys: Keys, payload: bytes, message: str
) -> None:
    write_atomic(folder / QUALITY, dsse.sign(payload, keys.assessor))
    refused(3, message, folder, keys.trust)


@pytest.mark.parametrize("name", [QUALITY, VERDICT_FILE])
def test_a_signed_file_that_is_too_long(folder: Path, keys: Keys, name: str) -> None:
    """It is not read, and not parsed where somebody has read it."""
    good = (folder / name).read_bytes()
    for data in (
        good + b" " * (4 << 20),
        dsse.sign(b" " * (3 << 20) + b"{}", keys.assessor),
    ):
        write_atomic(folder / name, data)
        with pytest.raises(BundleError, match="bytes, at most 4194304 allowed"):
            read_bundle(folder)
        with pytest.raises(StatementError, match="bytes, at most 4194304 allowed"):
            dsse.verify(data, keys.trust.keys(("assessor", "release")))


def test_evidence_replayed_from_an_older_version(
    folder: Path, keys: Keys, tmp_path: Path
) -> None:
    old = write_bundle(tmp_path / "old", keys, version="0.9.0", now=NOW)
    for name in (report_file("quality"), QUALITY):
        write_atomic(folder / name, (old / name).read_bytes())
    refused(3, "quality attestation is about other bytes", folder, keys.trust)


def test_a_report_with_a_nan(folder: Path, keys: Keys) -> None:
    # No honest writer can write one, so the text is changed before it is signed.
    data = (folder / report_file("quality")).read_bytes().replace(b"0.95", b"NaN")
    write_atomic(folder / report_file("quality"), data)
    digest = hashlib.sha256(data).hexdigest()
    given = statement(folder)
    scai = given["predicate"][SCAI_TYPE]
    scai["attributes"][0]["evidence"]["digest"]["sha256"] = digest
    signed = dsse.sign(json.dumps(given).encode(), keys.assessor)
    write_atomic(folder / QUALITY, signed)
    refused(5, "quality: report: not JSON|NaN is not JSON", folder, keys.trust)


# Several signers

TWO = POLICY.replace(
    b'[require.quality]\nsigners = ["assessor"]',
    b'[require.quality]\nsigners = ["assessor", "release"]\nmin_signers = 2',
)
TWO_VERDICTS = POLICY.replace(b'["release"]', b'["release"]\nmin_signers = 2')


def further(kind: str, number: int = 2) -> str:
    return attestation_file(f"{kind}.{number}")


def add(folder: Path, name: str, key: ec.EllipticCurvePrivateKey) -> None:
    write_atomic(folder / name, sign_report(read_bundle(folder), "quality", key))


def admit(folder: Path, text: bytes, *signers: ec.EllipticCurvePrivateKey) -> None:
    for key in signers:
        bundle, rules = read_bundle(folder), policy(text)
        signed = sign_verdict(bundle, rules, key, now=NOW)
        name = place(
            bundle,
            "verdict",
            key_hint(key.public_key()),
            signers=rules.verdict_min_signers,
        )
        write_atomic(folder / name, signed)


def test_two_signers(folder: Path, keys: Keys) -> None:
    message = "quality report needs 2 signers, has 1 in 1 attestations"
    refused(2, message, folder, keys.trust, text=TWO)
    add(folder, further("quality"), keys.release)
    admit(folder, TWO, keys.release)
    gate.verify(read_bundle(folder), policy(TWO), keys.trust, now=NOW)
    inputs = VerificationSummary.from_statement(
        Statement.from_json(json.dumps(statement(folder, VERDICT_FILE)).encode())
    ).inputs
    assert further("quality") in {item.name for item in inputs}


def test_one_signer_twice(folder: Path, keys: Keys) -> None:
    for number in (2, 3):
        add(folder, further("quality", number), keys.assessor)
    message = "quality report needs 2 signers, has 1 in 3 attestations"
    refused(2, message, folder, keys.trust, text=TWO)


def test_a_further_attestation_must_hold_too(folder: Path, keys: Keys) -> None:
    add(folder, further("quality"), keys.trainer)
    message = "quality attestation 2: signed by a key that is not trusted"
    refused(2, message, folder, keys.trust, text=TWO)
    refused(2, message, folder, keys.trust)
    data = (folder / attestation_file("structure")).read_bytes()
    write_atomic(folder / further("quality"), data)
    refused(4, "quality attestation 2 is about structure", folder, keys.trust)


def test_a_further_attestation_that_came_later(folder: Path, keys: Keys) -> None:
    add(folder, further("quality"), keys.assessor)
    refused(14, "verdict rests on other attestations", folder, keys.trust)


def two_releases(keys: Keys) -> tuple[ec.EllipticCurvePrivateKey, TrustRoot]:
    second = ec.generate_private_key(ec.SECP256R1())
    public = second.public_key()
    release = {**keys.trust.roles["release"], key_hint(public): public}
    return second, TrustRoot({**keys.trust.roles, "release": release})


def test_two_verdicts(folder: Path, keys: Keys) -> None:
    second, trust = two_releases(keys)
    (folder / VERDICT_FILE).unlink()
    admit(folder, TWO_VERDICTS, keys.release, keys.release)
    message = "verdict needs 2 signers, has 1 in 1 files"
    refused(11, message, folder, trust, text=TWO_VERDICTS)
    data = (folder / VERDICT_FILE).read_bytes()
    write_atomic(folder / further("verdict", 3), data)
    message = "verdict needs 2 signers, has 1 in 2 files"
    refused(11, message, folder, trust, text=TWO_VERDICTS)
    admit(folder, TWO_VERDICTS, second)
    gate.verify(read_bundle(folder), policy(TWO_VERDICTS), trust, now=NOW)
    message = "verdict 2: signed by a key that is not trusted"
    refused(11, message, folder, keys.trust, text=TWO_VERDICTS)


def test_the_client_takes_further_attestations(folder: Path, keys: Keys) -> None:
    add(folder, further("quality"), keys.release)
    admit(folder, TWO, keys.release)
    files = read_bundle(folder).files
    evidence: dict[str, dict[str, Any]] = {
        kind: {
            "attestation": files[attestation_file(kind)].decode(),
            "report": files[report_file(kind)].decode(),
        }
        for kind in ("structure", "quality", "privacy")
    }
    given = {"verdict": files[VERDICT_FILE].decode(), "evidence": evidence}
    trusted = [public_pem(keys.release.public_key())]
    with pytest.raises(Exception, match="evidence is missing"):
        verify_passport(given, model="toy", trusted_keys=trusted)
    evidence["quality"]["further"] = [files[further("quality")].decode()]
    verify_passport(given, model="toy", trusted_keys=trusted)


def test_places(folder: Path, keys: Keys) -> None:
    bundle = read_bundle(folder)
    signed = [key_hint(key.public_key()) for key in (keys.assessor, keys.release)]
    assert place(bundle, "quality", signed[1], signers=1) == QUALITY
    assert place(bundle, "quality", signed[0], signers=2) == QUALITY
    assert place(bundle, "quality", signed[1], signers=2) == further("quality")
    full = {QUALITY: b"x"} | {further("quality", n): b"{}" for n in range(2, 10)}
    with pytest.raises(AdmissionRefused, match="9 statements of other keys"):
        place(replace(bundle, files=full), "quality", signed[1], signers=2)


# Epsilon that cannot be accounted for


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mechanism", None),
        ("mechanism", "pate"),
        ("sampling", "shuffle"),
        ("neighbouring", "replace_one"),
        ("neighbouring", True),
    ],
)
def test_10_cannot_account(
    folder: Path, keys: Keys, name: str, value: str | bool | None
) -> None:
    text = POLICY.replace(b'neighbouring = "add_or_remove_one"\n', b"")
    conditions = {**read_bundle(folder).report("privacy").conditions, name: value}
    if value is None:
        del conditions[name]
    rewrite_report(folder, "privacy", conditions=conditions)
    attest(folder, "privacy", keys.trainer)
    refused(
        10,
        f"privacy: cannot account for {name} {value!r}",
        folder,
        keys.trust,
        text=text,
    )


def test_10_public_data_has_no_epsilon(folder: Path, keys: Keys) -> None:
    text = POLICY.replace(
        b'neighbouring = "add_or_remove_one"', b"personal_data = false"
    )
    text = text.replace(b"[require.privacy.metrics]\nepsilon = { max = 3.0 }\n", b"")
    rewrite_report(folder, "privacy", conditions={"personal_data": False}, metrics={})
    attest(folder, "privacy", keys.trainer)
    evaluate(
        read_bundle(folder),
        policy(text),
        keys.trust,
        now=NOW,
        recomputed=Recomputed(0.0, 0),
    )
    rewrite_report(folder, "privacy", metrics={"epsilon": Metric(0.0)})
    attest(folder, "privacy", keys.trainer)
    refused(10, "privacy: cannot account for mechanism", folder, keys.trust, text=text)


# All at once


def test_all_refusals(folder: Path, keys: Keys) -> None:
    weak = {"accuracy": Metric(0.7, n=10, low=0.4, high=0.9, confidence=0.95)}
    rewrite_report(folder, "quality", metrics=weak, created_at=NOW - timedelta(days=31))
    attest(folder, "quality", keys.assessor)
    attest(folder, "structure", keys.trainer)
    (folder / report_file("privacy")).unlink()
    bundle = read_bundle(folder)
    found = gate.all_refusals(bundle, policy(), keys.trust, now=NOW)
    assert [refusal.check for refusal in found] == [2, 6, 9, 9, 1, 14]
    assert str(found[2]) == "quality: accuracy rests on 10 samples, needs 50 [check 9]"
    evidence = gate.all_refusals(
        bundle,
        policy(),
        keys.trust,
        now=NOW,
        recomputed=Recomputed(0.0, 2),
        verdict=False,
    )
    assert [refusal.check for refusal in evidence] == [2, 6, 9, 9, 1, 10]


def test_nothing_is_refused(folder: Path, keys: Keys) -> None:
    bundle = read_bundle(folder)
    assert gate.all_refusals(bundle, policy(), keys.trust, now=NOW) == []
    admission = gate.verify(bundle, policy(), keys.trust, now=NOW)
    assert admission.waivers == {}
    assert admission.expires_at == NOW + timedelta(days=30)


def test_a_pattern_decides_what_a_model_needs(folder: Path, keys: Keys) -> None:
    laxer = b'[[models]]\nmatch = "to?"\nwithout = ["quality", "privacy"]\n'
    for name in (report_file("quality"), attestation_file("privacy")):
        (folder / name).unlink()
    refused(1, "quality report is missing", folder, keys.trust)
    text = POLICY + laxer
    admit(folder, text, keys.release)
    admission = gate.verify(read_bundle(folder), policy(text), keys.trust, now=NOW)
    assert set(admission.reports) == {"structure"}
    text = POLICY + laxer.replace(b"to?", b"to")
    refused(1, "quality report is missing", folder, keys.trust, text=text)


def test_a_result_without_its_predicate_type(folder: Path, keys: Keys) -> None:
    given = statement(folder)
    assert given["predicateType"] == TEST_RESULT_TYPE
    del given["predicateType"]
    write_atomic(folder / QUALITY, dsse.sign(json.dumps(given).encode(), keys.assessor))
    refused(3, "expected a predicate and its type", folder, keys.trust)
