"""Inspection in this process: the same steps without the cost of another one.

For files that the tests made themselves. That hostile ones are read in a confined
process is tested in tests/security/inspection/test_structure.py.
"""

from __future__ import annotations

import io

from security.inspection import child
from security.inspection.findings import Finding, StructureLimits
from security.inspection.structure import Inspection

__all__ = ["examine", "inspect"]


def examine(model: bytes, limits: StructureLimits = StructureLimits()) -> Inspection:
    """As `security.inspection.structure.examine`."""
    return Inspection(*child._inspect(child._tools(), limits, io.BytesIO(model)))


def inspect(
    model: bytes, limits: StructureLimits = StructureLimits()
) -> tuple[Finding, ...]:
    """As `security.inspection.structure.inspect`."""
    return examine(model, limits).findings
