"""Data to bundle: split, train, export, manifest, evidence.

The evidence says what a stranger needs to compute epsilon again, and what the guarantee
does not cover.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import datasets
from models.architectures import TabularClassifier, tabular_classifier
from models.bundle import MANIFEST_FILE, MODEL_FILE, report_file, root_digest
from models.datasets import TabularDataset
from models.errors import BundleError
from models.export import (
    INPUT,
    LABEL,
    PROBABILITIES,
    Parity,
    export_onnx,
    parity,
)
from models.files import new_directory
from models.manifest import Column, Manifest, Tensor
from models.report import Check, Condition, Dataset, Metric, Report, Subject
from sealgate.protocol import strict_json
from sealgate.protocol.tensors import TensorSpec
from security.errors import TrainingError
from security.training import accounting
from security.training.accounting import Mechanism
from security.training.config import TrainingConfig
from security.training.noise import Randomness, SystemRandomness
from security.training.trainer import Outcome, Recipe, train_private

__all__ = ["Progress", "train_bundle"]

# Called with a stage's name, the share of it that is done, and its result at the end.
Progress = Callable[[str, float, str], None]

# Probabilities are FP32; exports of these architectures differ by about 1e-7.
MAX_PARITY_DIFFERENCE = 1e-5
MAX_ROWS = 1024
_PARITY_ROWS = 1000


@dataclass(frozen=True)
class _Guarantee:
    """What was spent, by each accountant, at one delta."""

    delta: float
    prv: float
    rdp: float
    pld: float


@dataclass(frozen=True)
class _Training:
    """Everything that the evidence is written from."""

    config: TrainingConfig
    train: TabularDataset
    outcome: Outcome
    guarantee: _Guarantee
    randomness: str


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
        randomness: the operating system's if absent; tests pass a seeded one.

    Returns:
        The folder.

    Raises:
        TrainingError: the guarantee is impossible, or the training failed.
        BundleError: the folder exists already.
    """
    if out.exists():
        raise BundleError(f"{out} exists already")
    source = randomness or SystemRandomness()
    torch.set_num_threads(1)  # repeatable sums, and no gain at this size
    dataset = datasets.load(config.data.name)
    train, holdout = datasets.split(
        dataset, key=config.data.split_key, holdout=config.data.holdout
    )
    progress("data", 1.0, f"{len(train)} rows to train on, {len(holdout)} held out")
    delta, mechanism = _plan(config, len(train))
    progress("noise", 1.0, f"multiplier {mechanism.noise_multiplier:g}")
    module, outcome = _train(config, train, mechanism, source, progress)
    guarantee = _account(config, outcome.mechanism, delta)
    progress("privacy", 1.0, _privacy_line(outcome.mechanism, guarantee))
    training = _Training(config, train, outcome, guarantee, source.name)
    model, same = _export(module, dataset)
    progress("export", 1.0, f"ONNX, {len(model)} bytes, {_parity_line(same)}")
    _write(out, training, model, same)
    return out


def _plan(config: TrainingConfig, rows: int) -> tuple[float, Mechanism]:
    privacy = config.privacy
    delta = privacy.delta or accounting.default_delta(rows)
    accounting.check_delta(delta, rows)
    noise = accounting.find_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=delta,
        sample_rate=privacy.sampling_rate,
        steps=privacy.steps,
    )
    return delta, Mechanism(privacy.sampling_rate, noise, privacy.steps)


def _train(
    config: TrainingConfig,
    train: TabularDataset,
    mechanism: Mechanism,
    randomness: Randomness,
    progress: Progress,
) -> tuple[TabularClassifier, Outcome]:
    torch.manual_seed(config.model.seed)  # initial weights only: public
    module = tabular_classifier(
        train.columns, len(train.classes), hidden=config.model.hidden
    )
    features = torch.tensor(train.features, dtype=torch.float32)
    outcome = train_private(
        module.body,
        module.network_input(features),
        torch.tensor(train.labels),
        mechanism=mechanism,
        recipe=Recipe(
            max_grad_norm=config.privacy.max_grad_norm,
            expected_batch=config.privacy.expected_batch,
            learning_rate=config.optimizer.learning_rate,
            momentum=config.optimizer.momentum,
        ),
        randomness=randomness,
        on_step=lambda step: progress("training", step / mechanism.steps, ""),
    )
    # Neither loss nor accuracy is shown: on private rows, both would spend budget.
    progress("training", 1.0, f"{mechanism.steps} noisy steps")
    return module, outcome


