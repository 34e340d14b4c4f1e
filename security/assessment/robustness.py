"""How small a change of a row changes its class: PGD within a ball, re-checked.

ART attacks the bundle's own graph, white box, in the unit box of the scaled features:
of the columns of a row, or of an image's pixels.
An adversarial example counts only if onnxruntime, on the file as served, gives it
another class, and it lies inside its ball and every range. "The attack found nothing"
is not "robust", so the attack itself is checked too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data.datasets import AnyDataset, ImageDataset
from models.report import Check, Condition, Metric
from security.assessment import intervals
from security.assessment.art_library import art, repeatable
from security.assessment.scaled_model import ServedModel, WhiteBox
from security.errors import AssessmentError

__all__ = ["Evasion", "EvasionPlan", "attack"]

# Room for rounding to single precision, so that no example lies outside by a hair.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class EvasionPlan:
    """How hard to try.

    Attributes:
        radius: of the stated robust accuracy, in scaled features.
        curve: radii of the security curve; `radius` is added.
        iterations, restarts: of PGD, per radius.
        seed: of its random starts.
        max_images: of images, only so many are attacked, chosen by the seed.
    """

    radius: float = 0.02
    curve: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    iterations: int = 40
    restarts: int = 3
    seed: int = 0
    max_images: int = 500

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii that are attacked, ascending; the last one is the whole box."""
        return tuple(sorted({self.radius, *self.curve, 1.0}))


@dataclass(frozen=True)
class Evasion:
    """What came out.

    Attributes:
        conditions, metrics, checks, details: as in a report.
    """

    conditions: dict[str, Condition]
    metrics: dict[str, Metric]
    checks: tuple[Check, ...]
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Broken:
    """Which rows one attack changed, at one radius; and how its candidates looked."""

    rows: NDArray[np.bool_]
    finite: bool
    inside: bool


def attack(
    bundle: Bundle,
    holdout: AnyDataset,
    plan: EvasionPlan = EvasionPlan(),
    on_step: Callable[[float], None] = lambda _: None,
) -> Evasion:
    """Attack a bundle's model on held-out rows.

    Args:
        bundle: inspected before.
        holdout: rows the model never saw, with its columns.
        plan: how hard to try.
        on_step: called with the share that is done.

    Raises:
        AssessmentError: the graph does not convert, or computes something else in
            torch than in onnxruntime.
    """
    served = ServedModel(bundle)
    holdout = _attacked(holdout, plan)
    box = _AttackedModel(bundle, served, holdout, plan)
    pgd: list[_Broken] = []
    fgsm: list[_Broken] = []
    for index, radius in enumerate(plan.radii):
        pgd.append(box.pgd(radius))
        fgsm.append(box.fgsm(radius))
        on_step((index + 1) / len(plan.radii))
    correct = box.correct
    curve = _robust_counts(correct, pgd, fgsm)
    at = plan.radii.index(plan.radius)
    total = len(correct)
    return Evasion(
        conditions=_conditions(plan),
        metrics={
            "robust_accuracy": intervals.proportion(curve[at], total),
            "clean_accuracy": intervals.proportion(int(correct.sum()), total),
            "radius": Metric(plan.radius),
            "parity_difference": Metric(box.parity, n=total),
        },
        checks=_checks(plan, correct, pgd, fgsm),
        details={
            "curve": [
                {"radius": radius, "robust_accuracy": count / total, "n": total}
                for radius, count in zip(plan.radii, curve)
            ]
        },
    )


