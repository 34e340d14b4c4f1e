"""security.admission.gate: one fault per check, each refused by that check."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import (
    VERDICT_FILE,
    attestation_file,
    read_bundle,
    report_file,
)
from models.report import Check, Metric
from sealgate.protocol import dsse
from sealgate.protocol.statement import (
    TEST_RESULT_TYPE,
    VSA_TYPE,
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
)
from security.admission import gate
from security.admission.attest import subjects
from security.admission.gate import Recomputed
from security.errors import AdmissionRefused
from tests.support import bundles
from tests.support.bundles import (
    KINDS,
    POLICY,
    Keys,
    attest,
    onnx_model,
    policy,
    rewrite_report,
    sign,
    write_bundle,
)

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    return write_bundle(tmp_path / "bundle", keys, now=NOW)


def verify(
    folder: Path, keys: Keys, *, now: datetime = NOW, policy_bytes: bytes = POLICY
) -> gate.Admission:
    return gate.verify(read_bundle(folder), policy(policy_bytes), keys.trust, now=now)


def refused(check: int, message: str, folder: Path, keys: Keys, **changes: Any) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        verify(folder, keys, **changes)
    assert caught.value.check == check
    assert str(caught.value).endswith(f"[check {check}]")


def evaluate(folder: Path, keys: Keys, recomputed: Recomputed | None = None):
    return bundles.evaluate(
        read_bundle(folder), policy(), keys.trust, now=NOW, recomputed=recomputed
    )


def bind(
    folder: Path,
    kind: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    about: tuple[Resource, ...] | None = None,
    **changes: Any,
) -> None:
    """Sign a test result as a careless or lying key holder would, unasked."""
    bundle = read_bundle(folder)
    data = bundle.files[report_file(kind)]
    bound = Resource(report_file(kind), hashlib.sha256(data).hexdigest())
    result = TestResult(**({"passed": True, "kind": kind, "report": bound} | changes))
    about = subjects(bundle.subject) if about is None else about
    statement = Statement(about, TEST_RESULT_TYPE, result.to_predicate())
    write(folder, attestation_file(kind), dsse.sign(statement.to_json(), key))


def sign_summary(
    folder: Path,
    key: ec.EllipticCurvePrivateKey,
    *,
    about: tuple[Resource, ...] | None = None,
    predicate_type: str = VSA_TYPE,
    **changes: Any,
) -> None:
    """Sign a verdict that differs from the honest one in the given fields."""
    honest = json.loads(read_bundle(folder).files[VERDICT_FILE])
    payload = base64.b64decode(honest["dsseEnvelope"]["payload"])
    statement = Statement.from_json(payload)
    summary = replace(VerificationSummary.from_statement(statement), **changes)
    about = statement.subjects if about is None else about
    forged = Statement(about, predicate_type, summary.to_predicate())
    write(folder, VERDICT_FILE, dsse.sign(forged.to_json(), key))


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file of the bundle in place."""
    document = json.loads((folder / name).read_bytes())
    change(document)
    write(folder, name, json.dumps(document).encode())


def rewrite(folder: Path, keys: Keys, kind: str, **changes: Any) -> None:
    """Change a report, and sign it again as its author would."""
    rewrite_report(folder, kind, **changes)
    attest(folder, kind, keys.signer(kind))


def test_an_admitted_bundle_passes(folder: Path, keys: Keys) -> None:
    admission = verify(folder, keys)
    verdict = (folder / VERDICT_FILE).read_bytes()
    assert admission.verdict_sha256 == hashlib.sha256(verdict).hexdigest()
    assert set(admission.reports) == set(KINDS)
    assert admission.bundle.model == (folder / "model.onnx").read_bytes()


# Check 1: report and attestation are there.


@pytest.mark.parametrize("kind", KINDS)
def test_1_report_missing(folder: Path, keys: Keys, kind: str) -> None:
    (folder / report_file(kind)).unlink()
    refused(1, f"{kind} report is missing, and the policy needs it", folder, keys)


@pytest.mark.parametrize("kind", KINDS)
def test_1_attestation_missing(folder: Path, keys: Keys, kind: str) -> None:
    (folder / attestation_file(kind)).unlink()
    refused(1, f"{kind} report is not signed", folder, keys)


# Check 2: signature and role.


def test_2_key_of_the_wrong_role(folder: Path, keys: Keys) -> None:
    attest(folder, "quality", keys.trainer)
    refused(2, "quality attestation: signed by a key that is not tru", folder, keys)


def test_2_release_key_may_not_vouch_for_evidence(folder: Path, keys: Keys) -> None:
    attest(folder, "privacy", keys.release)
    refused(2, "privacy attestation: signed by a key that is not tru", folder, keys)


