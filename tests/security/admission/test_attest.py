"""security.admission.attest: what exactly a signature vouches for."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from models.report import Check
from sealgate.protocol import dsse
from sealgate.protocol.statement import (
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
)
from security.admission.attest import resource_uri, sign_report, sign_verdict, subjects
from security.errors import AdmissionRefused
from tests.support.bundles import KINDS, Keys, policy, report, rewrite_report

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def payload(signed: bytes, keys: Keys, role: str) -> Statement:
    verified = dsse.verify(signed, keys.trust.keys((role,)))
    return Statement.from_json(verified.payload)


def test_a_report_is_bound_to_model_and_bytes(bundle_folder: Path, keys: Keys) -> None:
    bundle = read_bundle(bundle_folder)
    statement = payload(sign_report(bundle, "quality", keys.assessor), keys, "assessor")
    assert statement.subjects == subjects(bundle.subject)
    assert [s.name for s in statement.subjects] == ["toy:1.0.0", "model.onnx"]
    result = TestResult.from_statement(statement)
    data = bundle.files["evidence/quality.json"]
    assert result.passed
    assert result.kind == "quality"
    assert result.report == Resource(
        "evidence/quality.json", hashlib.sha256(data).hexdigest()
    )


def test_a_failed_check_makes_a_failed_result(bundle_folder: Path, keys: Keys) -> None:
    checks = (Check("good", passed=True), Check("bad", passed=False))
    rewrite_report(bundle_folder, "structure", checks=checks)
    signed = sign_report(read_bundle(bundle_folder), "structure", keys.assessor)
    statement = payload(signed, keys, "assessor")
    assert not TestResult.from_statement(statement).passed
    assert statement.predicate["passedTests"] == ["good"]
    assert statement.predicate["failedTests"] == ["bad"]


@pytest.mark.parametrize("field", ["root_sha256", "onnx_sha256", "version", "name"])
def test_never_signs_a_report_about_other_bytes(
    bundle_folder: Path, keys: Keys, field: str
) -> None:
    subject = read_bundle(bundle_folder).subject
    rewrite_report(
        bundle_folder, "quality", subject=replace(subject, **{field: "0" * 64})
    )
    with pytest.raises(AdmissionRefused, match=r"about another model \[check 3\]"):
        sign_report(read_bundle(bundle_folder), "quality", keys.assessor)


def test_never_signs_a_report_of_another_kind(bundle_folder: Path, keys: Keys) -> None:
    subject = read_bundle(bundle_folder).subject
    other = report("structure", subject).to_json()
    (bundle_folder / "evidence" / "quality.json").write_bytes(other)
    with pytest.raises(AdmissionRefused, match="about another model"):
        sign_report(read_bundle(bundle_folder), "quality", keys.assessor)


def test_never_signs_what_is_not_there(bundle_folder: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match="fairness report is missing"):
        sign_report(read_bundle(bundle_folder), "fairness", keys.assessor)


def test_a_verdict_names_policy_model_and_inputs(
    bundle_folder: Path, keys: Keys
) -> None:
    bundle = read_bundle(bundle_folder)
    signed = sign_verdict(bundle, policy(), keys.release, now=NOW)
    statement = payload(signed, keys, "release")
    summary = VerificationSummary.from_statement(statement)
    assert statement.subjects == subjects(bundle.subject)
    assert summary.passed
    assert summary.verified_at == "2026-11-21T12:00:00Z"
    assert summary.resource_uri == resource_uri(bundle.subject) == "sealgate:toy:1.0.0"
    assert summary.policy == policy().resource
    names = {f"attestations/{kind}.sigstore.json" for kind in KINDS}
    assert {item.name for item in summary.inputs} == names
    for item in summary.inputs:
        data = bundle.files[item.name]
        assert item.sha256 == hashlib.sha256(data).hexdigest()
    assert summary.levels == (
        "SEALGATE_STRUCTURE",
        "SEALGATE_QUALITY",
        "SEALGATE_PRIVACY",
    )
