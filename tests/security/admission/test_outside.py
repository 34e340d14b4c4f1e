"""security.admission.outside: a Bento that is not believed, checked from outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import BundleError
from models.files import write_atomic
from security.admission.keys import load_signing_key, public_pem, trust_document
from security.errors import AdmissionRefused, KeyFileError
from security.settings.loading import Settings, load_settings
from tests.conftest import toy_settings
from tests.support.bundles import Keys, write_bundle
from tests.support.servers import ROOT, bentoml, environment

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    from security.admission.outside import find_bento, verify_bento

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def built(deployment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with one Bento in it. Not to be changed."""
    home = tmp_path_factory.mktemp("outside") / "home"
    shutil.copytree(deployment, home, ignore=shutil.ignore_patterns("bentos", "*.log"))
    result = subprocess.run(
        bentoml("build"),
        cwd=ROOT,
        env=environment(home, toy_settings(home)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path):
    """A copy that a test may change, with its model store in effect."""
    home = Path(shutil.copytree(built, tmp_path / "home", symlinks=True))
    BentoMLContainer.model_store.set(ModelStore(home / "bentoml" / "models"))
    yield home
    BentoMLContainer.model_store.reset()


@pytest.fixture
def bento(home: Path) -> Path:
    (description,) = (home / "bentoml" / "bentos").glob("*/*/bento.yaml")
    return description.parent


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings({"SEALGATE_HOME": str(home), **toy_settings(home)})


def own_models(bento: Path, home: Path) -> Path:
    """Put the models into the Bento, as BentoML does for an image."""
    stored = home / "bentoml" / "models"
    return Path(shutil.copytree(stored, bento / "models", dirs_exist_ok=True))


def test_a_bento_with_its_models_in_the_store(bento: Path, settings: Settings) -> None:
    (admission,) = verify_bento(bento, settings, release=ROOT)
    assert admission.bundle.manifest.tag == "toy:1.0.0"


def test_a_bento_with_its_models_inside(
    bento: Path, home: Path, settings: Settings
) -> None:
    own_models(bento, home)
    shutil.rmtree(home / "bentoml" / "models" / "toy")
    (admission,) = verify_bento(bento, settings)
    assert admission.bundle.manifest.tag == "toy:1.0.0"


def test_an_image_folder(bento: Path, settings: Settings, tmp_path: Path) -> None:
    inner = tmp_path / "rootfs" / "home" / "bentoml" / "bento"
    shutil.copytree(bento, inner)
    assert find_bento(tmp_path / "rootfs") == inner
    assert len(verify_bento(tmp_path / "rootfs", settings)) == 1


def refused(bento: Path, settings: Settings, message: str, **more: Path) -> None:
    with pytest.raises(AdmissionRefused, match=message):
        verify_bento(bento, settings, **more)


def test_no_bento(tmp_path: Path, settings: Settings) -> None:
    refused(tmp_path / "nowhere", settings, "holds no Bento")


def test_another_service(bento: Path, settings: Settings) -> None:
    path = bento / "bento.yaml"
    other = path.read_text().replace("service.app:Sealgate", "other:Service")
    path.write_text(other)
    refused(bento, settings, "this is not the service")


def test_a_source_beyond_the_list(bento: Path, settings: Settings) -> None:
    write_atomic(bento / "src" / "extra.py", b"")
    refused(bento, settings, r"extra.py may not be packaged \[check 26\]")


def test_a_linked_source(bento: Path, settings: Settings) -> None:
    os.symlink("/etc/passwd", bento / "src" / "service" / "x.py")
    refused(bento, settings, r"service/x.py is not a regular file")


def test_sources_that_are_a_link(bento: Path, settings: Settings) -> None:
    (bento / "src").rename(bento / "elsewhere")
    (bento / "src").symlink_to(bento / "elsewhere")
    refused(bento, settings, "has no src folder")


def test_a_source_that_is_not_the_releases(bento: Path, settings: Settings) -> None:
    with (bento / "src" / "security" / "admission" / "gate.py").open("a") as file:
        file.write("\ndef verify(*_, **__): ...\n")
    verify_bento(bento, settings)  # the allow-list knows names, not contents
    refused(bento, settings, r"admission/gate.py is not the release's", release=ROOT)


def test_no_lock(bento: Path, settings: Settings) -> None:
    (bento / "src" / "admission.lock.json").unlink()
    refused(bento, settings, r"lock file: .* no such file .*check 16")


@pytest.mark.parametrize("models", [{}, {"../../x:1.0.0": {}}, {"toy:latest": {}}])
def test_a_lock_without_full_tags(
    bento: Path, settings: Settings, models: dict[str, object]
) -> None:
    path = bento / "src" / "admission.lock.json"
    lock = json.loads(path.read_bytes()) | {"models": models}
    path.write_text(json.dumps(lock))
    refused(bento, settings, "names no full tags")


def test_other_admitted_bytes(bento: Path, home: Path, settings: Settings) -> None:
    roles = ("trainer", "assessor", "privacy-officer", "release")
    keys = Keys(*(load_signing_key(home / "keys" / f"{role}.pem") for role in roles))
    inside = bento / "models" / "toy" / "1.0.0"
    write_bundle(inside, keys)
    refused(bento, settings, r"toy:1.0.0: other bytes than were packaged \[check 16\]")


def test_a_changed_model(bento: Path, home: Path, settings: Settings) -> None:
    models = own_models(bento, home)
    with (models / "toy" / "1.0.0" / "model.onnx").open("ab") as model:
        model.write(b"\x00")
    refused(bento, settings, r"toy:1.0.0: .*about other bytes")


def test_a_model_that_lies_in_wait(bento: Path, home: Path, settings: Settings) -> None:
    models = own_models(bento, home)
    shutil.copytree(models / "toy" / "1.0.0", models / "toy" / "2.0.0")
    refused(bento, settings, r"model toy:2.0.0 is not in the lock")


def test_a_linked_models_folder(bento: Path, home: Path, settings: Settings) -> None:
    shutil.rmtree(bento / "models", ignore_errors=True)
    (bento / "models").symlink_to(home / "bentoml" / "models")
    refused(bento, settings, "models is not a folder")


def test_a_model_under_another_name(
    bento: Path, home: Path, settings: Settings
) -> None:
    path = bento / "src" / "admission.lock.json"
    lock = json.loads(path.read_bytes())
    lock["models"] = {"odd:1.0.0": lock["models"]["toy:1.0.0"]}
    path.write_text(json.dumps(lock))
    models = own_models(bento, home)
    (models / "toy").rename(models / "odd")
    with pytest.raises(BundleError, match=r"odd:1.0.0: is really toy:1.0.0"):
        verify_bento(bento, settings)


def test_a_model_that_is_nowhere(bento: Path, home: Path, settings: Settings) -> None:
    shutil.rmtree(home / "bentoml" / "models" / "toy")
    with pytest.raises(BundleError, match=r"toy:1.0.0 is not in the model store"):
        verify_bento(bento, settings)


def test_a_trust_root_of_the_bentos_own(bento: Path, settings: Settings) -> None:
    trust = replace(settings.admission, trust=bento.parent / "none.json")
    with pytest.raises(KeyFileError, match=r"none.json: no such file"):
        verify_bento(bento, replace(settings, admission=trust))


def test_a_verifier_with_other_keys(
    bento: Path, settings: Settings, tmp_path: Path
) -> None:
    keys = Keys.generate()
    roles = {"release": [public_pem(keys.release.public_key())]}
    write_atomic(tmp_path / "trust.json", trust_document(roles))
    trust = replace(settings.admission, trust=tmp_path / "trust.json")
    refused(bento, replace(settings, admission=trust), "not trusted for it")
