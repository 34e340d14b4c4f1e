"""models.manifest: what a model takes and gives, refused wherever it is unclear."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from models.errors import ManifestError
from models.manifest import MANIFEST_SCHEMA, Manifest
from models.names import is_tag, names_that_clash
from tests.support.bundles import manifest
from tests.support.mutations import DROP, changed, encode, mutated

DOCUMENT = json.loads(manifest().to_json())


def test_round_trip() -> None:
    parsed = Manifest.from_json(manifest().to_json())
    assert parsed == manifest()
    assert parsed.tag == "toy:1.0.0"
    assert parsed.to_json() == manifest().to_json()


def test_limits_have_defaults() -> None:
    assert Manifest.from_json(encode(changed(DOCUMENT, "limits"))).max_rows == 1024


@pytest.mark.parametrize(
    "name", ["densenet_onnx", "DenseNet", "resnet50.v1-7", "a", "INCEPTION_V3.1", "7"]
)
def test_names_as_they_are_written_elsewhere(name: str) -> None:
    assert Manifest.from_json(encode(changed(DOCUMENT, "name", name))).name == name
    assert is_tag(f"{name}:1.0.0")


@pytest.mark.parametrize("tag", ["toy", "toy:", "toy:latest", "toy:1:2", "-a:1", ":1"])
def test_what_is_no_tag(tag: str) -> None:
    assert not is_tag(tag)


def test_names_that_are_equal_but_for_case() -> None:
    assert names_that_clash(["toy", "Other", "toy"]) is None
    assert names_that_clash(["toy", "x", "TOY"]) == ("toy", "TOY")


FAULTS = [
    ("schema", "https://sealgate.dev/manifest/v2", f"expected {MANIFEST_SCHEMA}"),
    ("schema", DROP, "manifest: missing schema"),
    ("extra", 1, "manifest: unknown field 'extra'"),
    ("name", "_toy", "manifest.name: expected"),
    ("name", "toy.", "manifest.name: expected"),
    ("name", "..", "manifest.name: expected"),
    ("name", "a b", "manifest.name: expected"),
    ("name", "a:b", "manifest.name: expected"),
    ("name", "töy", "manifest.name: expected"),
    ("name", "../toy", "manifest.name: expected"),
    ("name", "toy\n", "manifest.name: expected"),
    ("name", "a" * 64, "manifest.name: expected"),
    ("name", 7, "manifest.name: expected"),
    ("version", "latest", "manifest.version: expected"),
    ("version", "1.0.0-rc1", "manifest.version: expected"),
    ("version", "1.2.3.4.5", "manifest.version: expected"),
    ("inputs", {}, "manifest.inputs: expected an array"),
    ("inputs", [], "manifest.inputs: expected 1 to 64 tensors"),
    ("inputs", DOCUMENT["inputs"] * 2, "manifest.inputs: a name occurs twice"),
    ("inputs.0", "features", r"manifest.inputs\[0\]: expected an object"),
    ("inputs.0.name", "", r"inputs\[0\].name: expected 1 to 256 characters"),
    ("inputs.0.datatype", "FP31", "datatype: not a supported v2 datatype"),
    ("inputs.0.datatype", ["FP32"], "datatype: not a supported v2 datatype"),
    ("inputs.0.form", "maps", "maps have rows, and a label for each column"),
    ("inputs.0.form", "sequence", "manifest.inputs: sequence cannot be sent"),
    ("outputs.0.form", "list", "form: expected one of tensor, maps, sequence"),
    ("outputs.0.form", ["maps"], "form: expected one of tensor, maps, sequence"),
    ("outputs.1.form", "maps", "maps have rows, and a label for each column"),
    ("inputs.0.shape", [0, 3], r"shape\[0\]: expected -1 or a positive integer"),
    ("inputs.0.shape", [-2, 3], r"shape\[0\]: expected -1 or a positive integer"),
    ("inputs.0.shape", [True, 3], r"shape\[0\]: expected -1 or a positive integer"),
    ("inputs.0.shape", [-1, 4], "columns: not one per element of the last axis"),
    ("inputs.0.columns.1.low", 10, r"columns\[1\]: low must be below high"),
    ("inputs.0.columns.1.low", "0", r"columns\[1\].low: expected a number"),
    ("inputs.0.columns.1.low", -(10**400), r"columns\[1\].low: expected a number"),
    ("inputs.0.columns.1.unit", "mm", r"columns\[1\]: unknown field 'unit'"),
    ("outputs.0.labels", ["no"], "labels: not one per element of the last axis"),
    ("outputs.0.labels", ["no", 1], r"labels\[1\]: expected 1 to 256 characters"),
    ("limits.max_rows", 0, "max_rows: expected 1 to 1048576"),
    ("limits.max_rows", 1.0, "max_rows: expected 1 to 1048576"),
    ("limits.max_row", 1, "manifest.limits: unknown field 'max_row'"),
    ("limits", None, "manifest.limits: expected an object"),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS)
def test_refuses_one_fault(path: str, value: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(encode(changed(DOCUMENT, path, value)))


@pytest.mark.parametrize("form", ["maps", "sequence"])
def test_what_is_presented_as_a_tensor(form: str) -> None:
    parsed = Manifest.from_json(encode(changed(DOCUMENT, "outputs.0.form", form)))
    assert parsed.outputs[0].form == form
    assert json.loads(parsed.to_json())["outputs"][0]["form"] == form
    assert "form" not in json.loads(parsed.to_json())["outputs"][1]


@pytest.mark.parametrize(
    ("path", "value"), [("inputs.0.datatype", "BYTES"), ("outputs.1.form", "sequence")]
)
def test_bf16_beside_what_onnxruntime_cannot(path: str, value: str) -> None:
    document = changed(DOCUMENT, "outputs.0.datatype", "BF16")
    assert Manifest.from_json(encode(document)).has_bf16
    with pytest.raises(ManifestError, match="BF16 beside BYTES inputs"):
        Manifest.from_json(encode(changed(document, path, value)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "manifest.json: not JSON"),
        (b"[]", "manifest.json: top level is not an object"),
        (b'{"name":"a","name":"b"}', "manifest.json: an object repeats a key"),
        (b"[" * 5000, "manifest.json: nested"),
        (b" " * ((4 << 20) + 1), "at most 4194304 allowed"),
    ],
)
def test_refuses_what_is_no_document(data: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(data)


@settings(deadline=None)
@given(mutated(DOCUMENT))
def test_any_change_is_read_or_refused(document: object) -> None:
    try:
        parsed = Manifest.from_json(encode(document))
    except ManifestError:
        return
    assert Manifest.from_json(parsed.to_json()) == parsed
