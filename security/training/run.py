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

from models.architectures import NetworkSpec
from models.data.datasets import AnyDataset
from models.errors import BundleError
from security.errors import TrainingError
from security.training import bundle, exporting
from security.training.boosted import run_boosted
from security.training.bundle import Private, Training
from security.training.config_sections import TrainingConfig
from security.training.data import load_split, tracked_sources
from security.training.distributed import everyone, leads
from security.training.keeper import work_folder
from security.training.ledger import Ledger
from security.training.modules import check_trained
from security.training.network import examples_of, fresh_network
from security.training.noise import FastRandomness, Randomness, SystemRandomness
from security.training.placement import place_of
from security.training.search import run_search
from security.training.session import (
    Job,
    Progress,
    Seen,
    begun_with,
    check_declared,
    run_private,
    run_public,
    unseen,
)

__all__ = ["prepared", "randomness_of", "train_bundle"]


def train_bundle(
    config: TrainingConfig,
    out: Path,
    progress: Progress,
    *,
    ledger: Ledger,
    randomness: Randomness | None = None,
    going_on: bool = False,
    stop: threading.Event | None = None,
    rows: tuple[AnyDataset, AnyDataset] | None = None,
    seen: Seen = unseen,
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
        rows: what `load_split` gave for the configuration, if it was asked already.
        seen: told the step and what may be known of it, after each.

    Several processes, as `torchrun` starts them, train together; the first one alone
    books, keeps and writes, and what the others do ends with the training.

    Returns:
        The folder.

    Raises:
        TrainingError: the guarantee is impossible, or the training failed.
        LedgerError: the budget does not allow it.
        DatasetError: the data is not what the configuration says.
        TrackingError: or not what DVC has recorded.
        BundleError: the folder exists already.
    """
    torch.set_num_threads(config.compute.threads)
    job = everyone(
        lambda: prepared(
            config,
            out,
            progress,
            ledger=ledger,
            randomness=randomness or randomness_of(config),
            going_on=going_on,
            stop=stop or threading.Event(),
            rows=rows,
            seen=seen,
        )
    )
    config, network, private = job.config, job.network, None
    if config.search is not None:
        found = run_search(job)
        config, network, private = found.config, found.network, found.private
    elif config.additive:
        private = run_boosted(job)
    elif config.private:
        private = run_private(job)
    else:
        run_public(job)
    if leads():
        _write(replace(job, config=config, network=network), private)
    return out


def prepared(
    config: TrainingConfig,
    out: Path,
    progress: Progress,
    *,
    rows: tuple[AnyDataset, AnyDataset] | None = None,
    **given: Any,
) -> Job:
    """Everything that can be refused before a row is trained on.

    Raises:
        TrainingError, LedgerError, DatasetError, BundleError: as `train_bundle`.
        TrackingError: a file of rows is not the one that DVC has recorded.
    """
    if out.exists():
        raise BundleError(f"{out} exists already")
    asked = config
    if given["going_on"]:
        config = begun_with(config, out)
    # An earlier release may have told other rows apart.
    if rows is None or config is not asked:
        rows = load_split(config)
    train, holdout = rows
    progress("data", 1.0, f"{len(train)} rows to train on, {len(holdout)} held out")
    network = fresh_network(config, train)
    examples = examples_of(config, network.module, train)
    network.module.to(place_of(config))
    job = Job(
        config=config,
        train=train,
        holdout=holdout,
        network=network,
        examples=examples,
        progress=progress,
        out=out,
        tracked=tracked_sources(config),
        **given,
    )
    check_declared(job)
    return job


def _write(job: Job, private: Private | None) -> None:
    """Export and write; what training gave stays kept until that is done."""
    network = job.network
    network.module.to("cpu")
    shape = tuple(job.examples.inputs.shape[1:])
    check_trained(network.module.body, NetworkSpec(shape, len(job.train.classes)))
    compared = exporting.export(network, job.holdout)
    worst = compared.worst.line()
    job.progress("export", 1.0, f"ONNX, {len(compared.model)} bytes, {worst}")
    training = Training(
        job.config,
        job.train,
        job.holdout,
        network,
        private,
        job.randomness.name,
        job.tracked,
    )
    try:
        bundle.write(job.out, training, compared)
    except OSError as error:
        raise TrainingError(
            f"{job.out} cannot be written: {error.strerror}; training is done and "
            "kept: make room and finish with --resume"
        ) from None
    shutil.rmtree(work_folder(job.out), ignore_errors=True)


def randomness_of(config: TrainingConfig) -> Randomness:
    """What a configuration draws its noise from."""
    return SystemRandomness() if config.privacy.secure else FastRandomness()
