"""Privacy attacks: what LiRA and an audit by canaries take, and what they find.

Seconds of processor time of one thread.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import table
from security.assessment.checks.privacy import curves, signals
from security.assessment.checks.privacy.canaries import judge_kind
from security.assessment.checks.privacy.shadows import (
    ShadowRecipe,
    Shadows,
    random_halves,
    train_shadows,
)
from security.commands.scan_training import load_mechanism
from tests.support.scanned import digits

SHADOWS, TRAININGS, AT_ONCE = 64, 2000, 250
RECIPES = {
    "not private": ShadowRecipe(10, (64,), steps=200, learning_rate=0.01, adam=True),
    "epsilon 8": ShadowRecipe(
        10,
        (64,),
        steps=100,
        learning_rate=4.0,
        max_grad_norm=1.0,
        noise_multiplier=4.9,
    ),
}


def run() -> None:
    rows = []
    for name, recipe in RECIPES.items():
        seconds, found = _measured(lambda recipe=recipe: _lira(recipe))
        rows.append((name, f"{found.value:.3f}", f"{seconds:.1f}"))
    print()
    header = f"digits MLP-64, LiRA with {SHADOWS} shadows"
    table((header, "TPR at 1% FPR", "s"), rows)
    rows = []
    for name in ("breast_cancer", "digits"):
        audited = load_mechanism(Path("examples") / f"{name}.toml")
        seconds, verdict = _measured(lambda audited=audited: _audit(audited))
        bounds = (verdict.epsilon_counting, verdict.epsilon_gaussian)
        rows.append(
            (
                name,
                f"{audited.epsilon:g}",
                *(f"{n:.2f}" for n in bounds),
                f"{seconds:.1f}",
            )
        )
    print()
    header = f"{TRAININGS} trainings with canaries"
    table((header, "claimed epsilon", "counting", "Gaussian", "s"), rows)


def _measured(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _lira(recipe: ShadowRecipe) -> Any:
    train_x, train_y, other_x, other_y = digits()
    inputs = np.concatenate([train_x, other_x]).reshape(-1, 64)
    labels = np.concatenate([train_y, other_y])
    halves = random_halves(SHADOWS + 1, len(labels), np.random.default_rng(0))
    parts = [
        train_shadows(inputs, labels, halves[first : first + 8], recipe, seed=first)
        for first in range(0, SHADOWS, 8)
    ]
    shadows = Shadows(halves[:SHADOWS], np.concatenate([p.logits for p in parts]))
    target = train_shadows(inputs, labels, halves[SHADOWS:], recipe, seed=SHADOWS)
    sure = signals.confidences(target.logits[0], labels)
    scores, member = signals.lira(sure, shadows, labels), halves[SHADOWS]
    return curves.rates(scores[member], scores[~member])["tpr_at_fpr_1pct"]


def _audit(audited: Any) -> Any:
    parts = [
        audited.trainings.several("gradient", AT_ONCE, seed)
        for seed in range(TRAININGS // AT_ONCE)
    ]
    scores = np.concatenate([part.scores for part in parts])
    planted = np.concatenate([part.planted for part in parts])
    return judge_kind(audited, "gradient", scores, planted)
