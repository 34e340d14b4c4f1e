"""What monitoring tells of one version: its windows, what drifted, what labels say.

It is made of released counts and of signed evidence, and so it costs nothing, and may
be shown to anyone who may know of the model. The server's endpoint and metrics, the
command's table, page and event, and the signed report all show this one document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.report import Metric, Report, Subject, format_time
from security.errors import MonitoringError
from security.monitoring.drift import Finding, Reference, find_drift
from security.monitoring.estimate import BLIND, SCORE, ScoreBins, estimated_accuracy
from security.monitoring.guarantee import epsilon_of
from security.monitoring.layout import described
from security.monitoring.ledger import Budget, Entry, spent
from security.monitoring.outcomes import Statement, state
from security.monitoring.reference import KIND, reference_of
from security.monitoring.release import Release
from security.monitoring.windows import Window, window_at

__all__ = [
    "OVERVIEW_SCHEMA",
    "Evidence",
    "Overview",
    "Sight",
    "Spent",
    "labels_of",
    "overview",
]

OVERVIEW_SCHEMA = "https://sealgate.dev/monitoring/v1"
# A year of weeks; of days the last eight weeks.
MAX_WINDOWS = 56
# After its end, a window is released within this.
_LATE_S = 3600
# A value is outside the support where the reference has fewer than this share; an
# estimate is withheld where more than that share of a window's is there.
_EMPTY, _OUTSIDE = 0.001, 0.01
_DEVIATIONS = 3.0
_NO_PART = "the reference has nothing for that window"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a version's signed evidence says that its windows are held against.

    Attributes:
        subject: the version.
        reference: of its histograms.
        missing: why there is no reference; empty if there is.
        bins: how accurate held-out rows were by score; None if that is not known.
    """

    subject: Subject
    reference: Reference | None
    missing: str
    bins: ScoreBins | None

    @classmethod
    def of_bundle(cls, bundle: Bundle, reports: Mapping[str, Report]) -> Evidence:
        """Of a version that was admitted.

        Args:
            bundle: the version.
            reports: its evidence by kind, verified by the gate.
        """
        held, missing = (
            reports.get(KIND),
            "the version has no reference evidence that the policy asks for",
        )
        reference = None
        try:
            if held is not None:
                reference, missing = reference_of(held, bundle.manifest), ""
        except MonitoringError as error:
            missing = str(error)
        quality = reports.get("quality")
        bins = None if quality is None else ScoreBins.from_details(quality.details)
        return cls(bundle.subject, reference, missing, bins)


@dataclass(frozen=True)
class Spent:
    """What all releases of a deployment have cost a subject in 365 days.

    Attributes:
        epsilon: at ``delta``.
        cap: the epsilon at which nothing more is released.
        delta: of both.
    """

    epsilon: float
    cap: float
    delta: float

    @classmethod
    def of(cls, entries: Sequence[Entry], budget: Budget, *, now: float) -> Spent:
        """Of a ledger's entries."""
        epsilon = epsilon_of(spent(entries, now=now), budget.delta)
        return cls(epsilon, budget.epsilon, budget.delta)


@dataclass(frozen=True, eq=False)
class Sight:
    """One window of a version.

    Attributes:
        release: its counts, or why there are none.
        findings: of each histogram, alone and with the windows before it; None where it
            cannot be told whether anything drifted.
        estimate: accuracy without labels; None where ``unestimated`` says why.
        unestimated: why there is no estimate.
        labels: what labels that came later say; None as long as they are not released.
    """

    release: Release
    findings: tuple[Finding, ...] | None
    estimate: Metric | None
    unestimated: str
    labels: Statement | None

    @property
    def window(self) -> Window:
        """When."""
        return self.release.about.window

    @property
    def alarms(self) -> tuple[str, ...] | None:
        """Histograms in alarm; None where that cannot be told."""
        if self.findings is None:
            return None
        return tuple(dict.fromkeys(i.histogram for i in self.findings if i.alarm))

    @property
    def alone(self) -> dict[str, Finding]:
        """Of each histogram, the finding of this window alone."""
        found = self.findings or ()
        return {item.histogram: item for item in found if item.windows == 1}

    def to_object(self) -> dict[str, Any]:
        """As JSON values."""
        release, window, alarms = self.release, self.window, self.alarms
        estimate = None if self.estimate is None else vars(self.estimate)
        return {
            "name": window.name,
            "start": _time(window.start),
            "end": _time(window.end),
            "released_at": _time(release.released_at),
            "withheld": release.withheld,
            "subjects": release.subjects,
            "lost": dict(release.lost),
            "sigma": release.sigma,
            "guarantee": dict(release.guarantee),
            "alarms": None if alarms is None else list(alarms),
            "histograms": [_rounded(item) for item in self.findings or ()],
            # Never without the alarm and the labels beside it.
            "accuracy_without_labels": {
                "estimate": estimate,
                "withheld": self.unestimated,
                "statement": BLIND,
            },
            "labels": None if self.labels is None else self.labels.to_object(),
        }


