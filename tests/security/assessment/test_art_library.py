"""ART is imported without its side effects."""

from __future__ import annotations

import subprocess
import sys

from tests.support.servers import ROOT


def test_nothing_is_written_to_the_home(tmp_path):
    code = "from security.assessment.art_library import art; art()"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
