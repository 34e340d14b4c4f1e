"""The toolkit's wheels, and interpreters that have them and little else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import ROOT

PROJECTS = (ROOT, ROOT / "packaging" / "toolkit")


def build_wheels(folder: Path) -> list[Path]:
    """The wheels of the client and of the toolkit, from this tree, built offline."""
    for project in PROJECTS:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=project,
            check=True,
            capture_output=True,
            timeout=60,
        )
    return sorted(folder.glob("*.whl"))


@dataclass(frozen=True)
class Lean:
    """An interpreter with our wheels, and with what was named of this environment."""

    python: Path

    def __call__(
        self, *arguments: str, cwd: Path, extra: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `sealgate-toolkit`, as its console script does, in a bare environment."""
        script = "import sys; from sealgate_toolkit import main; sys.exit(main())"
        return self._run(script, *arguments, cwd=cwd, extra=extra)

    def each(
        self, lines: Iterable[str], *, cwd: Path
    ) -> dict[str, tuple[int, str, str]]:
        """Run several commands in one process: exit code, output and errors of each."""
        result = self._run(_EACH, cwd=cwd, given=json.dumps([*lines]))
        assert result.returncode == 0, result.stderr
        return {line: tuple(end) for line, end in json.loads(result.stdout).items()}

    def _run(
        self,
        script: str,
        *arguments: str,
        cwd: Path,
        extra: dict[str, str] | None = None,
        given: str = "",
    ) -> subprocess.CompletedProcess[str]:
        home = {"PATH": os.environ["PATH"], "SEALGATE_HOME": str(cwd)}
        return subprocess.run(
            [self.python, "-P", "-c", script, *arguments],
            cwd=cwd,
            env=home | (extra or {}),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


# Runs each command line that comes in, and says how it ended.
_EACH = """
import contextlib, io, json, sys
from sealgate_toolkit import ROOMS
sys.path.insert(0, str(ROOMS))
from security.commands import main
ends = {}
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    ends[line] = (code, out.getvalue(), err.getvalue())
json.dump(ends, sys.stdout)
"""


def make_lean(folder: Path, wheels: Iterable[Path], *distributions: str) -> Lean:
    """An interpreter that finds our wheels, the client's libraries, and these.

    They are links to this environment's: nothing is downloaded. What else it has cannot
    be imported, in child processes neither.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    needed = requirements("sealgate") | {*distributions}
    for name in closure(needed):
        installed = importlib.metadata.distribution(name)
        for top in tops(name):
            if not (site / top).exists():
                (site / top).symlink_to(installed.locate_file(top))
    return Lean(folder / "bin" / "python")


def requirements(distribution: str) -> set[str]:
    """Names of what a distribution always needs."""
    found = importlib.metadata.requires(distribution) or ()
    return {
        re.split(r"[\s;<>=!~\[(]", item, maxsplit=1)[0]
        for item in found
        if "extra ==" not in item
    }


def closure(names: set[str]) -> set[str]:
    """These distributions and what they need, as far as it is installed."""
    found: set[str] = set()
    while names - found:
        name = min(names - found)
        found.add(name)
        try:
            names = names | requirements(name)
        except importlib.metadata.PackageNotFoundError:  # of other systems
            names = names - {name}
            found.discard(name)
    return found


def tops(distribution: str) -> set[str]:
    """What a distribution has in site-packages, at the top."""
    files = importlib.metadata.files(distribution) or ()
    return {file.parts[0] for file in files} - {"..", "__pycache__"}
