"""The example's pipeline, by a real DVC: ``make interop-mlops``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import MODEL_FILE, VERDICT_FILE, read_bundle
from tests.support.servers import ROOT, environment

if os.environ.get("INTEROP") != "mlops":
    pytest.skip("run by make interop-mlops", allow_module_level=True)

PART = Path(os.environ["INTEROP_PART"])
Run = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example where it stands in a project, with nothing made yet."""
    example = tmp_path / "project" / "examples" / "dvc"
    shutil.copytree(ROOT / "examples" / "dvc", example)
    shutil.copytree(ROOT / "deploy", tmp_path / "project" / "deploy")
    return example


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """`dvc …` and `python -m security …`, as their user has them in the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}

    def call(program: str, *arguments: str, code: int = 0) -> str:
        names = {"dvc": [str(PART / "bin" / "dvc")], "security": [sys.executable, "-m"]}
        words = names[program] + (["security"] if program == "security" else [])
        done = subprocess.run(
            [*words, *arguments],
            cwd=folder,
            env=environment(tmp_path / "home", settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1800,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    return call


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_the_pipeline(folder: Path, run: Run) -> None:
    run("dvc", "init", "--no-scm", "--quiet")
    run("dvc", "repro")
    bundle = read_bundle(folder / "admitted")
    assert VERDICT_FILE in bundle.files
    summary = json.loads((folder / "summary.json").read_bytes())
    assert summary["root_sha256"] == bundle.subject.root_sha256
    assert summary["metrics"]["privacy"]["epsilon"] <= 3.0
    stated = bundle.report("provenance").conditions
    assert stated["data_dvc_file"] == "dvc.lock"
    assert stated["data_dvc_md5"] == md5(folder / "rows.csv")
    lock = (folder / "dvc.lock").read_text()
    assert md5(folder / "rows.csv") in lock
    assert summary["root_sha256"] in run("dvc", "metrics", "show", "--json")
    # The model lies under DVC as well, in a folder.
    model = folder / "admitted" / MODEL_FILE
    made = ("--name", "again", "--version", "1.0.0", "--out", "again")
    run("security", "import", f"admitted/{MODEL_FILE}", *made)
    again = read_bundle(folder / "again").report("provenance").conditions
    assert again["model_dvc_md5"] == md5(model)
    assert str(again["model_dvc_folder_md5"]) in lock
    # Nothing has changed, so nothing is trained, and no budget is spent again.
    assert "Data and pipelines are up to date" in run("dvc", "repro")
    assert run("security", "ledger", "show").count("biopsy:1.0.0") == 1
    # Rows that DVC does not know are not trained on.
    with (folder / "rows.csv").open("a") as file:
        file.write((folder / "rows.csv").read_text().splitlines()[1] + "\n")
    out = run("security", "train", "model.toml", "--out", "other", code=2)
    assert f"rows.csv: its MD5 is {md5(folder / 'rows.csv')}, dvc.lock has" in out


def test_what_dvc_adds_is_found_and_held_to_the_file(folder: Path, run: Run) -> None:
    run("dvc", "init", "--no-scm", "--quiet")
    model = folder / "stored" / "deep" / "model.onnx"
    model.parent.mkdir(parents=True)
    from tests.support.bundles import onnx_model

    model.write_bytes(onnx_model())
    run("dvc", "add", "stored")
    made = ("import", "stored/deep/model.onnx", "--name", "toy", "--version", "1.0.0")
    run("security", *made, "--out", "first")
    stated = read_bundle(folder / "first").report("provenance").conditions
    assert stated["model_dvc_file"] == "stored.dvc"
    assert stated["model_dvc_md5"] == md5(model)
    folder_md5 = str(stated["model_dvc_folder_md5"])
    assert folder_md5.endswith(".dir")
    assert folder_md5 in (folder / "stored.dvc").read_text()
    model.write_bytes(onnx_model() + b"\x12\x00")  # another producer's empty name
    out = run("security", *made, "--out", "second", code=2)
    assert "run dvc checkout for the recorded file" in out
    run("dvc", "checkout", "--force", "stored.dvc")
    run("security", *made, "--out", "second")
    model.write_bytes(onnx_model() + b"\x12\x00")
    run("dvc", "commit", "--force", "stored.dvc")
    run("security", *made, "--out", "third")
