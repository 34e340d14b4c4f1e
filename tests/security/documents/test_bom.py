"""The ML-BOM: valid CycloneDX 1.6, and every number and digest in it the evidence's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from models.bundle import VERDICT_FILE, Bundle, read_bundle
from models.errors import BundleError
from security.documents.bom import _SPDX, ml_bom
from security.documents.model_card import model_card
from tests.support import bundles, evidence


@pytest.fixture(scope="session")
def cyclonedx(shared_data: Path) -> jsonschema.Draft7Validator:
    return validator(shared_data)


def validator(shared_data: Path) -> jsonschema.Draft7Validator:
    """CycloneDX's own schema, with the two that it refers to."""
    folder = shared_data / "spec-cyclonedx"
    names = ("spdx.schema.json", "jsf-0.82.schema.json")
    schemas = {name: json.loads((folder / name).read_text()) for name in names}
    registry = Registry().with_resources(
        (f"http://cyclonedx.org/schema/{name}", Resource.from_contents(schema))
        for name, schema in schemas.items()
    )
    schema = json.loads((folder / "bom-1.6.schema.json").read_text())
    checker = jsonschema.FormatChecker()
    return jsonschema.Draft7Validator(schema, registry=registry, format_checker=checker)


@pytest.fixture
def rich(tmp_path, keys) -> Bundle:
    return evidence.write(tmp_path / "rich", keys)


def bom(bundle: Bundle) -> dict:
    return json.loads(ml_bom(bundle))


def model(document: dict) -> dict:
    (found,) = (
        item
        for item in document["components"]
        if item["type"] == "machine-learning-model"
    )
    return found


def test_valid(cyclonedx, rich, bundle_folder, tmp_path, keys):
    cyclonedx.validate(bom(rich))
    cyclonedx.validate(bom(read_bundle(bundle_folder)))
    empty = bundles.write_bundle(tmp_path / "empty", keys, kinds=(), admit=False)
    cyclonedx.validate(bom(read_bundle(empty)))


@pytest.mark.parametrize("attack", evidence.ATTACKS, ids=ascii)
def test_valid_under_attack(cyclonedx, tmp_path, keys, attack):
    document = bom(evidence.hostile(tmp_path / "b", keys, attack))
    cyclonedx.validate(document)
    refs = [item["bom-ref"] for item in document["components"]]
    assert len(set(refs)) == len(refs)
    urls = [item["url"] for item in model(document)["externalReferences"]]
    assert not any("evil" in url for url in urls)


def test_the_validator_refuses(cyclonedx, rich):
    with pytest.raises(jsonschema.ValidationError):
        cyclonedx.validate(bom(rich) | {"extra": 1})


def test_the_license_ids_are_spdx(shared_data):
    schema = shared_data / "spec-cyclonedx" / "spdx.schema.json"
    assert set(_SPDX) <= set(json.loads(schema.read_text())["enum"])


def test_every_number_is_the_reports(rich):
    card = model(bom(rich))["modelCard"]
    stated = card["quantitativeAnalysis"]["performanceMetrics"]
    expected = {}
    for kind in evidence.KINDS:
        for name, metric in rich.report(kind).metrics.items():
            base, _, group = name.partition("/")
            expected[f"{kind}: {base}", group] = metric
    assert len(stated) == len(expected)
    for item in stated:
        group = item.get("slice", "").split(", ")[0]
        metric = expected[item["type"], group if group.startswith("age") else ""]
        assert float(item["value"]) == metric.value
        interval = item.get("confidenceInterval", {})
        assert (metric.low is None) == (not interval)
        if interval:
            assert float(interval["lowerBound"]) == metric.low
            assert float(interval["upperBound"]) == metric.high
        if metric.n is not None:
            assert item["slice"].endswith(f"n = {metric.n}")


def test_parameters_and_data(rich):
    document = bom(rich)
    parameters = model(document)["modelCard"]["modelParameters"]
    assert parameters["task"] == "tabular-classification"
    assert parameters["architectureFamily"] == "linear"
    assert parameters["inputs"] == [{"format": "features: FP32 (-1, 3)"}]
    data = {c["bom-ref"]: c for c in document["components"] if c["type"] == "data"}
    assert [item["ref"] for item in parameters["datasets"]] == list(data)
    digests = {item["hashes"][0]["content"] for item in data.values()}
    assert digests == {evidence.TRAIN.sha256, evidence.HOLDOUT.sha256}
    assert all(
        c["data"][0]["sensitiveData"] == ["personal data"] for c in data.values()
    )


def test_considerations(rich):
    considerations = model(bom(rich))["modelCard"]["considerations"]
    assert considerations["useCases"] == [
        evidence.USE["intended"],
        f"Out of scope: {evidence.USE['out_of_scope']}",
    ]
    assert considerations["technicalLimitations"][0] == evidence.USE["limitations"]
    groups = {g["groupAtRisk"] for g in considerations["fairnessAssessments"]}
    assert groups == {"age 50 and over", "age below 50"}
    (privacy,) = (
        item["mitigationStrategy"]
        for item in considerations["ethicalConsiderations"]
        if "epsilon" in item["mitigationStrategy"]
    )
    for name, value in rich.report("privacy").conditions.items():
        assert f"{name} = {value}" in privacy


def test_every_file_is_referenced_by_digest(rich):
    component = model(bom(rich))
    assert component["hashes"][0]["content"] == rich.subject.onnx_sha256
    found = {
        item["url"]: item["hashes"][0]["content"]
        for item in component["externalReferences"]
    }
    card = hashlib.sha256(model_card(rich)).hexdigest()
    assert found.pop("MODEL_CARD.md") == card
    assert found == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in rich.files.items()
        if "/" in name and name != VERDICT_FILE  # which binds the BOM
    }


def test_licenses(tmp_path, keys, cyclonedx):
    for index, (text, key) in enumerate({"MIT": "id", "Own <1>": "name"}.items()):
        details = {"config": {"use": {"license": text}}}
        bundle = evidence.write(
            tmp_path / str(index),
            keys,
            change=lambda item, given=details: replace(item, details=given),
        )
        cyclonedx.validate(bom(bundle))
        (stated,) = model(bom(bundle))["licenses"]
        assert stated["license"][key] == text


def test_deterministic_and_another_with_other_evidence(rich, tmp_path, keys):
    again = read_bundle(tmp_path / "rich")
    assert ml_bom(again) == ml_bom(rich)
    assert bom(rich)["metadata"]["timestamp"] == "2026-03-04T05:06:07Z"
    bundles.attest(tmp_path / "rich", "quality", keys.assessor)  # ECDSA is random
    other = bom(read_bundle(tmp_path / "rich"))
    assert other["serialNumber"] != bom(rich)["serialNumber"]


def test_a_report_about_another_model(tmp_path, keys):
    evidence.write(tmp_path / "b", keys)
    manifest = bundles.manifest("2.0.0").to_json()
    (tmp_path / "b" / "manifest.json").write_bytes(manifest)
    with pytest.raises(BundleError, match="about another model"):
        ml_bom(read_bundle(tmp_path / "b"))


def test_a_sealed_bundle_has_the_same_documents(rich):
    files = {name: data for name, data in rich.files.items() if name != "model.onnx"}
    sealed = replace(rich, files=files | {"model.onnx.sealed": b"ciphertext"})
    assert ml_bom(sealed) == ml_bom(rich)
    assert model_card(sealed) == model_card(rich)
