"""Tables are read in one place, and in the client's two, which may not import it.

Trust roots are, too.
"""

from __future__ import annotations

import re

from tests.support.servers import ROOT

READERS = re.compile(r"read_csv|csv\.(?:reader|DictReader)|read_parquet|ParquetFile")
TRUST = re.compile(r"\bparse_trust\(")
PANDAS = re.compile(r"^\s*(?:import|from) pandas", re.MULTILINE)


def modules(pattern: re.Pattern[str]) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in ("sealgate", "models", "security", "service")
        for path in (ROOT / package).rglob("*.py")
        if pattern.search(path.read_text())
    }


def test_one_module_reads_tables() -> None:
    assert modules(READERS) == {
        "models/data/readers.py",
        "sealgate/long_tables.py",
        "sealgate/tables.py",
    }


def test_no_module_reads_by_pandas() -> None:
    assert not modules(PANDAS)


def test_one_module_reads_trust_roots() -> None:
    """Whoever parsed one by itself would believe an old, a forged or an expired one."""
    assert modules(TRUST) == {
        "security/admission/trust.py",
        "security/admission/trust_chain.py",
    }