def test_2_key_of_a_stranger(folder: Path, keys: Keys) -> None:
    attest(folder, "quality", Keys.generate().assessor)
    refused(2, "signed by a key that is not trusted", folder, keys)


def test_2_hint_of_a_trusted_key(folder: Path, keys: Keys) -> None:
    attest(folder, "quality", keys.trainer)
    hint = dsse.key_hint(keys.assessor.public_key())

    def change(document: dict[str, Any]) -> None:
        document["verificationMaterial"]["publicKey"]["hint"] = hint

    edit(folder, attestation_file("quality"), change)
    refused(2, "quality attestation: signature does not verify", folder, keys)


def test_2_tampered_statement(folder: Path, keys: Keys) -> None:
    def change(document: dict[str, Any]) -> None:
        payload = base64.b64decode(document["dsseEnvelope"]["payload"])
        payload = payload.replace(b'"PASSED"', b'"PASSEd"')
        document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()

    edit(folder, attestation_file("structure"), change)
    refused(2, "structure attestation: signature does not verify", folder, keys)


def test_2_tampered_signature(folder: Path, keys: Keys) -> None:
    def change(document: dict[str, Any]) -> None:
        (signature,) = document["dsseEnvelope"]["signatures"]
        raw = bytearray(base64.b64decode(signature["sig"]))
        raw[-1] ^= 1
        signature["sig"] = base64.b64encode(raw).decode()

    edit(folder, attestation_file("structure"), change)
    refused(2, "structure attestation: signature does not verify", folder, keys)


def test_2_a_second_signature(folder: Path, keys: Keys) -> None:
    def change(document: dict[str, Any]) -> None:
        document["dsseEnvelope"]["signatures"] *= 2

    edit(folder, attestation_file("structure"), change)
    refused(2, "expected exactly one signature", folder, keys)


def test_2_no_bundle_at_all(folder: Path, keys: Keys) -> None:
    write(folder, attestation_file("structure"), b"{}")
    refused(2, "structure attestation: bundle: missing mediaType", folder, keys)


# Check 3: the statement is about this bundle.


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_3_model_changed(folder: Path, keys: Keys, name: str) -> None:
    data = (folder / name).read_bytes()
    changed = data.replace(b'"max_rows":64', b'"max_rows":65')
    write(folder, name, changed if changed != data else onnx_model() + b"\x00")
    refused(3, "structure attestation is about other bytes", folder, keys)


