"""Data to bundle: split, train, export, manifest, evidence.

The order protects the budget: everything that can be refused is refused before the
first step touches a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.architectures import (
    ImageClassifier,
    NetworkSpec,
    TabularClassifier,
    build_network,
    tabular_width,
)
from models.datasets import AnyDataset, TabularDataset
from models.errors import BundleError
from security.errors import TrainingError
from security.training import bundle
from security.training.bundle import Private, Training
from security.training.config import MODULE, TrainingConfig
from security.training.data import load_split, unit_numbers
from security.training.guarantee import make_plan, state_guarantee
from security.training.modules import check_body, load_module
from security.training.noise import FastRandomness, Randomness, SystemRandomness
from security.training.trainer import (
    Examples,
    Recipe,
    StepReport,
    train_private,
    train_public,
)

__all__ = ["Progress", "build_classifier", "group_of", "recipe_of", "train_bundle"]

# Called with a stage's name, the share of it that is done, and its result at the end.
Progress = Callable[[str, float, str], None]
Classifier = TabularClassifier | ImageClassifier


def train_bundle(
    config: TrainingConfig,
    out: Path,
    progress: Progress,
    *,
    randomness: Randomness | None = None,
) -> Path:
    """Train a model and write it as a new bundle, whole or not at all.

    Args:
        config: what to train, on what, under which guarantee.
        out: the bundle's folder, which must not exist.
        progress: told of every stage.
        randomness: what the configuration says if absent; tests pass a seeded one.

    Returns:
        The folder.

    Raises:
        TrainingError: the guarantee is impossible, or the training failed.
        DatasetError: the data is not what the configuration says.
        BundleError: the folder exists already.
    """
    if out.exists():
        raise BundleError(f"{out} exists already")
    source = randomness or _randomness(config)
    torch.set_num_threads(config.compute.threads)
    train, holdout = load_split(config)
    progress("data", 1.0, f"{len(train)} rows to train on, {len(holdout)} held out")
    module = build_classifier(config, train)
    examples = _examples(config, module, train)
    job = _Job(config, train, module, examples, source, progress)
    private = None
    if config.private:
        private = _private(job)
    else:
        _public(job)
    compared = bundle.export(module, holdout)
    worst = compared.worst.line()
    progress("export", 1.0, f"ONNX, {len(compared.model)} bytes, {worst}")
    bundle.write(out, Training(config, train, holdout, private, source.name), compared)
    return out


def group_of(config: TrainingConfig, train: AnyDataset) -> int:
    """Rows that one owner has at most, where rows are sampled and clipped.

    Raises:
        TrainingError: no public bound on them is configured.
    """
    if train.units is None or config.privacy.unit_bound == "clip":
        return 1
    if not config.data.max_rows_per_unit:
        raise TrainingError("privacy.unit_bound 'group' needs data.max_rows_per_unit")
    return config.data.max_rows_per_unit


def build_classifier(config: TrainingConfig, train: AnyDataset) -> Classifier:
    """Preprocessing from the public schema, and a fresh network inside it.

    Raises:
        TrainingError: the architecture does not fit the data, or cannot be private.
    """
    torch.manual_seed(config.model.seed)  # initial weights only: public
    flags = config.model.missing_flags
    if isinstance(train, TabularDataset):
        shape: tuple[int, ...] = (tabular_width(train.columns, missing_flags=flags),)
    else:
        shape = tuple(train.features.shape[1:])
    spec = NetworkSpec(
        shape, len(train.classes), config.model.hidden, config.model.blocks
    )
    if config.model.architecture == MODULE:
        body = load_module(config.model.module, spec, config.base)
    else:
        try:
            body = build_network(config.model.architecture, spec)
        except ValueError as error:
            raise TrainingError(f"model.architecture: {error}") from None
    check_body(body, spec)
    if isinstance(train, TabularDataset):
        return TabularClassifier(train.columns, body, missing_flags=flags)
    return ImageClassifier(train.bounds, mean=train.mean, std=train.std, body=body)


def _randomness(config: TrainingConfig) -> Randomness:
    return SystemRandomness() if config.privacy.secure else FastRandomness()


def _examples(
    config: TrainingConfig, module: Classifier, train: AnyDataset
) -> Examples:
    with torch.no_grad():
        features = torch.as_tensor(train.features, dtype=torch.float32)
        inputs = module.network_input(features)
    grouped = config.privacy.unit_bound == "group"
    units = None if grouped else unit_numbers(train)
    return Examples(inputs, torch.as_tensor(train.labels), units)


def recipe_of(config: TrainingConfig, classes: int) -> Recipe:
    """What of a configuration the trainer needs beside the mechanism."""
    privacy, optimizer = config.privacy, config.optimizer
    return Recipe(
        max_grad_norm=privacy.max_grad_norm,
        expected_batch=privacy.expected_batch,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        optimizer=optimizer.kind,
        schedule=optimizer.schedule,
        warmup=optimizer.warmup,
        ema=optimizer.ema,
        clipping=privacy.clipping,
        loss_share=privacy.loss_share,
        loss_ceiling=2 * math.log(classes),
        physical_batch=config.compute.physical_batch,
    )


@dataclass
class _Shown:
    """A monitor that shows progress; the ledger comes with a private training."""

    progress: Progress
    steps: int

    def before(self, step: int) -> None:
        """Nothing is asked."""

    def after(self, report: StepReport, state: object) -> None:
        """Show how far it is."""
        del state
        self.progress("training", report.step / self.steps, "")


@dataclass(frozen=True)
class _Job:
    """One training, ready to start."""

    config: TrainingConfig
    train: AnyDataset
    module: Classifier
    examples: Examples
    randomness: Randomness
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.config, len(self.train.classes))


def _private(job: _Job) -> Private:
    config, progress = job.config, job.progress
    plan = make_plan(config, job.examples.count, group=group_of(config, job.train))
    progress("noise", 1.0, f"multiplier {plan.mechanism.noise_multiplier:g}")
    outcome = train_private(
        job.module.body,
        job.examples,
        mechanism=plan.mechanism,
        recipe=job.recipe,
        randomness=job.randomness,
        method=config.compute.gradients,
        monitor=_Shown(progress, plan.mechanism.steps),
    )
    progress("training", 1.0, f"{plan.mechanism.steps} noisy steps")
    guarantee = state_guarantee(plan, outcome)
    progress("privacy", 1.0, guarantee.line(plan.mechanism))
    return Private(outcome, guarantee)


def _public(job: _Job) -> None:
    steps = job.config.privacy.steps
    train_public(
        job.module.body,
        job.examples,
        sample_rate=job.config.privacy.sampling_rate,
        steps=steps,
        recipe=job.recipe,
        randomness=job.randomness,
        monitor=_Shown(job.progress, steps),
    )
    job.progress("training", 1.0, f"{steps} steps")
    job.progress("privacy", 1.0, "NONE: trained without privacy, on public data")
