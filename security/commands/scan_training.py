"""What `scan --training` takes from a training's configuration."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.additive import AdditiveClassifier
from models.data.datasets import AnyDataset, digest
from models.report import Dataset
from sealgate.protocol import strict_json
from security.assessment.checks.privacy.bounds import Curve
from security.assessment.checks.privacy.canaries import AuditedMechanism
from security.assessment.checks.privacy.shadows import ShadowRecipe
from security.assessment.checks.privacy.trained import TrainingRows
from security.training.canaries import CanaryTrainings
from security.training.config_sections import TrainingConfig
from security.training.data import load_split, read_config
from security.training.examples import Examples
from security.training.guarantee import (
    make_additive_plan,
    make_plan,
    privacy_curve,
)
from security.training.network import build_classifier, examples_of
from security.training.session import group_of, objective_of, recipe_of

__all__ = ["load_mechanism", "load_training"]

_PERCEPTRONS = ("linear", "mlp")
# Of either kind; 64 shadows answer about every row, and all of it is held at once.
_MAX_ROWS = 10_000
_CANARY_ROWS = 16
_EPSILONS = np.linspace(0.0, 20.0, 201)


def load_training(path: Path, bundle: Path | None) -> TrainingRows:
    """The rows that were trained on and those that were not, and the recipe.

    Raises:
        TrainingError: the configuration is malformed.
        DatasetError: its data cannot be read.
    """
    config = read_config(path, bundle)
    train, holdout = load_split(config)
    classifier = build_classifier(config, train)
    units, group = _units(train), group_of(config, train)
    used = tuple(
        Dataset(item.name, role, len(item), digest(item.features, item.labels))
        for item, role in ((train, "train"), (holdout, "holdout"))
    )
    train, holdout = _some(train), _some(holdout)
    member = np.arange(len(train) + len(holdout)) < len(train)
    rows = np.concatenate([train.features, holdout.features])
    with torch.no_grad():
        inputs = classifier.network_input(torch.from_numpy(rows).float())
    recipe, epsilon, delta = None, None, None
    noise = 0.0
    if config.private:
        if isinstance(classifier, AdditiveClassifier):
            plan = make_additive_plan(config, units, terms=classifier.width)
        else:
            plan = make_plan(config, units, group=group)
        noise = plan.mechanism.noise_multiplier
        epsilon, delta = config.privacy.epsilon, plan.delta
    if config.model.architecture in _PERCEPTRONS:
        recipe = _recipe(config, train.outputs, noise)
    return TrainingRows(
        rows=rows,
        inputs=inputs.flatten(1).numpy().astype(np.float32),
        labels=np.concatenate([train.labels, holdout.labels]),
        member=member,
        recipe=recipe,
        datasets=used,
        epsilon=epsilon,
        delta=delta,
        target=train.target,
    )


def load_mechanism(path: Path, bundle: Path | None) -> AuditedMechanism | None:
    """The mechanism that canaries audit; None where the training claims nothing.

    Also None of an ebm: canaries are planted among gradients.

    Raises:
        TrainingError: the configuration is malformed.
        DatasetError: its data cannot be read.
    """
    config = read_config(path, bundle)
    if not config.private or config.additive:
        return None
    train, _ = load_split(config)
    plan = make_plan(config, _units(train), group=group_of(config, train))
    classifier = build_classifier(config, train)
    shape = examples_of(config, classifier, train.take(np.arange(1))).inputs.shape[1:]
    mechanism, beside = plan.mechanism, _random_examples(tuple(shape), train)
    trainings = CanaryTrainings(
        body=classifier.body,
        examples=beside,
        mechanism=mechanism,
        # Canaries are looked for in gradients, which then have that share, too.
        recipe=replace(recipe_of(config, train.outputs), clamped_share=0.0),
        method=config.compute.gradients,
        objective=objective_of(config),
    )
    return AuditedMechanism(
        trainings=trainings,
        epsilon=config.privacy.epsilon,
        delta=plan.delta,
        curve=Curve(_EPSILONS, np.array(privacy_curve(mechanism, list(_EPSILONS)))),
        steps=mechanism.steps,
        conditions={
            "sampling_rate": mechanism.sample_rate,
            "noise_multiplier": mechanism.noise_multiplier,
            "steps": mechanism.steps,
            "max_grad_norm": config.privacy.max_grad_norm,
            "clipping": config.privacy.clipping,
            "neighbours": "one unit added or removed",
            "rows_beside": f"{_counted(beside)}; none of the data is used",
        },
        sha256=hashlib.sha256(strict_json.dumps(config.to_object())).hexdigest(),
    )


def _random_examples(shape: tuple[int, ...], train: AnyDataset) -> Examples:
    """What canaries are trained beside: an audit on real rows would spend budget."""
    random = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(_CANARY_ROWS, *shape, generator=random) - 1
    if train.target is not None:
        # One: with one logit, every row pulls back what the canary moves.
        return Examples(inputs[:1], torch.full((1,), 0.5))
    labels = torch.randint(train.outputs, (_CANARY_ROWS,), generator=random)
    return Examples(inputs, labels)


def _counted(beside: Examples) -> str:
    count = len(beside.labels)
    return f"{count} random ones" if count > 1 else "a random one"


def _recipe(config: TrainingConfig, classes: int, noise: float) -> ShadowRecipe:
    privacy, optimizer = config.privacy, config.optimizer
    return ShadowRecipe(
        classes=classes,
        hidden=config.model.hidden,
        steps=privacy.steps,
        sampling_rate=privacy.sampling_rate,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        adam=optimizer.kind == "adam",
        ema=optimizer.ema,
        max_grad_norm=privacy.max_grad_norm if config.private else math.inf,
        automatic=config.private and privacy.clipping == "automatic",
        noise_multiplier=noise,
    )


def _some(rows: AnyDataset) -> AnyDataset:
    """The rows, or as many as can be attacked, always the same ones."""
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.take(np.sort(order[:_MAX_ROWS]))


def _units(train: AnyDataset) -> int:
    return len(train) if train.units is None else len(np.unique(train.units))
