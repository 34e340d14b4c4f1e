"""A bundle as a CycloneDX ML-BOM: bom.cdx.json is version 1.6.

Schema: https://cyclonedx.org/schema/bom-1.6.schema.json, and 1.7. Version 1.7 adds
which tools every number is owed to (citations). Both are a pure function of the bundle
before its verdict, which binds it, like the model card, which it names by digest.
Numbers are the reports' own, in full; CycloneDX has them as strings.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

from models.bundle import BOM_FILE, MODEL_CARD_FILE, MODEL_FILE, Bundle, report_file
from models.manifest import Tensor
from models.report import Dataset, Metric, Report, format_time
from security.documents.facts import Facts, read_facts
from security.documents.limitations import limitations
from security.documents.model_card import model_card

__all__ = ["VERSIONS", "documents", "ml_bom"]

VERSIONS = ("1.6", "1.7")

# Names of UUIDv5 (RFC 9562, section 5.5) are digests, under our own space.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sealgate.dev/bom/v1")
_MODEL, _CARD = "model", "model-card"
# The model is the first component.
_METRICS_POINTER = "/components/0/modelCard/quantitativeAnalysis/performanceMetrics"

# Licenses whose SPDX id we know to be one; any other text is given as a name.
_SPDX = (
    *("AGPL-3.0-only", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0"),
    *("CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC0-1.0", "GPL-3.0-only", "LGPL-3.0-only"),
    *("MIT", "MPL-2.0", "ODbL-1.0", "Unlicense"),
)
# The type of external reference that fits a report best.
_REFERENCES = {
    "fairness": "quality-metrics",
    "membership": "dynamic-analysis-report",
    "parity": "quality-metrics",
    "privacy": "risk-assessment",
    "provenance": "build-meta",
    "quality": "quality-metrics",
    "reference": "quality-metrics",
    "robustness": "dynamic-analysis-report",
    "structure": "static-analysis-report",
}


def documents(bundle: Bundle) -> dict[str, bytes]:
    """Model card and ML-BOM, by file: what a verdict binds.

    Raises:
        BundleError: as `ml_bom`.
    """
    return {MODEL_CARD_FILE: model_card(bundle), BOM_FILE: ml_bom(bundle)}


def ml_bom(bundle: Bundle, version: str = "1.6") -> bytes:
    """Write the ML-BOM.

    Args:
        bundle: as read; whoever made it may be hostile.
        version: of CycloneDX, one of `VERSIONS`; a verdict binds the first of them.

    Returns:
        The same bytes for the same bundle and version.

    Raises:
        BundleError: a report or attestation is malformed or about another model.
    """
    facts = read_facts(bundle)
    datasets = {item: _dataset_ref(item) for item in facts.datasets}
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{version}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": version,
        "serialNumber": uuid.uuid5(_NAMESPACE, _state(facts, version)).urn,
        "version": 1,
        "metadata": _metadata(facts),
        "components": [
            _model(facts),
            *(_dataset(facts, item) for item in datasets),
        ],
        "dependencies": [
            {"ref": _bundle_ref(facts), "dependsOn": [_MODEL]},
            {"ref": _MODEL, "dependsOn": list(datasets.values())},
            *({"ref": ref} for ref in datasets.values()),
        ],
    }
    if version != VERSIONS[0]:
        _add_citations(facts, document)
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _add_citations(facts: Facts, document: dict[str, Any]) -> None:
    """Say for each metric which tools measured it (CycloneDX 1.7, citations)."""
    tools = document["metadata"]["tools"]["components"]
    refs = {}
    for tool in tools:
        name = json.dumps([tool["name"], tool["version"]])
        tool["bom-ref"] = f"tool-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        refs[tool["name"], tool["version"]] = tool["bom-ref"]
    base, at, citations = _METRICS_POINTER, 0, []
    for kind, report in facts.reports.items():
        pointers = [f"{base}/{at + i}" for i in range(len(report.metrics))]
        at += len(pointers)
        note = f"{kind} report, {report_file(kind)}"
        citations += [
            {
                "pointers": pointers,
                "timestamp": format_time(report.created_at),
                "attributedTo": refs[tool],
                "note": note,
            }
            for tool in sorted(report.tools.items())
            if pointers
        ]
    if citations:
        document["citations"] = citations


def _state(facts: Facts, version: str) -> str:
    """What a BOM is a function of: two BOMs of one model differ when evidence does."""
    files = facts.bundle.files
    reports = [hashlib.sha256(files[report_file(k)]).hexdigest() for k in facts.reports]
    signed = [s.sha256 for kind in facts.signatures.values() for s in kind]
    verdicts = [item.sha256 for item in facts.verdicts]
    state = [facts.bundle.subject.root_sha256, reports, signed, verdicts, facts.waivers]
    return json.dumps(state if version == VERSIONS[0] else [*state, version])


def _metadata(facts: Facts) -> dict[str, Any]:
    subject = facts.bundle.subject
    metadata: dict[str, Any] = {
        "lifecycles": [{"phase": "post-build"}],
        "tools": {"components": _tools(facts)},
        "component": {
            "type": "application",
            "bom-ref": _bundle_ref(facts),
            "name": subject.name,
            "version": subject.version,
            "description": "Bundle of a model with its manifest, evidence and "
            "attestations.",
            "properties": [_property("root_sha256", subject.root_sha256)],
        },
    }
    if facts.newest is not None:
        metadata["timestamp"] = format_time(facts.newest)
    return metadata


def _tools(facts: Facts) -> list[dict[str, Any]]:
    used: dict[tuple[str, str], list[str]] = {}
    for kind, report in facts.reports.items():
        for tool in report.tools.items():
            used.setdefault(tool, []).append(kind)
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "properties": [_property("used_for", ", ".join(kinds))],
        }
        for (name, version), kinds in sorted(used.items())
    ]


def _model(facts: Facts) -> dict[str, Any]:
    subject = facts.bundle.subject
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": subject.name,
        "version": subject.version,
        "mime-type": "application/onnx",
        "hashes": [_hash(subject.onnx_sha256)],
        **_licenses(facts.use.license),
        "externalReferences": list(_references(facts)),
        "modelCard": {
            "bom-ref": _CARD,
            "modelParameters": _parameters(facts),
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(facts))},
            "considerations": _considerations(facts),
            "properties": list(_properties(facts)),
        },
        "properties": [_property("file", MODEL_FILE)],
    }


def _licenses(stated: str) -> dict[str, Any]:
    if not stated:
        return {}
    key = "id" if stated in _SPDX else "name"
    return {"licenses": [{"license": {key: stated, "acknowledgement": "declared"}}]}


def _references(facts: Facts) -> Iterator[dict[str, Any]]:
    bundle = facts.bundle
    card = hashlib.sha256(model_card(bundle)).hexdigest()
    yield _reference("model-card", MODEL_CARD_FILE, card)
    for kind in facts.reports:
        name = report_file(kind)
        digest = hashlib.sha256(bundle.files[name]).hexdigest()
        yield _reference(_REFERENCES[kind], name, digest, f"{kind} report")
    for kind, signatures in facts.signatures.items():
        for item in signatures:
            comment = f"{kind} attestation, key {item.hint}"
            yield _reference("attestation", item.file, item.sha256, comment)
    for verdict in facts.verdicts:
        comment = f"verdict, key {verdict.hint}"
        yield _reference("attestation", verdict.file, verdict.sha256, comment)


def _reference(kind: str, url: str, sha256: str, comment: str = "") -> dict[str, Any]:
    reference = {"type": kind, "url": url, "hashes": [_hash(sha256)]}
    return reference | ({"comment": comment} if comment else {})


def _parameters(facts: Facts) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "datasets": [{"ref": _dataset_ref(item)} for item in facts.datasets],
        "inputs": [{"format": _format(item)} for item in facts.manifest.inputs],
        "outputs": [{"format": _format(item)} for item in facts.manifest.outputs],
    }
    architecture = facts.condition("provenance", "architecture")
    if isinstance(architecture, str):
        parameters["architectureFamily"] = architecture
    if facts.task:
        parameters["task"] = facts.task
    return parameters


def _format(tensor: Tensor) -> str:
    shape = ", ".join(str(size) for size in tensor.spec.shape)
    return f"{tensor.spec.name}: {tensor.spec.datatype} ({shape})"


def _metrics(facts: Facts) -> Iterator[dict[str, Any]]:
    for kind, report in facts.reports.items():
        for name, metric in report.metrics.items():
            yield _metric(kind, report, name, metric)


def _metric(kind: str, report: Report, name: str, metric: Metric) -> dict[str, Any]:
    """A slash parts the name of a metric from the group that it was measured on."""
    name, _, group = name.partition("/")
    found: dict[str, Any] = {"type": f"{kind}: {name}", "value": repr(metric.value)}
    rows = " and ".join(f"{item.name} {item.role}" for item in report.datasets)
    size = "" if metric.n is None else f"n = {metric.n}"
    parts = [
        part for part in (group, rows if metric.n is not None else "", size) if part
    ]
    if parts:
        found["slice"] = ", ".join(parts)
    if metric.low is not None:
        found["confidenceInterval"] = {
            "lowerBound": repr(metric.low),
            "upperBound": repr(metric.high),
        }
    return found


def _considerations(facts: Facts) -> dict[str, Any]:
    use = facts.use
    stated = [use.limitations] if use.limitations else []
    considerations: dict[str, Any] = {
        "technicalLimitations": [*stated, *limitations(facts)],
        "ethicalConsiderations": list(_risks(facts)),
    }
    cases = [use.intended] if use.intended else []
    if use.out_of_scope:
        cases.append(f"Out of scope: {use.out_of_scope}")
    if cases:
        considerations["useCases"] = cases
    groups = list(_groups(facts))
    if groups:
        considerations["fairnessAssessments"] = groups
    return considerations


def _risks(facts: Facts) -> Iterator[dict[str, Any]]:
    epsilon = facts.metric("privacy", "epsilon")
    if epsilon is not None:
        stated = facts.reports["privacy"].conditions
        assumptions = ", ".join(f"{k} = {v}" for k, v in sorted(stated.items()))
        yield {
            "name": "The model reveals something about a row it was trained on.",
            "mitigationStrategy": "Differential privacy, epsilon = "
            f"{epsilon.value!r} under: {assumptions}.",
        }
    if "robustness" in facts.reports:
        yield {
            "name": "Inputs are made to mislead the model.",
            "mitigationStrategy": "Measured, see the metrics of kind robustness.",
        }


def _groups(facts: Facts) -> Iterator[dict[str, Any]]:
    report = facts.reports.get("fairness")
    found: dict[str, list[str]] = {}
    for full_name, metric in report.metrics.items() if report else ():
        name, _, group = full_name.partition("/")
        found.setdefault(group, []).append(f"{name} = {metric.value!r}")
    for group, values in found.items():
        if group:
            yield {"groupAtRisk": group, "harms": f"Measured: {', '.join(values)}."}


def _properties(facts: Facts) -> Iterator[dict[str, str]]:
    """What CycloneDX has no field for."""
    for tensor in facts.manifest.inputs:
        for column in tensor.columns:
            span = f"{column.name}: {column.low!r} to {column.high!r}"
            yield _property(f"input:{tensor.spec.name}:column", span)
    for tensor in facts.manifest.outputs:
        for label in tensor.labels:
            yield _property(f"output:{tensor.spec.name}:label", label)
    for kind, report in facts.reports.items():
        for name, value in sorted(report.conditions.items()):
            yield _property(f"condition:{kind}:{name}", json.dumps(value))


def _dataset(facts: Facts, item: Dataset) -> dict[str, Any]:
    personal = facts.condition("provenance", "personal_data") is True
    return {
        "type": "data",
        "bom-ref": _dataset_ref(item),
        "name": f"{item.name} ({item.role})",
        "hashes": [_hash(item.sha256)],
        "data": [
            {
                "type": "dataset",
                "name": item.name,
                "contents": {
                    "properties": [
                        _property("role", item.role),
                        _property("rows", str(item.rows)),
                        _property("hash_of", "features, then labels, as used"),
                    ]
                },
                **({"sensitiveData": ["personal data"]} if personal else {}),
            }
        ],
        "properties": [_property("used_for", ", ".join(facts.datasets[item]))],
    }


def _dataset_ref(item: Dataset) -> str:
    # A digest, because names are somebody else's, and references must be unique.
    name = json.dumps([item.name, item.role, item.rows, item.sha256])
    return f"data-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _bundle_ref(facts: Facts) -> str:
    return f"bundle-{facts.bundle.subject.root_sha256}"


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"sealgate:{name}", "value": value}
