"""Model inversion: the picture that the model believes in most, class by class.

ART's MIFace (Fredrikson, Jha and Ristenpart 2015) climbs the gradient of a class from a
picture of nothing; here of the logarithm of its probability, which does not fade where
the probability is near 0. What comes out is compared with the mean of the class's
held-out rows; the baseline is how like the other classes' means it is. Where a class is
one person, a picture that is recognised is that person's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.report import Metric
from security.assessment.art_library import art, repeatable
from security.assessment.checks.estimators import estimator_of
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.whitebox import WhiteBox
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.plan.images import drawn_layout, picture
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["InversionCheck", "invert"]

_STEPS = {"quick": 60, "standard": 150, "thorough": 300}
_RATE = 0.1
# Of a cost that is 1 - log p here: every step is made.
_NO_THRESHOLD = 1e9
_MAX_CLASSES = 20
_LIKE = 0.3

Floats = NDArray[np.float64]


class InversionCheck:
    """Draws each class as the model has it in mind."""

    name = "inversion"
    title = "drawing a class from the model"

    def missing(self, context: Context) -> str | None:
        """Images, and a gradient to climb."""
        if drawn_layout(context.job) is None:
            return "rows are no images: a class of a table has no picture"
        white, reason = white_box_of(context)
        if white is None:
            return f"there is no gradient to climb: {reason}"
        if len(_classes(context)) < 2:
            return "fewer than two classes have rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """All classes at once."""
        del context
        return [Unit(self.name, "inversion/all", weight=2.0)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Climb."""
        white, _ = white_box_of(context)
        if white is None:
            raise TypeError("not planned without a white box")
        space = context.job.space
        made = invert(
            white,
            np.array(_classes(context)),
            span=(space.high - space.low) / space.scale,
            classes=len(context.job.reading.classes),
            steps=_STEPS[context.job.options.profile],
            seed=context.seed(unit.key),
        )
        return Outcome({}, {"pictures": made})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """How like its class each picture is, and how like the others."""
        made = outcomes["inversion/all"].arrays["pictures"]
        classes = _classes(context)
        likeness = _likeness(made, _means(context, classes))
        own = np.diag(likeness)
        count = len(classes)
        others = (likeness.sum(axis=1) - own) / (count - 1)
        known = int((likeness.argmax(axis=1) == np.arange(count)).sum())
        identified = intervals.proportion(known, count)
        metrics = {
            "recognised": identified,
            "likeness_own_class": intervals.bounded_mean(own, -1.0, 1.0),
            "likeness_other_classes": intervals.bounded_mean(others, -1.0, 1.0),
        }
        found = identified.low is not None and identified.low > 1 / count
        return CheckResult(
            self.name,
            conditions={
                "attack": "MIFace, white box",
                "climbed": "the logarithm of the class's probability",
                "start": "the low end of every pixel's range",
                "likeness": "correlation with the mean of a class's held-out rows",
                "recognised_by_chance": 1 / count,
            },
            metrics=metrics,
            findings=_findings(metrics) if found and own.mean() > _LIKE else (),
            details=_views(context, made, own, others),
        )


def invert(
    white: WhiteBox,
    targets: NDArray[np.int64],
    *,
    span: Floats,
    classes: int,
    steps: int,
    seed: int,
) -> Floats:
    """The pictures of some classes ``(n, d)``, as shares of each column's range.

    Args:
        white: the model.
        targets: ``(n,)``, the classes.
        span: ``(d,)``, the range in attack coordinates.
        classes: of the model.
        steps: of the climb.
        seed: of ART; the climb itself draws nothing.
    """
    estimator = estimator_of(_Chances(white, span), len(span), classes)
    start = np.zeros((len(targets), len(span)), np.float32)
    with repeatable(seed % (1 << 32)):
        torch.manual_seed(seed % (1 << 32))
        attack = art().MIFace(
            estimator,
            max_iter=steps,
            window_length=steps,
            threshold=_NO_THRESHOLD,
            learning_rate=_RATE,
            batch_size=len(targets),
            verbose=False,
        )
        made = attack.infer(start, targets)
    return np.nan_to_num(np.asarray(made, dtype=np.float64), nan=0.5)


class _Chances(nn.Module):
    """Logarithms of probabilities, in single precision."""

    def __init__(self, white: WhiteBox, span: Floats) -> None:
        super().__init__()
        self.model, self._span = white.model, white.tensor(span)

    def forward(self, rows: Tensor) -> Tensor:
        """Shares of the ranges ``(n, d)`` to log-probabilities ``(n, classes)``."""
        scores = self.model(rows.to(self._span.dtype) * self._span)
        return torch.log_softmax(scores, dim=1).float()


def _classes(context: Context) -> list[int]:
    present = np.unique(context.job.labels)
    return [int(item) for item in present[:_MAX_CLASSES]]


def _means(context: Context, classes: list[int]) -> Floats:
    space, labels = context.job.space, context.job.labels
    shares = space.to_z(context.job.rows) * space.scale / (space.high - space.low)
    return np.stack([shares[labels == item].mean(axis=0) for item in classes])


def _likeness(made: Floats, means: Floats) -> Floats:
    """Correlations ``(pictures, means)``; 0 of what is all one grey."""

    def unit(values: Floats) -> Floats:
        centred = values - values.mean(axis=1, keepdims=True)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.asarray(centred / np.maximum(length, 1e-12))

    return np.asarray(unit(made) @ unit(means).T)


def _findings(metrics: Mapping[str, Metric]) -> tuple[ScanFinding, ...]:
    share = metrics["recognised"]
    return (
        ScanFinding(
            "inversion-recognised",
            f"{share.value:.0%} of the pictures drawn from the model are most like "
            "their own class",
            "",
            share,
        ),
    )


def _views(
    context: Context, made: Floats, own: Floats, others: Floats
) -> dict[str, Any]:
    job, classes = context.job, _classes(context)
    low, span = job.space.low, job.space.high - job.space.low
    means = _means(context, classes)
    return {
        "examples_title": "What the model has in mind",
        "examples": [
            {
                "caption": f"Class {job.reading.classes[item]}: likeness "
                f"{own[place]:.2f}, to other classes {others[place]:.2f}",
                "names": ["mean of rows", "drawn"],
                "images": [
                    picture(job, low + shares[place] * span) for shares in (means, made)
                ],
            }
            for place, item in enumerate(classes)
        ],
    }
