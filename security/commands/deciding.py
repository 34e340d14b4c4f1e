"""Whether a version may answer by default: what `promote` and `models default` share.

Everything that `security.admission.promotion.decide` rests on is read and verified
here: both bundles by the gate, the signed reports beside the plan, the waivers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.files import write_atomic
from models.report import OBSERVED, Report, format_time
from sealgate.errors import SealgateError
from sealgate.protocol import strict_json
from security.admission.gate import Admission
from security.admission.observations import (
    Observation,
    promotion_waivers,
    read_observation,
)
from security.admission.plan import Plan
from security.admission.policy import load_policy
from security.admission.promotion import Case, Decision, decide
from security.admission.rules import Policy, Promotion, Requirement
from security.admission.steps import Scene, demand
from security.admission.trust import TrustRoot, load_trust
from security.audit.journal import record_operation
from security.errors import AdmissionRefused, PlanError
from security.settings.loading import Settings

__all__ = ["Decided", "decide_promotion"]

PROMOTION_SCHEMA = "https://sealgate.dev/promotion/v1"


@dataclass(frozen=True)
class Decided:
    """A decision with everything it rests on.

    Attributes:
        case: what was held against the policy.
        decision: a line per requirement.
        record: all of it as a document, with digests of every signed file.
    """

    case: Case
    decision: Decision
    record: Mapping[str, Any]

    def lines(self) -> list[str]:
        """The decision, for people."""
        beside = f" in place of {self.case.before}" if self.case.before else ""
        return [f"{self.case.after}{beside}", *map(str, self.decision.lines)]

    def demand(self, settings: Settings) -> None:
        """Record the decision in the audit log; go on only if nothing is in the way.

        Raises:
            AdmissionRefused: the first requirement that does not hold.
        """
        refused = self.decision.refused
        admission = self.case.admission
        subject = (
            None
            if isinstance(admission, AdmissionRefused)
            else admission.bundle.subject.root_sha256
        )
        digest = hashlib.sha256(strict_json.dumps(self.record)).hexdigest()
        record_operation(
            settings.audit,
            [
                {
                    "action": "promotion",
                    "model": self.case.after,
                    "model_sha256": subject,
                    "outcome": "refuse" if refused else "allow",
                    "reason": f"check-{refused[0].check}" if refused else digest,
                }
            ],
        )
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            first = refused[0]
            name = f"{first.kind} {first.what}".rstrip()
            raise AdmissionRefused(first.check, f"{name}: {first.text}{more}")

    def keep(self, directory: Path, generation: int) -> Path:
        """Write the record beside the plan that it made."""
        path = directory / "promotions" / f"{generation:06}.json"
        write_atomic(path, strict_json.dumps(self.record))
        return path


def decide_promotion(
    tag: str, plan: Plan, settings: Settings, *, force: bool = False
) -> Decided:
    """Hold a version against what the policy needs before it answers by default.

    Args:
        tag: name and version.
        plan: in force.
        settings: of the deployment.
        force: whether waivers beside the plan count.

    Raises:
        KeyFileError, SettingsError: the trust root or the policy cannot be used.
        AdmissionRefused: with ``force``, a waiver does not hold.
        PlanError: it is the default already.
    """
    name, _, version = tag.partition(":")
    model = plan.models.get(name)
    before = "" if model is None else model.default
    if before == version:
        raise PlanError(f"default {tag}: that is so already")
    policy, trust = (
        load_policy(settings.admission.policy),
        load_trust(settings.admission.trust),
    )
    gathered = _Gathered(
        tag=tag,
        before=before and f"{name}:{before}",
        settings=settings,
        policy=policy,
        promotion=policy.promotion_of(name),
        trust=trust,
        now=datetime.now(UTC),
    )
    return gathered.decided(force=force)


@dataclass(frozen=True)
class _Gathered:
    tag: str
    before: str
    settings: Settings
    policy: Policy
    promotion: Promotion
    trust: TrustRoot
    now: datetime

    def decided(self, *, force: bool) -> Decided:
        after = self._opened(self.tag)
        default = self._bundle(self.before) if self.before else None
        root = default.subject.root_sha256 if isinstance(default, Bundle) else ""
        signed: dict[str, Observation] = {}
        evidence: dict[str, Report | AdmissionRefused] = {}
        for item in self.promotion.requirements:
            if isinstance(after, AdmissionRefused) or default is None:
                continue  # the gate is in the way, or nothing is asked
            try:
                evidence[item.kind] = self._evidence(item, after, default, signed)
            except AdmissionRefused as refusal:
                evidence[item.kind] = refusal
        case = Case(
            after=self.tag,
            before=self.before,
            before_root=root,
            admission=after,
            promotion=self.promotion,
            evidence=evidence,
            now=self.now,
            waivers=self._waivers(after) if force else {},
        )
        decision = decide(case)
        return Decided(case, decision, self._record(case, decision, signed))

    def _evidence(
        self,
        item: Requirement,
        after: Admission,
        default: Bundle | AdmissionRefused,
        signed: dict[str, Observation],
    ) -> Report:
        """The report that a requirement is held against; a signed one is noted.

        Raises:
            AdmissionRefused: why there is none.
        """
        if isinstance(default, AdmissionRefused):
            raise default
        if item.kind not in OBSERVED:
            return self._compared(default.subject.root_sha256, after)
        # Agreement is about the version on trial, monitoring about what is served.
        about = after.bundle if item.kind == "agreement" else default
        directory = self.settings.deployment.directory
        scene = Scene(about, self.policy, self.trust, self.now)
        signed[item.kind] = read_observation(directory, scene, item)
        return signed[item.kind].report

    def _opened(self, tag: str) -> Admission | AdmissionRefused:
        """What the gate says of a version today."""
        from security.admission.hooks import open_tag  # noqa: PLC0415  (bentoml)

        try:
            return open_tag(tag, self.settings)
        except AdmissionRefused as refusal:
            return refusal

    def _bundle(self, tag: str) -> Bundle | AdmissionRefused:
        from security.admission.sources import read_served  # noqa: PLC0415  (bentoml)

        try:
            return read_served(tag, self.settings.service.models)
        except SealgateError as error:
            return AdmissionRefused(41, f"{tag}, the default, cannot be read: {error}")

    def _compared(self, root: str, after: Admission) -> Report:
        from security.assessment.reporting.versions import (  # noqa: PLC0415  (scipy)
            compare_versions,
        )

        before = self._opened(self.before)
        return compare_versions(before, root, after, now=self.now)

    def _waivers(self, after: Admission | AdmissionRefused) -> Mapping[str, Any]:
        if isinstance(after, AdmissionRefused):
            return {}
        scene = Scene(after.bundle, self.policy, self.trust, self.now)
        directory = self.settings.deployment.directory
        required = self.promotion.requirements
        return demand(promotion_waivers(directory, scene, required))

    def _record(
        self, case: Case, decision: Decision, signed: Mapping[str, Observation]
    ) -> dict[str, Any]:
        gate = case.admission
        admitted = None if isinstance(gate, AdmissionRefused) else gate
        return {
            "schema": PROMOTION_SCHEMA,
            "time": format_time(self.now),
            "after": self.tag,
            "after_sha256": admitted and admitted.bundle.subject.root_sha256,
            "verdict_sha256": admitted and admitted.verdict_sha256,
            "before": self.before,
            "before_sha256": case.before_root,
            "policy_sha256": self.policy.resource.sha256,
            "signed": {
                kind: {
                    "sha256": item.sha256,
                    "signer": item.signer,
                    "role": self.trust.role_of(item.signer),
                }
                for kind, item in signed.items()
            },
            "waivers": {kind: str(item) for kind, item in case.waivers.items()},
            "lines": [vars(line) for line in decision.lines],
        }
