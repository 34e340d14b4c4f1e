"""`sealgate-toolkit`, from its wheel, where little else is installed."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from security.commands import COMMANDS
from tests.security.inspection.test_structure import model
from tests.security.test_commands import failed
from tests.support.lean import Lean, build_wheels, make_lean


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def base(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Lean:
    """Less than `pip install sealgate-toolkit` brings: the client's libraries alone."""
    return make_lean(tmp_path_factory.mktemp("base"), wheels)


@pytest.fixture(scope="module")
def inspecting(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Lean:
    """`pip install "sealgate-toolkit[inspect]"`."""
    folder = tmp_path_factory.mktemp("inspecting")
    return make_lean(folder, wheels, "onnx", "orjson", "pyjwt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    return path


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "home"))


def test_what_is_in_the_wheel(wheels: list[Path]) -> None:
    client, toolkit = (set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    tops = {name.partition("/")[0] for name in toolkit}
    assert tops == {"sealgate_toolkit", "sealgate_toolkit-0.1.0.dist-info"}
    assert not client & toolkit
    rooms = {name.split("/")[2] for name in toolkit if "/rooms/" in name}
    assert rooms == {
        *("README.md", "bentofile.yaml", "deploy", "models", "requirements"),
        *("security", "service"),
    }
    assert not [name for name in toolkit if name.endswith((".pyc", ".pem", ".key"))]


def test_help_and_version_need_nothing(base: Lean, tmp_path: Path) -> None:
    usage = base("--help", cwd=tmp_path)
    assert (usage.returncode, usage.stderr) == (0, "")
    assert usage.stdout.startswith("usage: sealgate-toolkit [-h]")
    for name in COMMANDS:
        assert f"    {name}" in usage.stdout
    version = base("--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, "sealgate-toolkit 0.1.0\n")
    own = base("inspect", "--help", cwd=tmp_path)
    assert own.stdout.startswith("usage: sealgate-toolkit inspect")
    wrong = base("inspcet", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "usage: sealgate-toolkit [-h] COMMAND" in wrong.stderr


# Commands in a deployment's folder where only the client's libraries are.
MISSING = {
    "inspect model.onnx": 'needs onnx: pip install "sealgate-toolkit[inspect]"',
    "verify toy:1.0.0": 'needs bentoml: pip install "sealgate-toolkit[serve]"',
    "verify bento": 'needs yaml: pip install "sealgate-toolkit[verify]"',
    "serve .": 'needs bentoml: pip install "sealgate-toolkit[serve]"',
    "store bundle": 'needs bentoml: pip install "sealgate-toolkit[serve]"',
    "history toy": 'needs bentoml: pip install "sealgate-toolkit[serve]"',
    "package bundle": 'needs bentoml: pip install "sealgate-toolkit[serve]"',
    "import model.onnx --name m --version 1.0.0 --out out": "toolkit[assess]",
    "init --model model.onnx": 'needs onnx: pip install "sealgate-toolkit[assess]"',
    "admit bundle --trust trust.json --policy policy.toml": "toolkit[assess]",
    "scan model.onnx --data rows.csv": 'pip install "sealgate-toolkit[assess]"',
    "sign bundle --role trainer --key awskms:x": "[assess]",
    "compare scan.json scan.json": 'needs scipy: pip install "sealgate-toolkit[as',
    "report scan.json --format html": "needs jinja2: pip install",
    "token --scope x": 'needs jwt: pip install "sealgate-toolkit"',
}


@pytest.fixture(scope="module")
def missed(
    base: Lean, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What each of them says; by one process, since most of it is to import."""
    home = tmp_path_factory.mktemp("missed") / "home"
    shutil.copytree(pristine, home)
    (home / "model.onnx").write_bytes(model().SerializeToString())
    (home / "bento").mkdir()
    (home / "bento" / "bento.yaml").write_text("name: sealgate")
    (home / "rows.csv").write_text("x,label\n1,0\n2,1\n")
    (home / "scan.json").write_text(json.dumps(SCAN))
    return base.each(MISSING, cwd=home)


@pytest.mark.parametrize("command", MISSING)
def test_a_package_that_is_missing_is_no_finding(
    missed: dict[str, Any], command: str
) -> None:
    code, out, err = missed[command]
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("error: needs ")
    assert MISSING[command] in line


SCAN = {
    "schema": "https://sealgate.dev/scan/v1",
    **{key: {} for key in ("data", "options", "tools", "times")},
    "target": {"name": "m"},
    "findings": [],
    "results": [],
}


def test_inspect_needs_onnx_alone(inspecting: Lean, file: Path, tmp_path: Path) -> None:
    result = inspecting("inspect", file.name, "--sarif", "m.sarif", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "0 findings; 1 nodes" in result.stdout
    run = json.loads((tmp_path / "m.sarif").read_text())["runs"][0]
    assert run["results"] == []
    file.write_bytes(model(ir=99).SerializeToString())
    refused = inspecting("inspect", file.name, "--sarif", "m.sarif", cwd=tmp_path)
    assert refused.returncode == 1
    run = json.loads((tmp_path / "m.sarif").read_text())["runs"][0]
    assert [item["ruleId"] for item in run["results"]] == ["ir-version"]


def test_a_report_in_sarif_and_junit_needs_nothing(base: Lean, tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text(json.dumps(SCAN))
    for form in ("sarif", "junit"):
        result = base("report", "scan.json", "--format", form, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout) > 100


def test_a_signed_bundle_is_verified_without_bentoml(base: Lean, home: Path) -> None:
    options = ("--trust", "trust.json", "--policy", "policy.toml")
    result = base("verify", "bundle", *options, cwd=home)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("verified toy:1.0.0  root sha256:")
    (home / "bundle" / "model.onnx").write_bytes(b"another")
    failed(
        base("verify", "bundle", *options, cwd=home), 1, "about other bytes [check 3]"
    )


def test_a_folder_named_as_one_of_ours_is_not_imported(
    base: Lean, tmp_path: Path
) -> None:
    for name in ("models", "security"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('taken')")
    extra = {"PYTHONPATH": str(tmp_path)}
    assert base("--version", cwd=tmp_path, extra=extra).returncode == 0
