"""What a page calls checks, figures and conditions, and the ids that links lead to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sealgate.page import number

__all__ = [
    "check_anchor",
    "figure_anchors",
    "finding_anchor",
    "interval_of",
    "said",
    "sentence_of",
    "title_of",
    "words",
]

_TITLES = {
    "answers": "Answers",
    "attributes": "Attribute inference: guessing a secret column",
    "corruption": "Natural corruption: worn data, no attacker",
    "canaries": "Canaries: does the training keep its epsilon",
    "edits": "Evasion: edits of text",
    "evasion": "Evasion: changed inputs",
    "evasion-cost": "Evasion: what turning a row costs",
    "explanation-attacks": "Explanations: what they give away",
    "explanations": "Explanations: which columns decide",
    "extraction": "Extraction: copying the model",
    "fairness": "Fairness",
    "inversion": "Inversion: drawing a class from the model",
    "membership": "Membership: who was in the training data",
    "poisoning": "Poisoning: suspicious training rows",
    "quality": "Quality",
    "smoothing": "Certified accuracy by randomised smoothing",
    "structure": "Structure of the file",
    "trigger": "Triggers: a pattern that sends everything to one class",
}
# As they are written, not as they are spelt in a name.
_SHORT = {"auc": "AUC", "fpr": "FPR", "linf": "L\N{INFINITY}", "l2": "L2", "r2": "R²"}
_SHORT |= {"mae": "mean absolute error", "rmse": "RMSE", "tpr": "TPR"}


def words(name: str) -> str:
    """A name of ours as words.

    >>> words("robust_accuracy_linf/0.1"), words("tpr_difference/sex")
    ('robust accuracy L∞, 0.1', 'TPR difference, sex')
    """
    first, slash, rest = name.partition("/")
    parts = re.split("[_-]", first)
    said = " ".join(_SHORT.get(part, part) for part in parts)
    return f"{said}, {rest.replace('_', ' ')}" if slash else said


def said(value: Any) -> str:
    """A condition's value: a number to as many digits as anybody reads.

    >>> said(8 / 255), said(True), said("wilson")
    ('0.03137', 'True', 'wilson')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def title_of(check: str) -> str:
    """A check's title."""
    return _TITLES.get(check) or words(check).capitalize()


def interval_of(metric: Mapping[str, Any]) -> str:
    """A figure's interval, with its confidence; "" where it has none."""
    if "low" not in metric:
        return ""
    level = f"{100 * metric['confidence']:.4g}%"
    return f"{number(metric['low'])} to {number(metric['high'])} ({level})"


def sentence_of(metric: Mapping[str, Any]) -> str:
    """A figure with all that belongs to it."""
    parts = [number(metric["value"])]
    if "low" in metric:
        parts.append(f"interval {interval_of(metric)}")
    if "n" in metric:
        parts.append(f"n={metric['n']}")
    return "Measured: " + ", ".join(parts) + "."


def check_anchor(check: str) -> str:
    """The id of a check's part of the page."""
    return "check-" + re.sub(r"[^\w-]", "-", check)


def figure_anchors(result: Mapping[str, Any]) -> dict[str, str]:
    """The id of each of a check's figures, by name."""
    first = check_anchor(result["check"])
    return {name: f"{first}-{place}" for place, name in enumerate(result["metrics"], 1)}


def finding_anchor(place: int) -> str:
    """The id of a finding, by its place among all."""
    return f"finding-{place + 1}"
