"""Some cases or all: exported in the environment of their module, then measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support import zoo
from tests.support.servers import ROOT, environment

HERE = Path(__file__).parent
# By the environment that has what a module imports.
OWN = ("torch_cases",)
INTEROP = (
    *("sklearn_cases", "boosting_cases", "keras_cases", "hummingbird_cases"),
    "olive_cases",
)
LIMIT_S = 3600


def make(python: str, folder: Path, module: str, names: Iterable[str] = ()) -> None:
    """Fit and export the cases of a module, all or those that are named."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [python, HERE / "make.py", folder, module, *names],
        env={**kept, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def measured(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Results of cases that lie in ``folder / "cases"``."""
    home, results = folder / "home", folder / "results.json"
    home.mkdir()
    module = "tests.interop.exporters.measure"
    done = subprocess.run(
        [sys.executable, "-m", module, folder / "cases", home, results, *names],
        cwd=ROOT,
        env=environment(home, zoo.settings(home, [])),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(results.read_bytes())
    return found


def everything(interop: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Results of every case there is."""
    cases = folder / "cases"
    for module in OWN:
        make(sys.executable, cases, module)
    for module in INTEROP:
        make(str(interop / "bin" / "python"), cases, module)
    return measured(folder, sorted(item.name for item in cases.iterdir()))
