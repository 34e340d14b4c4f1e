"""What the evidence does not show, computed from the evidence.

Sentences are plain text. They may quote names out of reports, so whoever prints them
escapes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from models.report import Report
from security.documents.facts import Facts
from security.documents.glossary import KIND_QUESTIONS
from security.documents.markup import number

__all__ = ["limitations"]

# With fewer rows, a 95% interval of a proportion may reach 3 points to either side.
SMALL_SAMPLE = 1000
# Beyond a hundredth of 1/n, delta no longer is a negligible chance for n rows at once.
CUSTOMARY_DELTA_ROWS = 0.01
# How a report says that a search is not what epsilon pays for.
_UNTUNED = ("public", "fixed_in_configuration")


def limitations(facts: Facts, unread: Collection[str] = ()) -> tuple[str, ...]:
    """What a reader must not conclude, most general first.

    Args:
        facts: of the bundle; texts in it are somebody else's.
        unread: kinds of reports that are there, and no part of the facts.

    Returns:
        One sentence or a few each; never what the trainer stated, which stands apart.
    """
    return (
        *_missing(facts, unread),
        *_unsigned(facts),
        *_failed(facts),
        *_privacy(facts),
        *_membership(facts),
        *_robustness(facts),
        *_samples(facts),
        *_structure(facts),
        *_verdict(facts),
    )


def _missing(facts: Facts, unread: Collection[str]) -> Iterator[str]:
    for kind, question in KIND_QUESTIONS.items():
        if kind not in facts.reports and kind not in unread:
            yield f"There is no {kind} report: {question} is not known."
    names = {(item.name, item.role): item for item in facts.datasets}
    if len(names) != len(facts.datasets):
        yield (
            "Reports rest on different rows under one data set's name and role: "
            "their numbers do not compare."
        )


def _unsigned(facts: Facts) -> Iterator[str]:
    for kind in facts.reports:
        signatures = facts.signatures.get(kind, ())
        if not signatures:
            yield f"The {kind} report is not signed: nobody vouches for it."
        if not all(item.binds for item in signatures):
            yield (
                f"An attestation for the {kind} report binds other bytes: its signer "
                "does not vouch for the report as it is."
            )
        if not all(item.passed for item in signatures):
            yield f"An attestation for the {kind} report says FAILED."


def _failed(facts: Facts) -> Iterator[str]:
    for kind, report in facts.reports.items():
        for check in report.checks:
            # What the structural inspection merely notes is told with its findings.
            if not check.passed:
                yield f"Check {check.id} of the {kind} report failed: {check.message}."


def _privacy(facts: Facts) -> Iterator[str]:
    report = facts.reports.get("privacy")
    if report is None:
        return
    stated = report.conditions
    if stated.get("covers_holdout") is not True:
        yield (
            "Epsilon covers the training rows alone. The held-out rows have no such "
            "guarantee, and what is published about them here is not counted."
        )
    uncovered = [
        kind
        for kind, other in facts.reports.items()
        if other.conditions.get("covered_by_dp") is False
    ]
    if uncovered:
        yield (
            f"The numbers of {', '.join(uncovered)} were computed on real rows without "
            "noise: publishing them tells a little about those rows."
        )
    yield from _privacy_unit(report)
    yield from _privacy_delta(report)


def _privacy_unit(report: Report) -> Iterator[str]:
    unit = report.conditions.get("unit")
    if unit is not None:
        yield (
            f"What is protected is one {unit}. Whoever contributed k of them is "
            "protected by k times epsilon at best."
        )
    if report.conditions.get("hyperparameters") in _UNTUNED:
        yield (
            "Epsilon assumes that no setting was tuned on the training rows; no "
            "evidence can show that."
        )
    if report.conditions.get("noise_generator") != "os_urandom":
        yield (
            "The privacy report does not say that the noise came from the operating "
            "system's generator: epsilon does not bind whoever can predict it."
        )


def _privacy_delta(report: Report) -> Iterator[str]:
    delta = report.metrics.get("delta")
    rows = [item.rows for item in report.datasets if item.role == "train"]
    if delta is None or not rows:
        return
    if not 0 < delta.value < 1:
        yield "The privacy report states a delta that is not a chance between 0 and 1."
        return
    # A count may be any integer; beyond a double it is as good as this.
    product = delta.value * min(max(rows), 1 << 53)
    if product > CUSTOMARY_DELTA_ROWS:
        yield (
            f"Delta times the number of rows is {number(product, 'up')}, where at most "
            f"{CUSTOMARY_DELTA_ROWS} is customary: delta bounds the chance that "
            "epsilon does not hold for a row."
        )


def _membership(facts: Facts) -> Iterator[str]:
    report = facts.reports.get("membership")
    if report is None:
        return
    if report.conditions.get("shadow_models") == 0:
        yield (
            "The membership attacks train no shadow models: those that do are "
            "stronger, and were not tried."
        )
    rate = report.conditions.get("false_positive_rate")
    others = [
        item["others"]
        for item in report.details.values()
        if isinstance(item, dict) and type(item.get("others")) is int
    ]
    if not isinstance(rate, float) or not 1e-6 < rate < 1 or not others:
        return
    needed = round(1 / rate)
    if min(others) < needed:
        yield (
            f"A false positive rate of {number(rate)} needs {needed} non-members or "
            f"more; an attack was judged on {min(others)}. What it "
            "finds at that rate says little."
        )


def _robustness(facts: Facts) -> Iterator[str]:
    report = facts.reports.get("robustness")
    if report is None:
        return
    stated = report.conditions
    norm, units = stated.get("norm", "unnamed"), stated.get("units", "unnamed units")
    radius = report.metrics.get("radius")
    within = "the radii tried" if radius is None else f"radius {number(radius.value)}"
    of_number = stated.get("predicts") == "number"
    what = "What is said of changes" if of_number else "Robust accuracy"
    yield (
        f"{what} holds within {within} in the {norm} norm on {units}; other "
        "kinds of change were not tried."
    )
    yield (
        "An attack that finds nothing proves nothing: a stronger one can only "
        + ("move answers further." if of_number else "lower robust accuracy.")
    )
    bound = report.metrics.get(
        "largest_change_bound" if of_number else "verified_accuracy"
    )
    if bound is not None:
        yield (
            f"It cannot {'pass' if of_number else 'fall below'} {number(bound.value)} "
            "in that norm and radius, which is proved for these rows, in single "
            "precision, with categories as they are; not for other rows."
        )
    if stated.get("immutable_columns") == "none":
        yield (
            "The attack may change every column at once, also those that nobody can "
            "change in practice."
        )


def _samples(facts: Facts) -> Iterator[str]:
    small = [
        f"{min(sizes)} rows for a number in the {kind} report"
        for kind in ("quality", "fairness", "robustness", "membership")
        if (sizes := _sizes(facts.reports.get(kind))) and min(sizes) < SMALL_SAMPLE
    ]
    if small:
        yield (
            f"Samples are small, down to {', '.join(small)}: read the intervals, not "
            "the values."
        )


def _sizes(report: Report | None) -> list[int]:
    metrics = () if report is None else report.metrics.values()
    return [metric.n for metric in metrics if metric.n is not None]


def _structure(facts: Facts) -> Iterator[str]:
    if "structure" in facts.reports:
        yield (
            "The inspection of the file finds what its rules describe; a backdoor in "
            "the weights is invisible to it."
        )


def _verdict(facts: Facts) -> Iterator[str]:
    if not all(verdict.summary.passed for verdict in facts.verdicts):
        yield "A verdict says FAILED."
    if not all(verdict.current for verdict in facts.verdicts):
        yield "A verdict was made for other files or attestations than these."
    for waiver in facts.waivers:
        yield f"A requirement was waived: {waiver}"
