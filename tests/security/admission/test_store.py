"""security.admission.store: a convenience that is never believed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle import VERDICT_FILE, read_bundle
from models.errors import BundleError
from sealgate.protocol.dsse import public_pem
from security.admission.doors import verify_bundle
from security.admission.gate import Admission
from security.admission.trust import trust_document
from security.errors import AdmissionRefused, KeyFileError, SettingsError
from security.settings.admission import AdmissionSettings
from tests.support.bundles import POLICY, Keys, write_bundle

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    from security.admission.store import (
        read_stored,
        refuse_stored,
        store_bundle,
        stored_tags,
    )

# It imports more of itself at the first use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TAG = "toy:1.0.0"


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[Path]:
    """A model store of its own; BentoML reads BENTOML_HOME once per process."""
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    BentoMLContainer.model_store.set(ModelStore(folder))
    BentoMLContainer.bentoml_home.set(str(folder.parent))
    yield folder
    BentoMLContainer.model_store.reset()
    BentoMLContainer.bentoml_home.reset()


@pytest.fixture
def admission(tmp_path: Path, keys: Keys) -> AdmissionSettings:
    roles = {
        role: [public_pem(getattr(keys, role).public_key())]
        for role in ("trainer", "assessor", "release")
    }
    (tmp_path / "trust.json").write_bytes(trust_document(roles))
    (tmp_path / "policy.toml").write_bytes(POLICY)
    return AdmissionSettings(tmp_path / "trust.json", tmp_path / "policy.toml")


def verify_stored(tag: str, settings: AdmissionSettings) -> Admission:
    """What a door does with a version in the store."""
    return verify_bundle(read_stored(tag), settings)


def test_what_is_stored_is_what_was_in_the_folder(bundle_folder: Path) -> None:
    assert store_bundle(bundle_folder) == (TAG, True)
    assert read_stored(TAG).files == read_bundle(bundle_folder).files


def test_a_stored_model_is_as_open_as_the_store(
    bundle_folder: Path, store: Path
) -> None:
    """BentoML's images copy the folder, and run as another user than its owner."""
    for mode in (0o755, 0o700):
        store.chmod(mode)
        store_bundle(bundle_folder)
        assert (store / "toy" / "1.0.0").stat().st_mode & 0o777 == mode
        shutil.rmtree(store / "toy")


def test_an_admitted_model_verifies(
    bundle_folder: Path, admission: AdmissionSettings
) -> None:
    store_bundle(bundle_folder)
    assert verify_stored(TAG, admission).bundle.manifest.tag == TAG


def test_the_same_bundle_twice_is_no_harm(bundle_folder: Path) -> None:
    assert store_bundle(bundle_folder) == (TAG, True)
    assert store_bundle(bundle_folder) == (TAG, False)


def _store(folder: Path, store: Path) -> str:
    """In a process of its own, with the store of the test."""
    BentoMLContainer.model_store.set(ModelStore(store))
    BentoMLContainer.bentoml_home.set(str(store.parent))
    try:
        return "stored" if store_bundle(folder)[1] else "there"
    except BundleError as error:
        return str(error)


@pytest.mark.parametrize("same", [True, False])
def test_several_at_once(
    bundle_folder: Path, tmp_path: Path, store: Path, keys: Keys, *, same: bool
) -> None:
    """One stores; the others say that it is there, or that other bytes are."""
    folders = [bundle_folder] * 3
    if not same:
        folders = [write_bundle(tmp_path / str(n), keys) for n in range(3)]
    fork = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fork beside BentoML's threads
        with fork.Pool(3) as pool:
            said = pool.starmap(_store, [(folder, store) for folder in folders])
    others = "there" if same else f"{TAG} is in the model store already, with other"
    assert said.count("stored") == 1
    assert sum(item.startswith(others) for item in said) == 2
    stored = read_stored(TAG).files
    assert stored in [read_bundle(folder).files for folder in folders]


def test_a_stored_version_is_never_replaced(
    bundle_folder: Path, tmp_path: Path, keys: Keys
) -> None:
    store_bundle(bundle_folder)
    other = write_bundle(tmp_path / "other", keys)  # signed anew: other bytes
    with pytest.raises(BundleError, match="already, with other contents"):
        store_bundle(other)
    assert read_stored(TAG).files == read_bundle(bundle_folder).files


def test_another_verdict_is_named_with_what_to_do(
    bundle_folder: Path, store: Path
) -> None:
    store_bundle(bundle_folder)
    verdict = bundle_folder / VERDICT_FILE
    verdict.write_bytes(verdict.read_bytes() + b" ")
    with pytest.raises(BundleError, match="with another verdict") as caught:
        store_bundle(bundle_folder)
    assert f"bentoml models delete {TAG}`" in str(caught.value)
    with pytest.raises(BundleError, match="with another verdict"):
        refuse_stored(read_bundle(bundle_folder))
    shutil.rmtree(store / "toy")
    refuse_stored(read_bundle(bundle_folder))
    assert store_bundle(bundle_folder) == (TAG, True)


