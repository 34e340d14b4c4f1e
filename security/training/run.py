"""Data to bundle: split, train, export, manifest, evidence.

The order protects the budget: everything that can be refused is refused before the
first step touches a row.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.architectures import (
    ImageClassifier,
    NetworkSpec,
    TabularClassifier,
    build_network,
    tabular_width,
)
from models.data.datasets import AnyDataset, TabularDataset
from models.errors import BundleError
from models.features import FEATURES, feature_shape
from security.errors import TrainingError
from security.training import bundle
from security.training.bundle import Private, Training
from security.training.config import MODULE, TrainingConfig
from security.training.data import load_split, unit_numbers
from security.training.distributed import everyone, leads
from security.training.keeper import work_folder
from security.training.ledger import Ledger
from security.training.modules import check_body, load_module
from security.training.noise import FastRandomness, Randomness, SystemRandomness
from security.training.placement import place_of
from security.training.search import run_search
from security.training.session import (
    Job,
    Progress,
    begun_with,
    run_private,
    run_public,
)
from security.training.trainer import Examples

__all__ = ["build_classifier", "examples_of", "train_bundle"]

Classifier = TabularClassifier | ImageClassifier
_PIECE = 256  # rows preprocessed at once


def train_bundle(
    config: TrainingConfig,
    out: Path,
    progress: Progress,
    *,
    ledger: Ledger,
    randomness: Randomness | None = None,
    going_on: bool = False,
    stop: threading.Event | None = None,
) -> Path:
    """Train a model and write it as a new bundle, whole or not at all.

    Args:
        config: what to train, on what, under which guarantee.
        out: the bundle's folder, which must not exist.
        progress: told of every stage: its name, the share that is done, its result at
            the end, and while it runs a note.
        ledger: where a private training on personal data books what it spends.
        randomness: what the configuration says if absent; tests pass a seeded one.
        going_on: whether to take up the interrupted training of this bundle.
        stop: once set, the training ends after the step it is in.

    Several processes, as `torchrun` starts them, train together; the first one alone
    books, keeps and writes, and what the others do ends with the training.

    Returns:
        The folder.

    Raises:
        TrainingError: the guarantee is impossible, or the training failed.
        LedgerError: the budget does not allow it.
        DatasetError: the data is not what the configuration says.
        BundleError: the folder exists already.
    """
    torch.set_num_threads(config.compute.threads)
    job = everyone(
        lambda: _job(
            config,
            out,
            progress,
            ledger=ledger,
            randomness=randomness or _randomness(config),
            going_on=going_on,
            stop=stop or threading.Event(),
        )
    )
    config, module, private = job.config, job.module, None
    if config.search is not None:
        found = run_search(job, lambda chosen: _prepared(chosen, job.train))
        config, module, private = found.config, found.module, found.private
    elif config.private:
        private = run_private(job)
    else:
        run_public(job)
    if leads():
        _write(replace(job, config=config, module=module), private)
    return out


def _job(config: TrainingConfig, out: Path, progress: Progress, **given: Any) -> Job:
    """Everything that can be refused before a row is trained on."""
    if out.exists():
        raise BundleError(f"{out} exists already")
    if given["going_on"]:
        config = begun_with(config, out)
    train, holdout = load_split(config)
    progress("data", 1.0, f"{len(train)} rows to train on, {len(holdout)} held out")
    module, examples = _prepared(config, train)
    return Job(
        config=config,
        train=train,
        holdout=holdout,
        module=module,
        examples=examples,
        progress=progress,
        out=out,
        **given,
    )


def _write(job: Job, private: Private | None) -> None:
    job.module.to("cpu")
    compared = bundle.export(job.module, job.holdout)
    worst = compared.worst.line()
    job.progress("export", 1.0, f"ONNX, {len(compared.model)} bytes, {worst}")
    training = Training(
        job.config, job.train, job.holdout, private, job.randomness.name
    )
    bundle.write(job.out, training, compared)
    shutil.rmtree(work_folder(job.out), ignore_errors=True)


def _prepared(config: TrainingConfig, train: AnyDataset) -> tuple[Classifier, Examples]:
    module = build_classifier(config, train)
    examples = examples_of(config, module, train)
    return module.to(place_of(config)), examples


def build_classifier(config: TrainingConfig, train: AnyDataset) -> Classifier:
    """Preprocessing from the public schema, and a fresh network inside it.

    Raises:
        TrainingError: the architecture does not fit the data, or cannot be private.
    """
    torch.manual_seed(config.model.seed)  # initial weights only: public
    flags = config.model.missing_flags
    shape = _input_shape(config, train)
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
        return TabularClassifier(
            train.columns,
            body,
            missing_flags=flags,
            centre=config.model.centre,
            logs=[item.name for item in config.data.columns if item.scale == "log"],
        )
    features = FEATURES[config.model.features]() if config.model.features else None
    return ImageClassifier(
        train.bounds, mean=train.mean, std=train.std, body=body, features=features
    )


def _input_shape(config: TrainingConfig, train: AnyDataset) -> tuple[int, ...]:
    """Of one example as the network sees it."""
    name = config.model.features
    if isinstance(train, TabularDataset):
        if name:
            raise TrainingError(f"model.features: {name} takes images")
        flags = config.model.missing_flags
        return (tabular_width(train.columns, missing_flags=flags),)
    shape = tuple(train.features.shape[1:])
    try:
        return feature_shape(name, shape) if name else shape
    except ValueError as error:
        raise TrainingError(f"model.features: {error}") from None


def _randomness(config: TrainingConfig) -> Randomness:
    return SystemRandomness() if config.privacy.secure else FastRandomness()


def examples_of(
    config: TrainingConfig, module: Classifier, train: AnyDataset
) -> Examples:
    """The training rows as the network takes them, with whose they are."""
    # A piece at a time: fixed features pass through maps much larger than their result.
    with torch.no_grad():
        pieces = torch.split(torch.as_tensor(train.features), _PIECE)
        inputs = torch.cat([module.network_input(piece.float()) for piece in pieces])
    grouped = config.privacy.unit_bound == "group"
    units = None if grouped else unit_numbers(train)
    return Examples(inputs, torch.as_tensor(train.labels), units)
