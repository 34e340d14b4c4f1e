"""in-toto statements: test results about a model, waivers, and the verdict over them.

Statement v1, test-result v0.1 and SCAI v0.3: in-toto/attestation, spec/. Verification
summary (VSA) v1: slsa-framework/slsa, spec/verification_summary. The waiver's predicate
is our own (docs/policy.md).

A test result carries its detail metrics as a SCAI attribute list in an extension field
named by SCAI's own type URI, which in-toto's parsing rules allow and other readers
skip. Each attribute names the report file it rests on by digest: that binds a report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import later

__all__ = [
    "SCAI_TYPE",
    "STATEMENT_TYPE",
    "TEST_RESULT_TYPE",
    "VSA_TYPE",
    "WAIVER_TYPE",
    "Resource",
    "Statement",
    "TestResult",
    "VerificationSummary",
    "Waiver",
]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
SCAI_TYPE = "https://in-toto.io/attestation/scai/v0.3"
VSA_TYPE = "https://slsa.dev/verification_summary/v1"
WAIVER_TYPE = "https://sealgate.dev/waiver/v1"

MAX_STATEMENT_BYTES = 3 << 20
MAX_SUBJECTS = 64
MAX_WAIVER_CHARACTERS = 1000

# What verdicts that name no algorithms were given on.
_FORMERLY = ("ecdsa-p256-sha256",)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Resource:
    """A resource descriptor: a name, and the SHA-256 of what it names."""

    name: str
    sha256: str

    def to_object(self) -> dict[str, Any]:
        """The in-toto ResourceDescriptor."""
        return {"name": self.name, "digest": {"sha256": self.sha256}}

    @classmethod
    def from_object(cls, value: Any, where: str) -> Resource:
        """Parse a ResourceDescriptor that has a name and a SHA-256.

        Raises:
            StatementError: anything else, digests in other forms included.
        """
        name = value.get("name") if isinstance(value, dict) else None
        digest = value.get("digest") if isinstance(value, dict) else None
        sha256 = digest.get("sha256") if isinstance(digest, dict) else None
        if not isinstance(name, str) or not isinstance(sha256, str):
            raise StatementError(f"{where}: expected a name and a sha256 digest")
        if not _SHA256.fullmatch(sha256):
            raise StatementError(f"{where}: not a sha256 digest in lower-case hex")
        return cls(name, sha256)


@dataclass(frozen=True)
class Statement:
    """An in-toto Statement v1.

    Attributes:
        subjects: what it is about.
        predicate_type: URI of the predicate's type.
        predicate: the predicate's object, not interpreted here.
    """

    subjects: tuple[Resource, ...]
    predicate_type: str
    predicate: Mapping[str, Any]

    def to_json(self) -> bytes:
        """The payload to be signed."""
        return strict_json.dumps(
            {
                "_type": STATEMENT_TYPE,
                "subject": [subject.to_object() for subject in self.subjects],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def from_json(cls, payload: bytes) -> Statement:
        """Parse a signed payload.

        Raises:
            StatementError: not a Statement v1.
        """
        try:
            value = strict_json.loads_object(payload, max_bytes=MAX_STATEMENT_BYTES)
        except JsonError as error:
            raise StatementError(f"statement: {error}") from None
        if value.get("_type") != STATEMENT_TYPE:
            text = later(value.get("_type"), STATEMENT_TYPE)
            raise StatementError(f"statement: not an in-toto Statement v1{text}")
        subjects, predicate = value.get("subject"), value.get("predicate")
        predicate_type = value.get("predicateType")
        if not isinstance(subjects, list) or not 1 <= len(subjects) <= MAX_SUBJECTS:
            raise StatementError("statement: expected subjects")
        if not isinstance(predicate, dict) or not isinstance(predicate_type, str):
            raise StatementError("statement: expected a predicate and its type")
        return cls(
            tuple(Resource.from_object(item, "subject") for item in subjects),
            predicate_type,
            predicate,
        )


@dataclass(frozen=True)
class TestResult:
    """The predicate that binds one report.

    Attributes:
        passed: the result is PASSED rather than FAILED.
        kind: which kind of evidence the report is.
        report: path inside the bundle, and digest, of the report.
        configuration: what the test ran on: the data sets, by digest.
        metrics: the report's metrics, repeated for readers without the report.
        passed_tests, failed_tests: ids of the report's checks.
    """

    __test__ = False  # a predicate, not a test class for pytest to collect

    passed: bool
    kind: str
    report: Resource
    configuration: tuple[Resource, ...] = ()
    metrics: Mapping[str, Any] | None = None
    passed_tests: tuple[str, ...] = ()
    failed_tests: tuple[str, ...] = ()

    def to_predicate(self) -> dict[str, Any]:
        """The test-result v0.1 predicate with its SCAI extension."""
        attribute = {
            "attribute": _attribute(self.kind),
            "conditions": {"metrics": dict(self.metrics or {})},
            "evidence": self.report.to_object() | {"mediaType": "application/json"},
        }
        return {
            "result": "PASSED" if self.passed else "FAILED",
            "configuration": [item.to_object() for item in self.configuration],
            "passedTests": list(self.passed_tests),
            "failedTests": list(self.failed_tests),
            SCAI_TYPE: {"attributes": [attribute]},
        }

    @classmethod
    def from_statement(cls, statement: Statement) -> TestResult:
        """Interpret a statement's predicate.

        Raises:
            StatementError: another predicate type, or malformed.
        """
        _check_type(statement, TEST_RESULT_TYPE, "a test result v0.1")
        predicate = statement.predicate
        if predicate.get("result") not in ("PASSED", "FAILED"):
            raise StatementError("test result: expected PASSED or FAILED")
        scai = predicate.get(SCAI_TYPE)
        attributes = scai.get("attributes") if isinstance(scai, dict) else None
        if not isinstance(attributes, list) or len(attributes) != 1:
            raise StatementError("test result: expected exactly one attribute")
        attribute = attributes[0] if isinstance(attributes[0], dict) else {}
        return cls(
            passed=predicate["result"] == "PASSED",
            kind=_kind(attribute.get("attribute")),
            report=Resource.from_object(attribute.get("evidence"), "test result"),
        )


@dataclass(frozen=True)
class VerificationSummary:
    """The verdict: a policy was evaluated over attestations, and met (VSA v1).

    Attributes:
        verifier: URI of who evaluated.
        verified_at: RFC 3339 time of the evaluation.
        resource_uri: what was evaluated, ``sealgate:name:version``.
        policy: name and digest of the policy document.
        inputs: the attestations it rests on: path inside the bundle, and digest.
        passed: the result is PASSED.
        levels: what was verified, for people.
        waivers: what was let pass, one line each, for people; an extension field.
        documents: those beside the model that were computed from the evidence; an
            extension field. None in verdicts of releases that bound none.
        output_policy: how much of each answer may leave, as the manifest says; an
            extension field. None in verdicts of releases that knew of none.
        signatures: by name of an input, the algorithms whose signatures were checked;
            an extension field. None in verdicts of releases that knew one algorithm.
        recomputed: by kind of evidence that claims a certificate, whether it was
            recomputed from rows; an extension field, absent where nothing claims one.
    """

    verifier: str
    verified_at: str
    resource_uri: str
    policy: Resource
    inputs: tuple[Resource, ...]
    passed: bool
    levels: tuple[str, ...]
    waivers: tuple[str, ...] = ()
    documents: tuple[Resource, ...] | None = None
    output_policy: Mapping[str, Any] | None = None
    signatures: Mapping[str, tuple[str, ...]] | None = None
    recomputed: Mapping[str, bool] = field(default_factory=dict)

    def signed_with(self, name: str) -> tuple[str, ...]:
        """The algorithms whose signatures of an input were checked."""
        if self.signatures is None:
            return _FORMERLY
        return self.signatures.get(name, ())

    def to_predicate(self) -> dict[str, Any]:
        """The VSA v1 predicate."""
        extensions: dict[str, Any] = {}
        if self.waivers:
            extensions["waivers"] = list(self.waivers)
        if self.documents is not None:
            extensions["documents"] = [_uri_object(item) for item in self.documents]
        if self.output_policy is not None:
            extensions["outputPolicy"] = dict(self.output_policy)
        if self.signatures is not None:
            extensions["inputSignatures"] = {
                name: list(algorithms) for name, algorithms in self.signatures.items()
            }
        if self.recomputed:
            extensions["recomputed"] = dict(self.recomputed)
        return extensions | {
            "verifier": {"id": self.verifier},
            "timeVerified": self.verified_at,
            "resourceUri": self.resource_uri,
            "policy": _uri_object(self.policy),
            "inputAttestations": [_uri_object(item) for item in self.inputs],
            "verificationResult": "PASSED" if self.passed else "FAILED",
            "verifiedLevels": list(self.levels),
        }

    @classmethod
    def from_statement(cls, statement: Statement) -> VerificationSummary:
        """Interpret a statement's predicate.

        Raises:
            StatementError: another predicate type, or malformed.
        """
        _check_type(statement, VSA_TYPE, "a verification summary v1")
        predicate = statement.predicate
        verifier, inputs = predicate.get("verifier"), predicate.get("inputAttestations")
        if not isinstance(verifier, dict) or not isinstance(inputs, list):
            raise StatementError("verdict: expected a verifier and inputAttestations")
        if predicate.get("verificationResult") not in ("PASSED", "FAILED"):
            raise StatementError("verdict: expected PASSED or FAILED")
        return cls(
            verifier=_text(verifier.get("id"), "verifier.id"),
            verified_at=_text(predicate.get("timeVerified"), "timeVerified"),
            resource_uri=_text(predicate.get("resourceUri"), "resourceUri"),
            policy=_from_uri(predicate.get("policy"), "policy"),
            inputs=tuple(_from_uri(item, "inputAttestations") for item in inputs),
            passed=predicate["verificationResult"] == "PASSED",
            levels=_texts(predicate.get("verifiedLevels"), "verifiedLevels"),
            waivers=_texts(predicate.get("waivers", ()), "waivers"),
            documents=_documents(predicate),
            output_policy=_output_policy(predicate),
            signatures=_signatures(predicate),
            recomputed=_recomputed(predicate),
        )


@dataclass(frozen=True)
class Waiver:
    """That evidence of a kind need not meet the policy, for a reason and for a time.

    Attributes:
        kind: of evidence.
        reason: one line for people.
        created, expires: RFC 3339.
        metric, condition, check: what of the kind is waived, by name. At most one is
            given; without any, no evidence of the kind is needed at all.
    """

    kind: str
    reason: str
    created: str
    expires: str
    metric: str | None = None
    condition: str | None = None
    check: str | None = None

    @property
    def whole(self) -> bool:
        """Whether no evidence of the kind is needed at all."""
        return (self.metric, self.condition, self.check) == (None, None, None)

    def __str__(self) -> str:
        target = next(
            (f" {name} {value}" for name, value in self._targets() if value), ""
        )
        return f"{self.kind}{target} waived until {self.expires}: {self.reason}"

    def to_predicate(self) -> dict[str, Any]:
        """The predicate of type `WAIVER_TYPE`."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_statement(cls, statement: Statement) -> Waiver:
        """Interpret a statement's predicate; unlike in-toto's, it takes no other field.

        Raises:
            StatementError: another predicate type, or malformed.
        """
        _check_type(statement, WAIVER_TYPE, "a waiver v1")
        predicate = statement.predicate
        if unknown := predicate.keys() - cls.__dataclass_fields__.keys():
            raise StatementError(f"waiver: unknown field {min(unknown)!r}")
        missing = {"kind", "reason", "created", "expires"} - predicate.keys()
        if missing:
            raise StatementError(f"waiver: missing {min(missing)}")
        waiver = cls(**{name: _line(value, name) for name, value in predicate.items()})
        if sum(value is not None for _, value in waiver._targets()) > 1:
            raise StatementError(
                "waiver: expected at most one of metric, condition, check"
            )
        return waiver

    def _targets(self) -> tuple[tuple[str, str | None], ...]:
        return (
            ("metric", self.metric),
            ("condition", self.condition),
            ("check", self.check),
        )


