"""Signed reports about what is served, kept beside the plan.

A bundle's attestations stay as they were admitted. What is seen of a version later,
while it is tried or answers, is a report of the same format in a file of its own::

    deployment/observations/NAME/VERSION/agreement.sigstore.json
    deployment/observations/NAME/VERSION/monitoring.sigstore.json
    deployment/observations/NAME/VERSION/waiver-KIND.sigstore.json

and beside each, ``.mldsa.sigstore.json`` where its signer has an ML-DSA-65 key. Each
is a Sigstore bundle whose in-toto statement has the subjects of every other one about
the version, the type `REPORT_SCHEMA`, and the report's object for a predicate, so that
one file is whole. A report states from when to when it looked (`window_start` and
`window_end`, RFC 3339). Its age counts from the end of that: to sign an old window
again makes nothing fresh.

40. the report is there, and signed by a role that the policy allows;
41. it is about this version's bytes, and a report of this kind;
42. its window has ended, and not too long ago.

A waiver of what a promotion needs lies here too, and is held to checks 20 to 23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from models.bundle import mldsa_file
from models.errors import BundleError, ReportError
from models.files import read_regular
from models.report import REPORT_SCHEMA, Report, Subject, parse_time
from sealgate.errors import JsonError
from sealgate.protocol import dsse, strict_json
from sealgate.protocol.statement import Statement, Waiver
from sealgate.protocol.versions import unread
from security.admission.attest import Signers, signed_digest, signed_files, subjects
from security.admission.rules import PROMOTION_KINDS, Requirement
from security.admission.signers import write_signed
from security.admission.steps import (
    CLOCK_SKEW,
    Scene,
    Signed,
    Steps,
    check_age,
    check_stamps,
    demand,
    end_of,
    read_statement,
)
from security.admission.waivers import check_waiver, read_waiver
from security.errors import AdmissionRefused

__all__ = [
    "Observation",
    "check_fresh",
    "monitored_until",
    "observation_file",
    "promotion_waivers",
    "read_observation",
    "window_end",
    "write_observation",
]


@dataclass(frozen=True)
class Observation:
    """A report about a served version whose signature and subject were verified.

    Attributes:
        report: what was seen; its age is not judged yet.
        sha256: digest of the signed file, without time stamps.
        signer: `key_hint` of the key that signed it.
    """

    report: Report
    sha256: str
    signer: str


def observation_file(directory: Path, subject: Subject, stem: str) -> Path:
    """Where a deployment keeps what is signed about a version.

    Args:
        directory: of the deployment's plan.
        subject: the version, with a name and a version that a manifest may have.
        stem: kind of the report, or ``waiver-KIND``.
    """
    folder = directory / "observations" / subject.name / subject.version
    return folder / f"{stem}.sigstore.json"


def write_observation(directory: Path, report: Report, signers: Signers) -> Path:
    """Sign a report about a served version, and put it beside the plan.

    It takes the place of the one before, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    document = strict_json.loads_object(
        report.to_json(), max_bytes=dsse.MAX_BUNDLE_BYTES
    )
    statement = Statement(subjects(report.subject), REPORT_SCHEMA, document)
    path = observation_file(directory, report.subject, report.kind)
    signed = signed_files(path.name, statement.to_json(), signers)
    write_signed(path.parent, signed)
    return path


def read_observation(
    directory: Path, scene: Scene, requirement: Requirement
) -> Observation:
    """Read what was signed about a version: checks 40 and 41.

    Args:
        directory: of the deployment's plan.
        scene: the version, the policy, the keys and the time.
        requirement: the kind of the report, and who may sign it.

    Raises:
        AdmissionRefused: the first check that failed.
    """
    kind, bundle = requirement.kind, scene.bundle
    signed = _read(observation_file(directory, bundle.subject, kind))
    if signed is None:
        tag = bundle.manifest.tag
        raise AdmissionRefused(40, f"{kind}: there is no report about {tag}")
    return demand(_observation_steps(signed, scene, requirement))


def window_end(report: Report) -> datetime:
    """When the report stopped looking.

    Raises:
        AdmissionRefused: check 42, it does not say, or says what cannot be.
    """
    try:
        begin, end = (
            parse_time(str(report.conditions.get(name, "")))
            for name in ("window_start", "window_end")
        )
    except ReportError as error:
        raise AdmissionRefused(42, f"{report.kind}: its window: {error}") from None
    if not begin <= end <= report.created_at + CLOCK_SKEW:
        raise AdmissionRefused(42, f"{report.kind}: its window is none")
    return end


