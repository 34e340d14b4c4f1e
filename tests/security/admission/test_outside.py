"""security.admission.outside: a Bento that is not believed, checked from outside.

test_images.py has the images that hold one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from models.errors import BundleError
from models.files import write_atomic
from sealgate.protocol.dsse import public_pem
from security.admission.trust import trust_document
from security.errors import AdmissionRefused, KeyFileError
from security.settings.admission import AdmissionSettings
from security.settings.loading import load_settings
from tests.conftest import toy_settings
from tests.support.bundles import Keys, write_bundle
from tests.support.servers import ROOT, bentoml, environment

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    from security.admission.outside.bento import verify_bento
    from security.admission.outside.bytecode import bytecode, cached_name
    from security.admission.outside.description import parse_description
    from security.admission.outside.image import OWN_PATH
    from security.admission.outside.release import (
        Release,
        build_release,
        check_release,
    )

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def built(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with one Bento in it. Not to be changed."""
    home = tmp_path_factory.mktemp("outside") / "home"
    shutil.copytree(pristine, home)
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
def settings(home: Path) -> AdmissionSettings:
    return load_settings({"SEALGATE_HOME": str(home), **toy_settings(home)}).admission


def own_models(bento: Path, home: Path) -> Path:
    """Put the models into the Bento, as BentoML does for an image."""
    stored = home / "bentoml" / "models"
    return Path(shutil.copytree(stored, bento / "models", dirs_exist_ok=True))


def test_a_bento_with_its_models_in_the_store(
    bento: Path, settings: AdmissionSettings
) -> None:
    (admission,) = verify_bento(bento, settings, release=ROOT)
    assert admission.bundle.manifest.tag == "toy:1.0.0"


