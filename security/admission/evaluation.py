"""Checks of the gate on the evidence: whether a bundle meets a policy. No I/O.

The checks are listed in `security.admission.gate`, in the order they are made here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from models.bundle import report_file
from models.errors import BundleError
from models.report import Condition, Report, parse_time
from sealgate.errors import StatementError
from sealgate.protocol.statement import Resource, Statement, TestResult, Waiver
from security.admission.attest import signature_files, verdict_inputs, verdict_levels
from security.admission.certified import certified_steps, recomputed_steps
from security.admission.consistency import contradiction_steps
from security.admission.outputs import output_steps
from security.admission.rules import Requirement, Threshold
from security.admission.steps import (
    Read,
    Scene,
    Signed,
    Steps,
    check_age,
    check_stamps,
    count_signers,
    describe,
    end_of,
    read_statement,
)
from security.admission.timestamps import Stamp
from security.admission.waivers import waiver_steps
from security.errors import AdmissionRefused

__all__ = [
    "Evaluation",
    "Recomputed",
    "condition_steps",
    "evaluation_steps",
    "states_epsilon",
    "threshold_steps",
]

# An accountant that did not produce an epsilon may differ from it by discretisation.
EPSILON_SLACK = 0.01

# What `accounting.recompute_epsilon` computes. Another mechanism has another epsilon.
_ACCOUNTED = {
    "mechanism": "dp_sgd_gaussian",
    "sampling": "poisson",
    "neighbouring": "add_or_remove_one",
}
# The same, where a report states them.
_ACCOUNTED_IF_STATED = {
    "normalisation": ("public_constant",),
    "unit": ("row", "owner"),
    "sampled": ("row", "unit"),
    "verdicts_cover": ("every_step_in_the_weights",),
}


@dataclass(frozen=True)
class Recomputed:
    """What the caller measured anew, with code the reports' authors did not run.

    Attributes:
        epsilon: from the mechanism that the privacy report states.
        structure_errors: findings of the structural inspection.
        structure_warnings: its findings that need a sign-off.
        metrics: other numbers of the privacy report, by name.
        certified: certified figures of the robustness report, by name, from its rows;
            None where there were no rows.
    """

    epsilon: float
    structure_errors: int
    structure_warnings: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    certified: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Evidence that meets a policy.

    Attributes:
        reports: by kind; a kind that is waived as a whole has none.
        waivers: in force, by kind.
        inputs: the statements and waivers it rests on.
        levels: what a verdict says was verified.
        expires_at: when the first of them gets too old.
        signatures: for each of the inputs, the algorithms whose signatures were
            checked.
    """

    reports: Mapping[str, Report]
    waivers: Mapping[str, Waiver]
    inputs: tuple[Resource, ...]
    levels: tuple[str, ...]
    expires_at: datetime
    signatures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def evaluation_steps(
    scene: Scene, recomputed: Recomputed | None = None
) -> Steps[Evaluation]:
    """Checks 20 to 23 for every waiver, 1 to 9 for every kind, then 27, 29 and 10."""
    waivers, signatures = yield from waiver_steps(scene)
    reports: dict[str, Report] = {}
    ends = [parse_time(waiver.expires) for waiver in waivers.values()]
    for item in scene.required:
        waiver = waivers.get(item.kind)
        if waiver is not None and waiver.whole:
            continue
        found = yield from _kind_steps(scene, item, waiver, signatures)
        if found is not None:
            reports[item.kind], since = found
            ends.append(end_of(since, item.max_age))
    yield from _benchmark_steps(scene)
    yield from _accounted(reports)
    required = {item.kind: item for item in scene.required}
    yield from contradiction_steps(scene.bundle, reports, required)
    yield from certified_steps(reports)
    yield from output_steps(scene, reports)
    if recomputed is not None:
        yield from _recomputed(reports, waivers, recomputed)
        yield from recomputed_steps(reports, recomputed.certified)
    return Evaluation(
        reports=reports,
        waivers=waivers,
        inputs=verdict_inputs(scene.bundle, scene.policy, waivers),
        levels=verdict_levels(scene.policy, scene.bundle.manifest.name, waivers),
        expires_at=min(ends, default=scene.now),
        signatures=signatures,
    )


def states_epsilon(privacy: Report) -> bool:
    """Whether there is an epsilon to account for: not where all the data is public."""
    return (
        "epsilon" in privacy.metrics
        or privacy.conditions.get("personal_data") is not False
    )


