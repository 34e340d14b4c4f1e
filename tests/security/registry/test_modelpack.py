"""security.registry.modelpack: by the specification, and artifacts that do harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from models.bundle import VERDICT_FILE, read_bundle
from models.errors import BundleError
from security.registry.modelpack import artifact_of
from security.registry.transfer import pull, push
from tests.support.registries import Memory
from tests.support.servers import ROOT

NOTE = "dev.sealgate.attestations"
PATH = "org.cncf.model.filepath"


@pytest.fixture
def store(bundle_folder: Path) -> Memory:
    store = Memory()
    push(read_bundle(bundle_folder), store, form="modelpack", tag="1")
    return store


def edit(store: Memory, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(store.data)
    change(manifest)
    store.data = json.dumps(manifest).encode()


def attestations(store: Memory, change: Callable[[list[Any]], object]) -> None:
    def inside(manifest: dict[str, Any]) -> None:
        items = json.loads(manifest["annotations"][NOTE])
        change(items)
        manifest["annotations"][NOTE] = json.dumps(items)

    edit(store, inside)


def refused(store: Memory, to: Path, message: str) -> None:
    to.mkdir()
    with pytest.raises(BundleError, match=message):
        pull(store, to)


def test_the_manifest_is_the_specifications(bundle_folder: Path) -> None:
    """model-spec 0.0.7, docs/spec.md; its schema is of the configuration."""
    artifact = artifact_of(read_bundle(bundle_folder))
    manifest = json.loads(artifact.manifest)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = {
        layer["annotations"][PATH]: layer["mediaType"].rpartition(".v1.")[0]
        for layer in manifest["layers"]
    }
    assert kinds["model.onnx"] == "application/vnd.cncf.model.weight"
    assert kinds["manifest.json"] == "application/vnd.cncf.model.weight.config"
    assert kinds["evidence/quality.json"] == "application/vnd.cncf.model.doc"
    (config,) = artifact.blobs[0].parts()
    schema = ROOT / "tests" / "fixtures" / "modelpack" / "config-schema.json"
    jsonschema.validate(json.loads(config), json.loads(schema.read_bytes()))
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert json.loads(config)["modelfs"]["diffIds"] == digests


def test_attestations_refer_to_it(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    artifact = artifact_of(bundle)
    digest = f"sha256:{hashlib.sha256(artifact.manifest).hexdigest()}"
    signed = sorted(name for name in bundle.files if name.startswith("attestations/"))
    assert len(artifact.referrers) == len(signed) == 4
    for name, referrer in zip(signed, artifact.referrers):
        manifest = json.loads(referrer.manifest)
        assert manifest["subject"]["digest"] == digest
        kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
        assert manifest["artifactType"] == kind
        assert manifest["layers"][0]["annotations"][PATH] == name
        assert b"".join(referrer.blobs[1].parts()) == bundle.files[name]
        assert json.loads(bundle.files[name])["mediaType"] == kind


def test_there_and_back(store: Memory, bundle_folder: Path, tmp_path: Path) -> None:
    bundle, to = read_bundle(bundle_folder), tmp_path / "to"
    to.mkdir()
    digest = pull(store, to)
    assert read_bundle(to) == bundle
    assert push(bundle, Memory(), form="modelpack", tag="2") == digest


def test_a_verdict_is_part_of_what_the_digest_names(
    store: Memory, bundle_folder: Path, tmp_path: Path
) -> None:
    """Whoever may write to the repository adds none, and replaces none."""
    before = hashlib.sha256(store.data).digest()
    path = bundle_folder / VERDICT_FILE
    path.write_bytes(path.read_bytes() + b" ")
    push(read_bundle(bundle_folder), store, form="modelpack", tag="1")
    assert hashlib.sha256(store.data).digest() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["layers"].append(m["layers"][0]), "twice in the artifact"),
        (lambda m: m["layers"][0].pop("annotations"), "'' does not belong"),
        (lambda m: m["layers"][0]["annotations"].update({PATH: "../x"}), "not belong"),
        (lambda m: m["layers"][0]["annotations"].update({PATH: "/x"}), "not belong"),
        (lambda m: m["layers"][0].update(size=1 << 33), "bytes, at most"),
        (lambda m: m["layers"][0].update(size=3), "other bytes than its digest"),
        (
            lambda m: m["layers"][0]["annotations"].update({PATH: VERDICT_FILE}),
            "attestations are referrers",
        ),
        (lambda m: m["annotations"].update({NOTE: "{}"}), "not a list of attestations"),
        (lambda m: m["annotations"].update({NOTE: "["}), "not a list of attestations"),
        (lambda m: m["annotations"].update({NOTE: "[1]"}), "descriptor is no object"),
        (lambda m: m.update(layers=[m["layers"][0]] * 257), "more than 256"),
    ],
)
def test_manifests_that_do_harm(
    store: Memory, tmp_path: Path, change: Any, message: str
) -> None:
    edit(store, change)
    refused(store, tmp_path / "to", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i[0]["annotations"].update({PATH: "model.sig"}), "are referrers"),
        (lambda i: i[0]["annotations"].update({PATH: "attestations/x"}), "not belong"),
        (lambda i: i.append(i[0]), "twice"),
        (lambda i: i[0].update(size=1 << 30), "bytes, at most"),
        (lambda i: i.extend([i[0]] * 300), "not a list"),
    ],
)
def test_attestations_that_do_harm(
    store: Memory, tmp_path: Path, change: Any, message: str
) -> None:
    attestations(store, change)
    refused(store, tmp_path / "to", message)
