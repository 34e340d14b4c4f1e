"""What a bundle states about itself, read once for every document.

Nothing is verified here: a document is made before, during and after admission, and
has no keys. What can be seen without keys is seen: a report about other bytes is an
error, an attestation that binds other bytes counts as none.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from models.bundle import Bundle, mldsa_file, report_file
from models.errors import BundleError
from models.manifest import Manifest
from models.report import KINDS, Dataset, Metric, Report
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import (
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
    Waiver,
)
from security.admission.attest import (
    signature_files,
    signed_digest,
    subjects,
    waiver_file,
)

__all__ = ["CurvePoint", "Facts", "Signature", "Use", "Verdict", "read_facts"]


@dataclass(frozen=True)
class Signature:
    """An attestation of a report.

    Attributes:
        file, sha256: of the attestation, without time stamps.
        hint: which key it names (`dsse.key_hint`); the signature was not checked.
        passed: what it says of the report.
        binds: it is about this bundle and this very report.
    """

    file: str
    sha256: str
    hint: str
    passed: bool
    binds: bool


@dataclass(frozen=True)
class Verdict:
    """A verdict of release 0.1, as stated; the signature was not checked.

    It bound no documents, so its documents named it, and still do. A verdict that binds
    them cannot be named in them.

    Attributes:
        file, sha256: of the verdict, without time stamps.
        hint: which key it names.
        summary: what was decided, under which policy, on which attestations,
            and what was waived.
        current: it is about this bundle, and its attestations are those in it.
    """

    file: str
    sha256: str
    hint: str
    summary: VerificationSummary
    current: bool


@dataclass(frozen=True)
class Use:
    """What the trainer says the model is for; empty where nothing was said."""

    intended: str = ""
    out_of_scope: str = ""
    limitations: str = ""
    license: str = ""


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one radius; of a number the share of answers that stay.

    `proved` is the share that no change within the radius turns, if it is known.
    """

    radius: float
    share: float
    n: int
    proved: float | None = None


@dataclass(frozen=True)
class Facts:
    """A bundle's statements, parsed.

    Attributes:
        bundle: where they come from.
        reports: evidence by kind, in the order of `models.report.KINDS`.
        signatures: attestations by kind, one per key.
        verdicts: those that bind no documents, one per signer.
        waivers: what was let pass, one line each, by verdicts and waiver statements.
        use: from the training configuration in the provenance report.
    """

    bundle: Bundle
    reports: Mapping[str, Report]
    signatures: Mapping[str, tuple[Signature, ...]]
    verdicts: tuple[Verdict, ...]
    waivers: tuple[str, ...]
    use: Use

    @property
    def manifest(self) -> Manifest:
        """The model's contract."""
        return self.bundle.manifest

    @property
    def newest(self) -> datetime | None:
        """When the newest report was made; None without reports."""
        return max((item.created_at for item in self.reports.values()), default=None)

    @property
    def datasets(self) -> dict[Dataset, list[str]]:
        """Every set of rows, and the kinds of evidence that rest on it."""
        found: dict[Dataset, list[str]] = {}
        for kind, report in self.reports.items():
            for dataset in report.datasets:
                kinds = found.setdefault(dataset, [])
                if kind not in kinds:
                    kinds.append(kind)
        return dict(sorted(found.items(), key=lambda item: _dataset_order(item[0])))

    @property
    def task(self) -> str:
        """What manifest and quality show the model to do, as hubs call it, or ""."""
        tabular = any(tensor.columns for tensor in self.manifest.inputs)
        if not tabular:
            return ""
        if self.condition("quality", "predicts") == "number":
            return "tabular-regression"
        classifies = any(tensor.labels for tensor in self.manifest.outputs)
        return "tabular-classification" if classifies else ""

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The security curve, as far as the robustness report has a well-formed one."""
        points = _detail(self.reports.get("robustness"), "curve")
        parsed = [_point(item) for item in points] if isinstance(points, list) else []
        return tuple(point for point in parsed if point is not None)

    def condition(self, kind: str, name: str) -> object:
        """A condition of a report; None without it."""
        report = self.reports.get(kind)
        return None if report is None else report.conditions.get(name)

    def metric(self, kind: str, name: str) -> Metric | None:
        """A metric of a report; None without it."""
        report = self.reports.get(kind)
        return None if report is None else report.metrics.get(name)


def read_facts(bundle: Bundle) -> Facts:
    """Parse what a bundle states.

    Raises:
        BundleError: a report or an attestation is malformed, or a report is about
            other bytes than the bundle's: its numbers would describe another model.
    """
    present = [kind for kind in KINDS if report_file(kind) in bundle.files]
    reports = {kind: _report(bundle, kind) for kind in present}
    stated = (_verdict(bundle, n) for n in signature_files(bundle.files, "verdict"))
    verdicts = tuple(item for item in stated if item.summary.documents is None)
    return Facts(
        bundle=bundle,
        reports=reports,
        signatures={
            kind: tuple(_signature(bundle, kind, file) for file in files)
            for kind in KINDS
            if (files := _signed_files(bundle, kind))
        },
        verdicts=verdicts,
        waivers=_waivers(bundle, verdicts),
        use=_use(reports.get("provenance")),
    )


def _report(bundle: Bundle, kind: str) -> Report:
    report = bundle.report(kind)
    if report.kind != kind or report.subject != bundle.subject:
        raise BundleError(f"{kind} report is about another model")
    return report


def _signed_files(bundle: Bundle, kind: str) -> list[str]:
    """A kind's statements: each that P-256 signed, and what ML-DSA-65 did beside it."""
    return [
        file
        for name in signature_files(bundle.files, kind)
        for file in (name, mldsa_file(name))
        if file in bundle.files
    ]


