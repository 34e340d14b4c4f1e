"""in-toto statements: refusals, round trips, and the reference library's opinion."""

from __future__ import annotations

import copy
import json

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.scai.v0 import scai_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.predicates.vsa.v1 import vsa_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as Reference

from sealgate.errors import StatementError
from sealgate.protocol.statement import (
    SCAI_TYPE,
    STATEMENT_TYPE,
    TEST_RESULT_TYPE,
    VSA_TYPE,
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
)

A, B, C = ("a" * 64, "b" * 64, "0123456789abcdef" * 4)
SUBJECTS = (Resource("toy:1.0.0", A), Resource("model.onnx", B))
RESULT = TestResult(
    passed=True,
    kind="quality",
    report=Resource("evidence/quality.json", C),
    configuration=(Resource("toy/holdout", A),),
    metrics={"accuracy": 0.95},
    passed_tests=("rows",),
    failed_tests=(),
)
SUMMARY = VerificationSummary(
    verifier="https://sealgate.dev/admission-gate/v1",
    verified_at="2026-01-02T03:04:05Z",
    resource_uri="sealgate:toy:1.0.0",
    policy=Resource("policy.toml", A),
    inputs=(Resource("attestations/quality.sigstore.json", B),),
    passed=True,
    levels=("SEALGATE_QUALITY",),
)
TEST_RESULT = Statement(SUBJECTS, TEST_RESULT_TYPE, RESULT.to_predicate())
VERDICT = Statement(SUBJECTS, VSA_TYPE, SUMMARY.to_predicate())


def edited(statement: Statement, path: str, value: object) -> bytes:
    """A statement's JSON with one field replaced; deleted if the value is `...`."""
    document = json.loads(statement.to_json())
    *parents, last = [int(p) if p.isdigit() else p for p in path.split("|")]
    target = document
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = copy.deepcopy(value)
    return json.dumps(document).encode()


@pytest.mark.parametrize("statement", [TEST_RESULT, VERDICT], ids=["result", "verdict"])
def test_the_reference_library_accepts_our_statements(statement):
    proto = statement_pb2.Statement()
    json_format.Parse(statement.to_json(), proto)
    reference = Reference.copy_from_pb(proto)
    reference.validate()
    assert reference.pb.predicate_type == statement.predicate_type
    assert [(s.name, s.digest["sha256"]) for s in reference.pb.subject] == [
        (s.name, s.sha256) for s in SUBJECTS
    ]


def test_the_reference_library_reads_our_test_result():
    predicate = RESULT.to_predicate()
    extension = predicate.pop(SCAI_TYPE)
    result = json_format.ParseDict(predicate, test_result_pb2.TestResult())
    assert result.result == "PASSED"
    assert list(result.passed_tests) == ["rows"]
    assert result.configuration[0].digest["sha256"] == A
    report = json_format.ParseDict(extension, scai_pb2.AttributeReport())
    assert report.attributes[0].attribute == "SEALGATE_QUALITY"
    assert report.attributes[0].evidence.digest["sha256"] == C
    assert report.attributes[0].conditions["metrics"]["accuracy"] == 0.95


def test_a_reader_that_skips_unknown_fields_reads_all_of_it():
    result = test_result_pb2.TestResult()
    json_format.ParseDict(RESULT.to_predicate(), result, ignore_unknown_fields=True)
    assert result.result == "PASSED"


def test_the_reference_library_reads_our_verdict():
    predicate = SUMMARY.to_predicate()
    # The specification has an array here; in_toto_attestation 0.9.3 declares one text.
    assert predicate.pop("verifiedLevels") == ["SEALGATE_QUALITY"]
    summary = json_format.ParseDict(predicate, vsa_pb2.VerificationSummary())
    assert summary.verification_result == "PASSED"
    assert summary.resource_uri == "sealgate:toy:1.0.0"
    assert summary.policy.digest["sha256"] == A
    assert summary.verifier.id == SUMMARY.verifier
    assert summary.input_attestations[0].uri == "attestations/quality.sigstore.json"


def test_statements_round_trip():
    for statement in (TEST_RESULT, VERDICT):
        data = statement.to_json()
        assert Statement.from_json(data) == statement
        assert Statement.from_json(data).to_json() == data


def test_test_results_round_trip():
    result = TestResult.from_statement(Statement.from_json(TEST_RESULT.to_json()))
    assert (result.passed, result.kind, result.report) == (
        True,
        "quality",
        RESULT.report,
    )


@pytest.mark.parametrize("passed", [True, False])
def test_verdicts_round_trip(passed):
    summary = VerificationSummary(**{**vars(SUMMARY), "passed": passed})
    statement = Statement(SUBJECTS, VSA_TYPE, summary.to_predicate())
    parsed = Statement.from_json(statement.to_json())
    assert VerificationSummary.from_statement(parsed) == summary


