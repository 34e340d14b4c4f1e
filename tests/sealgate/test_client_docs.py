"""Pages for clients: each example is run, and says what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import check_security, toy_settings
from tests.support.bundles import NAME
from tests.support.servers import ROOT

PAGES = {
    name: (ROOT / "docs" / name).read_text()
    for name in ("client.md", "explanations.md", "from-url.md")
}
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
PYTHON = [item for page in PAGES.values() for item in EXAMPLE.findall(page)]
CONSOLE = [
    block
    for page in PAGES.values()
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
]


@pytest.fixture(scope="module")
def folder(server, deployment, tmp_path_factory):
    """A working directory with a profile and rows."""
    path = tmp_path_factory.mktemp("docs")
    check_security(
        deployment,
        *("profile", "--url", server.url, "--model", NAME, "--allow", "explain"),
        *("--out", str(path / "profile.json")),
        **toy_settings(deployment),
    )
    (path / "rows.csv").write_text("a,b,c\n1,2,3\n-4,5.5,0\n")
    return path


def run(folder, *command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_are_examples():
    written = sum(page.count("```python") for page in PAGES.values())
    assert len(PYTHON) == written >= 8
    assert len(CONSOLE) == 4


@pytest.mark.parametrize(("code", "output"), PYTHON, ids=range(len(PYTHON)))
def test_python(folder, code, output):
    if "pandas" in code:
        pytest.importorskip("pandas")
    assert run(folder, "-c", code) == output


def test_console(folder):
    for block in CONSOLE:
        for command, output in re.findall(
            r"^\$ sealgate (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE
        ):
            assert run(folder, "-m", "sealgate", *shlex.split(command)) == output
