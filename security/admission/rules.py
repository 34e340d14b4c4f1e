"""What a policy says, once it is read: frozen, and free of TOML.

`Policy.required` answers what one model needs. The first entry whose pattern matches
the model's name counts, and no other; a model that none matches gets the defaults.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import OBSERVED, Metric
from sealgate.protocol.statement import Resource

__all__ = [
    "MAX_SIGNERS",
    "PROMOTION_KINDS",
    "SIGNATURES",
    "TIMESTAMPS",
    "ModelRules",
    "Policy",
    "Promotion",
    "Requirement",
    "Threshold",
    "WaiverRules",
]

# As many as a bundle has places for: <kind>.sigstore.json, <kind>.2 … <kind>.9.
MAX_SIGNERS = 9

# Which signatures a statement must have: with P-256 and ML-DSA-65; with P-256, and with
# ML-DSA-65 where there is one; with P-256, whatever else there is.
SIGNATURES = ("both", "any", "classical")

# Whether a statement needs a time stamp (RFC 3161) of an authority that is trusted.
TIMESTAMPS = ("required", "optional")

# What a version may have to show beside the gate before it answers by default.
PROMOTION_KINDS = ("comparison", *OBSERVED)


@dataclass(frozen=True)
class Threshold:
    """A bound on one metric of a report.

    Attributes:
        metric: its name.
        low, high: inclusive; at least one is given.
        min_n: smallest sample count it may rest on.
        bound: "value", or "interval": the worse end of the confidence interval counts.
    """

    metric: str
    low: float | None = None
    high: float | None = None
    min_n: int = 0
    bound: str = "value"

    def ends(self, metric: Metric) -> tuple[float, float] | None:
        """What is held against the lower and the upper bound; None if there is none."""
        if self.bound != "interval":
            return metric.value, metric.value
        if metric.low is None or metric.high is None:
            return None
        return metric.low, metric.high


@dataclass(frozen=True)
class Requirement:
    """A kind of evidence that must be there.

    Attributes:
        kind: which.
        signers: roles whose keys may sign it.
        max_age: of the report.
        conditions: the report's conditions that must equal these.
        thresholds: bounds on its metrics.
        min_signers: how many different keys must have signed it.
        signatures: of `SIGNATURES`; None leaves it to the trust root.
        timestamps: whether every signature of it needs a trusted time stamp.
    """

    kind: str
    signers: tuple[str, ...]
    max_age: timedelta
    conditions: Mapping[str, Any]
    thresholds: tuple[Threshold, ...]
    min_signers: int = 1
    signatures: str | None = None
    timestamps: bool = False


@dataclass(frozen=True)
class WaiverRules:
    """Who may waive what, and for how long.

    Attributes:
        signers: roles whose keys may sign a waiver; none where nothing can be waived.
        max_age: the longest a waiver may hold.
        kinds: what may be waived.
        signatures, timestamps: as a requirement's.
    """

    signers: tuple[str, ...] = ()
    max_age: timedelta = timedelta(0)
    kinds: tuple[str, ...] = ()
    signatures: str | None = None
    timestamps: bool = False


@dataclass(frozen=True)
class Promotion:
    """What a version must show before it answers by default, and to go on doing so.

    Attributes:
        requirements: of `PROMOTION_KINDS`, one per kind, in the file's order. A
            comparison has no signers and no age of its own: it rests on evidence that
            the gate has checked.
        stays_monitored: whether a default version answers only while the monitoring
            report about it is fresh.
    """

    requirements: tuple[Requirement, ...] = ()
    stays_monitored: bool = False

    def of(self, kind: str) -> Requirement | None:
        """The requirement of a kind; None if the kind is not needed."""
        return next((item for item in self.requirements if item.kind == kind), None)


@dataclass(frozen=True)
class ModelRules:
    """What differs from the defaults for the models that a pattern matches.

    Attributes:
        match: a model's name, in which ``*`` stands for any characters, ``?`` for one.
        requirements: in place of the default's of their kind, or beside them.
        without: kinds that these models do not need.
        leaving: in place of the default's; None keeps that.
        promotion: in place of the whole of the default's; None where that holds.
    """

    match: str
    requirements: tuple[Requirement, ...] = ()
    without: tuple[str, ...] = ()
    leaving: OutputPolicy | None = None
    promotion: Promotion | None = None

    def applies_to(self, model: str) -> bool:
        """Whether the pattern matches a model's name."""
        return fnmatch.fnmatchcase(model, self.match)


@dataclass(frozen=True)
class Policy:
    """A parsed policy.

    Attributes:
        resource: its name and the digest of its bytes; the verdict names both.
        verdict_signers: roles whose keys may sign the verdict.
        verdict_max_age: of the verdict.
        requirements: the defaults, one per kind, in the file's order.
        verdict_min_signers: how many different keys must have signed a verdict.
        waivers: who may waive what.
        models: what differs for some models, in the file's order.
        default_leaving: what may leave of answers at most.
        promotion: what a version must show before it answers by default.
        signatures: of `SIGNATURES`, where no table says otherwise: both wherever the
            trust root gives the signer's role an ML-DSA-65 key, if it is None.
        verdict_signatures: the same for the verdict.
        verdict_timestamps: whether a verdict needs a trusted time stamp.
        verdict_recomputed: kinds whose certificate, where they claim one, must have
            been recomputed from rows.
    """

    resource: Resource
    verdict_signers: tuple[str, ...]
    verdict_max_age: timedelta
    requirements: tuple[Requirement, ...]
    verdict_min_signers: int = 1
    waivers: WaiverRules = WaiverRules()
    models: tuple[ModelRules, ...] = ()
    default_leaving: OutputPolicy = ALL_SCORES
    promotion: Promotion = Promotion()
    signatures: str | None = None
    verdict_signatures: str | None = None
    verdict_timestamps: bool = False
    verdict_recomputed: tuple[str, ...] = ()

    def promotion_of(self, model: str) -> Promotion:
        """What a version of a model must show before it answers by default."""
        rules = self.rules_for(model)
        own = None if rules is None else rules.promotion
        return self.promotion if own is None else own

    def rules_for(self, model: str) -> ModelRules | None:
        """The entry that counts for a model; None where the defaults do."""
        return next((item for item in self.models if item.applies_to(model)), None)

    def leaving(self, model: str) -> OutputPolicy:
        """What may leave of a model's answers at most, by its name."""
        rules = self.rules_for(model)
        own = None if rules is None else rules.leaving
        return self.default_leaving if own is None else own

    def required(self, model: str) -> tuple[Requirement, ...]:
        """What a model needs, by its name: one requirement per kind, never none."""
        rules = self.rules_for(model)
        return self.requirements if rules is None else self.under(rules)

    def under(self, rules: ModelRules) -> tuple[Requirement, ...]:
        """The defaults as an entry of this policy changes them."""
        own = {item.kind: item for item in rules.requirements}
        kept = [
            own.pop(item.kind, item)
            for item in self.requirements
            if item.kind not in rules.without
        ]
        return (*kept, *own.values())
