"""models.bundle: a folder read once, within bounds, and hashed as it was read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import (
    BundleLimits,
    attestation_file,
    mldsa_file,
    read_bundle,
    root_digest,
)
from models.errors import BundleError, ManifestError
from models.files import write_atomic
from models.report import KINDS as ALL_KINDS
from sealgate.protocol.dsse import MAX_BUNDLE_BYTES
from tests.support.bundles import KINDS


def test_reads_every_file_and_its_digests(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    assert set(bundle.files) == {
        "model.onnx",
        "manifest.json",
        "attestations/verdict.sigstore.json",
        *(f"evidence/{kind}.json" for kind in KINDS),
        *(f"attestations/{kind}.sigstore.json" for kind in KINDS),
    }
    model, manifest = (bundle_folder / "model.onnx", bundle_folder / "manifest.json")
    digests = [hashlib.sha256(f.read_bytes()).digest() for f in (manifest, model)]
    assert bundle.subject.root_sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert bundle.subject.onnx_sha256 == digests[1].hex()
    assert (bundle.subject.name, bundle.subject.version) == ("toy", "1.0.0")
    assert bundle.model == model.read_bytes()


def test_the_bytes_stay_out_of_the_repr(bundle_folder: Path) -> None:
    assert len(repr(read_bundle(bundle_folder))) < 2000


def test_optional_documents_belong(bundle_folder: Path) -> None:
    for name in ("MODEL_CARD.md", "bom.cdx.json"):
        (bundle_folder / name).write_text("x")
    assert read_bundle(bundle_folder).files["MODEL_CARD.md"] == b"x"


def test_evidence_does_not_change_the_root(bundle_folder: Path) -> None:
    before = read_bundle(bundle_folder).subject
    (bundle_folder / "evidence" / "quality.json").write_text("{}")
    assert read_bundle(bundle_folder).subject == before


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_refuses_without(bundle_folder: Path, name: str) -> None:
    (bundle_folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(bundle_folder)


@pytest.mark.parametrize(
    "name",
    [
        "custom_objects.pkl",
        "model.yaml",
        ".hidden",
        "weights.bin",
        "evidence/opinion.json",
        "evidence/quality.json.bak",
        "evidence/deeper/quality.json",
        "attestations/quality.json",
        "attestations/.quality.sigstore.json.0a1b2c3d",
        "extra/file",
        "MODEL_CARD.md\n",
    ],
)
def test_refuses_a_file_that_does_not_belong(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(BundleError, match="does not belong in a bundle"):
        read_bundle(bundle_folder)


def test_refuses_a_name_that_is_not_text(bundle_folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(bundle_folder) + b"/\xff\xfe"))).write_bytes(b"")
    with pytest.raises(BundleError, match="does not belong in a bundle"):
        read_bundle(bundle_folder)


def test_a_store_may_keep_its_own_file_beside(bundle_folder: Path) -> None:
    (bundle_folder / "model.yaml").write_text("labels: {}")
    bundle = read_bundle(bundle_folder, ignore=frozenset({"model.yaml"}))
    assert "model.yaml" not in bundle.files


@pytest.mark.parametrize(
    "name", ["model.onnx", "manifest.json", "evidence/privacy.json"]
)
def test_refuses_a_link(bundle_folder: Path, tmp_path: Path, name: str) -> None:
    path = bundle_folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{path.name}: too many levels of symbolic"):
        read_bundle(bundle_folder)


def test_refuses_a_linked_folder(bundle_folder: Path, tmp_path: Path) -> None:
    (bundle_folder / "evidence").rename(tmp_path / "elsewhere")
    (bundle_folder / "evidence").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="evidence: not a folder"):
        read_bundle(bundle_folder)


def test_refuses_a_folder_for_a_model(bundle_folder: Path) -> None:
    (bundle_folder / "model.onnx").unlink()
    (bundle_folder / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model.onnx: not a regular file"):
        read_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            BundleLimits(max_model_bytes=10),
            r"model.onnx: \d+ bytes, at most 10 allowed",
        ),
        (BundleLimits(max_document_bytes=10), r"json: \d+ bytes, at most 10 allowed"),
        (BundleLimits(max_entries=3), "more than 3 files"),
    ],
)
def test_bounds(bundle_folder: Path, limits: BundleLimits, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle_folder, limits=limits)


def test_nine_signers_of_every_kind(bundle_folder: Path) -> None:
    """With a second signature each, and a waiver of each."""
    numbers = ["", *(f".{number}" for number in range(2, 10))]
    stems = [
        f"{kind}{number}" for kind in (*ALL_KINDS, "verdict") for number in numbers
    ]
    stems += [f"waiver-{kind}" for kind in ALL_KINDS]
    for stem in stems:
        for name in (attestation_file(stem), mldsa_file(attestation_file(stem))):
            write_atomic(bundle_folder / name, b"{}")
    files = read_bundle(bundle_folder).files
    assert sum(name.startswith("attestations/") for name in files) == 198


def test_a_signed_file_is_as_long_as_it_can_be_read(bundle_folder: Path) -> None:
    name = attestation_file("quality.2")
    write_atomic(bundle_folder / name, b" " * (MAX_BUNDLE_BYTES + 1))
    with pytest.raises(BundleError, match="at most 4194304 allowed"):
        read_bundle(bundle_folder)


def test_refuses_a_malformed_manifest(bundle_folder: Path) -> None:
    (bundle_folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ManifestError, match="manifest: missing"):
        read_bundle(bundle_folder)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing: No such file or directory"):
        read_bundle(tmp_path / "nothing")


def test_asks_for_a_report_that_is_not_there(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="fairness report is missing"):
        read_bundle(bundle_folder).report("fairness")


@given(st.dictionaries(st.text(), st.binary(), min_size=1, max_size=4), st.binary())
def test_any_change_changes_the_root(files: dict[str, bytes], other: bytes) -> None:
    name = min(files)
    digest = root_digest(files)
    assert digest == root_digest(dict(reversed(files.items())))
    assert (root_digest({**files, name: other}) == digest) == (other == files[name])
