"""Whether a version may answer by default: one pure decision, a line per requirement.

The caller brings what was read and verified (`Case`), and nothing is read here. In this
order:

1. the gate admits the version today; nothing lifts this line;
2. the first version of a model has nothing to be compared with, and needs no more;
3. of each kind in the policy's ``[promotion]``, the report is there (40, 41) and fresh
   (42), and is about the version that is the default now;
4. each condition and each bound of that kind holds (43).

A waiver in force lifts a line of its kind, or of one metric or condition, where the
operator asks for that (``--force``); it stays visible as a line of its own.

Drift that was found in the default is a reason to promote, not an obstacle: where a
bound on ``drift_alarms`` does not hold, it counts as met for a version whose signed
provenance says that it was trained after the window in which the drift was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from models.report import Condition, Metric, Report, format_time
from sealgate.protocol.statement import Waiver
from security.admission.evaluation import condition_steps, threshold_steps
from security.admission.gate import Admission
from security.admission.observations import check_fresh, window_end
from security.admission.rules import Promotion, Requirement, Threshold
from security.admission.steps import drain
from security.errors import AdmissionRefused

__all__ = ["DRIFT_ALARMS", "PROMOTION_CHECK", "Case", "Decision", "Line", "decide"]

DRIFT_ALARMS = "drift_alarms"
PROMOTION_CHECK = 43

_REMEDIES = {
    "gate": "see `security verify`: nothing lifts the gate",
    "comparison": "`assess`, `sign` and `admit` both versions on the same rows, or "
    "`retrain` from the default",
    "agreement": "`models shadow {after} --percent 100`, then `security agreement "
    "{after}`",
    "monitoring": "`security monitor --sign` signs a report about {before}",
    "few": "assess on more rows, or wait until more was counted",
    "wide": "the value would do: more rows or requests narrow its interval",
    "bound": "a better version, or a waiver of {kind} ({name}) and --force",
}


@dataclass(frozen=True)
class Case:
    """What a decision rests on: all of it was verified, none of it is judged yet.

    Attributes:
        after: tag of the version that shall answer by default.
        before: tag of the one that does now; empty where none does.
        before_root: root digest of that one.
        admission: what the gate says of ``after`` today.
        promotion: what the policy needs of this model.
        evidence: by kind of requirement the report, or why there is none.
        now: the time.
        waivers: in force, by kind; empty unless the operator asks for them.
    """

    after: str
    before: str
    before_root: str
    admission: Admission | AdmissionRefused
    promotion: Promotion
    evidence: Mapping[str, Report | AdmissionRefused]
    now: datetime
    waivers: Mapping[str, Waiver] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One requirement, and how the version stands to it.

    Attributes:
        kind: gate, or a kind of the policy's promotion table.
        what: the metric or condition; empty for the report as a whole.
        outcome: met, refused, waived, or "not needed".
        text: value, interval, bound and margin, for people.
        check: number of the check; 0 where none failed.
        remedy: what to do about a refusal.
    """

    kind: str
    what: str
    outcome: str
    text: str
    check: int = 0
    remedy: str = ""

    def __str__(self) -> str:
        name = f"{self.kind} {self.what}".rstrip()
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.outcome:<11}{name:<32}{self.text}{remedy}"


@dataclass(frozen=True)
class Decision:
    """Every requirement's line, in order."""

    lines: tuple[Line, ...]

    @property
    def refused(self) -> tuple[Line, ...]:
        """The lines that are in the way."""
        return tuple(line for line in self.lines if line.outcome == "refused")


def decide(case: Case) -> Decision:
    """Whether a version may answer by default, requirement by requirement."""
    return Decision(tuple(_lines(case)))


def _lines(case: Case) -> Iterator[Line]:
    gate = case.admission
    if isinstance(gate, AdmissionRefused):
        yield _refused(case, "gate", "", gate, "gate")
    else:
        yield Line("gate", "", "met", f"verdict sha256:{gate.verdict_sha256}")
    if not case.before:
        name = case.after.partition(":")[0]
        text = f"no version of {name} answers by default: there is nothing to compare"
        yield Line("promotion", "", "not needed", text)
        return
    if not case.promotion.requirements:
        text = "the policy has no [promotion] for it: the gate alone decides"
        yield Line("promotion", "", "not needed", text)
    for requirement in case.promotion.requirements:
        yield from _kind_lines(case, requirement)