STATEMENT_FAULTS = {
    "empty": (b"", "statement: not JSON"),
    "not an object": (b"[]", "statement: top level is not an object"),
    "huge": (b" " * ((3 << 20) + 1), "statement: document has 3145729 bytes"),
    "deep": (
        edited(TEST_RESULT, "predicate|x", json.loads("[" * 31 + "]" * 31)),
        "statement: nested more than 32 levels deep",
    ),
    "repeated key": (
        TEST_RESULT.to_json().replace(b'"subject"', b'"subject":[],"subject"'),
        "statement: an object repeats a key",
    ),
    "no type": (
        edited(TEST_RESULT, "_type", ...),
        "statement: not an in-toto Statement v1",
    ),
    "older type": (
        edited(TEST_RESULT, "_type", "https://in-toto.io/Statement/v0.1"),
        "statement: not an in-toto Statement v1",
    ),
    "no subject": (
        edited(TEST_RESULT, "subject", ...),
        "statement: expected subjects",
    ),
    "empty subject": (
        edited(TEST_RESULT, "subject", []),
        "statement: expected subjects",
    ),
    "too many subjects": (
        edited(TEST_RESULT, "subject", [SUBJECTS[0].to_object()] * 65),
        "statement: expected subjects",
    ),
    "subject is an object": (
        edited(TEST_RESULT, "subject", SUBJECTS[0].to_object()),
        "statement: expected subjects",
    ),
    "subject is text": (
        edited(TEST_RESULT, "subject|0", "toy"),
        "subject: expected a name and a sha256 digest",
    ),
    "subject without name": (
        edited(TEST_RESULT, "subject|0|name", ...),
        "subject: expected a name and a sha256 digest",
    ),
    "subject without digest": (
        edited(TEST_RESULT, "subject|1|digest", ...),
        "subject: expected a name and a sha256 digest",
    ),
    "subject with another digest": (
        edited(TEST_RESULT, "subject|1|digest", {"sha512": "a" * 128}),
        "subject: expected a name and a sha256 digest",
    ),
    "digest in upper case": (
        edited(TEST_RESULT, "subject|1|digest|sha256", "A" * 64),
        "subject: not a sha256 digest in lower-case hex",
    ),
    "digest too short": (
        edited(TEST_RESULT, "subject|1|digest|sha256", "a" * 63),
        "subject: not a sha256 digest in lower-case hex",
    ),
    "digest with a line break": (
        edited(TEST_RESULT, "subject|1|digest|sha256", "a" * 64 + "\n"),
        "subject: not a sha256 digest in lower-case hex",
    ),
    "no predicate": (
        edited(TEST_RESULT, "predicate", ...),
        "statement: expected a predicate and its type",
    ),
    "predicate is null": (
        edited(TEST_RESULT, "predicate", None),
        "statement: expected a predicate and its type",
    ),
    "no predicate type": (
        edited(TEST_RESULT, "predicateType", ...),
        "statement: expected a predicate and its type",
    ),
    "predicate type is a number": (
        edited(TEST_RESULT, "predicateType", 1),
        "statement: expected a predicate and its type",
    ),
}


@pytest.mark.parametrize(
    ("data", "message"), STATEMENT_FAULTS.values(), ids=STATEMENT_FAULTS
)
def test_refused_statements(data, message):
    with pytest.raises(StatementError) as caught:
        Statement.from_json(data)
    assert str(caught.value).startswith(message)


ATTRIBUTE = f"predicate|{SCAI_TYPE}|attributes"
RESULT_FAULTS = {
    "a verdict": (VERDICT.to_json(), "statement: not a test result v0.1"),
    "no result": (
        edited(TEST_RESULT, "predicate|result", ...),
        "test result: expected PASSED or FAILED",
    ),
    "another result": (
        edited(TEST_RESULT, "predicate|result", "WARNED"),
        "test result: expected PASSED or FAILED",
    ),
    "result in lower case": (
        edited(TEST_RESULT, "predicate|result", "passed"),
        "test result: expected PASSED or FAILED",
    ),
    "no extension": (
        edited(TEST_RESULT, f"predicate|{SCAI_TYPE}", ...),
        "test result: expected exactly one attribute",
    ),
    "no attribute": (
        edited(TEST_RESULT, ATTRIBUTE, []),
        "test result: expected exactly one attribute",
    ),
    "two attributes": (
        edited(
            TEST_RESULT, ATTRIBUTE, RESULT.to_predicate()[SCAI_TYPE]["attributes"] * 2
        ),
        "test result: expected exactly one attribute",
    ),
    "attribute is text": (
        edited(TEST_RESULT, f"{ATTRIBUTE}|0", "x"),
        "statement: attribute is missing or not text",
    ),
    "attribute of somebody else": (
        edited(TEST_RESULT, f"{ATTRIBUTE}|0|attribute", "OTHER_QUALITY"),
        "test result: unknown attribute",
    ),
    "no evidence": (
        edited(TEST_RESULT, f"{ATTRIBUTE}|0|evidence", ...),
        "test result: expected a name and a sha256 digest",
    ),
    "evidence without sha256": (
        edited(TEST_RESULT, f"{ATTRIBUTE}|0|evidence|digest", {}),
        "test result: expected a name and a sha256 digest",
    ),
}


