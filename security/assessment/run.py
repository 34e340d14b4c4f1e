"""A bundle's whole assessment: every report, or none.

1. structure: before any parser but the bounded one has seen the model;
2. what the training says it was trained on is what we call training rows;
3. no held-out row is among them;
4. quality, robustness, membership; the robustness of another model of the same rows
   beside it, if one is given;
5. the reports are written.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import Bundle, read_bundle, report_file
from models.data import datasets
from models.data.datasets import AnyDataset
from models.files import write_atomic
from models.report import Check, Dataset, Metric, Report
from security.assessment import membership, quality, robustness, tradeoff
from security.assessment.robustness import EvasionPlan
from security.assessment.scaled_model import ServedModel, check_fits
from security.errors import AssessmentError, HostileModel
from security.inspection.findings import RULES
from security.inspection.structure import Inspection, examine

__all__ = ["Progress", "assess_bundle"]

# Called with a stage's name, the share of it that is done, and its result at the end.
Progress = Callable[[str, float, str], None]


def assess_bundle(
    bundle_dir: Path,
    train: AnyDataset,
    holdout: AnyDataset,
    progress: Progress,
    *,
    plan: EvasionPlan = EvasionPlan(),
    beside: Path | None = None,
) -> tuple[Report, ...]:
    """Assess a bundle and write its structure, quality, robustness, membership reports.

    Args:
        bundle_dir: the bundle's folder, hostile.
        train: the rows it was trained on, checked against its provenance report.
        holdout: rows it never saw.
        progress: told of every stage.
        plan: how hard to attack.
        beside: another bundle that was trained on the same rows, to show what one
            gained and lost against the other.

    Returns:
        The reports, as written.

    Raises:
        HostileModel: structure refuses the model.
        AssessmentError: the rows are not what they must
            be, or something cannot be assessed; nothing was written.
        BundleError: the bundle cannot be read.
    """
    bundle = read_bundle(bundle_dir)
    inspection = _inspect(bundle)
    progress("structure", 1.0, _structure_line(inspection))
    _check_rows(bundle, train, holdout)
    torch.set_num_threads(1)  # repeatable sums, and no gain at this size
    reports = (
        _structure_report(bundle, inspection),
        _quality_report(bundle, holdout, progress),
        _robustness_report(bundle, holdout, plan, progress, _beside(beside, train)),
        _membership_report(bundle, train, holdout, progress),
    )
    for report in reports:
        write_atomic(bundle_dir / report_file(report.kind), report.to_json())
    return reports


def _inspect(bundle: Bundle) -> Inspection:
    inspection = examine(bundle.model)
    if inspection.refused:
        first = inspection.refused[0]
        place = f" at {first.where}" if first.where else ""
        raise HostileModel(
            f"structure refuses the model: {first.rule}{place}: {first.message}"
        )
    return inspection


def _check_rows(bundle: Bundle, train: AnyDataset, holdout: AnyDataset) -> None:
    _check_trained(bundle, train)
    common = datasets.common_rows(train, holdout)
    if common:
        raise AssessmentError(f"{common} held-out rows are among the training rows")
    check_fits(bundle, holdout)
    check_fits(bundle, train)


def _check_trained(bundle: Bundle, train: AnyDataset) -> None:
    provenance = bundle.report("provenance")
    if provenance.subject != bundle.subject:
        raise AssessmentError("the provenance report is about another model")
    stated = [item.sha256 for item in provenance.datasets if item.role == "train"]
    if stated != [datasets.digest(train.features, train.labels)]:
        raise AssessmentError("the model was trained on other rows than these")


def _structure_report(bundle: Bundle, inspection: Inspection) -> Report:
    found = {item.rule: item for item in reversed(inspection.findings)}
    return _report(
        "structure",
        bundle,
        (),
        conditions={"rules": len(RULES), "isolation": "child_process_with_limits"},
        metrics={
            "model_bytes": Metric(float(len(bundle.model))),
            **{name: Metric(float(n)) for name, n in inspection.counts.items()},
            **{
                f"{severity}s": Metric(
                    float(sum(i.severity == severity for i in inspection.findings))
                )
                for severity in ("error", "warning", "note")
            },
        },
        checks=tuple(
            Check(
                name,
                name not in found or RULES[name].severity == "note",
                _check_message(name, found.get(name)),
            )
            for name in RULES
        ),
        details={
            "findings": [
                {**vars(item), "severity": item.severity}
                for item in inspection.findings
            ]
        },
    )


def _check_message(rule: str, finding: Any) -> str:
    title = f"{RULES[rule].severity}: {RULES[rule].title}"
    return title if finding is None else f"{title}; {finding.where} {finding.message}"


def _quality_report(bundle: Bundle, holdout: AnyDataset, progress: Progress) -> Report:
    probabilities = ServedModel(bundle).probabilities(holdout.features)
    metrics = quality.measure(probabilities, holdout.labels)
    progress("quality", 1.0, _show("accuracy", metrics["accuracy"]))
    return _report(
        "quality",
        bundle,
        (_rows(holdout, "holdout"),),
        conditions=quality.CONDITIONS,
        metrics=metrics,
        details={
            "rows_by_class": dict(
                zip(holdout.classes, np.bincount(holdout.labels).tolist())
            )
        },
    )


def _robustness_report(
    bundle: Bundle,
    holdout: AnyDataset,
    plan: EvasionPlan,
    progress: Progress,
    other: Bundle | None,
) -> Report:
    result = robustness.attack(
        bundle, holdout, plan, lambda share: progress("robustness", share, "")
    )
    failed = [check.id for check in result.checks if not check.passed]
    line = _show("robust accuracy", result.metrics["robust_accuracy"])
    doubt = f"; NOT RELIABLE: {', '.join(failed)}" if failed else ""
    progress("robustness", 1.0, f"{line} at Linf {plan.radius:g} (PGD){doubt}")
    content = vars(result)
    if other is not None:
        shown = tradeoff.beside(bundle, result, other, holdout, plan)
        progress("trade-off", 1.0, shown.line)
        content = {
            **content,
            "conditions": {**result.conditions, **shown.conditions},
            "metrics": {**result.metrics, **shown.metrics},
        }
    return _report("robustness", bundle, (_rows(holdout, "holdout"),), **content)


def _beside(folder: Path | None, train: AnyDataset) -> Bundle | None:
    """The other bundle, inspected; of the same training rows."""
    if folder is None:
        return None
    other = read_bundle(folder)
    _inspect(other)
    _check_trained(other, train)
    check_fits(other, train)
    return other


def _membership_report(
    bundle: Bundle, train: AnyDataset, holdout: AnyDataset, progress: Progress
) -> Report:
    result = membership.attack(
        bundle, train, holdout, lambda share: progress("membership", share, "")
    )
    auc = _show("attack AUC", result.metrics["auc"])
    tpr = result.metrics["tpr_at_fpr_1pct"].value
    progress("membership", 1.0, f"{auc}, TPR {tpr:.3f} at 1% FPR")
    return _report(
        "membership",
        bundle,
        (_rows(train, "train"), _rows(holdout, "holdout")),
        **vars(result),
    )


def _report(
    kind: str, bundle: Bundle, rows: tuple[Dataset, ...], **content: Any
) -> Report:
    return Report(
        kind=kind,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=bundle.subject,
        tools=_tools(),
        datasets=rows,
        **content,
    )


def _rows(dataset: AnyDataset, role: str) -> Dataset:
    return Dataset(
        name=dataset.name,
        role=role,
        rows=len(dataset),
        sha256=datasets.digest(dataset.features, dataset.labels),
    )


def _tools() -> dict[str, str]:
    names = (
        *("adversarial-robustness-toolbox", "numpy", "onnx", "onnxruntime"),
        *("scikit-learn", "torch"),
    )
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}


def _structure_line(inspection: Inspection) -> str:
    nodes = inspection.counts.get("nodes", 0)
    return f"{nodes} nodes, {len(RULES)} rules, {len(inspection.findings)} findings"


def _show(name: str, metric: Metric) -> str:
    return (
        f"{name} {metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}], n={metric.n}"
    )