def check_fresh(
    report: Report, requirement: Requirement, *, now: datetime
) -> Steps[datetime | None]:
    """Check 42; returns until when the report is fresh, None if that failed."""
    try:
        end = window_end(report)
    except AdmissionRefused as refusal:
        yield refusal
        return None
    what = f"{report.kind} report"
    yield from check_age(end, requirement.max_age, now=now, check=42, what=what)
    return end_of(end, requirement.max_age)


def monitored_until(
    directory: Path, scene: Scene, *, begun: datetime
) -> tuple[datetime | None, str]:
    """Until when a version may answer by default, for the policy's ``stays_monitored``.

    One that has just become the default has as long for its first report as a report
    may be old.

    Args:
        directory: of the deployment's plan.
        scene: the version, the policy, the keys and the time.
        begun: when the version became the default.

    Returns:
        None where the policy does not ask for it; and why it is not later.
    """
    promotion = scene.policy.promotion_of(scene.bundle.manifest.name)
    requirement = promotion.of("monitoring")
    if not promotion.stays_monitored or requirement is None:
        return None, ""
    first = end_of(begun, requirement.max_age)
    try:
        read = read_observation(directory, scene, requirement)
        until = demand(check_fresh(read.report, requirement, now=scene.now))
    except AdmissionRefused as refusal:
        return first, str(refusal)
    return max(first, until or first), ""


def promotion_waivers(
    directory: Path, scene: Scene, required: Sequence[Requirement]
) -> Steps[dict[str, Waiver]]:
    """Checks 20 to 23 for every waiver of what a promotion needs.

    Args:
        directory: of the deployment's plan.
        scene: the version, the policy, the keys and the time.
        required: what the policy needs for a promotion of it.

    Returns:
        The waivers in force, by kind.
    """
    waivers = {}
    for kind in PROMOTION_KINDS:
        path = observation_file(directory, scene.bundle.subject, f"waiver-{kind}")
        signed = _read(path)
        found = (
            None if signed is None else (yield from read_waiver(signed, kind, scene))
        )
        if found is not None:
            waiver, policy, now = found[0], scene.policy, scene.now
            refused = yield from check_waiver(waiver, policy, required, now=now)
            if not refused:
                waivers[kind] = waiver
    return waivers


def _read(path: Path) -> Signed | None:
    """What was signed; None if there is nothing, or nothing that can be read."""
    data = _bytes(path)
    return None if data is None else Signed(data, _bytes(Path(mldsa_file(str(path)))))


def _bytes(path: Path) -> bytes | None:
    """A signed file within bounds; None if there is none, or none that can be read."""
    try:
        return read_regular(path, max_bytes=dsse.MAX_BUNDLE_BYTES, follow_links=True)
    except BundleError:
        return None


def _observation_steps(
    signed: Signed, scene: Scene, requirement: Requirement
) -> Steps[Observation]:
    kind = requirement.kind
    what = f"{kind} report"
    read = yield from read_statement(
        signed,
        scene,
        signers=requirement.signers,
        mode=requirement.signatures,
        timestamps=requirement.timestamps,
        what=what,
        checks=(40, 41),
    )
    if read is None:  # never with `demand`, which raised
        raise AdmissionRefused(40, f"{what} is refused")
    report = _report(read.statement, what)
    if report.kind != kind or report.subject != scene.bundle.subject:
        raise AdmissionRefused(41, f"{what} is about something else")
    # Its age counts from the end of its window, which is no later than what it states.
    stated, stamps, now = report.created_at, read.stamps, scene.now
    yield from check_stamps(stated, stamps, now=now, check=42, what=what)
    return Observation(report, signed_digest(signed.data), read.hint)


def _report(statement: Statement, what: str) -> Report:
    if statement.predicate_type != REPORT_SCHEMA:
        text = unread(statement.predicate_type, REPORT_SCHEMA)
        raise AdmissionRefused(41, f"{what}: the statement holds no report: {text}")
    predicate: Mapping[str, object] = statement.predicate
    try:
        return Report.from_json(strict_json.dumps(predicate))
    except (ReportError, JsonError) as error:
        raise AdmissionRefused(41, f"{what}: {error}") from None