def _account(config: TrainingConfig, mechanism: Mechanism, delta: float) -> _Guarantee:
    guarantee = _Guarantee(
        delta=delta,
        prv=accounting.epsilon_prv(mechanism, delta),
        rdp=accounting.epsilon_rdp(mechanism, delta),
        pld=accounting.recompute_epsilon(
            mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps, delta
        ),
    )
    target = config.privacy.epsilon
    if guarantee.prv > target or guarantee.pld > target:
        raise TrainingError(
            f"epsilon is {guarantee.prv:.4f} by PRV and {guarantee.pld:.4f} by PLD, "
            f"above the target {target:g}"
        )
    if abs(guarantee.prv - guarantee.pld) > accounting.AGREEMENT_SLACK:
        raise TrainingError(
            f"accountants disagree: PRV {guarantee.prv:.4f}, PLD {guarantee.pld:.4f}"
        )
    return guarantee


def _export(module: TabularClassifier, dataset: TabularDataset) -> tuple[bytes, Parity]:
    model = export_onnx(module, dataset.columns)
    same = parity(module, model, _parity_rows(dataset.columns))
    if same.max_abs_difference > MAX_PARITY_DIFFERENCE or same.label_agreement < 1:
        raise TrainingError(
            f"the ONNX file computes something else: {_parity_line(same)}"
        )
    return model, same


def _parity_rows(columns: Sequence[Column]) -> NDArray[np.float64]:
    """Rows to compare on: any will do, so none of them is a person's.

    Uniform in ranges half as wide again, then what is missing, infinite or huge.
    """
    low, high = (
        np.array([getattr(column, end) for column in columns])
        for end in ("low", "high")
    )
    margin = (high - low) / 4
    uniform = np.random.default_rng(0).uniform(
        low - margin, high + margin, size=(_PARITY_ROWS, len(columns))
    )
    special = np.repeat([[np.nan], [np.inf], [-np.inf], [1e38]], len(columns), axis=1)
    uniform[:: len(columns) + 1, 0] = np.nan
    return np.concatenate([uniform, special, [low], [high]])


def _write(out: Path, training: _Training, model: bytes, same: Parity) -> None:
    manifest = _manifest(training).to_json()
    subject = Subject(
        name=training.config.model.name,
        version=training.config.model.version,
        root_sha256=root_digest({MODEL_FILE: model, MANIFEST_FILE: manifest}),
        onnx_sha256=hashlib.sha256(model).hexdigest(),
    )
    reports = (
        _privacy_report(training, subject),
        _parity_report(subject, same),
        _provenance_report(training, subject),
    )
    with new_directory(out) as folder:
        (folder / "evidence").mkdir()
        (folder / MODEL_FILE).write_bytes(model)
        (folder / MANIFEST_FILE).write_bytes(manifest)
        for report in reports:
            (folder / report_file(report.kind)).write_bytes(report.to_json())


def _manifest(training: _Training) -> Manifest:
    columns, classes = training.train.columns, training.train.classes
    return Manifest(
        name=training.config.model.name,
        version=training.config.model.version,
        inputs=(
            Tensor(TensorSpec(INPUT, "FP32", (-1, len(columns))), columns=columns),
        ),
        outputs=(
            Tensor(
                TensorSpec(PROBABILITIES, "FP32", (-1, len(classes))), labels=classes
            ),
            Tensor(TensorSpec(LABEL, "INT64", (-1,))),
        ),
        max_rows=MAX_ROWS,
    )


def _report(
    kind: str,
    subject: Subject,
    *,
    datasets: tuple[Dataset, ...],
    **content: Any,
) -> Report:
    return Report(
        kind=kind,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=subject,
        tools=_tools(),
        datasets=datasets,
        **content,
    )


