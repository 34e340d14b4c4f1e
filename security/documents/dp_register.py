"""An entry for a public register of differentially private deployments.

The fields are those of the OpenDP deployments registry (its deployments-schema.yaml,
https://registry.opendp.org), whose tiers follow what NIST SP 800-226 asks to be told of
a guarantee: unit, parameters, variant, trust model, composition, preprocessing, and how
the mechanism was implemented. All of it comes from verified evidence; what a register
asks beyond that (curator, region, author) is the caller's word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import BundleError
from models.report import Report
from security.documents.glossary import VALUES
from security.documents.markup import yaml_number, yaml_text

if TYPE_CHECKING:
    from security.documents.sourced import Sourced

__all__ = ["SECTORS", "Curator", "dp_register"]

SECTORS = ("Technology", "Healthcare", "Education", "Government", "Energy", "Finance")
_SLUG = re.compile(r"[^a-z0-9]+")
_MECHANISM = (
    *("mechanism", "clipping", "max_grad_norm", "noise_multiplier", "sampling"),
    *("sample_rate", "steps", "noise_generator", "noise_floating_point", "precision"),
)
_TUNING = ("hyperparameters", "preprocessing")


@dataclass(frozen=True)
class Curator:
    """What a register asks and no evidence holds.

    Attributes:
        name: of the organisation that publishes the model.
        region: whom the data describes, or whose law applies.
        authors: of the entry.
        sector: one of `SECTORS`, or "".
    """

    name: str
    region: str
    authors: tuple[str, ...]
    sector: str = ""


def dp_register(bundle: Sourced, curator: Curator) -> bytes:
    """Write the entry as YAML, a draft of tier 3.

    Returns:
        UTF-8, the same bytes for the same bundle, policy and curator.

    Raises:
        BundleError: there is no verified evidence of differential privacy.
    """
    report = bundle.facts.reports.get("privacy")
    if report is None or not {"epsilon", "delta"} <= set(report.metrics):
        raise BundleError(
            "no verified evidence of differential privacy: nothing to list"
        )
    subject = bundle.facts.bundle.subject
    slug = _SLUG.sub("-", f"{subject.name}-{subject.version}".lower()).strip("-")
    entry = {
        "url_slug": slug,
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(bundle, curator, report),
            "dp_variant": _variant(report),
            "privacy_loss": _loss(report),
            "deployment_model": _model(report),
            "accounting": _accounting(report),
            "implementation": _implementation(report),
            "administrative": {
                "notes": _notes(bundle),
                "registry_authors": list(curator.authors),
            },
        },
    }
    return "".join(f"{line}\n" for line in _yaml(entry)).encode()


def _basic(bundle: Sourced, curator: Curator, report: Report) -> dict[str, Any]:
    facts = bundle.facts
    subject = facts.bundle.subject
    architecture = facts.condition("provenance", "architecture")
    kind = architecture if isinstance(architecture, str) else "machine learning"
    basic = {
        "name": f"{subject.name} {subject.version}",
        "data_curators": [curator.name],
        "intended_use": facts.use.intended or "Not stated by the trainer.",
        "data_product_type": "Machine learning model",
        "data_product_region": curator.region,
        "description": f"A {kind} model in ONNX, SHA-256 {subject.onnx_sha256}.",
        "publication_date": f"{report.created_at:%Y-%m-%d}",
    }
    return basic | ({"data_product_sector": curator.sector} if curator.sector else {})


def _variant(report: Report) -> dict[str, Any]:
    rows = sum(item.rows for item in report.datasets if item.role == "train")
    counted = report.conditions.get("row_count") == "public"
    return {
        "variant_name": "Approximate DP",
        "data_domain": f"The {rows} training rows." if rows else "The training rows.",
        "unprotected_quantities": ("The number of rows is public. " if counted else "")
        + (
            "Figures measured on held-out rows (quality, fairness, robustness, "
            "membership) are published without noise."
            if report.conditions.get("covers_holdout") is not True
            else "None beside public preprocessing."
        ),
    }


def _loss(report: Report) -> dict[str, Any]:
    stated = report.conditions
    relation = str(stated.get("neighbouring", "not stated"))
    return {
        "privacy_unit": str(stated.get("unit", "not stated")),
        "privacy_unit_details": f"Neighbouring: {relation}"
        + _meaning("neighbouring", relation),
        "privacy_parameters": {
            "epsilon": report.metrics["epsilon"].value,
            "delta": report.metrics["delta"].value,
        },
        "privacy_parameters_details": "Recomputed from the mechanism at admission, by "
        "an accountant that did not produce them.",
    }


def _model(report: Report) -> dict[str, Any]:
    del report
    return {
        "model_name": "Central",
        "actors": "The trainer holds the rows and is trusted with them. Everybody who "
        "may see the model, or its answers, is an adversary.",
        "release_type": "One release",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
        "access_type_details": "The weights bear the guarantee: any number of "
        "questions to the model costs nothing more.",
    }


def _accounting(report: Report) -> dict[str, str]:
    accountant = report.conditions.get("accountant", "not stated")
    return {
        "post_processing": "Export to ONNX, packaging, serving.",
        "composition": f"All steps of training together; accountant: {accountant}. "
        "Other releases from the same rows stand in the trainer's ledger, not here.",
    }


def _implementation(report: Report) -> dict[str, str]:
    tools = ", ".join(f"{n} {v}" for n, v in sorted(report.tools.items()))
    return {
        "preprocessing_and_hyperparameter_tuning": _stated(report, _TUNING),
        "mechanisms": f"{_stated(report, _MECHANISM)} Libraries: {tools}.",
    }


def _stated(report: Report, names: tuple[str, ...]) -> str:
    found = [
        f"{name} = {report.conditions[name]}{_meaning(name, report.conditions[name])}"
        for name in names
        if name in report.conditions
    ]
    return "; ".join(found) + "." if found else "Not stated."


def _meaning(name: str, value: object) -> str:
    meaning = VALUES.get((name, str(value)))
    return f" ({meaning})" if meaning else ""


def _notes(bundle: Sourced) -> str:
    source = bundle.sources["privacy"]
    keys = ", ".join(source.keys)
    return (
        f"Computed from {source.file} (SHA-256 {source.sha256}), signed by key {keys}, "
        f"under a verdict with SHA-256 {bundle.admission.verdict_sha256}."
    )


def _yaml(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """YAML 1.2 of this module's own values: mappings, lists of texts, scalars."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield f"{indent}{name}:"
            yield from _yaml(item, indent + "  ")
        elif isinstance(item, list):
            yield f"{indent}{name}:"
            yield from (f"{indent}  - {yaml_text(text)}" for text in item)
        else:
            shown = yaml_text(item) if isinstance(item, str) else _scalar(item)
            yield f"{indent}{name}: {shown}"


def _scalar(value: float) -> str:
    return str(value) if isinstance(value, int) else yaml_number(value)
