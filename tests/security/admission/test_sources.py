"""security.admission.sources: bundles in mounted folders, whoever wrote them."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.errors import AdmissionRefused, SettingsError
from security.settings.loading import load_settings
from tests.conftest import TAG
from tests.support import images
from tests.support.bundles import Keys, write_bundle

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from security.admission.sources import read_served, served_tags

# BentoML imports more of itself at the first use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def layout(folder: Path, bundle: Path, *, place: str = "models") -> Path:
    """An image that holds nothing but the bundle."""
    files = read_bundle(bundle).files
    layer = [(f"{place}/{name}", data) for name, data in files.items()]
    return images.save(folder, layer, docker=False)


def test_a_bundle_is_read_whole(bundle_folder: Path) -> None:
    entry = f"path:{bundle_folder}"
    assert served_tags([entry, "other:2.0.0"]) == (TAG, "other:2.0.0")
    assert read_served(TAG, [entry]) == read_bundle(bundle_folder)


def test_an_oci_layout_holds_the_same(tmp_path: Path, bundle_folder: Path) -> None:
    entry = f"path:{layout(tmp_path / 'image', bundle_folder)}"
    assert served_tags([entry]) == (TAG,)
    assert read_served(TAG, [entry]) == read_bundle(bundle_folder)


def test_of_a_folder_of_bundles_the_newest_version_comes_first(tmp_path: Path) -> None:
    keys = Keys.generate()
    for number, version in enumerate(("1.9.0", "1.10.0", "1.2.0")):
        write_bundle(tmp_path / str(number), keys, version=version)
    write_bundle(tmp_path / "a", keys, name="a-model")
    (tmp_path / ".snapshot").mkdir()
    assert served_tags([f"path:{tmp_path}"]) == (
        "a-model:1.0.0", "toy:1.10.0", "toy:1.9.0", "toy:1.2.0",
    )  # fmt: skip


def test_the_bytes_that_are_read_have_the_tag(bundle_folder: Path) -> None:
    """What is found first and what is read later may be two things."""
    entry, keys = f"path:{bundle_folder}", Keys.generate()

    def replace(version: str) -> None:
        shutil.rmtree(bundle_folder)
        write_bundle(bundle_folder, keys, version=version)

    # A version that no other test has put into the model store of this process.
    replace("1.9.7")
    (tag,) = served_tags([entry])
    replace("2.0.0")
    with pytest.raises(BundleError, match="is not in the model store"):
        read_served(tag, [entry])


def _link_file(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "model.onnx")


def _link_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")


def _link_evidence(folder: Path) -> None:
    (folder / "evidence").rename(folder.parent / "evidence")
    (folder / "evidence").symlink_to(folder.parent / "evidence")


def _link_itself(folder: Path) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))


def _huge_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(5 << 20)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_link_file, "model.onnx: too many levels of symbolic links"),
        (_link_manifest, "manifest.json: too many levels of symbolic links"),
        (_link_evidence, "evidence: not a folder"),
        (_link_itself, "not a folder, or a link to one"),
        (_huge_manifest, "manifest.json: 5242880 bytes, at most"),
        (lambda f: (f / "x").write_text(""), "'x' does not belong in a bundle"),
        (lambda f: os.mkfifo(f / "model.sig"), "model.sig: not a regular file"),
        (shutil.rmtree, "No such file or directory"),
    ],
)
def test_a_folder_that_does_harm(
    bundle_folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    entry = f"path:{bundle_folder}"
    harm(bundle_folder)
    with pytest.raises(BundleError, match=message):
        read_served(*served_tags([entry]), [entry])


def test_folders_of_bundles_that_are_refused(
    tmp_path: Path, bundle_folder: Path
) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    with pytest.raises(BundleError, match="no bundle is there"):
        served_tags([f"path:{folder}"])
    shutil.copytree(bundle_folder, folder / "one")
    (folder / "two").symlink_to(bundle_folder)
    with pytest.raises(BundleError, match="two: not a folder, or a link to one"):
        served_tags([f"path:{folder}"])
    (folder / "two").unlink()
    shutil.copytree(bundle_folder, folder / "two")
    with pytest.raises(BundleError, match=f"{TAG} is in .*/one and in .*/two"):
        served_tags([f"path:{folder}"])
    with pytest.raises(SettingsError, match=f"{TAG} is there twice"):
        served_tags([f"path:{bundle_folder}", TAG])
    with pytest.raises(SettingsError, match="equal but for case"):
        served_tags([f"path:{bundle_folder}", "TOY:2.0.0"])


def test_layouts_that_are_refused(tmp_path: Path, bundle_folder: Path) -> None:
    other = layout(tmp_path / "other", bundle_folder, place="bundle")
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        served_tags([f"path:{other}"])
    (other / "index.json").unlink()
    with pytest.raises(BundleError, match="other: No such file or directory"):
        served_tags([f"path:{other}"])
    changed = layout(tmp_path / "changed", bundle_folder)
    blobs = sorted(
        (changed / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size
    )
    with blobs[-1].open("r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    with pytest.raises(AdmissionRefused, match="layer"):
        served_tags([f"path:{changed}"])


@pytest.mark.parametrize("entry", ["path:bundles/credit", "path:", "credit"])
def test_settings_name_a_full_tag_or_an_absolute_path(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"service\.models"):
        load_settings({"SEALGATE_SERVICE_MODELS": entry})
