"""security.admission.hooks: the gate, through BentoML's own commands."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from models.bundle import read_bundle
from models.files import write_atomic
from sealgate import Client
from sealgate.protocol.dsse import public_pem
from security.admission.contents import check_sources
from security.admission.trust import ROLES, trust_document
from security.errors import AdmissionRefused
from tests.conftest import TAG, check_security, mint, run_security, toy_settings
from tests.support.bundles import (
    KINDS,
    Keys,
    attest,
    manifest,
    report,
    sign,
    write_bundle,
)
from tests.support.servers import ROOT, bentoml, environment, free_port, serve

Result = subprocess.CompletedProcess


def run(home: Path, *arguments: str, cwd: Path = ROOT, **extra: str) -> Result:
    return subprocess.run(
        bentoml(*arguments),
        cwd=cwd,
        env=environment(home, toy_settings(home) | extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def serve_refused(
    home: Path, target: str, message: str, cwd: Path = ROOT, **extra: str
) -> None:
    """`bentoml serve` ends with one line and code 1, and nothing listens."""
    port = free_port()
    arguments = ("serve", target, "--port", str(port), "--host", "127.0.0.1")
    refused(run(home, *arguments, cwd=cwd, **extra), message)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def refused(result: Result, message: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def bentos(home: Path) -> list[Path]:
    return list((home / "bentoml" / "bentos").glob("*/*/bento.yaml"))


@pytest.fixture(scope="module")
def built(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the deployment with a Bento in it. Not to be changed."""
    home = tmp_path_factory.mktemp("built") / "home"
    shutil.copytree(pristine, home)
    result = run(home, "build")
    assert result.returncode == 0, result.stderr
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "home", symlinks=True))


@pytest.fixture
def source(home: Path) -> Path:
    (bento,) = bentos(home)
    return bento.parent / "src"


def stored(home: Path) -> Path:
    return home / "bentoml" / "models" / "toy" / "1.0.0"


def deployment_keys(home: Path) -> Keys:
    return Keys.of(home)


def replace_stored(home: Path, keys: Keys) -> None:
    """Put other bytes under the same tag, admitted by some keys."""
    overwrite_stored(home, write_bundle(home / "other", keys))


def overwrite_stored(home: Path, bundle: Path) -> None:
    """As if this bundle had been stored; documents of the other would not fit it."""
    for name in ("MODEL_CARD.md", "bom.cdx.json"):
        (stored(home) / name).unlink(missing_ok=True)
    for name, data in read_bundle(bundle).files.items():
        write_atomic(stored(home) / name, data)


@pytest.mark.slow
def test_an_admitted_model_builds_and_serves(
    home: Path, source: Path, tmp_path: Path
) -> None:
    lock = json.loads((source / "admission.lock.json").read_bytes())
    subject = read_bundle(stored(home), ignore=frozenset({"model.yaml"})).subject
    assert lock["models"].keys() == {TAG}
    assert lock["models"][TAG]["root_sha256"] == subject.root_sha256
    # A newer version in the store is admitted, and `latest`, and not what was built.
    write_bundle(
        stored(home).with_name("2.0.0"), deployment_keys(home), version="2.0.0"
    )
    (stored(home).parent / "latest").write_text("2.0.0")
    # What is mounted is served beside it.
    mounted = tmp_path / "mounted"
    write_bundle(mounted / "x", deployment_keys(home), name="second")
    extra = toy_settings(home) | {"SEALGATE_SERVICE_MODELS": f"path:{mounted}"}
    with serve("sealgate:latest", home, extra=extra) as server:
        admitted = re.findall("admitted (.*),", server.log.read_text())
        assert admitted == [TAG, "second:1.0.0"]
    # Of one tag there is one place: no folder stands in for what was packaged.
    write_bundle(mounted / "y", deployment_keys(home))
    message = f"refused: service.models: {TAG} is there twice"
    serve_refused(
        home, "sealgate:latest", message, SEALGATE_SERVICE_MODELS=f"path:{mounted}"
    )


