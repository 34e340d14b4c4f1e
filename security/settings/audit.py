"""[audit]: the audit log, its keys and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.settings.checks import check_failure_mode, check_positive

__all__ = ["AuditSettings", "check_audit"]


# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE = (
    "max_held_records",
    "max_file_bytes",
    "checkpoint_interval_s",
    "refusal_interval_s",
    "refusal_records",
)


@dataclass(frozen=True)
class AuditSettings:
    """The audit log.

    Attributes:
        directory: the writers' files and their checkpoints.
        name: of this log and of the key that signs its checkpoints; like a URL without
            a scheme, and no other log's.
        pseudonym_key: file with the key that pseudonyms of subjects are made with.
        checkpoint_key: Ed25519 key that checkpoints are signed with.
        verifier_key: its public half, for who verifies the log.
        sync: answer when a record is on disk; without it, when the operating system
            has it, which outlives the process but not the machine.
        on_failure: "refuse" answers 503 while records cannot be written; "serve" keeps
            up to ``max_held_records`` in memory first.
        max_held_records: per worker, with "serve".
        max_file_bytes: a file is not continued beyond this.
        checkpoint_interval_s: how long the end of the log may stay unsigned.
        receipts: give callers a number with each answer, by which they fetch the proof
            that its record is in this log.
        refusal_interval_s: for which refusals of strangers are counted together,
            beyond the first ``refusal_records``.
        refusal_records: of strangers, in one interval, recorded one by one.
    """

    directory: Path = Path("audit")
    name: str = "sealgate.invalid/audit"
    pseudonym_key: Path = Path("keys/audit.key")
    checkpoint_key: Path = Path("keys/checkpoint.pem")
    verifier_key: Path = Path("audit.vkey")
    sync: bool = False
    on_failure: str = "refuse"
    max_held_records: int = 10_000
    max_file_bytes: int = 64 << 20
    checkpoint_interval_s: float = 10.0
    receipts: bool = True
    refusal_interval_s: float = 60.0
    refusal_records: int = 60


def check_audit(audit: AuditSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(audit, "audit", _POSITIVE)
    check_failure_mode(audit.on_failure, "audit.on_failure")
