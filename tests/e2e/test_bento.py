"""The built Bento: lean, and serving from nothing but its own requirements."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from sealgate import Client
from tests.conftest import check_security, mint, run_security, toy_settings
from tests.support.bundles import NAME
from tests.support.servers import ROOT, bentoml, environment, serve

TOOLKIT = ("torch", "opacus", "art", "onnx", "sklearn", "scipy", "pandas")


@pytest.fixture(scope="module")
def bento(deployment: Path) -> Path:
    """The folder of a Bento with the toy model."""
    built = subprocess.run(
        bentoml("build", "--output", "tag"),
        cwd=ROOT,
        env=environment(deployment, toy_settings(deployment)),
        capture_output=True,
        text=True,
        check=True,
    )
    name, version = built.stdout.strip().rpartition("__tag__:")[2].split(":")
    return deployment / "bentoml" / "bentos" / name / version


@pytest.fixture(scope="module")
def lean_python(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with what the Bento asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("lean") / "venv"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    requirements = bento / "env" / "python" / "requirements.txt"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--require-hashes", "-r", str(requirements)],
        check=True,
        timeout=600,
    )  # fmt: skip
    return python


def test_sources_hold_no_toolkit_code(bento: Path) -> None:
    source = bento / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert "security/admission/gate.py" in files
    for folder in ("security/training", "security/assessment", "security/commands"):
        assert not any(file.startswith(folder) for file in files)
    assert not files & {
        f"models/{n}.py" for n in ("architectures", "datasets", "export")
    }


def test_sources_hold_no_key_and_no_trust_root(bento: Path) -> None:
    names = {path.name for path in bento.rglob("*") if path.is_file()}
    assert not names & {"trust.json", "jwks.json", "audit.key"}
    assert not any(name.endswith(".pem") for name in names)


def test_lock_names_exactly_the_admitted_model(bento: Path) -> None:
    lock = json.loads((bento / "src" / "admission.lock.json").read_bytes())
    assert list(lock["models"]) == [f"{NAME}:1.0.0"]


@pytest.mark.slow
def test_requirements_hold_no_toolkit_library(lean_python: str) -> None:
    code = (
        "import importlib.util, sys;"
        f"print([n for n in {TOOLKIT!r} if importlib.util.find_spec(n)])"
    )
    found = subprocess.check_output([lean_python, "-c", code], text=True)
    assert found.strip() == "[]"


@pytest.mark.slow
def test_serves_from_its_own_requirements(
    bento: Path, lean_python: str, deployment: Path
) -> None:
    extra = toy_settings(deployment)
    token = mint(deployment, f"infer:{NAME}")
    with (
        serve(str(bento), deployment, extra=extra, cwd=bento, python=lean_python) as s,
        Client(s.url, token=token) as client,
    ):
        answer = client.infer(NAME, {"features": [[1.0, 2.0, 3.0]]})
    assert answer["label"].tolist() == [1]


@pytest.mark.slow
def test_imports_no_toolkit_module(
    bento: Path, lean_python: str, deployment: Path
) -> None:
    code = (
        "import sys, service.app;"
        f"print(sorted(set({TOOLKIT!r} + ('security.training', 'security.assessment'))"
        " & set(sys.modules)))"
    )
    loaded = subprocess.check_output(
        [lean_python, "-c", code],
        cwd=bento / "src",
        env=environment(deployment, toy_settings(deployment)),
        text=True,
    )
    assert loaded.strip() == "[]"


def test_starts_nowhere_without_the_deployers_trust_root(
    bento: Path, tmp_path: Path, deployment: Path
) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    env = environment(home, toy_settings(deployment))
    env["BENTOML_HOME"] = str(deployment / "bentoml")
    result = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", str(bento), "--port", "0"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "trust root" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_accepts_it_from_outside(bento: Path, deployment: Path) -> None:
    settings = toy_settings(deployment)
    shown = check_security(
        deployment, "verify", str(bento), "--release", str(ROOT), **settings
    )
    assert f"verified {NAME}:1.0.0" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b / "src" / "admission.lock.json").unlink(), "lock file"),
        (lambda b: (b / "src" / "service" / "x.bin").write_bytes(b""), "may not be"),
        (lambda b: (b / "src" / "deploy" / "x").symlink_to("/"), "not a regular file"),
    ],
    ids=["lock", "extra", "link"],
)
def test_verify_refuses_a_changed_one(
    bento: Path,
    deployment: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    message: str,
) -> None:
    copy = tmp_path / "bento"
    shutil.copytree(bento, copy)
    change(copy)
    settings = toy_settings(deployment)
    refused = run_security(deployment, "verify", str(copy), **settings)
    assert refused.returncode == 1
    assert refused.stderr.startswith("refused: ")
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