def test_only_a_bundle_is_stored(bundle_folder: Path, store: Path) -> None:
    (bundle_folder / "custom_objects.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError, match="does not belong in a bundle"):
        store_bundle(bundle_folder)
    assert not (store / "toy").exists()


@pytest.mark.parametrize(
    "tag",
    ["toy", "toy:latest", "toy:1.0", "toy:1", "TOY:1.0.0", "toy:1.0.1", "x:1", "", ":"],
)
def test_only_the_full_tag_finds_it(bundle_folder: Path, tag: str) -> None:
    store_bundle(bundle_folder)
    reason = "(?:is not in the model store|in the model store is really toy)"
    with pytest.raises(BundleError, match=f"^{tag} {reason}"):
        read_stored(tag)


def test_a_name_with_capitals_keeps_them(
    tmp_path: Path, keys: Keys, admission: AdmissionSettings, store: Path
) -> None:
    """BentoML's own name of it has none."""
    tag = "DenseNet_onnx.v2:1.0.0"
    bundle = write_bundle(tmp_path / "named", keys, name="DenseNet_onnx.v2")
    assert [store_bundle(bundle), store_bundle(bundle)] == [(tag, True), (tag, False)]
    assert (store / "densenet_onnx.v2" / "1.0.0").is_dir()
    assert verify_stored(tag, admission).bundle.manifest.tag == tag
    assert stored_tags() == [tag]
    with pytest.raises(BundleError, match="is really DenseNet"):
        read_stored(tag.lower())


def test_names_that_are_equal_but_for_case_are_refused(
    bundle_folder: Path, tmp_path: Path, keys: Keys
) -> None:
    """Also in another version: they would be versions of one model there."""
    store_bundle(bundle_folder)
    other = write_bundle(tmp_path / "other", keys, name="Toy", version="2.0.0")
    with pytest.raises(BundleError, match="has toy, equal but for case"):
        store_bundle(other)
    assert stored_tags() == [TAG]


def test_a_tag_that_lies(bundle_folder: Path, store: Path) -> None:
    store_bundle(bundle_folder)
    os.rename(store / "toy" / "1.0.0", store / "toy" / "2.0.0")
    description = (store / "toy" / "2.0.0" / "model.yaml").read_text()
    (store / "toy" / "2.0.0" / "model.yaml").write_text(
        description.replace("version: 1.0.0", "version: 2.0.0")
    )
    with pytest.raises(BundleError, match=r"is really toy:1\.0\.0|not in the model"):
        read_stored("toy:2.0.0")


def test_bentomls_description_is_not_evidence(
    bundle_folder: Path, store: Path, admission: AdmissionSettings
) -> None:
    store_bundle(bundle_folder)
    before = verify_stored(TAG, admission)
    path = store / "toy" / "1.0.0" / "model.yaml"
    labels = path.read_text().replace("labels: {}", "labels: {approved: 'yes'}")
    path.write_text(labels)
    assert "approved" in str(bentoml.models.get(TAG).info.labels)
    assert verify_stored(TAG, admission).verdict_sha256 == before.verdict_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom_objects.pkl", "does not belong in a bundle"),
        ("weights.bin", "does not belong in a bundle"),
        ("evidence/x.pkl", "does not belong in a bundle"),
    ],
)
def test_nothing_is_added_in_the_store(
    bundle_folder: Path,
    store: Path,
    admission: AdmissionSettings,
    name: str,
    message: str,
) -> None:
    store_bundle(bundle_folder)
    (store / "toy" / "1.0.0" / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError, match=message):
        verify_stored(TAG, admission)


def test_a_model_changed_in_the_store(
    bundle_folder: Path, store: Path, admission: AdmissionSettings
) -> None:
    store_bundle(bundle_folder)
    with (store / "toy" / "1.0.0" / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(AdmissionRefused, match="about other bytes"):
        verify_stored(TAG, admission)


def test_a_model_that_was_never_admitted(
    bundle_folder: Path, admission: AdmissionSettings
) -> None:
    (bundle_folder / VERDICT_FILE).unlink()
    store_bundle(bundle_folder)
    with pytest.raises(AdmissionRefused, match="verdict is missing"):
        verify_stored(TAG, admission)


def test_without_trust_or_policy_nothing_passes(
    bundle_folder: Path, admission: AdmissionSettings
) -> None:
    store_bundle(bundle_folder)
    admission.trust.rename(admission.trust.with_name("elsewhere"))
    with pytest.raises(KeyFileError, match="trust root"):
        verify_stored(TAG, admission)
    admission.policy.unlink()
    with pytest.raises(SettingsError, match="policy"):
        verify_stored(TAG, admission)
