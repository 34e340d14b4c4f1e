"""A trained model to a bundle: ONNX with parity, manifest, and the three reports.

The evidence says what a stranger needs to compute epsilon again, and what the guarantee
does not cover.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.additive import AdditiveClassifier
from models.bundle import MANIFEST_FILE, MODEL_FILE, report_file, root_digest
from models.data import datasets
from models.data.datasets import AnyDataset, TabularDataset
from models.explanations import DEFAULT, Explanations
from models.export import (
    CONTRIBUTIONS,
    IMAGES,
    INPUT,
    LABEL,
    OPSET,
    PROBABILITIES,
    VALUE,
)
from models.files import new_directory
from models.manifest import Manifest, Tensor
from models.report import Check, Condition, Dataset, Metric, Report, Subject
from sealgate.protocol import strict_json
from sealgate.protocol.tensors import TensorSpec
from security.training import accounting
from security.training.accounting import Mechanism
from security.training.additive_report import (
    additive_checks,
    additive_conditions,
    additive_output,
    additive_tools,
    curves,
)
from security.training.candidates import candidates
from security.training.clamped import (
    clamped_condition,
    clamped_details,
    clamped_exactly,
    clamped_metrics,
)
from security.training.config_sections import TrainingConfig
from security.training.exporting import Compared
from security.training.guarantee import Guarantee
from security.training.initial import tensors_digest
from security.training.network import Network
from security.training.selection import Selection
from security.training.trainer import Outcome

__all__ = ["Private", "Training", "write"]

MAX_ROWS = 1024
# What a search scores its tries by.
_SCORES = {
    False: "units_right_in_training_rows",
    True: "share_of_range_right_in_training_rows",
}


@dataclass(frozen=True)
class Private:
    """What a private training did, and what can be claimed of it.

    Attributes:
        mechanism: of all steps that were booked, also before a resume.
        outcome: of the last process.
        guarantee: of all.
    """

    mechanism: Mechanism
    outcome: Outcome
    guarantee: Guarantee


@dataclass(frozen=True)
class Training:
    """Everything that the evidence is written from.

    Attributes:
        config: what was asked.
        train, holdout: the rows.
        network: trained, with its graph from before.
        private: None for a training without privacy.
        randomness: name of the generator.
        tracked: what DVC has recorded of the rows' files.
    """

    config: TrainingConfig
    train: AnyDataset
    holdout: AnyDataset
    network: Network
    private: Private | None
    randomness: str
    tracked: Mapping[str, Condition] = field(default_factory=dict)


def write(out: Path, training: Training, compared: Compared) -> None:
    """Write the bundle, whole or not at all.

    Raises:
        BundleError: the folder exists already.
    """
    manifest = _manifest(training).to_json()
    subject = Subject(
        name=training.config.model.name,
        version=training.config.model.version,
        root_sha256=root_digest({MODEL_FILE: compared.model, MANIFEST_FILE: manifest}),
        onnx_sha256=hashlib.sha256(compared.model).hexdigest(),
    )
    reports = [
        _privacy_report(training, subject),
        _parity_report(training, subject, compared),
        _provenance_report(training, subject),
    ]
    if training.config.privacy.benchmark:
        reports = [_marked(report) for report in reports]
    with new_directory(out) as folder:
        (folder / "evidence").mkdir()
        (folder / MODEL_FILE).write_bytes(compared.model)
        (folder / MANIFEST_FILE).write_bytes(manifest)
        for report in reports:
            (folder / report_file(report.kind)).write_bytes(report.to_json())


def _marked(report: Report) -> Report:
    """The same report with the mark that the gate refuses under every policy."""
    return replace(report, conditions={**report.conditions, "benchmark": True})


def _manifest(training: Training) -> Manifest:
    module = training.network.module
    more: tuple[Tensor, ...] = ()
    explained = DEFAULT
    if isinstance(module, AdditiveClassifier):
        more = (additive_output(len(module.columns)),)
        explained = Explanations(contributions=CONTRIBUTIONS)
    return Manifest(
        name=training.config.model.name,
        version=training.config.model.version,
        inputs=(_input(training.train),),
        outputs=(*_outputs(training.train), *more),
        max_rows=MAX_ROWS,
        explanations=explained,
    )


def _outputs(dataset: AnyDataset) -> tuple[Tensor, ...]:
    """A number has a range and no labels: by that the manifest says what it is."""
    classes, target = dataset.classes, dataset.target
    if target is not None:
        ends = (target.low, target.high)
        return (Tensor(TensorSpec(VALUE, "FP32", (-1,)), bounds=ends),)
    chances = TensorSpec(PROBABILITIES, "FP32", (-1, len(classes)))
    return (Tensor(chances, labels=classes), Tensor(TensorSpec(LABEL, "INT64", (-1,))))


def _input(dataset: AnyDataset) -> Tensor:
    if isinstance(dataset, TabularDataset):
        spec = TensorSpec(INPUT, "FP32", (-1, len(dataset.columns)))
        return Tensor(spec, columns=dataset.columns)
    shape = (-1, *dataset.features.shape[1:])
    return Tensor(TensorSpec(IMAGES, "FP32", shape), bounds=dataset.bounds)


def _report(
    kind: str,
    subject: Subject,
    *,
    datasets: tuple[Dataset, ...],
    additive: bool = False,
    **content: Any,
) -> Report:
    return Report(
        kind=kind,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=subject,
        tools=_tools() | (additive_tools() if additive else {}),
        datasets=datasets,
        **content,
    )


def _privacy_report(training: Training, subject: Subject) -> Report:
    rows = (_rows(training.train, "train"),)
    config = training.config.to_object()
    if training.private is None:
        return _report(
            "privacy",
            subject,
            datasets=rows,
            conditions={
                "mechanism": "none",
                "personal_data": training.train.personal,
                "differentially_private": False,
                **clamped_condition(training.config),
            },
            metrics=clamped_exactly(training.config, training.train),
            details={"config": config},
        )
    return _report(
        "privacy",
        subject,
        datasets=rows,
        conditions=_privacy_conditions(training, training.private),
        metrics={
            **_privacy_metrics(training.private),
            **clamped_metrics(
                training.config,
                training.private.mechanism,
                training.private.outcome,
            ),
        },
        checks=_privacy_checks(training.private, training.config.privacy.epsilon),
        additive=training.config.additive,
        details={
            "config": config,
            **_origin_details(training.network),
            **clamped_details(training.private.outcome),
        },
    )


def _privacy_metrics(private: Private) -> dict[str, Metric]:
    guarantee = private.guarantee
    metrics = {
        "epsilon": Metric(guarantee.claim),
        f"epsilon_{guarantee.second_accountant}": Metric(guarantee.second),
        "delta": Metric(guarantee.delta),
        "noise_multiplier": Metric(private.mechanism.noise_multiplier),
        "noise_deficit_detectable": Metric(
            guarantee.verdicts.deficit, n=guarantee.verdicts.draws
        ),
    }
    if guarantee.rdp is not None:
        metrics["epsilon_rdp"] = Metric(guarantee.rdp)
    return metrics


def _privacy_checks(private: Private, target: float) -> tuple[Check, ...]:
    guarantee, slack = private.guarantee, accounting.AGREEMENT_SLACK
    if guarantee.exact:
        return additive_checks(guarantee, target)
    verdicts, level = guarantee.verdicts, guarantee.level
    agree = abs(guarantee.claim - guarantee.second) <= slack
    pair = f"{guarantee.accountant} and {guarantee.second_accountant}"
    kept = max(guarantee.claim, guarantee.second) <= target
    return (
        Check("accountants-agree", agree, f"{pair} differ by at most {slack:g}"),
        Check("target-kept", kept, f"target epsilon {target:g}"),
        Check(
            "noise-conforms",
            verdicts.noise,
            f"chi-square on {verdicts.draws} numbers of the noise that was added, at "
            f"level {level:.1e}",
        ),
        Check(
            "clipping-conforms",
            verdicts.norms,
            "no unit's clipped gradient was longer than the clipping norm",
        ),
        Check(
            "sampler-conforms",
            verdicts.rate,
            f"binomial test on the rate at which units were sampled, at {level:.1e}",
        ),
    )


def _privacy_conditions(
    training: Training, private: Private
) -> Mapping[str, Condition]:
    config, guarantee = training.config, private.guarantee
    privacy, mechanism = config.privacy, private.mechanism
    owned = training.train.units is not None
    if config.additive:
        return {
            **additive_conditions(config, mechanism, guarantee, private.outcome.units),
            **_origins(training.network),
            **_of_all(training, private),
        }
    told = privacy.loss_share > 0 and guarantee.selection is None
    clipped = "unit" if owned and privacy.unit_bound == "clip" else "row"
    return {
        "mechanism": "dp_sgd_gaussian",
        "neighbouring": "add_or_remove_one",
        "sampled": clipped,
        "sampling": "poisson",
        "sample_rate": mechanism.sample_rate,
        "noise_multiplier": mechanism.noise_multiplier,
        "steps": mechanism.steps,
        "max_grad_norm": privacy.max_grad_norm,
        "clipping": f"per_{clipped}_{privacy.clipping}_l2",
        "normalisation": "public_constant",
        "normalisation_constant": privacy.expected_batch,
        "target_epsilon": privacy.epsilon,
        "delta": guarantee.delta,
        "delta_for_verdicts": guarantee.delta - guarantee.mechanism_delta,
        "accountant": guarantee.accountant,
        "accountant_version": importlib.metadata.version("opacus"),
        "accountant_bound": "upper",
        "preprocessing": "public_ranges",
        **_origins(training.network),
        **_choice(config, guarantee.selection),
        "training_loss": "noisy_in_mechanism" if told else "not_told",
        **clamped_condition(config),
        "row_count": "public",  # delta is chosen from it, and datasets[0] states it
        "noise_floating_point": "sum_of_four_gaussians",
        "gradient_method": private.outcome.method,
        "verdicts_cover": "every_step_in_the_weights",
        "steps_in_weights": private.outcome.record.steps,
        "processes": private.outcome.processes,
        "precision": config.compute.precision,
        "covers_holdout": False,
        **_of_all(training, private),
    }


def _of_all(training: Training, private: Private) -> Mapping[str, Condition]:
    """What every mechanism states alike: whose privacy, and where its noise is from."""
    owned, personal = training.train.units is not None, training.train.personal
    return {
        "unit": "owner" if owned else "row",
        "units": private.outcome.units,
        "group_size": private.guarantee.group,
        "noise_generator": training.randomness,
        "personal_data": personal,
        "ledger": "booked" if personal else "not_booked",
    }


def _origins(network: Network) -> Mapping[str, Condition]:
    """Where from whatever is not trained comes, and what training began with."""
    own = "public_preprocessing"
    return {
        "initial_weights": network.initial_weights,
        "initial_weights_sha256": network.initial_sha256,
        "outside_mechanism": f"{own}_and_network" if network.brought else own,
        "outside_mechanism_sha256": network.outside_sha256,
    }


def _origin_details(network: Network) -> Mapping[str, Any]:
    """Enough to draw the first weights again, and every tensor that was not trained."""
    outside = [
        {
            "name": name,
            "shape": list(value.shape),
            "sha256": tensors_digest({name: value}),
        }
        for name, value in sorted(network.outside.items())
    ]
    rules = [rule.to_object() for rule in network.rules or ()]
    drawn = {"seed": network.seed, "rules": rules} if rules else {}
    return {"initial_weights": drawn, "outside_mechanism": outside}


def _choice(
    config: TrainingConfig, selection: Selection | None
) -> Mapping[str, Condition]:
    """How the settings came about. Steps and noise above are those of one try.

    How many tries there were is told nowhere: it is what the bound does not cover.
    """
    if selection is None:
        return {"hyperparameters": "fixed_in_configuration"}
    return {
        "hyperparameters": "private_selection",
        "search_bound": "papernot_steinke_2022",
        "search_distribution": selection.distribution,
        "search_expected_tries": selection.tries,
        "search_candidates": sum(1 for _ in candidates(config)),
        "search_drawn": "uniformly_with_replacement",
        "search_score": _SCORES[config.predicts_number],
        "search_score_noise": selection.score_noise,
        "search_released": "best_try_alone",
    }


def _parity_report(training: Training, subject: Subject, compared: Compared) -> Report:
    worst = compared.worst
    agreement = {}
    if worst.label_agreement is not None:
        agreement["label_agreement"] = Metric(worst.label_agreement, n=worst.rows)
    return _report(
        "parity",
        subject,
        datasets=(_rows(training.holdout, "holdout"),),
        conditions={
            "reference": "torch",
            "runtime": "onnxruntime",
            "unit": "share_of_target_range" if training.train.target else "probability",
            "rows": "every_held_out_row_and_widened_public_ranges",
            "opset": OPSET,
        },
        metrics={
            "max_abs_difference": Metric(worst.max_abs_difference, n=worst.rows),
            **agreement,
            "max_abs_difference_holdout": Metric(
                compared.holdout.max_abs_difference, n=compared.holdout.rows
            ),
        },
        checks=(
            Check(
                "parity",
                worst.max_abs_difference <= compared.most,
                f"at most {compared.most:g}",
            ),
        ),
    )


def _provenance_report(training: Training, subject: Subject) -> Report:
    config = training.config.to_object()
    schema = _learnt(training.train)
    if isinstance(training.train, TabularDataset):
        schema["columns"] = [column.to_object() for column in training.train.columns]
    if isinstance(training.network.module, AdditiveClassifier):
        schema["curves"] = curves(training.network.module)
    return _report(
        "provenance",
        subject,
        datasets=(_rows(training.train, "train"),),
        conditions={
            "personal_data": training.train.personal,
            "differentially_private": training.private is not None,
            "config_sha256": hashlib.sha256(strict_json.dumps(config)).hexdigest(),
            "split": "keyed_hash_of_owner"
            if training.train.units is not None
            else "keyed_hash_of_row",
            "architecture": training.config.model.architecture,
            **({"predicts": "number"} if training.train.target else {}),
            **training.tracked,
        },
        details={"config": config, **schema},
        additive=training.config.additive,
    )


def _learnt(dataset: AnyDataset) -> dict[str, Any]:
    """What the labels are: classes, or a number of a public range."""
    if dataset.target is not None:
        return {"target": dataset.target.to_object()}
    return {"classes": list(dataset.classes)}


def _rows(dataset: AnyDataset, role: str) -> Dataset:
    return Dataset(
        name=dataset.name,
        role=role,
        rows=len(dataset),
        sha256=datasets.digest(dataset.features, dataset.labels),
    )


def _tools() -> dict[str, str]:
    names = ("dp-accounting", "numpy", "onnx", "onnxruntime", "opacus", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