@pytest.mark.slow
def test_a_name_with_capitals_builds_serves_and_verifies(home: Path) -> None:
    """What Triton's users call their models, beside BentoML's tags without capitals."""
    tag = "DenseNet_onnx.v2:1.0.0"
    bundle = write_bundle(
        home / "named", deployment_keys(home), name="DenseNet_onnx.v2"
    )
    models = {"SEALGATE_SERVICE_MODELS": f"{TAG},{tag}"}
    check_security(home, "store", str(bundle), **toy_settings(home))
    shutil.rmtree(home / "bentoml" / "bentos")
    result = run(home, "build", **models)
    assert result.returncode == 0, result.stderr
    (bento,) = bentos(home)
    extra = toy_settings(home) | models
    assert tag in check_security(home, "verify", str(bento.parent), **extra)
    token = mint(home, "infer:DenseNet_onnx.v2")
    extra |= {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
    with serve("sealgate:latest", home, extra=extra) as server:
        headers = {"authorization": f"Bearer {token}"}
        statuses = {
            name: httpx.get(f"{server.url}/v2/models/{name}", headers=headers)
            for name in ("DenseNet_onnx.v2", "densenet_onnx.v2", "toy")
        }
        assert [answer.status_code for answer in statuses.values()] == [200, 404, 404]
        assert statuses["DenseNet_onnx.v2"].json()["name"] == "DenseNet_onnx.v2"
        with Client(server.url, token=token) as client:
            client.infer("DenseNet_onnx.v2", {"features": [[1, 2, 3]]})


@pytest.mark.slow
def test_a_missing_report_ends_build_and_serve(home: Path) -> None:
    (stored(home) / "evidence" / "quality.json").unlink()
    before = bentos(home)
    message = f"{TAG} refused: quality report is missing"
    refused(run(home, "build"), message)
    assert bentos(home) == before
    serve_refused(home, "service.app:Sealgate", message)


@pytest.mark.slow
def test_a_model_changed_after_the_build(home: Path) -> None:
    with (stored(home) / "model.onnx").open("ab") as model:
        model.write(b"\x00")
    message = f"{TAG} refused: structure attestation is about other bytes [check 3]"
    serve_refused(home, "sealgate:latest", message)


@pytest.mark.slow
def test_a_bento_without_its_lock(home: Path, source: Path) -> None:
    (source / "admission.lock.json").unlink()
    message = "the Bento's lock file: admission.lock.json: no such file"
    serve_refused(home, "sealgate:latest", message)


@pytest.mark.slow
def test_other_admitted_bytes_under_the_same_tag(home: Path) -> None:
    replace_stored(home, deployment_keys(home))
    message = "the model store holds other bytes than were packaged [check 16]"
    serve_refused(home, "sealgate:latest", message)


@pytest.mark.slow
def test_a_trust_root_inside_the_bento_is_ignored(home: Path, source: Path) -> None:
    attacker = Keys.generate()
    replace_stored(home, attacker)
    roles = {
        role: [public_pem(getattr(attacker, role.replace("-", "_")).public_key())]
        for role in ROLES
    }
    for folder in (source, source / "deploy", source / ".sealgate"):
        write_atomic(folder / "trust.json", trust_document(roles))
    message = "signed by a key that is not trusted for it [check 2]"
    serve_refused(home, "sealgate:latest", message, cwd=source)


@pytest.mark.slow
def test_labels_change_nothing_and_a_pickle_is_refused(home: Path) -> None:
    description = stored(home) / "model.yaml"
    text = description.read_text().replace("labels: {}", "labels: {admitted: 'no'}")
    description.write_text(text)
    assert run(home, "build").returncode == 0
    (stored(home) / "custom_objects.pkl").write_bytes(b"\x80\x04.")
    message = "'custom_objects.pkl' does not belong in a bundle"
    refused(run(home, "build"), message)
    serve_refused(home, "sealgate:latest", message)


@pytest.mark.slow
def test_a_manifest_that_is_not_the_models(home: Path) -> None:
    # Honestly signed, yet nothing that could run: no worker may ever be started.
    bundle, keys = home / "odd", deployment_keys(home)
    write_bundle(bundle, keys, kinds=(), admit=False)
    odd = replace(manifest(), outputs=manifest().outputs[:1])
    write_atomic(bundle / "manifest.json", odd.to_json())
    for kind in KINDS:
        evidence = report(kind, read_bundle(bundle).subject).to_json()
        write_atomic(bundle / "evidence" / f"{kind}.json", evidence)
        attest(bundle, kind, keys.signers(keys.role(kind)))
    sign(bundle, keys, now=datetime.now(UTC))
    overwrite_stored(home, bundle)
    message = "the model's tensors are not the manifest's [check 17]"
    serve_refused(home, "service.app:Sealgate", message)


@pytest.mark.slow
def test_settings_that_name_no_full_tag(home: Path) -> None:
    for models, message in (
        ("toy:latest", "'toy:latest' is not a full tag like name:1.0.0"),
        ("", "service.models names no model to package"),
        ("toy:2.0.0", "toy:2.0.0 is not in the model store"),
    ):
        refused(run(home, "build", SEALGATE_SERVICE_MODELS=models), message)


@pytest.mark.slow
def test_production_refuses_the_development_issuer(home: Path) -> None:
    result = run(home, "build", SEALGATE_SERVICE_ENVIRONMENT="production")
    refused(result, "the development issuer is refused in production")


@pytest.mark.slow
def test_another_bentofile_cannot_package_more(home: Path) -> None:
    text = (ROOT / "bentofile.yaml").read_text()
    other = home / "other.yaml"
    other.write_text(text.replace("include:", 'include:\n  - "pyproject.toml"'))
    before = bentos(home)
    refused(run(home, "build", "-f", str(other)), "pyproject.toml may not be packaged")
    assert bentos(home) == before


@pytest.mark.slow
def test_another_service_is_found_from_outside(home: Path, tmp_path: Path) -> None:
    # BentoML loads what the file names, and that is not this gate: only a door outside
    # can tell (docs/threat-model.md).
    write_atomic(
        tmp_path / "other.py", b"import bentoml\n@bentoml.service\nclass S: ..."
    )
    text = 'service: other:S\nname: sealgate\ninclude: ["other.py"]\n'
    write_atomic(tmp_path / "other.yaml", text.encode())
    before = set(bentos(home))
    built = run(home, "build", "-f", "other.yaml", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (bento,) = set(bentos(home)) - before
    trust = ("--trust", str(home / "trust.json"))
    result = run_security(home, "verify", str(bento.parent), *trust)
    assert result.returncode == 1
    assert "refused: bento.yaml: " in result.stderr
    assert "[check 26]" in result.stderr


@pytest.mark.slow
def test_keys_that_are_missing_end_serve(home: Path) -> None:
    for path in (home / "keys" / "audit.key", home / "jwks.json", home / "keys/hpke"):
        path.rename(home / "aside")
        serve_refused(home, "service.app:Sealgate", path.name)
        (home / "aside").rename(path)


@pytest.mark.slow
def test_a_line_that_includes_nothing_is_refused(home: Path, tmp_path: Path) -> None:
    """`bentoml build` packs what it finds; the client is found elsewhere."""
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "commands", "training", "assessment")
    for name in ("service", "security", "models", "deploy", "requirements"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    shutil.copy(ROOT / "bentofile.yaml", tree)
    before = bentos(home)
    result = run(home, "build", cwd=tree, PYTHONPATH=f"{tree}:{ROOT}")
    refused(result, "refused: bentofile.yaml includes sealgate/*.py, and there is none")
    assert bentos(home) == before


# Sources, without a build.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("service/app.py", "sealgate/protocol/hpke.py", "deploy/policy.toml"):
        write_atomic(tmp_path / "src" / name, b"")
    check_sources(tmp_path / "src")
    return tmp_path / "src"


@pytest.mark.parametrize(
    "name",
    [
        "train.csv",
        "service/weights.bin",
        "service/app.pyc",
        "security/training/trainer.py",
        "security/inspection/structure.py",
        "security/commands/train.py",
        "models/export.py",
        "deploy/trust.json",
        ".env",
        "service/.env.py.swp",
        "sealgate/py.typed.pkl",
        "app.py",
    ],
)
def test_a_file_beyond_the_list(tree: Path, name: str) -> None:
    write_atomic(tree / name, b"")
    with pytest.raises(AdmissionRefused, match=f"{name} may not be packaged"):
        check_sources(tree)


def test_a_link_is_refused_whatever_its_name(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tree / "service" / "extra.py").symlink_to(tmp_path / "secret")
    with pytest.raises(AdmissionRefused, match=r"service/extra\.py is not a regular"):
        check_sources(tree)


def test_a_linked_folder_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "models").symlink_to(tmp_path)
    with pytest.raises(AdmissionRefused, match="models is not a regular file"):
        check_sources(tree)