def test_3_evidence_of_another_model(folder: Path, keys: Keys, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", keys, version="2.0.0", now=NOW)
    for name in (report_file("quality"), attestation_file("quality")):
        os.replace(other / name, folder / name)
    refused(3, "quality attestation is about other bytes", folder, keys)


def _about(folder: Path) -> tuple[Resource, Resource]:
    root, model = subjects(read_bundle(folder).subject)
    return root, model


@pytest.mark.parametrize(
    "choose",
    [
        lambda root, model: (root,),
        lambda root, model: (model,),
        lambda root, model: (model, root),
        lambda root, model: (root, model, model),
        lambda root, model: (root, replace(model, sha256="0" * 64)),
        lambda root, model: (replace(root, sha256="0" * 64), model),
        lambda root, model: (replace(root, name="toy:1.0.1"), model),
    ],
    ids=["root", "model", "order", "more", "other model", "other root", "other name"],
)
def test_3_other_subjects(folder: Path, keys: Keys, choose: Any) -> None:
    bind(folder, "quality", keys.assessor, about=choose(*_about(folder)))
    refused(3, "quality attestation is about other bytes", folder, keys)


def test_3_signed_nonsense(folder: Path, keys: Keys) -> None:
    write(folder, attestation_file("quality"), dsse.sign(b"[]", keys.assessor))
    refused(3, "quality attestation: statement: top level", folder, keys)


# Check 4: a passed test result of this kind, about these report bytes.


def test_4_report_changed_after_signing(folder: Path, keys: Keys) -> None:
    metrics = {"accuracy": Metric(0.99, n=200, low=0.98, high=1.0, confidence=0.95)}
    rewrite_report(folder, "quality", metrics=metrics)
    refused(4, "quality report was changed after it was signed", folder, keys)


def test_4_one_blank_in_the_report(folder: Path, keys: Keys) -> None:
    path = folder / report_file("quality")
    path.write_bytes(path.read_bytes() + b"\n")
    refused(4, "quality report was changed after it was signed", folder, keys)


def test_4_attestation_of_another_kind(folder: Path, keys: Keys) -> None:
    data = (folder / attestation_file("structure")).read_bytes()
    write(folder, attestation_file("quality"), data)
    refused(4, "quality attestation is about structure", folder, keys)


def test_4_failed_result(folder: Path, keys: Keys) -> None:
    bind(folder, "quality", keys.assessor, passed=False)
    refused(4, "quality attestation says FAILED", folder, keys)


def test_4_result_about_another_file(folder: Path, keys: Keys) -> None:
    data = (folder / report_file("quality")).read_bytes()
    other = Resource(report_file("fairness"), hashlib.sha256(data).hexdigest())
    bind(folder, "quality", keys.assessor, report=other)
    refused(4, "quality report was changed after it was signed", folder, keys)


def test_4_a_verdict_in_place_of_a_result(folder: Path, keys: Keys) -> None:
    sign_summary(folder, keys.assessor)
    os.replace(folder / VERDICT_FILE, folder / attestation_file("quality"))
    refused(4, "quality attestation: statement: not a test result", folder, keys)


# Check 5: the report itself says the same.


@pytest.mark.parametrize("field", ["name", "version", "root_sha256", "onnx_sha256"])
def test_5_report_about_another_model(folder: Path, keys: Keys, field: str) -> None:
    subject = replace(read_bundle(folder).subject, **{field: "0" * 64})
    rewrite_report(folder, "quality", subject=subject)
    bind(folder, "quality", keys.assessor)
    refused(5, "quality report is about another model", folder, keys)


def test_5_report_of_another_kind(folder: Path, keys: Keys) -> None:
    report = replace(read_bundle(folder).report("quality"), kind="fairness")
    write(folder, report_file("quality"), report.to_json())
    bind(folder, "quality", keys.assessor)
    refused(5, "quality report is about another model", folder, keys)


def test_5_malformed_report(folder: Path, keys: Keys) -> None:
    write(folder, report_file("quality"), b'{"kind":"quality"}')
    bind(folder, "quality", keys.assessor)
    refused(5, "quality: report: missing schema", folder, keys)


# Check 6: fresh, and not from the future.


def test_6_expired(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "quality", created_at=NOW - 30 * DAY - timedelta(seconds=1))
    refused(6, "quality report expired: older than 30 days", folder, keys)


def test_6_last_moment(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "quality", created_at=NOW - 30 * DAY)
    evaluate(folder, keys)


def test_6_future(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "quality", created_at=NOW + timedelta(seconds=301))
    refused(6, "quality report is from the future", folder, keys)


def test_6_clocks_may_differ(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "quality", created_at=NOW + timedelta(seconds=300))
    evaluate(folder, keys)


# Check 7: no check failed, whatever the result says.


def test_7_failed_check(folder: Path, keys: Keys) -> None:
    checks = (Check("good", passed=True), Check("no-loops", passed=False))
    rewrite_report(folder, "structure", checks=checks)
    bind(folder, "structure", keys.assessor, passed=True)
    refused(7, "structure: check no-loops failed", folder, keys)


def test_7_an_honest_signature_says_failed_already(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "structure", checks=(Check("no-loops", passed=False),))
    refused(4, "structure attestation says FAILED", folder, keys)


# Check 8: the conditions are the policy's.


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ('"add_or_remove_one"', None),
        ('"add_or_remove_one"', "replace_one"),
        ('"add_or_remove_one"', "Add_or_remove_one"),
        ("true", 1),
        ("1", True),
        ("0", False),
        ("1", "1"),
        ("0.1", 0.10000000000000002),
    ],
)
def test_8_another_condition(
    folder: Path, keys: Keys, wanted: str, given: object
) -> None:
    text = POLICY.replace(b'"add_or_remove_one"', wanted.encode())
    report = read_bundle(folder).report("privacy")
    conditions = {**report.conditions, "neighbouring": given}
    conditions = {k: v for k, v in conditions.items() if v is not None}
    rewrite(folder, keys, "privacy", conditions=conditions)
    message = "privacy: condition neighbouring is "
    refused(8, message, folder, keys, policy_bytes=text)


# Check 9: thresholds.


def accuracy(value: float = 0.95, **changes: Any) -> dict[str, Metric]:
    given = {"n": 200, "low": 0.91, "high": 0.97, "confidence": 0.95} | changes
    return {"accuracy": Metric(value, **given)}