@pytest.mark.parametrize(("data", "message"), RESULT_FAULTS.values(), ids=RESULT_FAULTS)
def test_refused_test_results(data, message):
    with pytest.raises(StatementError) as caught:
        TestResult.from_statement(Statement.from_json(data))
    assert str(caught.value) == message


def _verdict_fault(field: str, value: object, message: str) -> tuple[bytes, str]:
    return edited(VERDICT, f"predicate|{field}", value), message


VERDICT_FAULTS = {
    "a test result": (
        TEST_RESULT.to_json(),
        "statement: not a verification summary v1",
    ),
    "older VSA": (
        edited(VERDICT, "predicateType", "https://slsa.dev/verification_summary/v0.2"),
        "statement: not a verification summary v1",
    ),
    "no verifier": _verdict_fault(
        "verifier", ..., "verdict: expected a verifier and inputAttestations"
    ),
    "verifier is text": _verdict_fault(
        "verifier", "x", "verdict: expected a verifier and inputAttestations"
    ),
    "verifier without id": _verdict_fault(
        "verifier", {}, "statement: verifier.id is missing or not text"
    ),
    "no inputs": _verdict_fault(
        "inputAttestations", ..., "verdict: expected a verifier and inputAttestations"
    ),
    "input is text": _verdict_fault(
        "inputAttestations", ["x"], "verdict: inputAttestations is malformed"
    ),
    "input without uri": _verdict_fault(
        "inputAttestations",
        [{"digest": {"sha256": A}}],
        "inputAttestations: expected a name and a sha256 digest",
    ),
    "input named, not located": _verdict_fault(
        "inputAttestations",
        [SUBJECTS[0].to_object()],
        "inputAttestations: expected a name and a sha256 digest",
    ),
    "no result": _verdict_fault(
        "verificationResult", ..., "verdict: expected PASSED or FAILED"
    ),
    "result is true": _verdict_fault(
        "verificationResult", True, "verdict: expected PASSED or FAILED"
    ),
    "no time": _verdict_fault(
        "timeVerified", ..., "statement: timeVerified is missing or not text"
    ),
    "no resource": _verdict_fault(
        "resourceUri", "", "statement: resourceUri is missing or not text"
    ),
    "no policy": _verdict_fault("policy", ..., "verdict: policy is malformed"),
    "policy without digest": _verdict_fault(
        "policy", {"uri": "x"}, "policy: expected a name and a sha256 digest"
    ),
    "levels is text": _verdict_fault(
        "verifiedLevels", "SEALGATE", "statement: verifiedLevels is not an array"
    ),
    "level is a number": _verdict_fault(
        "verifiedLevels", [1], "statement: verifiedLevels is missing or not text"
    ),
}


@pytest.mark.parametrize(
    ("data", "message"), VERDICT_FAULTS.values(), ids=VERDICT_FAULTS
)
def test_refused_verdicts(data, message):
    with pytest.raises(StatementError) as caught:
        VerificationSummary.from_statement(Statement.from_json(data))
    assert str(caught.value) == message


def test_type_uris():
    # Other tools match on these: a change of one character breaks them all.
    assert STATEMENT_TYPE == "https://in-toto.io/Statement/v1"
    assert TEST_RESULT_TYPE == "https://in-toto.io/attestation/test-result/v0.1"
    assert SCAI_TYPE == "https://in-toto.io/attestation/scai/v0.3"
    assert VSA_TYPE == "https://slsa.dev/verification_summary/v1"


OTHER_NAMES = (
    "_type subject predicate predicateType name uri digest sha256 id attribute "
    "attributes evidence"
)
NAMES = st.sampled_from(
    [*TEST_RESULT.predicate, *VERDICT.predicate, *OTHER_NAMES.split()]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 3)
    | st.sampled_from([A, "PASSED", "SEALGATE_X", "", STATEMENT_TYPE]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5)
    ),
    max_leaves=15,
)


@given(
    st.sampled_from([TEST_RESULT_TYPE, VSA_TYPE]),
    st.dictionaries(NAMES, JSON, max_size=8),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_arbitrary_predicates_only_raise_statement_error(kind, changes, data):
    base = TEST_RESULT if kind == TEST_RESULT_TYPE else VERDICT
    kept = data.draw(st.sets(st.sampled_from(sorted(base.predicate))))
    predicate = {name: base.predicate[name] for name in kept} | changes
    statement = Statement(SUBJECTS, kind, predicate)
    for parser in (TestResult, VerificationSummary):
        try:
            parser.from_statement(statement)
        except StatementError:
            continue


@given(JSON | st.dictionaries(NAMES, JSON).map(lambda d: {"_type": STATEMENT_TYPE} | d))
@settings(deadline=None, max_examples=200)
def test_arbitrary_documents_only_raise_statement_error(value):
    try:
        Statement.from_json(json.dumps(value).encode())
    except StatementError:
        return
