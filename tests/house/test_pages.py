"""Lists that pages state, beside the tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

from sealgate.protocol.datatypes import DATATYPES
from security.settings.issuers import ALGORITHMS
from tests.support.servers import ROOT

DOCS = ROOT / "docs"


def between(page: Path, start: str, end: str) -> set[str]:
    """The words in capitals and digits of a passage."""
    _, found, rest = page.read_text().partition(start)
    assert found, f"{page.name}: {start!r}"
    return set(re.findall(r"\b[A-Z][A-Za-z]*[0-9]*(?:DSA)?\b", rest.partition(end)[0]))


def test_datatypes():
    assert between(DOCS / "protocol.md", "Datatypes: ", "(") == set(DATATYPES)
    # A row of the other page may stand for several widths: INT8 … INT64.
    cells = re.findall(
        r"^\| (`[^|]+`) \|", (DOCS / "serving.md").read_text(), re.MULTILINE
    )
    named = {name for cell in cells for name in re.findall(r"`([A-Z0-9]+)`", cell)}
    widths = {kind + str(bits) for kind in ("INT", "UINT") for bits in (16, 32)}
    assert set(DATATYPES) - widths <= named


def test_algorithms():
    assert between(DOCS / "protocol.md", "signed with ", " by a key") == set(ALGORITHMS)
    stated = between(DOCS / "access.md", "| `algorithms` | of ", " | all")
    assert stated == set(ALGORITHMS)