NO_INTERVAL = {"low": None, "high": None, "confidence": None}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "quality: accuracy is not in the report"),
        (accuracy(n=49), "quality: accuracy rests on 49 samples, needs 50"),
        (accuracy(n=None), "quality: accuracy rests on 0 samples, needs 50"),
        (accuracy(low=0.79), r"quality: accuracy is 0\.79, needs at least 0\.8"),
        (accuracy(**NO_INTERVAL), "quality: accuracy has no interval"),
    ],
)
def test_9_threshold(
    folder: Path, keys: Keys, metrics: dict[str, Metric], message: str
) -> None:
    rewrite(folder, keys, "quality", metrics=metrics)
    refused(9, message, folder, keys)


def test_9_too_much(folder: Path, keys: Keys) -> None:
    metrics = {"epsilon": Metric(3.0000001), "delta": Metric(1e-3)}
    rewrite(folder, keys, "privacy", metrics=metrics)
    refused(9, r"privacy: epsilon is 3, allows at most 3\.0", folder, keys)


def test_9_bounds_are_inclusive(folder: Path, keys: Keys) -> None:
    rewrite(folder, keys, "privacy", metrics={"epsilon": Metric(3.0)})
    rewrite(folder, keys, "quality", metrics=accuracy(low=0.8, n=50))
    evaluate(folder, keys)


def test_9_the_upper_end_counts_for_a_maximum(folder: Path, keys: Keys) -> None:
    text = POLICY.replace(b"min = 0.8", b"max = 0.96")
    refused(9, "accuracy is 0.97, allows at most", folder, keys, policy_bytes=text)


def test_9_the_value_counts_where_the_policy_says_so(folder: Path, keys: Keys) -> None:
    text = POLICY.replace(b'"interval"', b'"value"').replace(b"0.8", b"0.94")
    sign(folder, keys, policy_bytes=text, now=NOW)
    verify(folder, keys, policy_bytes=text)
    text = text.replace(b"0.94", b"0.96")
    refused(9, "accuracy is 0.95, needs at least", folder, keys, policy_bytes=text)


# Check 10: what is recomputed agrees with what was claimed.


def test_10_agreement(folder: Path, keys: Keys) -> None:
    evaluate(folder, keys, Recomputed(epsilon=2.5, structure_errors=0))
    evaluate(folder, keys, Recomputed(epsilon=2.5 * 1.0099, structure_errors=0))


