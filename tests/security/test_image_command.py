"""`image`: what it refuses before it builds, what a builder gets, what it leaves.

The image itself is built and run in tests/interop/image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sealgate.protocol.statement import Resource, Statement
from security.commands import build_parser
from security.documents.provenance import (
    PROVENANCE_TYPE,
    ImageBuild,
    image_provenance,
)
from tests.conftest import run_security, toy_settings
from tests.support.servers import ROOT, bentoml, environment

BASE = f"python:3.11-slim@sha256:{'a' * 64}"


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with a Bento of its model."""
    folder = tmp_path_factory.mktemp("image") / "home"
    home = Path(shutil.copytree(pristine, folder))
    env = environment(home, toy_settings(home))
    subprocess.run(bentoml("build"), cwd=ROOT, env=env, check=True, capture_output=True)
    return home


def image(
    home: Path, *arguments: str, path: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    settings = toy_settings(home) | {"PATH": str(path or os.environ["PATH"])}
    return run_security(home, "image", *arguments, **settings | extra)


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder with a docker that shows what it is to do, and fails."""
    script = tmp_path / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > {tmp_path}/arguments\n'
        "for context; do :; done\n"
        f'/bin/cp -r "$context" {tmp_path}/context\n'
        "exit 3\n"
    )
    script.chmod(0o755)
    return script.parent


@pytest.mark.parametrize("base", ["python:3.11-slim", "python@sha256:abc", ""])
def test_a_base_without_a_digest(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser("image").parse_args(["image", "b", "--base", base, "--out", "o"])
    assert caught.value.code == 2
    assert "not pinned by @sha256:DIGEST" in capsys.readouterr().err


def test_what_is_missing_is_told_before_anything_is_built(
    home: Path, tmp_path: Path, docker: Path
) -> None:
    out = str(tmp_path / "out")
    usual = ("sealgate:latest", "--base", BASE, "--out", out)
    cases = [
        (usual, {"path": tmp_path}, 2, "docker, podman or buildah: not installed"),
        ((*usual, "--key", "nowhere.pem"), {"path": docker}, 2, "nowhere.pem"),
        (("sealgate:no", *usual[1:]), {"path": docker}, 1, "not in the store"),
        ((*usual[:-1], str(home)), {"path": docker}, 1, "exists already"),
        ((*usual, "--wheels", out), {"path": docker}, 2, "holds no wheels"),
    ]
    for arguments, more, code, message in cases:
        done = image(home, *arguments, **more)
        assert done.returncode == code, done.stderr
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "arguments").exists()


def test_a_bento_that_was_changed_is_not_built(
    home: Path, tmp_path: Path, docker: Path
) -> None:
    (stored,) = (home / "bentoml" / "bentos" / "sealgate").glob("*/bento.yaml")
    folder = Path(shutil.copytree(stored.parent, tmp_path / "bento"))
    (folder / "src" / "extra.py").touch()
    done = image(
        home, str(folder), "--base", BASE, "--out", str(tmp_path / "o"), path=docker
    )
    assert done.returncode == 1
    assert "extra.py may not be packaged" in done.stderr
    assert not (tmp_path / "arguments").exists()


def test_what_a_builder_gets_and_a_failure_leaves(
    home: Path, tmp_path: Path, docker: Path
) -> None:
    out = tmp_path / "out"
    done = image(
        home, "sealgate:latest", "--base", BASE, "--out", str(out), path=docker
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "refused: docker build ended with 3"
    assert not list(tmp_path.glob("*out*"))
    given = (tmp_path / "arguments").read_text().splitlines()
    assert f"--build-arg=BASE_IMAGE={BASE}" in given
    assert f"--build-arg=BUILD_IMAGE={BASE}" in given
    assert "--network=none" not in given
    context = tmp_path / "context"
    assert {path.name for path in context.iterdir()} == {
        *("bento", "bytecode.py", "Dockerfile", "wheels"),
    }
    assert (context / "bento" / "models" / "toy" / "1.0.0" / "model.onnx").exists()
    # A folder of the store keeps nobody out of an image: its user is another one.
    assert (context / "bento" / "models" / "toy" / "1.0.0").stat().st_mode & 0o055 == (
        (home / "bentoml" / "models").stat().st_mode & 0o055
    )


def test_provenance_is_what_slsa_asks_for() -> None:
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2

    build = ImageBuild(
        bento="sealgate:abc",
        base=BASE,
        build_base=f"python:3.11@sha256:{'b' * 64}",
        closed=True,
        tool="docker 29",
        started="2026-11-30T12:00:00Z",
        finished="2026-11-30T12:05:00Z",
        materials=(Resource("Dockerfile", "c" * 64),),
        sbom=Resource("sbom.cdx.json", "d" * 64),
    )
    payload = image_provenance(build, (Resource("sealgate:abc", "e" * 64),))
    statement = Statement.from_json(payload)
    assert statement.predicate_type == PROVENANCE_TYPE
    read = json_format.ParseDict(dict(statement.predicate), provenance_pb2.Provenance())
    images = [item.uri for item in read.build_definition.resolved_dependencies]
    assert images == ["docker://python:3.11-slim", "docker://python:3.11", ""]
    assert read.run_details.byproducts[0].digest["sha256"] == "d" * 64
    assert read.run_details.metadata.finished_on.seconds == 1796040300