def _kind_steps(
    scene: Scene,
    requirement: Requirement,
    waiver: Waiver | None,
    signatures: dict[str, tuple[str, ...]],
) -> Steps[tuple[Report, datetime] | None]:
    """Checks 1 to 9 for one kind: its report, and what its age counts from.

    Notes which signatures were checked.
    """
    kind, files = requirement.kind, scene.bundle.files
    data = files.get(report_file(kind))
    if data is None:
        yield AdmissionRefused(1, f"{kind} report is missing, and the policy needs it")
        return None
    names = signature_files(files, kind)
    if not names:
        yield AdmissionRefused(1, f"{kind} report is not signed")
        return None
    found: dict[str, tuple[Read, bool]] = {}
    for name in names:
        found |= yield from _attestation_steps(scene, requirement, name, data)
    if not found:
        return None
    signatures.update({name: read.algorithms for name, (read, _) in found.items()})
    signers = count_signers([read for read, _ in found.values()])
    if signers < requirement.min_signers:
        yield AdmissionRefused(
            2,
            f"{kind} report needs {requirement.min_signers} signers, "
            f"has {signers} in {len(names)} attestations",
        )
    stamps = [stamp for read, _ in found.values() for stamp in read.stamps]
    dated = yield from _report_steps(scene, requirement, data, stamps)
    if dated is not None:
        passed = all(passed for _, passed in found.values())
        yield from _result_steps(dated[0], waiver, passed=passed)
        yield from _content_steps(dated[0], requirement, waiver)
    return dated


def _attestation_steps(
    scene: Scene, requirement: Requirement, name: str, report: bytes
) -> Steps[dict[str, tuple[Read, bool]]]:
    """Checks 2 to 4 for one attestation: by its name what it is, and if it passed."""
    kind = requirement.kind
    what = describe(f"{kind} attestation", name)
    read = yield from read_statement(
        Signed.of(scene.bundle.files, name),
        scene,
        signers=requirement.signers,
        mode=requirement.signatures,
        timestamps=requirement.timestamps,
        what=what,
        checks=(2, 3),
    )
    if read is None:
        return {}
    result = yield from _bound_steps(read.statement, kind, report, what)
    return {} if result is None else {name: (read, result.passed)}


def _bound_steps(
    statement: Statement, kind: str, report: bytes, what: str
) -> Steps[TestResult | None]:
    """Check 4, but for the result itself, which a waiver may excuse."""
    try:
        result = TestResult.from_statement(statement)
    except StatementError as error:
        yield AdmissionRefused(4, f"{what}: {error}")
        return None
    if result.kind != kind:
        yield AdmissionRefused(4, f"{what} is about {result.kind}")
        return None
    if result.report != Resource(report_file(kind), hashlib.sha256(report).hexdigest()):
        yield AdmissionRefused(4, f"{kind} report was changed after it was signed")
        return None
    return result


def _report_steps(
    scene: Scene, requirement: Requirement, data: bytes, stamps: Sequence[Stamp]
) -> Steps[tuple[Report, datetime] | None]:
    """Checks 5 and 6: the report, and what its age counts from."""
    kind = requirement.kind
    try:
        report = Report.from_json(data)
    except BundleError as error:
        yield AdmissionRefused(5, f"{kind}: {error}")
        return None
    if report.kind != kind or report.subject != scene.bundle.subject:
        yield AdmissionRefused(5, f"{kind} report is about another model")
        return None
    what, now = f"{kind} report", scene.now
    since = yield from check_stamps(
        report.created_at, stamps, now=now, check=6, what=what
    )
    yield from check_age(since, requirement.max_age, now=now, check=6, what=what)
    return report, since


def _result_steps(
    report: Report, waiver: Waiver | None, *, passed: bool
) -> Steps[None]:
    """The result in check 4, and check 7."""
    failed = [check.id for check in report.checks if not check.passed]
    excused = waiver is not None and waiver.check in failed
    if not passed and not excused:
        yield AdmissionRefused(4, f"{report.kind} attestation says FAILED")
    for name in failed:
        if waiver is None or waiver.check != name:
            yield AdmissionRefused(7, f"{report.kind}: check {name} failed")


def _content_steps(
    report: Report, requirement: Requirement, waiver: Waiver | None
) -> Steps[None]:
    """Checks 8 and 9."""
    kind = requirement.kind
    for name, wanted in requirement.conditions.items():
        if waiver is None or waiver.condition != name:
            yield from condition_steps(kind, name, wanted, report)
    for threshold in requirement.thresholds:
        if waiver is None or waiver.metric != threshold.metric:
            yield from threshold_steps(kind, threshold, report)


def condition_steps(
    kind: str, name: str, wanted: Condition, report: Report, check: int = 8
) -> Steps[None]:
    """Check 8 for one condition."""
    # `is`-like comparison: True == 1 in Python, but not in a policy.
    given = report.conditions.get(name)
    if given != wanted or isinstance(given, bool) != isinstance(wanted, bool):
        yield AdmissionRefused(
            check, f"{kind}: condition {name} is {given!r}, the policy needs {wanted!r}"
        )


