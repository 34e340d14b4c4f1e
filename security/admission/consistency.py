"""Check 27 of the gate: reports that contradict themselves or each other. No I/O.

A key vouches for a report; it cannot vouch for two that say different things. What a
training writes says most things twice: in the configuration, in the conditions, in a
metric, in the report beside it. Each field is held to every other place that says the
same, so that whoever changes one, with the trainer's key, is refused.

Who changes all of them alike is not: docs/threat-model.md lists what such a trainer can
claim, and what else would show it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from models.bundle import MODEL_FILE, Bundle
from models.report import Dataset, Report
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.admission.clamped import clamped_contradictions
from security.admission.coverage import coverage_contradictions
from security.admission.regression import regression_contradictions
from security.admission.rules import Requirement
from security.admission.stated import Found, differ, number
from security.admission.steps import Steps
from security.admission.trained import training_contradictions
from security.admission.trained_ebm import ebm_terms
from security.errors import AdmissionRefused, MonitoringError
from security.monitoring.reference import reference_of

__all__ = ["CONTRADICTION_CHECK", "contradiction_steps", "initial_weights"]

CONTRADICTION_CHECK = 27

# Both reports are written at the end of one training.
_TOGETHER = timedelta(minutes=10)
_INITIAL_WEIGHTS = re.compile(r"random|public:[0-9a-f]{64}")
# What measures a model on rows says what it predicts: one thing.
_NORMS = ("", "_linf", "_l2")
_OF_ROWS = ("quality", "fairness", "robustness", "membership")


def initial_weights(privacy: Report) -> str | None:
    """Where a training started from; None in reports of releases that did not say."""
    stated = privacy.conditions.get("initial_weights")
    return None if stated is None else str(stated)


def contradiction_steps(
    bundle: Bundle, reports: Mapping[str, Report], required: Mapping[str, Requirement]
) -> Steps[None]:
    """Check 27, over the reports that a policy asks for, whose keys were checked."""
    for message in _contradictions(bundle, reports, required):
        yield AdmissionRefused(CONTRADICTION_CHECK, message)


def _contradictions(
    bundle: Bundle, reports: Mapping[str, Report], required: Mapping[str, Requirement]
) -> Found:
    privacy, provenance = reports.get("privacy"), reports.get("provenance")
    yield from _one_set_of_rows(reports)
    yield from _predicted(bundle, reports)
    yield from regression_contradictions(bundle, reports)
    yield from coverage_contradictions(bundle.manifest.conformal, reports)
    if "structure" in reports and not bundle.sealed:
        stated = reports["structure"].metrics.get("model_bytes")
        if stated is not None and stated.value != len(bundle.files[MODEL_FILE]):
            yield "structure: model_bytes is another file's"
    if privacy is not None:
        yield from _declared_public(privacy, required["privacy"])
        yield from _numbers(privacy)
    if "reference" in reports:
        yield from _reference(bundle, reports["reference"], privacy)
    if provenance is not None:
        yield from _provenance(bundle, provenance)
    if "parity" in reports and provenance is not None:
        yield from _original(reports["parity"], provenance)
    if privacy is not None and provenance is not None:
        yield from _side_by_side(privacy, provenance)
    if privacy is not None and "config" in privacy.details:
        yield from training_contradictions(privacy)
    elif privacy is not None:
        yield from clamped_contradictions(privacy, {})
    if privacy is not None:
        yield from ebm_terms(privacy, bundle.manifest.columns)


def _one_set_of_rows(reports: Mapping[str, Report]) -> Found:
    """Training rows are the same rows, whoever looked at them."""
    seen: dict[str, tuple[str, Dataset]] = {}
    for kind, report in reports.items():
        for item in report.datasets:
            if item.role == "train":
                first, rows = seen.setdefault(item.name, (kind, item))
                if rows != item:
                    yield f"{kind}: other training rows than the {first} report's"


def _predicted(bundle: Bundle, reports: Mapping[str, Report]) -> Found:
    """A model predicts a number or decides among classes; figures fit each other."""
    told = {
        kind: reports[kind].conditions.get("predicts") == "number"
        for kind in _OF_ROWS
        if kind in reports
    }
    first = next(iter(told), "")
    for kind, numeric in told.items():
        if numeric is not told[first]:
            yield f"{kind}: what the model predicts is not what the {first} report says"
        if numeric and any(item.labels for item in bundle.manifest.outputs):
            yield f"{kind}: the model predicts a number, and its manifest names classes"
        if numeric:
            yield from _ordered(kind, reports[kind])


def _ordered(kind: str, report: Report) -> Found:
    """Of each two figures the first cannot be above the second."""
    values = {name: item.value for name, item in report.metrics.items()}
    pairs = (
        *(("mae", "rmse"), ("clean_mae", "attacked_mae")),
        *((f"mean_largest_change{end}", f"largest_change{end}") for end in _NORMS),
    )
    for small, large in pairs:
        low, high = values.get(small), values.get(large)
        if low is not None and high is not None and not low <= high * (1 + 1e-9):
            yield f"{kind}: {small} is above {large}, which it cannot be"
    if not values.get("r2", 1.0) <= 1:
        yield f"{kind}: r2 is above 1, which it cannot be"


def _declared_public(privacy: Report, requirement: Requirement) -> Found:
    """Data that is declared public is booked in no ledger: its epsilon adds up nowhere.

    A policy that takes such data says so: ``personal_data = false``.
    """
    public = privacy.conditions.get("personal_data") is False
    asked = requirement.conditions.get("personal_data") is False
    if public and "epsilon" in privacy.metrics and not asked:
        yield (
            "privacy: the data was declared public, so its epsilon was booked nowhere; "
            "the policy does not ask for public data"
        )


def _reference(bundle: Bundle, report: Report, privacy: Report | None) -> Found:
    """A reference is of this model, and has noise where its data is personal."""
    try:
        reference_of(report, bundle.manifest)
    except MonitoringError as error:
        yield str(error)
    told = {} if privacy is None else privacy.conditions
    same = {name: told[name] for name in ("personal_data",) if name in told}
    yield from differ("reference", report.conditions, same)


def _numbers(privacy: Report) -> Found:
    """What a report says twice by itself, whoever made it."""
    stated = privacy.conditions
    for name in ("delta", "noise_multiplier"):
        metric = privacy.metrics.get(name)
        if name in stated and metric is not None and stated[name] != metric.value:
            yield f"privacy: the report states two values of {name}"
    epsilon = privacy.metrics.get("epsilon")
    target = stated.get("target_epsilon")
    if epsilon and target is not None and not epsilon.value <= number(target):
        yield "privacy: epsilon is above its own target"
    start = initial_weights(privacy)
    if start is not None and not _INITIAL_WEIGHTS.fullmatch(start):
        yield f"privacy: initial_weights {start!r} is neither random nor public:DIGEST"
    clipping, sampled = stated.get("clipping"), stated.get("sampled")
    known = clipping is not None and sampled is not None
    if known and not str(clipping).startswith(f"per_{sampled}_"):
        yield "privacy: what is clipped is not what is sampled"


def _provenance(bundle: Bundle, provenance: Report) -> Found:
    details, stated = provenance.details, provenance.conditions
    config = details.get("config")
    if config is None and "config_sha256" not in stated:
        return  # an imported model: nothing is known of its training
    if not isinstance(config, dict) or stated.get("config_sha256") != _digest(config):
        yield "provenance: config_sha256 is not that of the configuration"
        return
    found = (config.get(name) for name in ("model", "data", "privacy"))
    model, data, asked = (item if isinstance(item, dict) else {} for item in found)
    manifest = bundle.manifest
    private = asked.get("mechanism") != "none"
    split = "keyed_hash_of_owner" if data.get("unit") else "keyed_hash_of_row"
    yield from differ(
        "provenance",
        {"name": model.get("name"), "version": model.get("version")},
        {"name": manifest.name, "version": manifest.version},
    )
    yield from differ(
        "provenance",
        stated,
        {
            "architecture": model.get("architecture"),
            "differentially_private": private,
            "personal_data": data.get("personal"),
            "split": split,
        },
    )
    yield from _schema(bundle, details)
    if [(item.name, item.role) for item in provenance.datasets] != [
        (data.get("name"), "train")
    ]:
        yield "provenance: the training rows are not those of the configuration"


def _original(parity: Report, provenance: Report) -> Found:
    """A module that was trained here, or answers of a model that came from elsewhere.

    The latter were all compared on the rows that the report names.
    """
    imported = provenance.conditions.get("imported") is True
    given = parity.conditions.get("reference") == "answers_of_the_original"
    if imported is not given:
        yield "parity: provenance says otherwise about where the model comes from"
    rows = {item.rows for item in parity.datasets}
    if given and {metric.n for metric in parity.metrics.values()} - rows:
        yield "parity: not measured on the rows that it names"


def _schema(bundle: Bundle, details: Mapping[str, Any]) -> Found:
    """The manifest's columns and labels are those that were trained."""
    columns = [c.to_object() for item in bundle.manifest.inputs for c in item.columns]
    labels = [label for item in bundle.manifest.outputs for label in item.labels]
    if columns and details.get("columns") != columns:
        yield "provenance: columns are not the manifest's"
    if labels and details.get("classes") != labels:
        yield "provenance: classes are not the manifest's"


def _side_by_side(privacy: Report, provenance: Report) -> Found:
    """Both were written by one training, at its end."""
    if privacy.details.get("config") != provenance.details.get("config"):
        yield "privacy: another configuration than the provenance report's"
    if "config" not in provenance.details:
        return
    if privacy.datasets != provenance.datasets:
        yield "privacy: other training rows than the provenance report's"
    if privacy.tools != provenance.tools:
        yield "privacy: other tools than the provenance report's"
    if abs(privacy.created_at - provenance.created_at) > _TOGETHER:
        yield "privacy: not written together with the provenance report"
    private = provenance.conditions.get("differentially_private")
    if private is not (privacy.conditions.get("mechanism") != "none"):
        yield "privacy: provenance says otherwise about differential privacy"


def _digest(config: Mapping[str, Any]) -> str | None:
    try:
        return hashlib.sha256(strict_json.dumps(config)).hexdigest()
    except JsonError:
        return None
