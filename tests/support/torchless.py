"""Commands in a process where whoever imports torch fails, as where it is absent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.servers import ROOT, environment

_BEGIN = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

sys.meta_path.insert(0, Absent())
from security.commands import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def without_torch(
    home: Path, *arguments: object, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The end of ``python -m security …`` where there is no torch."""
    return subprocess.run(
        [sys.executable, "-c", _BEGIN, *map(str, arguments)],
        cwd=ROOT,
        env=environment(home, extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