def threshold_steps(
    kind: str, threshold: Threshold, report: Report, check: int = 9
) -> Steps[None]:
    """Check 9 for one metric."""
    metric, name = report.metrics.get(threshold.metric), f"{kind}: {threshold.metric}"
    if metric is None:
        yield AdmissionRefused(check, f"{name} is not in the report")
        return
    if (metric.n or 0) < threshold.min_n:
        yield AdmissionRefused(
            check, f"{name} rests on {metric.n or 0} samples, needs {threshold.min_n}"
        )
    ends = threshold.ends(metric)
    if ends is None:
        yield AdmissionRefused(check, f"{name} has no interval")
        return
    low, high = ends
    if threshold.low is not None and low < threshold.low:
        yield AdmissionRefused(
            check, f"{name} is {low:.4g}, needs at least {threshold.low}"
        )
    if threshold.high is not None and high > threshold.high:
        yield AdmissionRefused(
            check, f"{name} is {high:.4g}, allows at most {threshold.high}"
        )


def _accounted(reports: Mapping[str, Report]) -> Steps[None]:
    """The part of check 10 that needs no accountant: whether one exists."""
    privacy = reports.get("privacy")
    if privacy is None or not states_epsilon(privacy):
        return
    for name, known in _ACCOUNTED.items():
        given = privacy.conditions.get(name)
        if given != known:
            yield AdmissionRefused(
                10, f"privacy: cannot account for {name} {given!r}, only {known!r}"
            )
    for name, allowed in _ACCOUNTED_IF_STATED.items():
        given = privacy.conditions.get(name, allowed[0])
        if given not in allowed:
            yield AdmissionRefused(10, f"privacy: cannot account for {name} {given!r}")
    yield from _group_steps(privacy)
    if "epsilon" not in privacy.metrics:
        yield AdmissionRefused(10, "privacy: the report states no epsilon")


def _group_steps(privacy: Report) -> Steps[None]:
    """Rows that are sampled one by one protect an owner of several only as a group."""
    stated = privacy.conditions
    group = stated.get("group_size", 1)
    if type(group) is not int or group < 1:
        yield AdmissionRefused(10, f"privacy: cannot account for group_size {group!r}")
    owner = stated.get("unit") == "owner" and stated.get("sampled") != "unit"
    if owner and group == 1:
        yield AdmissionRefused(
            10, "privacy: owners have several rows, which are accounted one by one"
        )


def _benchmark_steps(scene: Scene) -> Steps[None]:
    """The part of check 7 that no policy can waive: benchmarks prove nothing.

    Also where the policy does not ask for the report that says so.
    """
    for name, data in sorted(scene.bundle.files.items()):
        if not (name.startswith("evidence/") and b'"benchmark"' in data):
            continue
        try:
            marked = Report.from_json(data).conditions.get("benchmark", False)
        except BundleError:
            continue  # refused in check 5 where it is required
        if marked is not False:
            kind = name.removeprefix("evidence/").removesuffix(".json")
            yield AdmissionRefused(7, f"{kind}: made by a benchmark, unsafe on purpose")


def _recomputed(
    reports: Mapping[str, Report], waivers: Mapping[str, Waiver], recomputed: Recomputed
) -> Steps[None]:
    """Check 10."""
    structure = waivers.get("structure")
    if recomputed.structure_errors and not (structure and structure.whole):
        yield AdmissionRefused(
            10, f"structure: {recomputed.structure_errors} errors when inspected again"
        )
    stated = (
        reports["structure"].metrics.get("warnings") if "structure" in reports else None
    )
    if stated is not None and stated.value < recomputed.structure_warnings:
        yield AdmissionRefused(
            10,
            f"structure: {recomputed.structure_warnings} warnings when inspected "
            f"again, {stated.value:.0f} were stated",
        )
    privacy = reports.get("privacy")
    claimed = None if privacy is None else privacy.metrics.get("epsilon")
    if privacy is None or claimed is None:
        return
    # So that NaN, which compares false, is refused too.
    if not recomputed.epsilon <= claimed.value * (1 + EPSILON_SLACK):
        yield AdmissionRefused(
            10,
            f"privacy: epsilon is {recomputed.epsilon:.4g} when recomputed, "
            f"{claimed.value:.4g} was claimed",
        )
    for name, value in recomputed.metrics.items():
        metric = privacy.metrics.get(name)
        if metric and not abs(metric.value - value) <= value * EPSILON_SLACK:
            yield AdmissionRefused(
                10,
                f"privacy: {name} is {value:.4g} when recomputed, "
                f"{metric.value:.4g} was stated",
            )
