"""Waivers: signed, expiring statements that a requirement need not be met.

Each waiver in a bundle must hold, needed or not; one that does not is refused, not
skipped, so that nobody takes it for one that counts. Checks 20 to 23 of the gate:

20. the waiver is signed by a role that the policy lets sign waivers;
21. it is about this bundle, and a waiver of the kind that its file is named for;
22. the policy lets this kind be waived, for so long, and needs what is waived;
23. it is in force: begun, and not expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from models.errors import ReportError
from models.report import KINDS, parse_time
from sealgate.errors import StatementError
from sealgate.protocol.statement import Waiver
from security.admission.attest import waiver_file
from security.admission.rules import Policy, Requirement
from security.admission.steps import (
    CLOCK_SKEW,
    Read,
    Scene,
    Signed,
    Steps,
    read_statement,
)
from security.errors import AdmissionRefused

__all__ = ["check_waiver", "read_waiver", "waiver_steps"]


def waiver_steps(
    scene: Scene,
) -> Steps[tuple[dict[str, Waiver], dict[str, tuple[str, ...]]]]:
    """Checks 20 to 23 for every waiver in a bundle.

    Returns:
        The waivers in force, by kind; for the file of each, the algorithms whose
        signatures were checked.
    """
    waivers, signatures = {}, {}
    for kind in KINDS:
        name, files = waiver_file(kind), scene.bundle.files
        if name not in files:
            continue
        found = yield from read_waiver(Signed.of(files, name), kind, scene)
        if found is not None:
            waiver, read = found
            refused = yield from check_waiver(
                waiver, scene.policy, scene.required, now=scene.now
            )
            if not refused:
                waivers[kind], signatures[name] = waiver, read.algorithms
    return waivers, signatures


def check_waiver(
    waiver: Waiver, policy: Policy, required: Sequence[Requirement], *, now: datetime
) -> Steps[bool]:
    """Checks 22 and 23; returns whether one of them failed."""
    found = [*_permitted(waiver, policy, required), *_in_force(waiver, now)]
    yield from found
    return bool(found)


def read_waiver(
    signed: Signed, kind: str, scene: Scene
) -> Steps[tuple[Waiver, Read] | None]:
    """Checks 20 and 21 for one waiver; None if one of them failed."""
    read = yield from read_statement(
        signed,
        scene,
        signers=scene.policy.waivers.signers,
        mode=scene.policy.waivers.signatures,
        what=f"{kind} waiver",
        checks=(20, 21),
    )
    if read is None:
        return None
    try:
        waiver = Waiver.from_statement(read.statement)
        created, expires = parse_time(waiver.created), parse_time(waiver.expires)
    except (StatementError, ReportError) as error:
        yield AdmissionRefused(21, f"{kind} waiver: {error}")
        return None
    if waiver.kind != kind:
        yield AdmissionRefused(21, f"{kind} waiver is for {waiver.kind}")
        return None
    if expires <= created:
        yield AdmissionRefused(21, f"{kind} waiver expires before it begins")
        return None
    return waiver, read


def _permitted(
    waiver: Waiver, policy: Policy, required: Sequence[Requirement]
) -> Steps[None]:
    """Check 22."""
    kind, rules = waiver.kind, policy.waivers
    if kind not in rules.kinds:
        yield AdmissionRefused(22, f"{kind} may not be waived")
    lasts = parse_time(waiver.expires) - parse_time(waiver.created)
    if lasts > rules.max_age:
        yield AdmissionRefused(
            22, f"{kind} waiver is longer than {rules.max_age.days} days"
        )
    item = next((item for item in required if item.kind == kind), None)
    if item is None:
        yield AdmissionRefused(22, f"{kind} waiver: the policy does not need {kind}")
        return
    metrics = {threshold.metric for threshold in item.thresholds}
    if waiver.metric is not None and waiver.metric not in metrics:
        yield AdmissionRefused(
            22, f"{kind} waiver: the policy does not bound {waiver.metric}"
        )
    if waiver.condition is not None and waiver.condition not in item.conditions:
        yield AdmissionRefused(
            22, f"{kind} waiver: the policy has no condition {waiver.condition}"
        )


def _in_force(waiver: Waiver, now: datetime) -> Steps[None]:
    """Check 23."""
    if parse_time(waiver.created) > now + CLOCK_SKEW:
        yield AdmissionRefused(23, f"{waiver.kind} waiver is from the future")
    if now >= parse_time(waiver.expires):
        yield AdmissionRefused(23, f"{waiver.kind} waiver expired on {waiver.expires}")