def test_a_bento_with_its_models_inside(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    own_models(bento, home)
    shutil.rmtree(home / "bentoml" / "models" / "toy")
    (admission,) = verify_bento(bento, settings)
    assert admission.bundle.manifest.tag == "toy:1.0.0"


def refused(
    bento: Path, settings: AdmissionSettings, message: str, **more: Path
) -> None:
    with pytest.raises(AdmissionRefused, match=message):
        verify_bento(bento, settings, **more)


def test_no_bento(tmp_path: Path, settings: AdmissionSettings) -> None:
    refused(tmp_path / "nowhere", settings, "holds no Bento")


def test_another_service(bento: Path, settings: AdmissionSettings) -> None:
    path = bento / "bento.yaml"
    other = path.read_text().replace("service.app:Sealgate", "other:Service")
    path.write_text(other)
    refused(bento, settings, "service: not that of the service Sealgate")


def test_a_source_beyond_the_list(bento: Path, settings: AdmissionSettings) -> None:
    write_atomic(bento / "src" / "extra.py", b"")
    refused(bento, settings, r"extra.py may not be packaged \[check 26\]")


def test_a_linked_source(bento: Path, settings: AdmissionSettings) -> None:
    os.symlink("/etc/passwd", bento / "src" / "service" / "x.py")
    refused(bento, settings, r"service/x.py is not a regular file")


def test_sources_that_are_a_link(bento: Path, settings: AdmissionSettings) -> None:
    (bento / "src").rename(bento / "elsewhere")
    (bento / "src").symlink_to(bento / "elsewhere")
    refused(bento, settings, "has no src folder")


def test_a_source_that_is_not_the_releases(
    bento: Path, settings: AdmissionSettings
) -> None:
    with (bento / "src" / "security" / "admission" / "gate.py").open("a") as file:
        file.write("\ndef verify(*_, **__): ...\n")
    verify_bento(bento, settings)  # the allow-list knows names, not contents
    refused(bento, settings, r"admission/gate.py is not the release's", release=ROOT)


# Bytecode, which an image of deploy/container/Dockerfile brings along.


@pytest.fixture
def rootfs(bento: Path, home: Path, tmp_path: Path) -> Path:
    """The file system of an image, with the bytecode of one module."""
    own_models(bento, home)
    folder = tmp_path / "rootfs"
    shutil.move(bento, folder / OWN_PATH.lstrip("/"))
    write_code(folder, GATE)
    return folder


GATE = "security/admission/gate.py"


def write_code(rootfs: Path, name: str, text: bytes | None = None) -> Path:
    """Bytecode for one source: of that, or of other text."""
    source = rootfs / "bento" / "src" / name
    code = bytecode(text or source.read_bytes(), f"{OWN_PATH}/src/{name}")
    path = Path(cached_name(str(source)))
    write_atomic(path, code)
    return path


def test_bytecode_in_an_image(rootfs: Path, settings: AdmissionSettings) -> None:
    (admission,) = verify_bento(rootfs, settings, release=ROOT)
    assert admission.bundle.manifest.tag == "toy:1.0.0"


def test_the_dockerfiles_way_of_making_it(tmp_path: Path) -> None:
    """As a script in another process, and with other names in memory."""
    source = tmp_path / "a" / "b.py"
    write_atomic(source, (ROOT / GATE).read_bytes())
    script = ROOT / "security" / "admission" / "outside" / "bytecode.py"
    subprocess.run([sys.executable, script, tmp_path, "/bento/src"], check=True)
    made = Path(cached_name(str(source))).read_bytes()
    assert made == bytecode(source.read_bytes(), "/bento/src/a/b.py")


def test_bytecode_of_other_sources(rootfs: Path, settings: AdmissionSettings) -> None:
    """It would run in place of the source that was reviewed."""
    write_code(rootfs, GATE, b"print('anything')\n")
    for more in ({}, {"release": ROOT}):
        refused(rootfs, settings, "is not the bytecode of security/adm", **more)


def test_bytecode_of_no_source(rootfs: Path, settings: AdmissionSettings) -> None:
    path = write_code(rootfs, GATE)
    path.rename(path.with_name("extra" + path.name.removeprefix("gate")))
    refused(rootfs, settings, "may not be packaged")


def test_bytecode_of_another_python(rootfs: Path, settings: AdmissionSettings) -> None:
    path = write_code(rootfs, GATE)
    path.write_bytes(b"\0\0\r\n" + path.read_bytes()[4:])
    refused(rootfs, settings, "of another version of Python")


def test_a_source_that_cannot_be_compiled(
    rootfs: Path, settings: AdmissionSettings
) -> None:
    (rootfs / "bento" / "src" / GATE).write_bytes(b"(" * 10_000)
    refused(rootfs, settings, "gate.py: cannot be compiled")


def test_bytecode_in_a_bento_outside_of_an_image(
    bento: Path, settings: AdmissionSettings
) -> None:
    source = bento / "src" / GATE
    code = bytecode(source.read_bytes(), f"{OWN_PATH}/src/{GATE}")
    write_atomic(Path(cached_name(str(source))), code)
    refused(bento, settings, "may not be packaged")


def test_no_lock(bento: Path, settings: AdmissionSettings) -> None:
    (bento / "src" / "admission.lock.json").unlink()
    refused(bento, settings, r"lock file: .* no such file .*check 16")


@pytest.mark.parametrize("models", [{"../../x:1.0.0": {}}, {"toy:latest": {}}])
def test_a_lock_without_full_tags(
    bento: Path, settings: AdmissionSettings, models: dict[str, object]
) -> None:
    path = bento / "src" / "admission.lock.json"
    lock = json.loads(path.read_bytes()) | {"models": models}
    path.write_text(json.dumps(lock))
    refused(bento, settings, "names no full tags")


def test_a_lock_that_forgot_a_model(bento: Path, settings: AdmissionSettings) -> None:
    """A Bento may have none, but then it has none."""
    path = bento / "src" / "admission.lock.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"models": {}}))
    refused(bento, settings, "names other models than the lock")
    (bento / "models" / "toy" / "1.0.0").mkdir(parents=True)
    refused(bento, settings, "model toy:1.0.0 is not in the lock")


def test_other_admitted_bytes(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    keys = Keys.of(home)
    inside = bento / "models" / "toy" / "1.0.0"
    write_bundle(inside, keys)
    refused(bento, settings, r"toy:1.0.0: other bytes than were packaged \[check 16\]")


def test_a_changed_model(bento: Path, home: Path, settings: AdmissionSettings) -> None:
    models = own_models(bento, home)
    with (models / "toy" / "1.0.0" / "model.onnx").open("ab") as model:
        model.write(b"\x00")
    refused(bento, settings, r"toy:1.0.0: .*about other bytes")


def test_a_model_that_lies_in_wait(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    models = own_models(bento, home)
    shutil.copytree(models / "toy" / "1.0.0", models / "toy" / "2.0.0")
    refused(bento, settings, r"model toy:2.0.0 is not in the lock")


def test_a_linked_models_folder(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    shutil.rmtree(bento / "models", ignore_errors=True)
    (bento / "models").symlink_to(home / "bentoml" / "models")
    refused(bento, settings, "models is not a folder")


def test_a_model_under_another_name(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    path = bento / "src" / "admission.lock.json"
    lock = json.loads(path.read_bytes())
    lock["models"] = {"odd:1.0.0": lock["models"]["toy:1.0.0"]}
    path.write_text(json.dumps(lock))
    description = bento / "bento.yaml"
    description.write_text(description.read_text().replace("toy:1.0.0", "odd:1.0.0"))
    models = own_models(bento, home)
    (models / "toy").rename(models / "odd")
    with pytest.raises(BundleError, match=r"odd:1.0.0: is really toy:1.0.0"):
        verify_bento(bento, settings)


def test_a_model_that_is_nowhere(
    bento: Path, home: Path, settings: AdmissionSettings
) -> None:
    shutil.rmtree(home / "bentoml" / "models" / "toy")
    with pytest.raises(BundleError, match=r"toy:1.0.0 is not in the model store"):
        verify_bento(bento, settings)


def test_a_trust_root_of_the_bentos_own(
    bento: Path, settings: AdmissionSettings
) -> None:
    with pytest.raises(KeyFileError, match=r"none.json: no such file"):
        verify_bento(bento, replace(settings, trust=bento.parent / "none.json"))


def test_a_verifier_with_other_keys(
    bento: Path, settings: AdmissionSettings, tmp_path: Path
) -> None:
    keys = Keys.generate()
    roles = {"release": [public_pem(keys.release.public_key())]}
    write_atomic(tmp_path / "trust.json", trust_document(roles))
    other = replace(settings, trust=tmp_path / "trust.json")
    refused(bento, other, "not trusted for it")


# Everything in a Bento against a release: what passed before, compared with *.py alone.


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


SETTINGS = "src/deploy/service.toml"
EDITS = {
    "issuer": (SETTINGS, "[access]", '[access]\nissuer = "https://evil.example"'),
    "plaintext": (SETTINGS, "[sealing]", "[sealing]\nrequire_sealed = false"),
    "everyone granted": ("src/deploy/access.toml", "\n", "\n# everyone\n"),
    "no quotas": ("src/deploy/quotas.toml", "\n", "\n# none\n"),
    "policy": ("src/deploy/policy.toml", "max = 3.0", "max = 300.0"),
    "interface": ("src/service/openapi.yaml", "openapi:", "openapi: "),
    "code": ("src/security/admission/gate.py", "It does no I/O.", "It does I/O."),
    "entry point": ("env/docker/entrypoint.sh", "_main() {", "_main() { evil;"),
    "dockerfile": ("env/docker/Dockerfile", "python:3.11-slim", "evil:latest"),
    "requirements": ("env/python/requirements.txt", "a2wsgi==1", "a2wsgi==2"),
    "requirements.in": ("env/python/requirements.in", "a2wsgi==1", "a2wsgi==2"),
    "description": ("README.md", "Sealgate", "Sealgate!"),
    "schema": ("apis/schema.json", "sealgate", "sealgates"),
    "api": ("apis/openapi.yaml", "components", "component"),
    "base image": ("bento.yaml", "python:3.11-slim", "evil:latest"),
    "python": ("bento.yaml", "python_version: '3.11'", "python_version: '3.12'"),
    "no python": ("bento.yaml", "python_version: '3.11'", "python_version: x"),
    "installed": ("bento.yaml", "a2wsgi==1", "a2wsgi==2"),
    "commands": ("bento.yaml", "  commands: []", "  commands: [curl evil]"),
    "later": ("bento.yaml", "post_commands: []", "post_commands: [curl evil]"),
    "build": ("bento.yaml", "build_include: []", "build_include: [evil]"),
    "another BentoML": ("bento.yaml", "bentoml_version: ", "bentoml_version: 9"),
}


@pytest.fixture(scope="module")
def release() -> Release:
    return build_release(
        ROOT, "Sealed, authenticated inference on admitted ONNX models."
    )


def differs(bento: Path, release: Release, message: str) -> None:
    description = parse_description((bento / "bento.yaml").read_bytes())
    with pytest.raises(AdmissionRefused, match=message) as caught:
        check_release(bento, description, release)
    assert caught.value.check == 26


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_is_not_the_releases(
    bento: Path, release: Release, name: str
) -> None:
    file, old, new = EDITS[name]
    check_release(
        bento, parse_description((bento / "bento.yaml").read_bytes()), release
    )
    edited(bento / file, old, new)
    named = "BentoML 9" if name == "another BentoML" else Path(file).name
    differs(bento, release, f"{named}.*release")


def test_a_file_that_is_missing_or_empty(bento: Path, release: Release) -> None:
    (bento / "src" / "deploy" / "quotas.toml").unlink()
    differs(bento, release, r"deploy/quotas.toml is missing")
    write_atomic(bento / "src" / "deploy" / "quotas.toml", b"")
    differs(bento, release, r"deploy/quotas.toml is not the release's")


@pytest.mark.parametrize(
    "name", ["src/service/evil.py", "env/docker/script__0", "env/python/pip_args.txt"]
)
def test_a_new_file_on_the_list(
    bento: Path, settings: AdmissionSettings, release: Release, name: str
) -> None:
    write_atomic(bento / name, b"evil")
    verify_bento(bento, settings)
    differs(bento, release, "is not in the release")


@pytest.mark.parametrize("name", ["evil.py", "apis/evil.json", ".env", "models.py"])
def test_a_file_that_belongs_in_no_bento(
    bento: Path, settings: AdmissionSettings, name: str
) -> None:
    write_atomic(bento / name, b"evil")
    refused(bento, settings, f"{name} does not belong in a Bento")


# bento.yaml: refused without a release too.

NOT_OURS = {
    "second service": ("service: service.app:Sealgate", "service: a\nservice: b"),
    "our key last": (
        "service: service.app:Sealgate",
        "service: evil:App\nservice: service.app:Sealgate",
    ),
    "two documents": (
        "service: service.app",
        "service: evil\n---\nservice: service.app",
    ),
    "no mapping": ("service: service.app:Sealgate", "- a\n- b\n"),
    "alias": ("labels: {}", "labels: &a {}\nmore: *a"),
    "a tag": ("labels: {}", "labels: !!python/object:os.system {}"),
    "merge": ("labels: {}", "<<: {service: evil}\nlabels: {}"),
    "new key": ("labels: {}", "labels: {}\nconda: {}"),
    "docker": ("labels: {}", "labels: {}\ndocker: {setup_script: evil.sh}"),
    "labels": ("labels: {}", "labels: {a: [1]}"),
    "environment": ("envs: []", "envs: [{name: SEALGATE_HOME, value: /evil}]"),
    "entry": ("entry_service: sealgate", "entry_service: evil"),
    "name": ("name: sealgate", "name: evil"),
    "arguments": ("args: {}", "args: {a: b}"),
    "spec": ("spec: 2", "spec: 1"),
    "spec as text": ("spec: 2", "spec: '2'"),
    "configuration": ("enabled: false", "enabled: true"),
    "dependencies": ("dependencies: []", "dependencies: [{service: evil}]"),
    "module": ("module: ''", "module: evil"),
    "alias of a model": ("module: ''", "module: ''\n    alias: evil"),
    "routes": ("routes: []", "routes: [{name: evil}]"),
    "paths": ("paths: {}", "paths: {/evil: {}}"),
    "about": ("description: Sealed", "description: [Sealed"),
    "image": ("build_include: []", "build_include: []\n  more: 1"),
    "models": ("models: []", "models: [{tag: evil:1}]"),
    "another model": ("tag: toy:1.0.0", "tag: toy:2.0.0"),
    "no text": ("labels: {}", "labels: {}\n1: 2"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_description_that_is_not_ours(
    bento: Path, settings: AdmissionSettings, name: str
) -> None:
    edited(bento / "bento.yaml", *NOT_OURS[name])
    refused(bento, settings, r"bento.yaml: ")


@settings_of(deadline=None, max_examples=200)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_nothing_breaks_its_reader(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    with pytest.raises(AdmissionRefused):
        parse_description(data)
