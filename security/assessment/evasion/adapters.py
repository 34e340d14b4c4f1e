"""Our attacks behind ART's own attack interface, and ART's that are used as they are.

ART's Square takes images only, its DLR fails on two classes, its AutoAttack takes
twenty times as long as it must and has no FAB; ours stand in. All are `EvasionAttack`s:
anything that runs ART's attacks runs these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from security.assessment.art_library import art, repeatable
from security.assessment.evasion import losses
from security.assessment.evasion.fab import fab
from security.assessment.evasion.gradient import Ball, apgd
from security.assessment.evasion.square import Search, square
from security.assessment.scan.context import Context
from security.errors import AssessmentError

__all__ = [
    "METHODS",
    "NORMS",
    "asking_estimator",
    "estimator_of",
    "evasion_attack",
    "library_attack",
]

Floats = NDArray[np.float64]
NORMS: Mapping[Any, str] = {np.inf: "linf", 2: "l2", "inf": "linf"}


def evasion_attack(estimator: Any, method: str, **options: Any) -> Any:
    """One of our attacks, as ART has its own.

    Args:
        estimator: ART's, with a torch model; for "square" any with `predict`.
        method: a name in `METHODS`.
        options: ``norm`` (np.inf or 2), ``eps`` (one, or one per row), ``max_iter``,
            ``targets`` (classes aimed at), ``seed``, ``bounds`` (lowest and highest
            value per row and column, inside the estimator's clip values).
    """
    return _bounded_attack()(estimator, method, **options)


def estimator_of(model: torch.nn.Module, columns: int, classes: int) -> Any:
    """ART's classifier around a torch model in attack coordinates."""
    return art().PyTorchClassifier(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(columns,),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def asking_estimator(context: Context) -> Any:
    """ART's classifier that asks the target, in attack coordinates."""
    job = context.job
    space, width = job.space, job.rows.shape[1]

    def predict(z: Floats) -> NDArray[np.float32]:
        z = np.asarray(z, dtype=np.float64).reshape(-1, width)
        raw = np.clip(space.to_raw(z), space.low, space.high)
        whole = np.where(space.integer, np.round(raw), raw)
        context.check_time()
        answers = context.target.ask(whole.astype(space.dtype))
        # Numbers, in single precision: what ART's attack hands on.
        return np.nan_to_num(answers.scores).astype(np.float32)

    span = (space.high - space.low) / space.scale
    return art().BlackBoxClassifierNeuralNetwork(
        predict,
        input_shape=(width,),
        nb_classes=len(job.reading.classes),
        clip_values=(np.zeros(width, np.float32), span.astype(np.float32)),
    )


def library_attack(
    estimator: Any, name: str, z: Floats, labels: NDArray[np.int64], **options: Any
) -> Floats:
    """Run one of ART's own attacks, repeatably.

    Args:
        estimator: as the attack needs it.
        name: of the class in `art_library`.
        z: rows, in attack coordinates.
        labels: the classes to leave.
        options: the attack's, and ``seed``.
    """
    seed = options.pop("seed", 0) % (1 << 32)
    with repeatable(seed):
        torch.manual_seed(seed)
        method = getattr(art(), name)(estimator, **options)
        made = method.generate(x=z.astype(np.float32), y=labels)
    return np.asarray(made, dtype=np.float64)


@cache
def _bounded_attack() -> Any:
    """The class, made when ART is first needed: importing ART has effects."""
    base: Any = art().EvasionAttack

    class BoundedAttack(base):
        """An attack within a ball, and within bounds of its own per row and column."""

        attack_params: ClassVar[list[str]] = [
            *base.attack_params,
            *("method", "norm", "eps", "max_iter", "targets", "seed", "bounds"),
        ]
        _estimator_requirements = (art().BaseEstimator, art().ClassifierMixin)

        def __init__(
            self,
            estimator: Any,
            method: str,
            *,
            norm: Any = np.inf,
            eps: Any = 0.3,
            max_iter: int = 100,
            targets: int = 9,
            seed: int = 0,
            bounds: tuple[Floats, Floats] | None = None,
        ) -> None:
            super().__init__(estimator=estimator)
            self.method, self.norm, self.eps = method, norm, eps
            self.max_iter, self.targets, self.seed = max_iter, targets, seed
            self.bounds = bounds
            self._check_params()

        def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
            """Candidates of x's shape; rows that no change was found for may differ."""
            flat = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
            labels = _labels(self.estimator, x, y)
            made = METHODS[self.method](self, flat, labels, x.shape[1:], kwargs)
            return made.reshape(x.shape).astype(np.asarray(x).dtype)

        def _check_params(self) -> None:
            if self.method not in METHODS:
                raise AssessmentError(f"no attack {self.method!r}")
            if self.norm not in NORMS:
                raise AssessmentError("norm must be infinity or 2")
            if not np.all(np.asarray(self.eps) > 0) or self.max_iter < 1:
                raise AssessmentError("eps and max_iter must be positive")

    return BoundedAttack


def _labels(estimator: Any, x: Any, y: Any) -> NDArray[np.int64]:
    if y is None:
        y = estimator.predict(x)
    y = np.asarray(y)
    return np.asarray(y if y.ndim == 1 else np.argmax(y, axis=1), dtype=np.int64)


def _limits(attack: Any, flat: Floats, radius: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest values: the ranges, and for L-infinity the ball."""
    if attack.bounds is not None:
        low, high = attack.bounds
    else:
        clip = attack.estimator.clip_values
        clip = (-np.inf, np.inf) if clip is None else clip
        low, high = (np.broadcast_to(np.ravel(edge), flat.shape) for edge in clip)
    if NORMS[attack.norm] == "linf":
        low = np.maximum(low, flat - radius[:, None])
        high = np.minimum(high, flat + radius[:, None])
    return np.minimum(low, flat), np.maximum(high, flat)


class _Problem:
    """What the torch attacks need, from an ART attack and its rows."""

    def __init__(self, attack: Any, flat: Floats, labels: Any, shape: Any) -> None:
        module = attack.estimator.model
        kind = next(
            (item.dtype for item in (*module.parameters(), *module.buffers())),
            torch.float32,
        )
        self.attack = attack
        self.norm = NORMS[attack.norm]
        self.radius = np.broadcast_to(attack.eps, len(flat)).astype(np.float64)
        low, high = _limits(attack, flat, self.radius)
        self.centre = torch.as_tensor(flat, dtype=kind)
        self.low = torch.as_tensor(low.copy(), dtype=kind)
        self.high = torch.as_tensor(high.copy(), dtype=kind)
        self.labels = torch.as_tensor(labels)
        self.generator = torch.Generator().manual_seed(attack.seed)
        self._module, self._shape = module, shape

    def model(self, points: Tensor) -> Tensor:
        scores: Tensor = self._module(points.reshape(len(points), *self._shape))
        return scores

    @property
    def ball(self) -> Ball:
        radius = torch.as_tensor(self.radius, dtype=self.centre.dtype)[:, None]
        return Ball(self.centre, self.low, self.high, radius, self.norm)

    def scores(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.centre)


def _apgd(loss_of: Callable[[Tensor], losses.Loss]) -> Any:
    def run(attack: Any, flat: Floats, labels: Any, shape: Any, more: Any) -> Floats:
        problem = _Problem(attack, flat, labels, shape)
        start = more.get("start")
        made = apgd(
            problem.model,
            problem.ball,
            problem.labels,
            loss_of(problem.scores()),
            steps=attack.max_iter,
            generator=problem.generator,
            start=None
            if start is None
            else torch.as_tensor(start, dtype=problem.centre.dtype),
        )
        return made.numpy().astype(np.float64)

    return run


def _apgd_targeted(
    attack: Any, flat: Floats, labels: Any, shape: Any, _: Any
) -> Floats:
    """APGD-T: towards each of the likeliest other classes, while rows stand."""
    problem = _Problem(attack, flat, labels, shape)
    scores = problem.scores()
    count = min(attack.targets, scores.shape[1] - 1)
    aims = losses.rank_targets(scores, problem.labels, count)
    result = problem.centre.clone()
    left = torch.arange(len(flat))
    for number in range(count):
        made = apgd(
            problem.model,
            problem.ball.take(left),
            problem.labels[left],
            losses.targeted(aims[left, number]),
            steps=attack.max_iter,
            generator=problem.generator,
        )
        result[left] = made
        left = left[_standing(problem, made, left)]
        if not len(left):
            break
    return result.numpy().astype(np.float64)


def _standing(problem: _Problem, points: Tensor, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return losses.margins(problem.model(points), problem.labels[rows]) >= 0


def _fab(attack: Any, flat: Floats, labels: Any, shape: Any, _: Any) -> Floats:
    problem = _Problem(attack, flat, labels, shape)
    scores = problem.scores()
    count = min(attack.targets, scores.shape[1] - 1)
    aims = losses.rank_targets(scores, problem.labels, count)
    best = problem.centre.clone()
    closest = torch.full_like(best[:, 0], float("inf"))
    for number in range(count):
        points, distance = fab(
            problem.model,
            problem.centre,
            (problem.low, problem.high),
            problem.labels,
            aims[:, number],
            norm=problem.norm,
            steps=attack.max_iter,
        )
        nearer = distance < closest
        best = torch.where(nearer[:, None], points, best)
        closest = torch.where(nearer, distance, closest)
    return best.numpy().astype(np.float64)


def _square(attack: Any, flat: Floats, labels: Any, shape: Any, more: Any) -> Floats:
    radius = np.broadcast_to(attack.eps, len(flat)).astype(np.float64)
    low, high = _limits(attack, flat, radius)

    def margins(points: Floats, rows: NDArray[np.int64]) -> Floats:
        scores = attack.estimator.predict(
            points.reshape(len(points), *shape).astype(np.float32)
        ).astype(np.float64)
        own = scores[np.arange(len(points)), labels[rows]]
        scores[np.arange(len(points)), labels[rows]] = -np.inf
        return np.asarray(own - scores.max(axis=1))

    image = more.get("shape") or (tuple(shape) if len(shape) == 3 else None)
    search = Search(
        centre=flat,
        low=low,
        high=high,
        radius=radius,
        norm=NORMS[attack.norm],
        shape=image,
        queries=attack.max_iter,
    )
    random = np.random.default_rng(attack.seed)
    points, _ = square(search, more.get("evaluate") or margins, random)
    return points


METHODS: Mapping[str, Callable[..., Floats]] = {
    "apgd-ce": _apgd(losses.cross_entropy),
    "apgd-dlr": _apgd(lambda _: losses.dlr),
    "apgd-margin": _apgd(lambda _: losses.margin),
    "apgd-t": _apgd_targeted,
    "fab": _fab,
    "square": _square,
}
