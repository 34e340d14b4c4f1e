"""`make quickstart` as its user runs it, and what README says one can do afterwards."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.settings.loading import load_settings
from tests.support.servers import ROOT, environment, known_noise, serve

pytestmark = pytest.mark.slow

MODEL = "breast-cancer"


def run(
    home: Path, *command: str, cwd: Path = ROOT, timeout: int = 1200
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(home, known_noise()),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory, with what quickstart leaves in its .sealgate."""
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    """What the first run prints."""
    result = run(folder / ".sealgate", "examples/quickstart.py")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def served(folder: Path, first: str) -> Iterator[Path]:
    """The working directory, while the Bento is served and the profile points at it."""
    assert first
    home = folder / ".sealgate"
    with serve("sealgate:latest", home, cwd=folder) as server:
        written = run(
            home, "-m", "security", "profile", "--url", server.url, "--model", MODEL
        )
        assert written.returncode == 0, written.stderr
        yield folder


def test_states_what_the_evidence_says(first: str) -> None:
    epsilon = float(re.search(r"privacy +epsilon ([0-9.]+) at delta", first)[1])
    auc = float(re.search(r"membership +attack AUC ([0-9.]+)", first)[1])
    assert 0 < epsilon <= 3.0
    assert 0.3 < auc < 0.7
    assert "Linf radius" in first
    assert re.search(r"verdict +sha256:[0-9a-f]{64}", first)


def test_refuses_the_copy_without_its_robustness_report(first: str) -> None:
    refusals = [line for line in first.splitlines() if "refused:" in line]
    assert len(refusals) == 1
    assert "robustness report is missing" in refusals[0]


def test_most_predictions_are_true(first: str) -> None:
    rows = re.findall(
        r"^ +\d+ +(malignant|benign) +[0-9.]+ +(\w+)$", first, re.MULTILINE
    )
    assert len(rows) == 5
    assert {truth for _, truth in rows} == {"malignant", "benign"}
    assert sum(said == truth for said, truth in rows) >= 4


def test_leaves_secrets_readable_by_their_owner_alone(folder: Path, first: str) -> None:
    assert first
    home = folder / ".sealgate"
    secrets = [*(home / "keys").rglob("*.*"), home / "profile.json"]
    assert len(secrets) >= 7
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0, path


def test_second_run_reuses_the_bundle_and_says_so(folder: Path, first: str) -> None:
    home = folder / ".sealgate"
    before = (home / "bundle" / "model.onnx").read_bytes()
    result = run(home, "examples/quickstart.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "reusing" in result.stdout
    assert "Train with" not in result.stdout
    assert (home / "bundle" / "model.onnx").read_bytes() == before
    assert first.splitlines()[-1] == result.stdout.splitlines()[-1]


def test_a_changed_bundle_is_rebuilt_and_says_why(
    folder: Path, first: str, tmp_path: Path
) -> None:
    assert first
    home = tmp_path / "home"
    subprocess.run(["cp", "-a", str(folder / ".sealgate"), str(home)], check=True)
    report = home / "bundle" / "evidence" / "robustness.json"
    report.write_bytes(report.read_bytes().replace(b'"ensemble"', b'"xyz"'))
    result = run(home, "examples/quickstart.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rebuilding the bundle: refused: robustness report was changed" in (
        result.stdout
    )


def readme_block(language: str) -> str:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0]


def test_readme_example_is_short_and_runs(served: Path) -> None:
    example = readme_block("python")
    assert len(example.splitlines()) <= 10
    result = run(served / ".sealgate", "-c", example, cwd=served)
    assert result.returncode == 0, result.stderr
    assert re.search(r"[0-9a-f]{64}$", result.stdout.strip())


def test_readme_commands_run(served: Path) -> None:
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\$ \.venv/bin/sealgate (.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        home = served / ".sealgate"
        result = run(home, "-m", "sealgate", *shlex.split(command), cwd=served)
        assert result.returncode == 0, result.stderr


def test_infer_answers_json(served: Path) -> None:
    arguments = ("infer", "--input", ".sealgate/holdout.csv", "--json")
    result = run(served / ".sealgate", "-m", "sealgate", *arguments, cwd=served)
    answer = json.loads(result.stdout)
    assert len(answer["label"]) == 20
    assert "ignored columns: truth" in result.stderr


def test_policy_and_settings_of_the_project_parse() -> None:
    assert load_settings({}).sealing.require_sealed is True