def _kind_lines(case: Case, requirement: Requirement) -> Iterator[Line]:
    kind = requirement.kind
    report = case.evidence.get(kind)
    if not isinstance(report, Report):
        missing = report or AdmissionRefused(40, f"{kind}: there is no report")
        yield _waivable(case, _refused(case, kind, "", missing, kind))
        return
    if requirement.signers:
        refusals, _ = drain(check_fresh(report, requirement, now=case.now))
        text = _age(report, requirement, case.now) if not refusals else ""
        yield _judged(case, (kind, ""), text, refusals, kind)
    beside = report.conditions.get("beside_sha256")
    if kind != "monitoring" and beside != case.before_root:
        other = AdmissionRefused(
            41, f"{kind}: the report is not about {case.before}, the default now"
        )
        yield _waivable(case, _refused(case, kind, "beside", other, kind))
    for name, wanted in requirement.conditions.items():
        refusals, _ = drain(
            condition_steps(kind, name, wanted, report, PROMOTION_CHECK)
        )
        yield _judged(case, (kind, name), _stated(wanted), refusals, kind)
    for threshold in requirement.thresholds:
        yield _bound_line(case, kind, threshold, report)


def _bound_line(case: Case, kind: str, threshold: Threshold, report: Report) -> Line:
    refusals, _ = drain(threshold_steps(kind, threshold, report, PROMOTION_CHECK))
    metric = report.metrics.get(threshold.metric)
    few = metric is not None and (metric.n or 0) < threshold.min_n
    numbers = "" if metric is None else _numbers(threshold, metric)
    if refusals and metric is not None and threshold.metric == DRIFT_ALARMS:
        trained = _trained_after(case, report)
        if trained is not None and not few:
            text = f"{numbers}, but {case.after} was trained {trained}, after that"
            return Line(kind, threshold.metric, "met", text)
    remedy = "few" if few else kind if metric is None else "bound"
    if metric is not None and not few and threshold.bound == "interval":
        value = replace(threshold, bound="value")
        enough, _ = drain(threshold_steps(kind, value, report, PROMOTION_CHECK))
        remedy = remedy if enough else "wide"
    return _judged(case, (kind, threshold.metric), numbers, refusals, remedy)


def _judged(
    case: Case,
    name: tuple[str, str],
    text: str,
    refusals: list[AdmissionRefused],
    remedy: str,
) -> Line:
    kind, what = name
    if not refusals:
        return Line(kind, what, "met", text)
    reasons = "; ".join(item.reason.removeprefix(f"{kind}: ") for item in refusals)
    reason = AdmissionRefused(
        refusals[0].check, f"{text} ({reasons})" if text else reasons
    )
    return _waivable(case, _refused(case, kind, what, reason, remedy))


def _refused(
    case: Case, kind: str, what: str, refusal: AdmissionRefused, remedy: str
) -> Line:
    text = _REMEDIES[remedy].format(
        after=case.after, before=case.before, kind=kind, name=what
    )
    reason = refusal.reason.removeprefix(f"{kind}: ")
    return Line(kind, what, "refused", reason, refusal.check, text)


def _waivable(case: Case, line: Line) -> Line:
    """As it is, or as a waiver has it."""
    waiver = case.waivers.get(line.kind)
    if waiver is None:
        return line
    if not waiver.whole and line.what not in (waiver.metric, waiver.condition):
        return line
    return Line(line.kind, line.what, "waived", f"{line.text}; {waiver}")


def _trained_after(case: Case, monitoring: Report) -> str | None:
    """When the version was trained, if that was after the window that is reported."""
    if isinstance(case.admission, AdmissionRefused):
        return None
    provenance = case.admission.reports.get("provenance")
    try:
        end = window_end(monitoring)
    except AdmissionRefused:
        return None
    if provenance is None or provenance.created_at < end:
        return None
    return format_time(provenance.created_at)


def _numbers(threshold: Threshold, metric: Metric) -> str:
    """Value, interval, sample, bound and margin."""
    interval = (
        "" if metric.low is None else f" [{metric.low:.4g}, {metric.high or 0:.4g}]"
    )
    rows = "" if metric.n is None else f" of {metric.n}"
    bounds = " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", threshold.low), ("at most", threshold.high))
        if bound is not None
    )
    worse = " (interval)" if threshold.bound == "interval" else ""
    margin = _margin(threshold, metric)
    known = "" if margin is None else f", margin {margin:.4g}"
    return f"{metric.value:.4g}{interval}{rows}, {bounds}{worse}{known}"


def _margin(threshold: Threshold, metric: Metric) -> float | None:
    """How far inside its bounds a metric is; below 0 outside of them."""
    ends = threshold.ends(metric)
    if ends is None:
        return None
    inside = []
    if threshold.low is not None:
        inside.append(ends[0] - threshold.low)
    if threshold.high is not None:
        inside.append(threshold.high - ends[1])
    return min(inside)


def _age(report: Report, requirement: Requirement, now: datetime) -> str:
    days = (now - window_end(report)).total_seconds() / 86400
    end = report.conditions["window_end"]
    return f"until {end}, {max(0.0, days):.2g} days old, at most {_days(requirement)}"


def _days(requirement: Requirement) -> str:
    return f"{requirement.max_age.days}"


def _stated(wanted: Condition) -> str:
    return f"{wanted!r} as needed"
