"""What robustness costs: two models of the same rows, attacked alike.

Adversarial training buys accuracy under attack with accuracy, and privacy costs both.
Whoever decides needs the numbers of both models side by side: with, and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle import Bundle
from models.data.datasets import AnyDataset
from models.errors import BundleError
from models.report import Condition, Metric
from security.assessment import robustness
from security.assessment.robustness import Evasion, EvasionPlan

__all__ = ["Tradeoff", "beside"]

_SHOWN = ("clean_accuracy", "robust_accuracy")


@dataclass(frozen=True)
class Tradeoff:
    """What the robustness report says about the other model.

    Attributes:
        conditions, metrics: as in a report; the other's begin with ``beside_``.
        line: for people.
    """

    conditions: Mapping[str, Condition]
    metrics: Mapping[str, Metric]
    line: str


def beside(
    bundle: Bundle,
    result: Evasion,
    other: Bundle,
    holdout: AnyDataset,
    plan: EvasionPlan,
) -> Tradeoff:
    """Attack the other model as the first one was.

    Args:
        bundle: the model that is assessed.
        result: what its attack gave.
        other: inspected, and of the same training rows.
        holdout: rows that neither was trained on.
        plan: as of the first attack.

    Raises:
        AssessmentError: the other model cannot be attacked.
    """
    attacked = robustness.attack(other, holdout, plan)
    own, its = _training(bundle), _training(other)
    stated: dict[str, Condition] = {
        "beside": other.manifest.tag,
        "beside_sha256": other.subject.root_sha256,
        **own,
        **{f"beside_{name}": value for name, value in its.items()},
    }
    metrics = {f"beside_{name}": attacked.metrics[name] for name in _SHOWN}
    line = (
        f"{_say(result, own)}; {other.manifest.tag}, {_say(attacked, its)}; "
        f"Linf {plan.radius:g}"
    )
    return Tradeoff(stated, metrics, line)


def _training(bundle: Bundle) -> dict[str, Condition]:
    """Whether it was trained against attacks, and its epsilon, as its reports say."""
    config = bundle.report("provenance").details.get("config")
    chosen = config.get("adversarial") if isinstance(config, dict) else None
    method = chosen.get("method") if isinstance(chosen, dict) else None
    found: dict[str, Condition] = {"adversarial_training": str(method or "none")}
    try:
        epsilon = bundle.report("privacy").metrics.get("epsilon")
    except BundleError:
        epsilon = None
    found["epsilon"] = "none" if epsilon is None else epsilon.value
    return found


def _say(result: Evasion, training: Mapping[str, Condition]) -> str:
    clean, robust = (result.metrics[name].value for name in _SHOWN)
    epsilon = training["epsilon"]
    shown = epsilon if isinstance(epsilon, str) else f"{epsilon:.2f}"
    return (
        f"accuracy {clean:.3f}, under attack {robust:.3f} "
        f"(adversarial training {training['adversarial_training']}, epsilon {shown})"
    )
