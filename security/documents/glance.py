"""The few figures that a reader asks for first, each with what it is true under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from security.documents.facts import Facts
from security.documents.values import condition, metric_value

__all__ = ["Glance", "glance"]

# Title, kind and metric and the conditions it is true under.
_GLANCE = (
    ("Accuracy", "quality", "accuracy"),
    ("Mean absolute error", "quality", "mae"),
    ("R squared", "quality", "r2"),
    ("Privacy (epsilon)", "privacy", "epsilon"),
    ("Accuracy under attack", "robustness", "robust_accuracy"),
    ("Accuracy that is proved under attack", "robustness", "verified_accuracy"),
    ("Answers that stay under attack", "robustness", "stable_share"),
    ("Membership attack (AUC)", "membership", "auc"),
)
_GLANCE_CONDITIONS = {
    "quality": ("split",),
    "privacy": ("delta", "neighbouring", "unit", "sampling", "accountant"),
    "robustness": ("norm", "radius", "units", "attack"),
    "membership": ("access", "stated_attack"),
}


@dataclass(frozen=True)
class Glance:
    """One figure: title, the report's kind, and Markdown of value and conditions."""

    title: str
    kind: str
    value: str
    conditions: str


def glance(facts: Facts) -> Iterator[Glance]:
    """The figures that there is evidence of."""
    for title, kind, name in _GLANCE:
        metric = facts.metric(kind, name)
        if metric is not None:
            yield Glance(
                title, kind, metric_value(name, metric), _conditions(facts, kind)
            )


def _conditions(facts: Facts, kind: str) -> str:
    report = facts.reports[kind]
    names = [name for name in _GLANCE_CONDITIONS[kind] if name in report.conditions]
    return ", ".join(f"{name} {condition(report.conditions[name])}" for name in names)