def _privacy_report(training: _Training, subject: Subject) -> Report:
    guarantee = training.guarantee
    return _report(
        "privacy",
        subject,
        datasets=(_training_rows(training),),
        conditions=_privacy_conditions(training),
        metrics={
            "epsilon": Metric(guarantee.prv),
            "epsilon_rdp": Metric(guarantee.rdp),
            "epsilon_pld": Metric(guarantee.pld),
            "delta": Metric(guarantee.delta),
            "noise_multiplier": Metric(training.outcome.mechanism.noise_multiplier),
        },
        checks=(
            Check(
                "accountants-agree",
                abs(guarantee.prv - guarantee.pld) <= accounting.AGREEMENT_SLACK,
                f"PRV and PLD differ by at most {accounting.AGREEMENT_SLACK:g}",
            ),
            Check(
                "target-kept",
                max(guarantee.prv, guarantee.pld) <= training.config.privacy.epsilon,
                f"target epsilon {training.config.privacy.epsilon:g}",
            ),
        ),
        details={
            "config": training.config.to_object(),
            "empty_batches": training.outcome.empty_batches,
        },
    )


def _privacy_conditions(training: _Training) -> Mapping[str, Condition]:
    privacy, mechanism = training.config.privacy, training.outcome.mechanism
    return {
        "mechanism": "dp_sgd_gaussian",
        "neighbouring": "add_or_remove_one",
        "unit": "row",
        "sampling": "poisson",
        "sample_rate": mechanism.sample_rate,
        "noise_multiplier": mechanism.noise_multiplier,
        "steps": mechanism.steps,
        "max_grad_norm": privacy.max_grad_norm,
        "clipping": "per_row_flat_l2",
        "normalisation": "public_constant",
        "normalisation_constant": privacy.expected_batch,
        "target_epsilon": privacy.epsilon,
        "delta": training.guarantee.delta,
        "accountant": "prv",
        "accountant_bound": "upper",
        "preprocessing": "public_ranges",
        "hyperparameters": "fixed_in_configuration",
        "row_count": "public",  # delta is chosen from it, and datasets[0] states it
        "noise_generator": training.randomness,
        "noise_floating_point": "sum_of_four_gaussians",
        "covers_holdout": False,
        "personal_data": training.train.personal,
    }


def _parity_report(subject: Subject, same: Parity) -> Report:
    return _report(
        "parity",
        subject,
        datasets=(),
        conditions={
            "reference": "torch",
            "runtime": "onnxruntime",
            "unit": "probability",
            "rows": "uniform_in_widened_public_ranges",
        },
        metrics={
            "max_abs_difference": Metric(same.max_abs_difference, n=same.rows),
            "label_agreement": Metric(same.label_agreement, n=same.rows),
        },
        checks=(
            Check(
                "parity",
                same.max_abs_difference <= MAX_PARITY_DIFFERENCE,
                f"at most {MAX_PARITY_DIFFERENCE:g}",
            ),
        ),
    )


def _provenance_report(training: _Training, subject: Subject) -> Report:
    config = strict_json.dumps(training.config.to_object())
    return _report(
        "provenance",
        subject,
        datasets=(_training_rows(training),),
        conditions={
            "personal_data": training.train.personal,
            "differentially_private": True,
            "config_sha256": hashlib.sha256(config).hexdigest(),
            "split": "keyed_hash_of_row",
            "architecture": training.config.model.architecture,
        },
        details={
            "config": training.config.to_object(),
            "columns": [asdict(column) for column in training.train.columns],
            "classes": list(training.train.classes),
        },
    )


def _training_rows(training: _Training) -> Dataset:
    rows = training.train
    return Dataset(
        name=rows.name,
        role="train",
        rows=len(rows),
        sha256=datasets.digest(rows.features, rows.labels),
    )


def _tools() -> dict[str, str]:
    names = ("dp-accounting", "numpy", "onnx", "onnxruntime", "opacus", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}


def _privacy_line(mechanism: Mechanism, guarantee: _Guarantee) -> str:
    return (
        f"epsilon {guarantee.prv:.2f} at delta {guarantee.delta:.1e} (PRV, Poisson "
        f"q={mechanism.sample_rate:g}, {mechanism.steps} steps; "
        f"PLD {guarantee.pld:.2f})"
    )


def _parity_line(same: Parity) -> str:
    return (
        f"differs from torch by {same.max_abs_difference:.1e} at most, "
        f"same label on {same.label_agreement:.1%} of {same.rows} rows"
    )
