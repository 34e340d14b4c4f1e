"""The ensemble on one chunk of rows, in one norm: each attack on what still stands.

1. FAB: small changes, for every radius at once;
2. at the stated radius: Auto-PGD by cross-entropy and towards classes, then the
   black-box search on what they left, and single-step and library attacks as a check;
3. at the other radii, from the largest down, until a row stands.

Every success is confirmed by the ledger. Where there is no gradient, the random and the
coordinate search do it all; where there are no scores, the boundary attack does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from security.assessment.evasion.adapters import (
    estimator_of,
    evasion_attack,
    library_attack,
)
from security.assessment.evasion.blackbox import BlackBox
from security.assessment.evasion.ledger import Ledger
from security.assessment.evasion.plan import EvasionPlan
from security.assessment.evasion.whitebox import WhiteBox, open_white_box
from security.assessment.scan.context import Context
from security.errors import AssessmentError

__all__ = ["Cascade", "white_box_of"]

Places = NDArray[np.int64]
Floats = NDArray[np.float64]
_ART_NORMS = {"linf": np.inf, "l2": 2}


def white_box_of(context: Context) -> tuple[WhiteBox | None, str]:
    """The white box, once per process; or why there is none."""
    if "white box" not in context.cache:
        try:
            context.cache["white box"] = (open_white_box(context), "")
        except AssessmentError as error:
            context.cache["white box"] = (None, str(error))
    found: tuple[WhiteBox | None, str] = context.cache["white box"]
    return found


class Cascade:
    """The attacks on some rows.

    Attributes:
        ledger: what they confirmed.
        notes: counts that the checks of the attacks themselves need.
    """

    def __init__(
        self, context: Context, places: Places, plan: EvasionPlan, key: str
    ) -> None:
        self.context, self.plan, self.key = context, plan, key
        self.ledger = Ledger(context, places, plan.norm)
        self.white, _ = white_box_of(context)
        self.black = BlackBox(self.ledger, plan, key)
        self.effort = context.job.options.effort
        self.notes: dict[str, int] = {}
        if self.white is not None:
            self._estimator = estimator_of(
                self.white.model, self.ledger.start.shape[1], self._classes
            )

    @property
    def _classes(self) -> int:
        return len(self.context.job.reading.classes)

    def run(self) -> None:
        """Everything.

        Raises:
            BudgetError: queries or time ran out.
        """
        if self.white is None:
            self.black.run()
            return
        self._stated()
        self._curve()

    # 1 and 2. the stated radius

    def _stated(self) -> None:
        radius, effort = self.plan.radius, self.effort
        self.notes["zero_gradients"] = self._zero_gradients()
        self._fab()
        for restart in range(effort.restarts):
            self._attack(f"apgd-ce/{restart}", radius, max_iter=effort.iterations)
        self._attack("apgd-t", radius, max_iter=effort.iterations)
        if effort.art_rows:
            self._attack("apgd-margin", radius, max_iter=effort.iterations)
        self.notes["after_white_box"] = len(self.ledger.standing(radius))
        self.notes["single_step_only"] = self._single_step()
        self.notes["black_box_only"] = self.black.at(radius, self.plan.queries)
        self._library()

    def _attack(self, name: str, radius: float, **options: Any) -> None:
        """One of ours on what stands within a radius."""
        self.context.check_time()
        rows = self.ledger.standing(radius)
        if len(rows):
            made = self._generate(name, rows, radius, **options)
            self.ledger.offer(name.split("/", maxsplit=1)[0], rows, made, radius)

    def _generate(
        self,
        name: str,
        rows: Places,
        radius: float | Floats,
        start: Floats | None = None,
        **options: Any,
    ) -> Floats:
        space = self.context.job.space
        low, high = space.limits(self.ledger.start[rows])
        attack = evasion_attack(
            self._estimator,
            name.split("/", maxsplit=1)[0],
            norm=_ART_NORMS[self.plan.norm],
            eps=np.minimum(radius, _whole(space)),
            targets=self.effort.targets,
            seed=self.context.seed(f"{self.key}/{name}/{radius}"),
            bounds=((low - space.low) / space.scale, (high - space.low) / space.scale),
            **options,
        )
        more = {} if start is None else {"start": start}
        z = self.ledger.z(rows)
        made: Floats = attack.generate(z, self.ledger.labels[rows], **more)
        return made

    def _fab(self) -> None:
        """Minimum-norm: its examples count at every radius that reaches them."""
        self.context.check_time()
        rows = self.ledger.standing(0.0)
        if len(rows):
            made = self._generate("fab", rows, np.inf, max_iter=self._fab_steps)
            self.ledger.offer("fab", rows, made)
            self.ledger.tighten(rows)

    @property
    def _fab_steps(self) -> int:
        return max(10, self.effort.iterations // 4)

    def _single_step(self) -> int:
        """ART's FGSM on what stands: an iterated attack must not be weaker."""
        rows = self.ledger.standing(self.plan.radius)
        if not len(rows):
            return 0
        made = library_attack(
            self._estimator,
            "FastGradientMethod",
            self.ledger.z(rows),
            self.ledger.labels[rows],
            norm=_ART_NORMS[self.plan.norm],
            eps=self.plan.radius,
            batch_size=1024,
        )
        return self.ledger.offer("fgsm", rows, made, self.plan.radius)

    def _library(self) -> None:
        """ART's own slower attacks, as they are, on some of what stands."""
        share = min(self.effort.art_rows, len(self.ledger))
        rows = self.ledger.standing(self.plan.radius)[:share]
        if not len(rows):
            return
        names = {"l2": ("DeepFool", "CarliniL2Method")}.get(
            self.plan.norm, ("ProjectedGradientDescentPyTorch",)
        )
        for name in names:
            self.context.check_time()
            left = np.intersect1d(rows, self.ledger.standing(self.plan.radius))
            if len(left):
                made = library_attack(
                    self._estimator,
                    name,
                    self.ledger.z(left),
                    self.ledger.labels[left],
                    **self._library_options(name),
                )
                self.ledger.offer(_SHORT[name], left, made, self.plan.radius)

    def _library_options(self, name: str) -> dict[str, Any]:
        seed = self.context.seed(f"{self.key}/{name}")
        options: dict[str, Any] = {"seed": seed, "batch_size": 256, "verbose": False}
        if name == "ProjectedGradientDescentPyTorch":
            radius = self.plan.radius
            return options | {"eps": radius, "eps_step": radius / 10, "max_iter": 40}
        if name == "CarliniL2Method":
            return options | {"max_iter": 10, "binary_search_steps": 5}
        return options | {"max_iter": 50, "nb_grads": min(self._classes, 10)}

    def _zero_gradients(self) -> int:
        """Rows whose margin has no gradient at all where they stand."""
        if self.white is None:
            return 0
        rows = np.flatnonzero(self.ledger.correct)
        z = self.white.tensor(self.ledger.z(rows)).requires_grad_(True)
        if not len(rows):
            return 0
        scores = self.white.model(z)
        labels = torch.as_tensor(self.ledger.labels[rows])
        own = scores.gather(1, labels[:, None]).sum()
        others = scores.scatter(1, labels[:, None], float("-inf")).amax(dim=1).sum()
        (gradient,) = torch.autograd.grad(own - others, z)
        return int((torch.nan_to_num(gradient) == 0).all(dim=1).sum())

    # 3. the other radii

    def _curve(self) -> None:
        ledger, radius = self.ledger, self.plan.radius
        above = [item for item in self.plan.curve if item > radius]
        below = [item for item in self.plan.curve if item < radius]
        rows = ledger.standing(radius)
        self._descend(rows, above)
        self.notes["unbounded_left"] = int((~np.isfinite(ledger.distance[rows])).sum())
        broken = ledger.correct & (ledger.distance <= radius)
        self._descend(np.flatnonzero(broken), below)
        ledger.tighten(np.flatnonzero(ledger.correct))

    def _descend(self, rows: Places, radii: list[float]) -> None:
        """From the largest radius down, while rows break; each starts from its last."""
        for radius in sorted(radii, reverse=True):
            self.context.check_time()
            attempt = self.ledger.beyond(rows, radius)
            if len(attempt):
                self._at(attempt, radius)
            rows = self.ledger.within(rows, radius)

    def _at(self, rows: Places, radius: float) -> None:
        warm = self._warm_start(rows, radius)
        steps = self.effort.curve_iterations
        made = self._generate("apgd-dlr", rows, radius, start=warm, max_iter=steps)
        self.ledger.offer("apgd-dlr", rows, made, radius)
        left = self.ledger.beyond(rows, radius)
        if len(left):
            made = self._generate("apgd-ce", left, radius, max_iter=steps)
            self.ledger.offer("apgd-ce", left, made, radius)

    def _warm_start(self, rows: Places, radius: float) -> Floats:
        """Towards the example that is known, as far as the radius; else the row."""
        z = self.ledger.z(rows)
        known = self.context.job.space.to_z(self.ledger.examples[rows])
        far = self.ledger.distance[rows][:, None]
        share = np.zeros_like(far)
        near = np.isfinite(far) & (far > 0)
        share[near] = np.minimum(1.0, radius / far[near])
        return z + (known - z) * share


_SHORT = {
    "CarliniL2Method": "carlini-wagner",
    "DeepFool": "deepfool",
    "ProjectedGradientDescentPyTorch": "pgd",
}


def _whole(space: Any) -> float:
    """A radius that reaches everything."""
    span = (space.high - space.low) / space.scale
    return float(np.sqrt((span**2).sum()) + 1.0)
