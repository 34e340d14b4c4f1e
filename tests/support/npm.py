"""Other people's clients for Node, installed from their lock files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def install(source: Path, folder: Path) -> Path:
    """A copy of a package with what it depends on, or a skip where that fails."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    result = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if result.returncode:
        pytest.skip(f"npm cannot install the packages: {result.stderr.strip()[-200:]}")
    return folder
