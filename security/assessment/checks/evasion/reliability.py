"""Whether the attacks worked as attacks must: "found nothing" is not "robust".

Carlini et al. 2019, "On evaluating adversarial robustness", and Tramer et al. 2020: an
attack that a weaker one beats, or that cannot break a model when everything may change,
has met a masked gradient, not a robust model.
"""

from __future__ import annotations

from models.report import Check
from security.assessment.checks.evasion.results import NormResult

__all__ = ["attack_checks", "tolerated"]

# A row or two may fall to luck; beyond this share of rows it is a pattern.
_TOLERATED = 0.01
_MAX_UNBOUNDED = 0.1
_MAX_ZERO = 0.1


def attack_checks(
    result: NormResult, *, white: bool, quantised: bool = False
) -> list[Check]:
    """The checks of one norm, their ids beginning with its name."""
    made = [_finite(result), _unbounded(result, white=white)]
    if quantised:
        made.append(_followed(result, white=white))
    if white:
        made += [
            _zero_gradients(result),
            _single_step(result),
            _black_box(result),
        ]
    return made


def _finite(result: NormResult) -> Check:
    return Check(
        f"{result.plan.norm}-proposals-finite",
        result.finite,
        "no attack proposed what is not a number",
    )


def _unbounded(result: NormResult, *, white: bool) -> Check:
    """With everything allowed, nearly every row must break."""
    right = max(1, int(result.correct.sum()))
    left = (
        result.notes.get("unbounded_left", 0) if white else result.robust(float("inf"))
    )
    return Check(
        f"{result.plan.norm}-unbounded-radius-breaks",
        left <= _MAX_UNBOUNDED * right,
        f"{left} of {right} rows stand where every column may be anything in its range",
    )


def _followed(result: NormResult, *, white: bool) -> Check:
    """Searches that only ask find too little on a network that rounds inside."""
    return Check(
        f"{result.plan.norm}-quantised-twin",
        white,
        "the quantised graph has a differentiable twin that attacks follow"
        if white
        else "the quantised graph has no differentiable twin: what only asks it finds "
        "too little",
    )


def _zero_gradients(result: NormResult) -> Check:
    right = max(1, int(result.correct.sum()))
    zero = result.notes.get("zero_gradients", 0)
    return Check(
        f"{result.plan.norm}-gradients-exist",
        zero <= _MAX_ZERO * right,
        f"{zero} of {right} rows have a gradient of exactly 0",
    )


def _single_step(result: NormResult) -> Check:
    alone = result.notes.get("single_step_only", 0)
    return Check(
        f"{result.plan.norm}-iterations-not-weaker",
        alone <= tolerated(result.rows),
        f"{alone} rows fell to a single step after they withstood iterated attacks",
    )


def _black_box(result: NormResult) -> Check:
    alone = result.notes.get("black_box_only", 0)
    tried = result.notes.get("black_box_tried", 0)
    return Check(
        f"{result.plan.norm}-black-box-not-stronger",
        alone <= tolerated(tried),
        f"{alone} of {tried} rows fell to a search without gradients after they "
        "withstood attacks with gradients",
    )


def tolerated(rows: int) -> float:
    """How many of some rows may fall to what should be the weaker attack."""
    return max(1.0, _TOLERATED * rows)
