"""The wheel: only sealgate/ is published."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.servers import ROOT

MISSING = [
    name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None
]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.slow
def test_only_the_sdk_enters_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("sealgate", "service", "security", "models", "deploy", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run(
        [*command, "--outdir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "sealgate"
    }
    files = ("protocol/ohttp.py", "charts.css", "page.css", "page.js")
    assert {f"sealgate/{name}" for name in files} < {*names}
    assert not [name for name in names if name.endswith((".pyc", ".pem", ".json"))]


def test_the_project_says_so() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["sealgate"]' in text
    assert 'only-include = ["sealgate"]' in text