def _signature(bundle: Bundle, kind: str, file: str) -> Signature:
    hint, statement = _statement(bundle, file)
    try:
        result = TestResult.from_statement(statement)
    except StatementError as error:
        raise BundleError(f"{file}: {error}") from None
    name = report_file(kind)
    report = Resource(name, _sha256(bundle.files.get(name, b"")))
    return Signature(
        file=file,
        sha256=signed_digest(bundle.files[file]),
        hint=hint,
        passed=result.passed,
        binds=result.kind == kind
        and result.report == report
        and statement.subjects == subjects(bundle.subject),
    )


def _waivers(bundle: Bundle, verdicts: tuple[Verdict, ...]) -> tuple[str, ...]:
    found = [line for verdict in verdicts for line in verdict.summary.waivers]
    for file in map(waiver_file, KINDS):
        if file in bundle.files:
            try:
                found.append(str(Waiver.from_statement(_statement(bundle, file)[1])))
            except StatementError as error:
                raise BundleError(f"{file}: {error}") from None
    return tuple(dict.fromkeys(found))


def _verdict(bundle: Bundle, file: str) -> Verdict:
    hint, statement = _statement(bundle, file)
    try:
        summary = VerificationSummary.from_statement(statement)
    except StatementError as error:
        raise BundleError(f"{file}: {error}") from None
    unchanged = all(
        item.name in bundle.files
        and signed_digest(bundle.files[item.name]) == item.sha256
        for item in summary.inputs
    )
    return Verdict(
        file=file,
        sha256=signed_digest(bundle.files[file]),
        hint=hint,
        summary=summary,
        current=unchanged and statement.subjects == subjects(bundle.subject),
    )


def _statement(bundle: Bundle, file: str) -> tuple[str, Statement]:
    """The named key, and the statement. The signature is not checked."""
    try:
        data = bundle.files[file]
        return dsse.read_hint(data), Statement.from_json(dsse.read_payload(data))
    except StatementError as error:
        raise BundleError(f"{file}: {error}") from None


def _use(provenance: Report | None) -> Use:
    config = _detail(provenance, "config")
    stated = config.get("use") if isinstance(config, dict) else None
    if not isinstance(stated, dict):
        return Use()
    names = ("intended", "out_of_scope", "limitations", "license")
    texts = {name: stated.get(name) for name in names}
    return Use(**{k: v for k, v in texts.items() if isinstance(v, str)})


def _detail(report: Report | None, name: str) -> Any:
    return None if report is None else report.details.get(name)


def _point(item: Any) -> CurvePoint | None:
    if not isinstance(item, dict) or type(item.get("n")) is not int:
        return None
    name = "stable_share" if "stable_share" in item else "robust_accuracy"
    radius, share = _number(item, "radius"), _number(item, name)
    if radius is None or share is None:
        return None
    return CurvePoint(radius, share, item["n"], _number(item, "verified_accuracy"))


def _number(item: Mapping[str, Any], name: str) -> float | None:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # By comparison: math.isfinite() fails on an integer beyond a double.
    return float(value) if abs(value) <= sys.float_info.max else None


def _dataset_order(dataset: Dataset) -> tuple[bool, str, str, int, str]:
    # Training rows first: the rest is measured against them.
    return (
        dataset.role != "train",
        dataset.name,
        dataset.role,
        dataset.rows,
        dataset.sha256,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
