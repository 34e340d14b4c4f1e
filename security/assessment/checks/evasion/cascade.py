"""The ensemble on one chunk of rows, in one norm: each attack on what still stands.

1. FAB: small changes, for every radius at once;
2. at each stated radius, the smallest first: many points looked at, Auto-PGD by
   several losses from starts of several kinds, of sums over columns each column by
   itself, then the black-box search on what they left, and single-step and library
   attacks as a check;
3. at the other radii, from the largest down, until a row stands.

One example counts at every radius that reaches it: what breaks never stands further
out, and a row's distance is one, whatever radii are asked for.

Every success is confirmed by the ledger. Where there is no gradient, the random and the
coordinate search do it all; where there are no scores, the boundary attack does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from security.assessment.checks.estimators import estimator_of, library_attack
from security.assessment.checks.evasion.attacks import propose
from security.assessment.checks.evasion.blackbox import BlackBox
from security.assessment.checks.evasion.columns import by_columns, is_stepped_sum
from security.assessment.checks.evasion.ledger import Ledger
from security.assessment.checks.evasion.losses import margins
from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.checks.evasion.reliability import tolerated
from security.assessment.checks.evasion.starts import (
    KINDS,
    NEIGHBOURS,
    ball_of,
    look,
    offer,
)
from security.assessment.checks.evasion.whitebox import WhiteBox, open_white_box
from security.assessment.plan.context import Context
from security.errors import AssessmentError

__all__ = ["LIBRARY_ATTACKS", "Cascade", "white_box_of"]

Places = NDArray[np.int64]
Floats = NDArray[np.float64]
_SHORT = {
    "CarliniL2Method": "carlini-wagner",
    "DeepFool": "deepfool",
    "ProjectedGradientDescentPyTorch": "pgd",
}
# Losses, and the kind of point each starts from: what one finds another misses.
_CLIMBS = (
    ("apgd-margin", "near"),
    ("apgd-ce", "surface"),
    ("apgd-t", "near"),
    ("apgd-margin", "best"),
    ("apgd-dlr", "inside"),
    ("apgd-t", "rows"),
)
LIBRARY_ATTACKS = frozenset((*_SHORT.values(), "hop-skip-jump"))
"""Those that are ART's own, by the names that reports give them."""


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
        self.ledger = Ledger(context, places, plan)
        self.white, _ = white_box_of(context)
        self.black = BlackBox(self.ledger, plan, key)
        self.effort = context.job.options.effort
        self.notes: dict[str, int] = {}
        self._sum = False  # of one stepped function per column

    @property
    def _white(self) -> WhiteBox:
        if self.white is None:
            raise TypeError("there is no gradient to follow")
        return self.white

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
        self.notes["zero_gradients"] = self._zero_gradients()
        self._sum = self._is_sum()
        self._fab()
        for radius in self.plan.stated:
            self._stated(radius)
        self._curve()

    # 1 and 2. a stated radius

    def _stated(self, radius: float) -> None:
        looked = self._look(radius)
        self.black.begin = looked["best"]
        for name, kind in _CLIMBS[: self.effort.climbs]:
            self._climb(name, kind, radius, looked)
        self._by_columns(self.ledger.standing(radius), radius)
        self._single_step(radius)
        self._without_gradient(radius)
        self._library(radius)

    def _look(self, radius: float) -> Mapping[str, Floats]:
        """Starts ``(rows of the ledger, d)`` by kind, after offering all of them."""
        self.context.check_time()
        rows = self.ledger.standing(radius)
        begin = self.ledger.z(np.arange(len(self.ledger)))
        found = {kind: begin.copy() for kind in (*KINDS, "best")}
        if not len(rows):
            return found
        ball = ball_of(self.ledger, rows, radius, self._white.dtype)
        labels = torch.as_tensor(self.ledger.labels[rows])

        def evaluate(made: Tensor) -> Tensor:
            with torch.no_grad():
                scores = self._white.model(made.reshape(-1, made.shape[2]))
            return margins(scores, labels.repeat(len(made))).reshape(len(made), -1)

        looked = look(
            evaluate,
            ball,
            self._white.tensor(self.ledger.of_other_classes(rows, NEIGHBOURS)),
            count=self.effort.looked,
            seed=self.context.seed(f"{self.key}/look/{radius}"),
        )
        offer(self.ledger, rows, looked, radius)
        for kind, points in (*looked.points.items(), ("best", looked.best)):
            found[kind][rows] = points.numpy()
        return found

    def _climb(
        self, name: str, kind: str, radius: float, looked: Mapping[str, Floats]
    ) -> None:
        """One of ours on what stands within a radius, from starts of a kind."""
        self.context.check_time()
        rows = self.ledger.standing(radius)
        if len(rows):
            start = looked[kind][rows] if kind in looked else None
            # Towards several classes one after the other: each gets a share.
            share = 2 / 3 if name == "apgd-t" else 1
            steps = int(self.effort.iterations * share)
            key = f"{name}/{kind}"
            made = self._generate(key, rows, radius, start=start, steps=steps)
            self.ledger.offer(name, rows, made, radius)

    def _is_sum(self) -> bool:
        if self.plan.norm != "linf" or self._classes != 2:
            return False
        rows = self._white.tensor(self.ledger.z(np.arange(len(self.ledger))))
        return is_stepped_sum(self._white.model, rows, self._white.operators)

    def _by_columns(self, rows: Places, radius: float) -> None:
        """Exact, but for steps between the values that are tried."""
        if self._sum and len(rows):
            self.context.check_time()
            ball = ball_of(self.ledger, rows, radius, self._white.dtype)
            labels = torch.as_tensor(self.ledger.labels[rows])
            made = by_columns(self._white.model, ball, labels)
            found = made.numpy().astype(np.float64)
            self.ledger.offer("columns", rows, found, radius)

    def _generate(
        self,
        name: str,
        rows: Places,
        radius: float,
        start: Floats | None = None,
        *,
        steps: int = 1,
    ) -> Floats:
        made = propose(
            name.split("/", maxsplit=1)[0],
            self._white.model,
            ball_of(self.ledger, rows, radius, self._white.dtype),
            torch.as_tensor(self.ledger.labels[rows]),
            steps=steps,
            targets=self.effort.targets,
            seed=self.context.seed(f"{self.key}/{name}/{radius}"),
            start=None if start is None else self._white.tensor(start),
        )
        return made.numpy().astype(np.float64)

    def _fab(self) -> None:
        """Minimum-norm: its examples count at every radius that reaches them."""
        self.context.check_time()
        rows = self.ledger.standing(0.0)
        if len(rows):
            made = self._generate("fab", rows, np.inf, steps=self._fab_steps)
            self.ledger.offer("fab", rows, made)
            self.ledger.tighten(rows)

    @property
    def _fab_steps(self) -> int:
        return max(10, self.effort.iterations // 4)

    def _single_step(self, radius: float) -> None:
        """FGSM on what stands: an iterated attack must not be weaker."""
        rows, found = self.ledger.standing(radius), 0
        if len(rows):
            made = self._generate("fgsm", rows, radius)
            found = self.ledger.offer("fgsm", rows, made, radius)
        self._count("single_step_only", found)

    def _count(self, name: str, found: int) -> None:
        """Of several stated radii the worst count."""
        self.notes[name] = max(self.notes.get(name, 0), found)

    def _without_gradient(self, radius: float) -> None:
        """The search on some of what stands; on all, if it breaks more than chance."""
        rows = self.ledger.standing(radius)
        order = self.context.random(f"{self.key}/checked").permutation(rows)
        chunks = -(-len(self.ledger) // self.effort.chunk)
        some, rest = np.split(order, [self.effort.checked_rows * chunks])
        queries = self.plan.queries // 2
        found = self.black.at(radius, queries, np.sort(some))
        if found > tolerated(len(some)) and len(rest):
            found += self.black.at(radius, queries, np.sort(rest))
            some = rows
        self._count("black_box_only", found)
        self._count("black_box_tried", len(some))

    def _library(self, radius: float) -> None:
        """ART's own slower attacks, as they are, on some of what stands.

        They know one radius for all rows: not where each row has its own.
        """
        share = min(self.effort.art_rows, len(self.ledger))
        rows = self.ledger.standing(radius)[:share]
        if not len(rows) or self.plan.own is not None:
            return
        width = self.ledger.start.shape[1]
        estimator = estimator_of(self._white.model, width, self._classes)
        names = {"l2": ("DeepFool", "CarliniL2Method")}.get(
            self.plan.norm, ("ProjectedGradientDescentPyTorch",)
        )
        for name in names:
            self.context.check_time()
            left = np.intersect1d(rows, self.ledger.standing(radius))
            if len(left):
                made = library_attack(
                    estimator,
                    name,
                    self.ledger.z(left),
                    self.ledger.labels[left],
                    **self._library_options(name, radius),
                )
                self.ledger.offer(_SHORT[name], left, made, radius)

    def _library_options(self, name: str, radius: float) -> dict[str, Any]:
        seed = self.context.seed(f"{self.key}/{name}")
        options: dict[str, Any] = {"seed": seed, "batch_size": 256, "verbose": False}
        if name == "ProjectedGradientDescentPyTorch":
            return options | {"eps": radius, "eps_step": radius / 10, "max_iter": 40}
        if name == "CarliniL2Method":
            return options | {"max_iter": 10, "binary_search_steps": 5}
        return options | {"max_iter": 50, "nb_grads": min(self._classes, 10)}

    def _zero_gradients(self) -> int:
        """Rows whose margin has no gradient at all where they stand."""
        rows = np.flatnonzero(self.ledger.correct)
        z = self._white.tensor(self.ledger.z(rows)).requires_grad_(True)
        if not len(rows):
            return 0
        scores = self._white.model(z)
        labels = torch.as_tensor(self.ledger.labels[rows])
        own = scores.gather(1, labels[:, None]).sum()
        others = scores.scatter(1, labels[:, None], float("-inf")).amax(dim=1).sum()
        (gradient,) = torch.autograd.grad(own - others, z)
        return int((torch.nan_to_num(gradient) == 0).all(dim=1).sum())

    # 3. the other radii

    def _curve(self) -> None:
        ledger, radius = self.ledger, self.plan.stated[-1]
        rows = ledger.standing(radius)
        self._descend(rows, [item for item in self.plan.curve if item > radius])
        self.notes["unbounded_left"] = int((~np.isfinite(ledger.distance[rows])).sum())
        broken = ledger.within(np.flatnonzero(ledger.correct), radius)
        self._descend(broken, [item for item in self.plan.curve if item <= radius])
        ledger.tighten(np.flatnonzero(ledger.correct))

    def _descend(self, rows: Places, radii: list[float]) -> None:
        """From the largest radius down, while rows break; each starts from its last."""
        for radius in sorted(radii, reverse=True):
            self.context.check_time()
            attempt = self.ledger.beyond(rows, radius)
            if len(attempt) and radius not in self.plan.stated:
                self._at(attempt, radius)
            rows = self.ledger.within(rows, radius)

    def _at(self, rows: Places, radius: float) -> None:
        warm = self._warm_start(rows, radius)
        steps = self.effort.curve_iterations
        made = self._generate("apgd-dlr", rows, radius, start=warm, steps=steps)
        self.ledger.offer("apgd-dlr", rows, made, radius)
        self._by_columns(self.ledger.beyond(rows, radius), radius)
        left = self.ledger.beyond(rows, radius)
        if len(left):
            made = self._generate("apgd-ce", left, radius, steps=steps)
            self.ledger.offer("apgd-ce", left, made, radius)

    def _warm_start(self, rows: Places, radius: float) -> Floats:
        """Towards the example that is known, as far as the radius; else the row."""
        z = self.ledger.z(rows)
        known = self.context.job.space.to_z(self.ledger.examples[rows])
        far, reach = self.ledger.distance[rows], self.ledger.reach(rows, radius)
        share = np.zeros_like(z[:, :1])
        near = np.isfinite(far) & (far > 0)
        share[near, 0] = np.minimum(1.0, reach[near] / far[near])
        return z + (known - z) * share