@dataclass(frozen=True, eq=False)
class Overview:
    """A version's windows, and what to think of them.

    Attributes:
        evidence: of the version.
        length: of its windows: "daily", "weekly" or "monthly".
        sights: its windows, the oldest first.
        spent: of the deployment's budget.
        as_of: Unix seconds.
    """

    evidence: Evidence
    length: str
    sights: tuple[Sight, ...]
    spent: Spent
    as_of: float = 0.0
    tag: str = field(init=False)

    def __post_init__(self) -> None:
        """Name it as people do."""
        subject = self.evidence.subject
        object.__setattr__(self, "tag", f"{subject.name}:{subject.version}")

    @property
    def last(self) -> Sight | None:
        """The last window of which it can be told whether anything drifted."""
        told = [item for item in self.sights if item.findings is not None]
        return told[-1] if told else None

    @property
    def state(self) -> str:
        """Of "drift", "quiet" and "unknown", for which `reason` says why."""
        last = self.last
        if last is None or self.reason:
            return "unknown"
        return "drift" if last.alarms else "quiet"

    @property
    def below(self) -> bool:
        """Whether the last labels say that coverage is less than what is stated."""
        found = [i.labels.coverage for i in self.sights if i.labels is not None]
        return bool(found) and found[-1] is not None and found[-1].below

    @property
    def reason(self) -> str:
        """Why it cannot be told whether anything drifts now; empty if it can."""
        if self.evidence.missing:
            return self.evidence.missing
        due = window_at(self.length, self.as_of - _LATE_S).last
        known = [item for item in self.sights if item.window >= due]
        if any(item.findings is not None for item in known):
            return ""
        if known:
            withheld = known[-1].release.withheld
            return f"{due.name} was not released: {withheld}" if withheld else _NO_PART
        return f"{due.name} was not released"

    def to_object(self) -> dict[str, Any]:
        """As JSON values, for callers, pages and whoever is told by an event."""
        subject = self.evidence.subject
        return {
            "schema": OVERVIEW_SCHEMA,
            "model": subject.name,
            "version": subject.version,
            "root_sha256": subject.root_sha256,
            "as_of": _time(self.as_of),
            "length": self.length,
            "state": self.state,
            "reason": self.reason,
            "budget": vars(self.spent),
            "windows": [item.to_object() for item in self.sights],
        }


def overview(
    evidence: Evidence,
    drift: Sequence[Release],
    *,
    length: str,
    spent: Spent,
    now: float,
    labels: Mapping[Window, Statement] = {},
) -> Overview:
    """See all windows of a version.

    Args:
        evidence: of the version.
        drift: releases of histograms, of any versions, the oldest first.
        length: of the deployment's windows now; others are left out.
        spent: of the deployment's budget.
        now: Unix seconds.
        labels: what labels of the version's windows say.

    Raises:
        MonitoringError: a release or the reference is not what it should be.
    """
    subject = evidence.subject
    of_drift = [
        item
        for item in drift
        if (item.about.model, item.about.version) == (subject.name, subject.version)
        and item.about.window.length == length
    ]
    sights = tuple(
        _sight(evidence, of_drift[: at + 1], labels.get(of_drift[at].about.window))
        for at in range(max(0, len(of_drift) - MAX_WINDOWS), len(of_drift))
    )
    return Overview(evidence, length, sights, spent, now)


def labels_of(
    releases: Sequence[Release], subject: Subject, length: str
) -> dict[Window, Statement]:
    """What labels of a version's windows say, where they were released.

    Args:
        releases: of labels, of any versions.
        subject: the version.
        length: of the deployment's windows now.

    Raises:
        MonitoringError: a release is not what it should be.
    """
    own = subject.name, subject.version, length
    return {
        item.about.window: state([item])
        for item in releases
        if item.counts
        and (item.about.model, item.about.version, item.about.window.length) == own
    }


def _sight(
    evidence: Evidence, until: Sequence[Release], labels: Statement | None
) -> Sight:
    """The last of some windows."""
    release, findings = until[-1], None
    if release.counts and evidence.reference is not None:
        # None at all is no quiet window: the reference has another season's part, say.
        findings = tuple(find_drift(until, evidence.reference)) or None
    seen = Sight(release, findings, None, "", labels)
    why, bins = _unestimated(evidence, seen), evidence.bins
    if why or bins is None:
        return replace(seen, unestimated=why)
    estimate = estimated_accuracy(bins, release.counts[SCORE], release.sigma)
    hidden = "" if estimate else "too few subjects for the noise"
    return replace(seen, estimate=estimate, unestimated=hidden)


def _unestimated(evidence: Evidence, seen: Sight) -> str:
    """Why accuracy is not estimated without labels; empty if it may be."""
    release, bins = seen.release, evidence.bins
    if release.withheld or SCORE not in release.counts:
        return release.withheld or "scores are not counted"
    if bins is None:
        return "the evidence does not say how accurate each score was"
    known = {i.name: i for i in described(release.details.get("histograms"))}
    if SCORE not in known or not bins.fits(known[SCORE]):
        return "the evidence has other bins of scores"
    if seen.alarms is None or evidence.reference is None:
        return evidence.missing or _NO_PART
    outside = [
        name for name in seen.alarms if _is_outside(release, evidence.reference, name)
    ]
    if outside:
        return f"drift beyond what the reference has: {', '.join(outside)}"
    return ""


def _is_outside(release: Release, reference: Reference, name: str) -> bool:
    """Whether values lie where the reference has none, beyond what noise does."""
    against = reference.counted(name, release.about.window)
    if against is None:
        return True
    counts = np.array(release.counts[name], dtype=np.float64)
    floor = max(_EMPTY * float(against.counts.sum()), _DEVIATIONS * against.sigma)
    empty = against.counts <= floor
    found, total = float(counts[empty].sum()), max(1.0, float(counts.sum()))
    # By chance and noise, as many more than the share as their deviation allows.
    deviation = (_OUTSIDE * total + int(empty.sum()) * release.sigma**2) ** 0.5
    return bool(found > _OUTSIDE * total + _DEVIATIONS * deviation)


def _rounded(item: Finding) -> dict[str, Any]:
    """A finding, with as many digits as it has a meaning for."""
    found = item.to_object()
    return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(int(seconds), UTC))
