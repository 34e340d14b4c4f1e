"""Reads audit files back and says which record was changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.audit.log import GENESIS, record_hash
from security.errors import AuditError

__all__ = ["verify_directory", "verify_file"]

MAX_RECORD_BYTES = 64 << 10


def verify_directory(directory: Path) -> dict[str, int]:
    """Verify every file of a log.

    Returns:
        The number of records by file name.

    Raises:
        AuditError: no such folder, or as `verify_file`.
    """
    if not directory.is_dir():
        raise AuditError(f"{directory}: no such folder")
    return {path.name: verify_file(path) for path in sorted(directory.glob("*.jsonl"))}


def verify_file(path: Path) -> int:
    """Verify one file's chain.

    Returns:
        The number of records.

    Raises:
        AuditError: names the first line that was altered, dropped, moved or cut.
    """
    previous = GENESIS
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            previous = _verify_line(line, previous, number, path.name)
            count = number
    return count


def _verify_line(line: bytes, previous: str, number: int, name: str) -> str:
    where = f"{name}, record {number}"
    if not line.endswith(b"\n"):
        raise AuditError(f"{where}: cut short")
    try:
        record: dict[str, Any] = strict_json.loads_object(
            line, max_bytes=MAX_RECORD_BYTES
        )
    except JsonError:
        raise AuditError(f"{where}: not a record") from None
    digest = record.pop("hash", None)
    if record.get("seq") != number - 1 or record.get("prev") != previous:
        raise AuditError(f"{where}: a record before it was dropped, added or moved")
    expected = record_hash(record)
    if digest != expected:
        raise AuditError(f"{where}: altered")
    return expected