@pytest.mark.parametrize(
    ("recomputed", "message"),
    [
        (Recomputed(2.53, 0), "epsilon is 2.53 when recomputed, 2.5 was claimed"),
        (Recomputed(float("inf"), 0), "epsilon is inf when recomputed"),
        (Recomputed(float("nan"), 0), "epsilon is nan when recomputed"),
        (Recomputed(2.5, 1), "structure: 1 errors when inspected again"),
    ],
)
def test_10_disagreement(
    folder: Path, keys: Keys, recomputed: Recomputed, message: str
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        evaluate(folder, keys, recomputed)
    assert caught.value.check == 10


def test_10_no_claim(folder: Path, keys: Keys) -> None:
    text = POLICY.replace(b"epsilon = { max = 3.0 }", b"delta = { max = 1 }")
    rewrite(folder, keys, "privacy", metrics={"delta": Metric(1e-3)})
    with pytest.raises(AdmissionRefused, match="the report states no epsilon") as e:
        bundles.evaluate(
            read_bundle(folder),
            policy(text),
            keys.trust,
            now=NOW,
            recomputed=Recomputed(1.0, 0),
        )
    assert e.value.check == 10


# Check 11: the verdict is there, and signed by whom the policy allows.


def test_11_verdict_missing(folder: Path, keys: Keys) -> None:
    (folder / VERDICT_FILE).unlink()
    refused(11, "verdict is missing: the bundle was not admitted", folder, keys)


@pytest.mark.parametrize("role", ["trainer", "assessor"])
def test_11_verdict_by_another_role(folder: Path, keys: Keys, role: str) -> None:
    sign(folder, replace(keys, release=getattr(keys, role)), now=NOW)
    refused(11, "verdict: signed by a key that is not trusted", folder, keys)


def test_11_verdict_by_a_stranger(folder: Path, keys: Keys) -> None:
    sign(folder, replace(keys, release=Keys.generate().release), now=NOW)
    refused(11, "verdict: signed by a key that is not trusted", folder, keys)


def test_11_tampered_verdict(folder: Path, keys: Keys) -> None:
    def change(document: dict[str, Any]) -> None:
        payload = base64.b64decode(document["dsseEnvelope"]["payload"])
        payload = payload.replace(b"2026-11-21", b"2026-11-22")
        document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()

    edit(folder, VERDICT_FILE, change)
    refused(11, "verdict: signature does not verify", folder, keys)


# Check 12: about this bundle, a summary that passed.


def test_12_verdict_of_another_model(folder: Path, keys: Keys, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", keys, version="2.0.0", now=NOW)
    os.replace(other / VERDICT_FILE, folder / VERDICT_FILE)
    refused(12, "verdict is about other bytes", folder, keys)


def test_12_failed_verdict(folder: Path, keys: Keys) -> None:
    sign_summary(folder, keys.release, passed=False)
    refused(12, "verdict did not pass, or is for another model", folder, keys)


def test_12_verdict_names_another_model(folder: Path, keys: Keys) -> None:
    sign_summary(folder, keys.release, resource_uri="sealgate:toy:2.0.0")
    refused(12, "verdict did not pass, or is for another model", folder, keys)


def test_12_no_summary(folder: Path, keys: Keys) -> None:
    sign_summary(folder, keys.release, predicate_type=TEST_RESULT_TYPE)
    refused(12, "verdict: statement: not a verification summary", folder, keys)


def test_12_time_in_another_form(folder: Path, keys: Keys) -> None:
    sign_summary(folder, keys.release, verified_at="yesterday")
    refused(12, "verdict: a time is not RFC 3339", folder, keys)


# Check 13: under this very policy.


def test_13_verdict_under_another_policy(folder: Path, keys: Keys) -> None:
    sign(folder, keys, policy_bytes=POLICY + b"# laxer", now=NOW)
    refused(13, "verdict was made under another policy", folder, keys)


def test_13_a_policy_edited_after_the_verdict(folder: Path, keys: Keys) -> None:
    text = POLICY.replace(b"max = 3.0", b"max = 30.0")
    message = "verdict was made under another policy"
    refused(13, message, folder, keys, policy_bytes=text)


# Check 14: on exactly these attestations.


def test_14_evidence_signed_anew(folder: Path, keys: Keys) -> None:
    attest(folder, "quality", keys.assessor)  # ECDSA is randomized: other bytes
    refused(14, "verdict rests on other attestations than these", folder, keys)


@pytest.mark.parametrize("keep", [slice(1, None), slice(0, 0)])
def test_14_fewer_attestations(folder: Path, keys: Keys, keep: slice) -> None:
    bundle, names = read_bundle(folder), [attestation_file(kind) for kind in KINDS]
    inputs = tuple(
        Resource(n, hashlib.sha256(bundle.files[n]).hexdigest()) for n in names
    )
    sign_summary(folder, keys.release, inputs=inputs[keep])
    refused(14, "verdict rests on other attestations than these", folder, keys)
    more = (*inputs, Resource("attestations/fairness.sigstore.json", "0" * 64))
    sign_summary(folder, keys.release, inputs=more)
    refused(14, "verdict rests on other attestations than these", folder, keys)


# Check 15: fresh, and not from the future.


def test_15_expired_verdict(folder: Path, keys: Keys) -> None:
    sign(folder, keys, now=NOW - 30 * DAY - timedelta(seconds=1))
    refused(15, "verdict expired: older than 30 days", folder, keys)


def test_15_verdict_from_the_future(folder: Path, keys: Keys) -> None:
    sign(folder, keys, now=NOW + timedelta(seconds=301))
    refused(15, "verdict is from the future", folder, keys)


def test_an_admission_ages(folder: Path, keys: Keys) -> None:
    verify(folder, keys, now=NOW + 30 * DAY)
    refused(6, "expired", folder, keys, now=NOW + 31 * DAY)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_changed_byte_is_refused(folder: Path, keys: Keys, data: Any) -> None:
    bundle = read_bundle(folder)
    name = data.draw(st.sampled_from(sorted(bundle.files)))
    content = bytearray(bundle.files[name])
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    subject = bundle.subject
    if name in ("model.onnx", "manifest.json"):
        subject = replace(subject, root_sha256=hashlib.sha256(content).hexdigest())
    changed = replace(
        bundle, files={**bundle.files, name: bytes(content)}, subject=subject
    )
    # Equal documents in another spelling verify: only the digest of the bytes that
    # matter counts, and a verdict's own bytes are reported, not compared.
    try:
        admission = gate.verify(changed, policy(), keys.trust, now=NOW)
    except AdmissionRefused:
        return
    assert name == VERDICT_FILE
    assert admission.verdict_sha256 == hashlib.sha256(content).hexdigest()


def test_reports_are_parsed_only_after_their_signature(
    folder: Path, keys: Keys
) -> None:
    # A hostile report behind a bad signature never reaches the report's parser.
    write(folder, report_file("structure"), b"[" * 1000)
    refused(4, "structure report was changed after it was signed", folder, keys)
