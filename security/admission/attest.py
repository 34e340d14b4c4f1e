"""Reports into signed statements, an evaluation into a signed verdict, waivers.

A statement has one signature. Where the policy asks for several signers, each makes a
statement of their own, in ``attestations/<kind>.sigstore.json`` and, after that,
``<kind>.2.sigstore.json`` to ``<kind>.9.sigstore.json``; a verdict likewise.

A signer who also has an ML-DSA-65 key signs the same payload with it, into a file
beside that one: ``<kind>.mldsa.sigstore.json``, ``<kind>.2.mldsa.sigstore.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from models.bundle import (
    BOM_FILE,
    MODEL_CARD_FILE,
    MODEL_FILE,
    Bundle,
    attestation_file,
    is_mldsa_file,
    mldsa_file,
    report_file,
)
from models.report import Report, Subject, format_time
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import (
    TEST_RESULT_TYPE,
    VSA_TYPE,
    WAIVER_TYPE,
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
    Waiver,
)
from security.admission.rules import MAX_SIGNERS, Policy
from security.errors import AdmissionRefused

__all__ = [
    "Signers",
    "algorithm_by_name",
    "documents",
    "place",
    "report_payload",
    "resource_uri",
    "sign_report",
    "sign_verdict",
    "sign_waiver",
    "signature_files",
    "signed_digest",
    "signed_files",
    "subjects",
    "verdict_inputs",
    "verdict_levels",
    "verdict_payload",
    "waiver_file",
    "waiver_payload",
]

VERIFIER = "https://sealgate.dev/admission-gate/v1"


@dataclass(frozen=True)
class Signers:
    """With what one signs.

    Attributes:
        ecdsa: the P-256 key.
        mldsa: the ML-DSA-65 key of the same role, if there is one.
        stamp: gives a signed bundle with a time stamp more; None for no stamps.
    """

    ecdsa: dsse.SigningKey
    mldsa: dsse.SigningKey | None = None
    stamp: Callable[[bytes], bytes] | None = None

    @property
    def hint(self) -> str:
        """`dsse.key_hint` of the P-256 key, by which a signer is known."""
        return _key_hint(self.ecdsa)

    @property
    def mldsa_hint(self) -> str | None:
        """`dsse.key_hint` of the ML-DSA-65 key."""
        return None if self.mldsa is None else _key_hint(self.mldsa)


def signed_files(name: str, payload: bytes, signers: Signers) -> dict[str, bytes]:
    """A payload as each of the keys signs it, by the path of the file that it is for.

    Each is stamped for itself: a time stamp is of one signature.

    Args:
        name: path of the P-256 file.
        payload: the statement's JSON.
        signers: the keys, and what stamps.

    Raises:
        SealgateError: a signer or an authority of time cannot be reached.
    """
    files = {name: dsse.sign(payload, signers.ecdsa)}
    if signers.mldsa is not None:
        files[mldsa_file(name)] = dsse.sign(payload, signers.mldsa)
    if signers.stamp is not None:
        files = {path: signers.stamp(data) for path, data in files.items()}
    return files


def subjects(subject: Subject) -> tuple[Resource, ...]:
    """What every statement about a bundle is about: its root, and its model file."""
    return (
        Resource(f"{subject.name}:{subject.version}", subject.root_sha256),
        Resource(MODEL_FILE, subject.onnx_sha256),
    )


def resource_uri(subject: Subject) -> str:
    """The URI that a verdict names the model by.

    >>> resource_uri(Subject("m", "1.0.0", "a" * 64, "b" * 64))
    'sealgate:m:1.0.0'
    """
    return f"sealgate:{subject.name}:{subject.version}"


def documents(bundle: Bundle) -> tuple[Resource, ...]:
    """The documents in a bundle that a verdict binds: model card and bill of materials.

    What they must say only the toolkit can compute. A server compares their digests.
    """
    return tuple(
        Resource(name, hashlib.sha256(bundle.files[name]).hexdigest())
        for name in (MODEL_CARD_FILE, BOM_FILE)
        if name in bundle.files
    )


def waiver_file(kind: str) -> str:
    """Where a bundle keeps the waiver for a kind."""
    return attestation_file(f"waiver-{kind}")


def signature_files(files: Iterable[str], stem: str) -> list[str]:
    """The statements that there are of a kind, or of the "verdict": one per signer.

    >>> signature_files(["attestations/quality.3.sigstore.json"], "quality")
    ['attestations/quality.3.sigstore.json']
    """
    present = frozenset(files)
    return [name for name in _places(stem) if name in present]


def place(bundle: Bundle, stem: str, hint: str, *, signers: int) -> str:
    """Where a new statement belongs: over its signer's former one, or in a free place.

    Args:
        bundle: that it will be written to.
        stem: kind of the evidence, or "verdict".
        hint: of its signer's P-256 key.
        signers: how many the policy asks for; with one, there is only one place.

    Raises:
        AdmissionRefused: every place is taken by another key's statement.
    """
    if signers == 1:
        return attestation_file(stem)
    for name in _places(stem):
        if name not in bundle.files or _hint(bundle.files[name]) == hint:
            return name
    raise AdmissionRefused(2, f"{stem} has {MAX_SIGNERS} statements of other keys")


def sign_report(bundle: Bundle, kind: str, key: dsse.SigningKey) -> bytes:
    """Vouch for a report about this very bundle; as `report_payload`.

    Returns:
        The Sigstore bundle for ``attestations/<kind>.sigstore.json``.
    """
    return dsse.sign(report_payload(bundle, kind), key)


def report_payload(bundle: Bundle, kind: str) -> bytes:
    """The statement that binds a report about this very bundle.

    Raises:
        BundleError: there is no such report, or it is malformed.
        AdmissionRefused: the report is about other bytes than the bundle's.
    """
    report = bundle.report(kind)
    if report.subject != bundle.subject or report.kind != kind:
        raise AdmissionRefused(3, f"{kind} report is about another model")
    name = report_file(kind)
    digest = hashlib.sha256(bundle.files[name]).hexdigest()
    result = TestResult(
        passed=all(check.passed for check in report.checks),
        kind=kind,
        report=Resource(name, digest),
        configuration=tuple(
            Resource(f"{item.name}/{item.role}", item.sha256)
            for item in report.datasets
        ),
        metrics=_metrics(report),
        passed_tests=tuple(check.id for check in report.checks if check.passed),
        failed_tests=tuple(check.id for check in report.checks if not check.passed),
    )
    statement = Statement(
        subjects(bundle.subject), TEST_RESULT_TYPE, result.to_predicate()
    )
    return statement.to_json()


def sign_waiver(bundle: Bundle, waiver: Waiver, key: dsse.SigningKey) -> bytes:
    """Waive a requirement for this very bundle; `waivers.check_waiver` says who may.

    Returns:
        The Sigstore bundle for ``attestations/waiver-<kind>.sigstore.json``.
    """
    return dsse.sign(waiver_payload(bundle, waiver), key)


def waiver_payload(bundle: Bundle, waiver: Waiver) -> bytes:
    """The statement that waives a requirement for this very bundle."""
    return Statement(
        subjects(bundle.subject), WAIVER_TYPE, waiver.to_predicate()
    ).to_json()


def sign_verdict(
    bundle: Bundle,
    policy: Policy,
    key: dsse.SigningKey,
    *,
    now: datetime,
    waivers: Mapping[str, Waiver] | None = None,
    signatures: Mapping[str, tuple[str, ...]] | None = None,
    recomputed: Mapping[str, bool] | None = None,
) -> bytes:
    """Sign the verdict of an evaluation that has just passed; as `verdict_payload`.

    Returns:
        The Sigstore bundle for ``attestations/verdict.sigstore.json``.
    """
    payload = verdict_payload(
        bundle,
        policy,
        now=now,
        waivers=waivers,
        signatures=signatures,
        recomputed=recomputed,
    )
    return dsse.sign(payload, key)


def verdict_payload(
    bundle: Bundle,
    policy: Policy,
    *,
    now: datetime,
    waivers: Mapping[str, Waiver] | None = None,
    signatures: Mapping[str, tuple[str, ...]] | None = None,
    recomputed: Mapping[str, bool] | None = None,
) -> bytes:
    """The verdict of an evaluation that has just passed.

    The caller has run `evaluation.evaluation_steps` on this bundle and this policy, and
    passes the waivers and the signatures that it returned.

    Args:
        bundle: that was evaluated.
        policy: that it met.
        now: the time.
        waivers: what was let pass, by kind.
        signatures: by file of a statement, the algorithms whose signatures were
            checked; P-256 alone everywhere if absent.
        recomputed: by kind that claims a certificate, whether it was recomputed.
    """
    waivers = waivers or {}
    summary = VerificationSummary(
        verifier=VERIFIER,
        verified_at=format_time(now),
        resource_uri=resource_uri(bundle.subject),
        policy=policy.resource,
        inputs=verdict_inputs(bundle, policy, waivers),
        passed=True,
        levels=verdict_levels(policy, bundle.manifest.name, waivers),
        waivers=tuple(str(waiver) for waiver in waivers.values()),
        documents=documents(bundle),
        output_policy=bundle.manifest.output_policy.to_object(),
        signatures=signatures,
        recomputed=recomputed or {},
    )
    return Statement(
        subjects(bundle.subject), VSA_TYPE, summary.to_predicate()
    ).to_json()


def verdict_inputs(
    bundle: Bundle, policy: Policy, waivers: Mapping[str, Waiver]
) -> tuple[Resource, ...]:
    """What a verdict rests on: every statement about what is needed, every waiver."""
    names: list[str] = []
    for item in policy.required(bundle.manifest.name):
        waiver = waivers.get(item.kind)
        if waiver is None or not waiver.whole:
            names += signature_files(bundle.files, item.kind)
        if waiver is not None:
            names.append(waiver_file(item.kind))
    return tuple(Resource(name, signed_digest(bundle.files[name])) for name in names)


def algorithm_by_name(file: str) -> str:
    """The algorithm whose signature a signed file must hold, by the file's name.

    >>> algorithm_by_name("verdict.mldsa.sigstore.json")
    'ml-dsa-65'
    """
    return dsse.ML_DSA_65 if is_mldsa_file(file) else dsse.ECDSA_P256


def signed_digest(signed: bytes) -> str:
    """SHA-256 of a signed file without its time stamps, which may come later."""
    return hashlib.sha256(dsse.unstamped(signed)).hexdigest()


def verdict_levels(
    policy: Policy, model: str, waivers: Mapping[str, Waiver]
) -> tuple[str, ...]:
    """What a verdict says was verified; a waived kind says that it was waived."""
    return tuple(
        f"SEALGATE_{item.kind.upper()}" + ("_WAIVED" if item.kind in waivers else "")
        for item in policy.required(model)
    )


def _places(stem: str) -> list[str]:
    numbers = ["", *(f".{number}" for number in range(2, MAX_SIGNERS + 1))]
    return [attestation_file(stem + number) for number in numbers]


def _key_hint(key: dsse.SigningKey) -> str:
    return (dsse.KeySigner(key) if isinstance(key, dsse.PrivateKey) else key).hint


def _hint(signed: bytes) -> str | None:
    """The key that a statement names. Nothing is verified: it only selects a file."""
    try:
        return dsse.read_hint(signed)
    except StatementError:
        return None


def _metrics(report: Report) -> dict[str, float]:
    return {name: metric.value for name, metric in report.metrics.items()}
