"""Where a bundle stands with a policy, before anybody signs: bound, margin, remedy.

It says what the gate will say (`security.admission.evaluation`, checks 1, 8 and 9) of
reports as they are, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from models.report import Metric, Report
from sealgate.errors import SealgateError
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from models.bundle import Bundle
    from security.admission.rules import Requirement, Threshold

__all__ = ["said_of", "standing"]

_WRITTEN_BY = {
    "fairness": "name groups: `sensitive` in --data-config, or of the training",
    "membership": "give the rows it was trained on: --config, or --train-data",
    "parity": "`train` writes it; for other models choose a policy without",
    "privacy": "`train` writes it, and `import --public-data` for public data",
    "provenance": "`train` and `import` write it",
    "reference": "`reference` writes it, after `train`",
    "robustness": "see the finding above",
}
_REMEDIES = {
    ("privacy", ""): "train with privacy.mechanism = 'dp_sgd', or choose a profile for "
    "public data: `policy new`",
    ("membership", "auc"): "train with a smaller epsilon, fewer steps or a smaller "
    "network",
    ("parity", "max_abs_difference"): "see docs/training.md on fixed features",
    ("privacy", "delta"): "set privacy.delta, and train again",
    ("privacy", "epsilon"): "set privacy.epsilon, and train again",
    ("quality", "accuracy"): "train with more rows, features or steps; or set a bound "
    "that the use allows",
    ("quality", "r2"): "train with more rows or features; 0 is what the mean gives",
    ("robustness", "radius"): "assess with --radius-linf",
    ("robustness", "robust_accuracy"): "train against attacks ([adversarial] in the "
    "configuration), or have it waived",
    ("structure", "errors"): "`inspect` says which, and what to do",
    ("structure", "warnings"): "`inspect` says which: look at each",
}


def standing(
    folder: Path, fresh: Sequence[Report], policy: Path | None
) -> Iterator[str]:
    """Lines for people: what a policy demands beside what reports say.

    Args:
        folder: of the bundle.
        fresh: reports that were just written.
        policy: its file; None for that of the settings.
    """
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415

    path = policy or load_settings().admission.policy
    try:
        bundle, rules = read_bundle(folder), load_policy(path)
    except SealgateError as error:
        yield f"{'policy':<12}not compared: {error}"
        return
    name = bundle.manifest.name
    yield f"{'policy':<12}{path.name}, for {name}; `admit` applies it"
    reports = {report.kind: report for report in fresh}
    met = True
    for item in rules.required(name):
        report = reports.get(item.kind) or _report(bundle, item.kind)
        for passed, line in said_of(item, report):
            met = met and passed
            yield f"{item.kind:<12}{'meets' if passed else 'MISSES'} {line}"
    signers = sorted({" or ".join(item.signers) for item in rules.required(name)})
    if met:
        yield f"{'policy':<12}met; to be signed by {', '.join(signers)}"


def _report(bundle: Bundle, kind: str) -> Report | None:
    """The report that is there, if it is of this very model."""
    from models.bundle import report_file  # noqa: PLC0415

    if report_file(kind) not in bundle.files:
        return None
    try:
        report = bundle.report(kind)
    except BundleError:
        return None
    return report if report.subject == bundle.subject else None


def said_of(item: Requirement, report: Report | None) -> Iterator[tuple[bool, str]]:
    """What a requirement demands of a report, or of none: whether it is met, why."""
    if report is None:
        remedy = _WRITTEN_BY.get(item.kind, "")
        yield False, f"the report: there is none; {remedy}"
        return
    quiet = True
    for check in report.checks:
        if not check.passed:
            quiet = False
            yield False, f"check {check.id}: {check.message}"
    unsaid = [name for name in item.conditions if name not in report.conditions]
    if unsaid:
        quiet = False
        why = _REMEDIES.get((item.kind, ""), "other tools or settings state it")
        yield False, f"{', '.join(unsaid)}: the report does not state it; {why}"
    for name, wanted in item.conditions.items():
        given = report.conditions.get(name, wanted)
        if given != wanted or isinstance(given, bool) != isinstance(wanted, bool):
            quiet = False
            yield False, f"{name}: it is {given!r}, {wanted!r} is needed"
    for threshold in item.thresholds:
        quiet = False
        yield _figure(item.kind, threshold, report)
    if quiet:
        yield True, "what is asked: every check passed"


def _figure(kind: str, threshold: Threshold, report: Report) -> tuple[bool, str]:
    name = threshold.metric
    metric = report.metrics.get(name)
    if metric is None:
        return False, f"{name}: not in the report"
    ends = threshold.ends(metric)
    if ends is None:
        return False, f"{name}: it has no interval"
    margins = _margins(threshold, ends)
    enough = (metric.n or 0) >= threshold.min_n
    passed = enough and all(margin >= 0 for _, margin in margins)
    text = "; ".join(_bound(threshold, metric, end, margin) for end, margin in margins)
    if threshold.min_n:
        text += f", on {metric.n or 0} of at least {threshold.min_n} rows"
    text = f"{name}: {text}{_baseline(kind, name, report)}"
    if not enough:
        return False, f"{text}; give more held-out rows"
    if passed:
        return True, text
    return False, f"{text}; {_remedy(kind, threshold, metric)}"


def _margins(
    threshold: Threshold, ends: tuple[float, float]
) -> list[tuple[str, float]]:
    """For each bound, which end it is and by how much it is kept; negative if not."""
    margins = []
    if threshold.low is not None:
        margins.append(("lower", ends[0] - threshold.low))
    if threshold.high is not None:
        margins.append(("upper", threshold.high - ends[1]))
    return margins


def _bound(threshold: Threshold, metric: Metric, end: str, margin: float) -> str:
    low = end == "lower"
    bound = threshold.low if low else threshold.high
    words = f"{'at least' if low else 'at most'} {bound:g}"
    if threshold.bound == "interval" and metric.low is not None:
        value = metric.low if low else metric.high
        shown = (
            f"{value:.4g}, the {end} end of [{metric.low:.4g}, {metric.high:.4g}] "
            f"around {metric.value:.4g}"
        )
    else:
        shown = f"{metric.value:.4g}"
    kept = f"{margin:.2g} to spare" if margin >= 0 else f"{-margin:.2g} short"
    return f"{shown}, where {words} is needed ({kept})"


def _baseline(kind: str, name: str, report: Report) -> str:
    """What is right without looking at a row: the share of the most frequent class."""
    counts = report.details.get("rows_by_class")
    if (kind, name) != ("quality", "accuracy") or not isinstance(counts, Mapping):
        return ""
    most = max(counts.values(), default=0) / max(1, sum(counts.values()))
    return f"; always saying the most frequent class gives {most:.3g}"


def _remedy(kind: str, threshold: Threshold, metric: Metric) -> str:
    """What would help: more rows, where only the interval is too wide."""
    sides = ((threshold.low, metric.low, 1), (threshold.high, metric.high, -1))
    for bound, end, sign in sides:
        if threshold.bound != "interval" or None in (bound, end, metric.n):
            continue
        ends = (bound or 0.0, end or 0.0)
        room, width = (sign * (metric.value - item) for item in ends)
        if 0 < room < width:
            # An interval's width goes with the root of the number of rows.
            needed = round((metric.n or 0) * (width / room) ** 2, -1)
            return f"about {needed:.0f} held-out rows would do, if it stays so"
    return _REMEDIES.get((kind, threshold.metric), "see docs/policy.md")
