"""A bundle as an SPDX 3.0.1 document: core, software, AI and dataset classes.

Specification: https://spdx.github.io/spdx-spec/v3.0.1/ (JSON-LD, one ``@graph``). It
conforms to the AI profile, whose restrictions ask for a supplier, a release time and a
location. The dataset profile also asks who each data set originated from, which no
evidence says: data sets are described, and that profile is not claimed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

from models.bundle import Bundle, report_file
from models.errors import BundleError
from models.report import Dataset, format_time
from security.admission.attest import resource_uri
from security.documents.facts import Facts, read_facts
from security.documents.limitations import limitations
from security.documents.values import interval

__all__ = ["spdx_document"]

_CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sealgate.dev/spdx/v1")
_INFO = "_:created"
# Of a configuration, what training was done with; the rest are names and paths.
_SETTINGS = ("architecture", "adversarial_training", "sample_rate", "steps")
_PRESENCE = {True: "yes", False: "no", None: "noAssertion"}


def spdx_document(bundle: Bundle, supplier: str) -> bytes:
    """Write the document.

    Args:
        bundle: as read; whoever made it may be hostile.
        supplier: the organisation that supplies the model; no evidence names it.

    Returns:
        JSON-LD, the same bytes for the same bundle and supplier.

    Raises:
        BundleError: as `read_facts`, or there is no evidence, and so no time.
    """
    facts = read_facts(bundle)
    if facts.newest is None:
        raise BundleError("without evidence there is no time to state")
    state = json.dumps([bundle.subject.root_sha256, sorted(_digests(facts)), supplier])
    base = uuid.uuid5(_NAMESPACE, state).urn
    graph = [
        {
            "type": "CreationInfo",
            "@id": _INFO,
            "specVersion": "3.0.1",
            "created": format_time(facts.newest),
            "createdBy": [f"{base}#supplier"],
        },
        *({**item, "creationInfo": _INFO} for item in _elements(facts, base, supplier)),
    ]
    document = {"@context": _CONTEXT, "@graph": graph}
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _digests(facts: Facts) -> Iterator[str]:
    for kind in facts.reports:
        yield hashlib.sha256(facts.bundle.files[report_file(kind)]).hexdigest()


def _elements(facts: Facts, base: str, supplier: str) -> Iterator[dict[str, Any]]:
    datasets = {item: f"{base}#data-{at}" for at, item in enumerate(facts.datasets)}
    evidence = {kind: f"{base}#evidence-{kind}" for kind in facts.reports}
    model = f"{base}#model"
    yield {"type": "Organization", "spdxId": f"{base}#supplier", "name": supplier}
    yield {
        "type": "SpdxDocument",
        "spdxId": f"{base}#document",
        "name": f"{facts.manifest.name} {facts.manifest.version}",
        "profileConformance": ["core", "software", "ai"],
        "rootElement": [model],
    }
    yield _model(facts, model, f"{base}#supplier")
    for item, ref in datasets.items():
        yield _dataset(facts, item, ref)
    for kind, ref in evidence.items():
        yield _evidence(facts, kind, ref)
    trained = [ref for item, ref in datasets.items() if item.role == "train"]
    tested = [ref for item, ref in datasets.items() if item.role != "train"]
    related = {
        "trainedOn": trained,
        "testedOn": tested,
        "hasEvidence": list(evidence.values()),
    }
    for name, found in related.items():
        if found:
            yield {
                "type": "Relationship",
                "spdxId": f"{base}#{name}",
                "relationshipType": name,
                "from": model,
                "to": found,
            }


def _model(facts: Facts, ref: str, supplier: str) -> dict[str, Any]:
    subject, use = facts.bundle.subject, facts.use
    built = facts.reports.get("provenance")
    newest = facts.newest
    stated: dict[str, Any] = {
        "builtTime": built and format_time(built.created_at),
        # When its evidence was complete: a bundle does not know when it is published.
        "releaseTime": newest and format_time(newest),
        "ai_typeOfModel": _texts(facts.condition("provenance", "architecture")),
        "ai_informationAboutApplication": use.intended,
        "ai_limitation": " ".join((use.limitations, *limitations(facts))).strip(),
        "ai_informationAboutTraining": _training(facts),
        "ai_modelDataPreprocessing": _texts(
            facts.condition("privacy", "preprocessing")
        ),
        "ai_hyperparameter": list(_settings(facts)),
        "ai_metric": list(_metrics(facts)),
        "software_copyrightText": "",
    }
    return {
        "type": "ai_AIPackage",
        "spdxId": ref,
        "name": subject.name,
        "suppliedBy": supplier,
        "software_packageVersion": subject.version,
        "software_primaryPurpose": "model",
        "software_downloadLocation": resource_uri(subject),
        "verifiedUsing": [_hash(subject.onnx_sha256)],
        "ai_useSensitivePersonalInformation": _personal(facts),
        **{name: value for name, value in stated.items() if value},
    }


def _texts(value: object) -> list[str]:
    return [value] if isinstance(value, str) and value else []


def _training(facts: Facts) -> str:
    report = facts.reports.get("provenance")
    if report is None:
        return ""
    return "; ".join(
        f"{name} = {json.dumps(value)}"
        for name, value in sorted(report.conditions.items())
    )


def _settings(facts: Facts) -> Iterator[dict[str, str]]:
    for kind in ("provenance", "privacy"):
        for name in _SETTINGS:
            value = facts.condition(kind, name)
            if value is not None:
                yield _entry(name, json.dumps(value))


def _metrics(facts: Facts) -> Iterator[dict[str, str]]:
    for kind, report in facts.reports.items():
        for name, metric in report.metrics.items():
            within = interval(metric)
            yield _entry(
                f"{kind}: {name}",
                repr(metric.value) + (f" ({within})" if within else ""),
            )


def _dataset(facts: Facts, item: Dataset, ref: str) -> dict[str, Any]:
    tabular = any(tensor.columns for tensor in facts.manifest.inputs)
    return {
        "type": "dataset_DatasetPackage",
        "spdxId": ref,
        "name": f"{item.name} ({item.role})",
        "comment": "The hash is that of the features, then the labels, as used.",
        "software_primaryPurpose": "data",
        "verifiedUsing": [_hash(item.sha256)],
        "dataset_datasetSize": item.rows,
        "dataset_datasetType": ["structured" if tabular else "noAssertion"],
        "dataset_hasSensitivePersonalInformation": _personal(facts),
    }


def _evidence(facts: Facts, kind: str, ref: str) -> dict[str, Any]:
    name = report_file(kind)
    digest = hashlib.sha256(facts.bundle.files[name]).hexdigest()
    return {
        "type": "software_File",
        "spdxId": ref,
        "name": name,
        "software_primaryPurpose": "evidence",
        "verifiedUsing": [_hash(digest)],
    }


def _personal(facts: Facts) -> str:
    """Whether rows are about people, the nearest that evidence says."""
    value = facts.condition("provenance", "personal_data")
    return _PRESENCE[value if isinstance(value, bool) else None]


def _hash(sha256: str) -> dict[str, str]:
    return {"type": "Hash", "algorithm": "sha256", "hashValue": sha256}


def _entry(key: str, value: str) -> dict[str, str]:
    return {"type": "DictionaryEntry", "key": key, "value": value}