def _line(value: Any, where: str) -> str:
    """Text that ends up on terminals and in logs: short, and nothing but characters."""
    text = _text(value, where)
    if len(text) > MAX_WAIVER_CHARACTERS or not text.isprintable():
        raise StatementError(f"waiver: {where} is not one short line")
    return text


def _attribute(kind: str) -> str:
    return f"SEALGATE_{kind.upper()}"


def _kind(attribute: Any) -> str:
    text = _text(attribute, "attribute")
    if not text.startswith("SEALGATE_"):
        raise StatementError("test result: unknown attribute")
    return text.removeprefix("SEALGATE_").lower()


def _uri_object(resource: Resource) -> dict[str, Any]:
    return {"uri": resource.name, "digest": {"sha256": resource.sha256}}


def _from_uri(value: Any, where: str) -> Resource:
    if not isinstance(value, dict):
        raise StatementError(f"verdict: {where} is malformed")
    return Resource.from_object({**value, "name": value.get("uri")}, where)


def _documents(predicate: Mapping[str, Any]) -> tuple[Resource, ...] | None:
    if "documents" not in predicate:
        return None
    if not isinstance(predicate["documents"], list):
        raise StatementError("verdict: documents is not an array")
    return tuple(_from_uri(item, "documents") for item in predicate["documents"])


def _output_policy(predicate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    value: Mapping[str, Any] | None = predicate.get("outputPolicy")
    if "outputPolicy" in predicate and not isinstance(value, dict):
        raise StatementError("verdict: outputPolicy is not an object")
    return value


def _signatures(predicate: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    if "inputSignatures" not in predicate:
        return None
    value = predicate["inputSignatures"]
    if not isinstance(value, dict):
        raise StatementError("verdict: inputSignatures is not an object")
    return {name: _texts(item, "inputSignatures") for name, item in value.items()}


def _recomputed(predicate: Mapping[str, Any]) -> dict[str, bool]:
    value = predicate.get("recomputed", {})
    if not isinstance(value, dict) or not all(type(v) is bool for v in value.values()):
        raise StatementError("verdict: recomputed is not an object of truth values")
    return dict(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise StatementError(f"statement: {where} is missing or not text")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise StatementError(f"statement: {where} is not an array")
    return tuple(_text(item, where) for item in value)


def _check_type(statement: Statement, wanted: str, what: str) -> None:
    found = statement.predicate_type
    if found != wanted:
        raise StatementError(f"statement: not {what}{later(found, wanted)}")