class _AttackedModel:
    """A model, its rows in the unit box, and ART around it."""

    def __init__(
        self,
        bundle: Bundle,
        served: ServedModel,
        holdout: AnyDataset,
        plan: EvasionPlan,
    ) -> None:
        if len(holdout) == 0:
            raise AssessmentError("there are no rows to attack")
        self._served = served
        self._plan = plan
        self._labels = holdout.labels
        self.correct = served.labels(holdout.features) == holdout.labels
        self._start = served.scale(holdout.features)
        white_box = WhiteBox(bundle, served).eval()
        self.parity = white_box.check_parity(served, self._start)
        self._estimator = art().PyTorchClassifier(
            model=white_box,
            loss=torch.nn.NLLLoss(),
            input_shape=self._start.shape[1:],
            nb_classes=served.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )

    def pgd(self, radius: float) -> _Broken:
        """Projected gradient descent on the sign of the gradient, with restarts."""
        reach = radius - _ROUNDING
        return self._run(
            art().ProjectedGradientDescentPyTorch(
                self._estimator,
                norm=np.inf,
                eps=reach,
                eps_step=_step_size(self._plan, radius),
                max_iter=self._plan.iterations,
                num_random_init=self._plan.restarts,
                batch_size=1024,
                verbose=False,
            ),
            radius,
        )

    def fgsm(self, radius: float) -> _Broken:
        """One step of the full radius: what PGD must not be weaker than."""
        reach = radius - _ROUNDING
        fast = art().FastGradientMethod(
            self._estimator, norm=np.inf, eps=reach, batch_size=1024
        )
        return self._run(fast, radius)

    def _run(self, method: object, radius: float) -> _Broken:
        with repeatable(self._plan.seed):
            candidates = method.generate(  # type: ignore[attr-defined]  # ART: Any
                x=self._start.astype(np.float32), y=self._labels
            )
        finite = bool(np.isfinite(candidates).all())
        rows = self._served.unscale(np.nan_to_num(candidates, nan=0.5))
        # Measured on the very numbers that onnxruntime is given, not on the attack's.
        exact = (rows.astype(np.float64) - self._served.low) / self._served.span
        parts = tuple(range(1, exact.ndim))  # columns, or channels, height and width
        distance = np.abs(exact - self._start).max(axis=parts)
        in_box = ((exact >= -_ROUNDING) & (exact <= 1 + _ROUNDING)).all(axis=parts)
        inside = (distance <= radius) & in_box & np.isfinite(candidates).all(axis=parts)
        changed = self._served.labels(rows) != self._labels
        return _Broken(changed & inside, finite=finite, inside=bool(inside.all()))


def _attacked(holdout: AnyDataset, plan: EvasionPlan) -> AnyDataset:
    """All rows; or as many images as take a bearable time, always the same ones."""
    if not isinstance(holdout, ImageDataset) or len(holdout) <= plan.max_images:
        return holdout
    order = np.random.default_rng(plan.seed).permutation(len(holdout))
    return holdout.take(np.sort(order[: plan.max_images]))


def _robust_counts(
    correct: NDArray[np.bool_], pgd: list[_Broken], fgsm: list[_Broken]
) -> list[int]:
    """Rows right and unbroken, by radius: what is in a ball is in the larger ones."""
    standing = correct.copy()
    counts = []
    for iterated, single in zip(pgd, fgsm):
        standing &= ~(iterated.rows | single.rows)
        counts.append(int(standing.sum()))
    return counts


def _checks(
    plan: EvasionPlan,
    correct: NDArray[np.bool_],
    pgd: list[_Broken],
    fgsm: list[_Broken],
) -> tuple[Check, ...]:
    found = [int((correct & item.rows).sum()) for item in pgd]
    single = [int((correct & item.rows).sum()) for item in fgsm]
    both = (*pgd, *fgsm)
    left = (int(correct.sum()) - found[-1]) / len(correct)
    return (
        Check("finite", all(item.finite for item in both), "no candidate is NaN"),
        Check(
            "inside-ball",
            all(item.inside for item in both),
            "every candidate is within radius and ranges, by onnxruntime's own input",
        ),
        Check(
            "pgd-not-weaker-than-fgsm",
            all(many >= one for many, one in zip(found, single)),
            f"rows broken by PGD {found}, by FGSM {single}",
        ),
        Check(
            "larger-radius-never-helps",
            found == sorted(found),
            f"rows broken at radii {list(plan.radii)}: {found}",
        ),
        Check(
            "unbounded-radius-breaks",
            left <= 0.1,
            f"accuracy {left:.3f} where every feature may be anything; above 0.1 the "
            "gradient is masked or the model ignores its input",
        ),
    )


def _conditions(plan: EvasionPlan) -> dict[str, Condition]:
    return {
        "norm": "Linf",
        "radius": plan.radius,
        "units": "scaled_features",
        "attack": "pgd",
        "attack_library": "adversarial-robustness-toolbox",
        "access": "white_box",
        "gradient": "onnx_graph_in_torch_float64",
        "counted": "rechecked_on_onnxruntime",
        "iterations": plan.iterations,
        "restarts": plan.restarts,
        "step_size": _step_size(plan, plan.radius),
        "targeted": False,
        "immutable_columns": "none",
        "seed": plan.seed,
        "covered_by_dp": False,
    }


def _step_size(plan: EvasionPlan, radius: float) -> float:
    # From end to end of the ball in half the iterations, with room to settle.
    return 4 * radius / plan.iterations
