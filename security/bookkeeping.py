"""What is counted and what is written down: two tables of service.toml.

Below `security.settings`, which reads them. Which quotas there are stands in a table of
its own, `security.access.quota_table`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from security.errors import SettingsError

__all__ = ["FAILURE_MODES", "AuditSettings", "QuotaSettings", "check_bookkeeping"]

FAILURE_MODES = ("refuse", "serve")


@dataclass(frozen=True)
class QuotaSettings:
    """Where it is counted what each subject asks of each model.

    Attributes:
        table: the limits, relative to the folder of service.toml.
        store: "local", shared by the workers of this machine, or the ``redis://`` or
            ``rediss://`` URL of a store shared by all machines.
        directory: folder of the local store.
        on_failure: "refuse" answers 503 while the store cannot be asked; "serve" lets
            requests pass that cannot be counted.
        max_entries: counters of the local store at most; more are answered 503.
    """

    table: Path = field(default=Path("quotas.toml"), metadata={"base": "config"})
    store: str = "local"
    directory: Path = Path("quotas")
    on_failure: str = "refuse"
    max_entries: int = 1 << 20


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
    refusal_interval_s: float = 60.0
    refusal_records: int = 60


def check_bookkeeping(quotas: QuotaSettings, audit: AuditSettings) -> None:
    """Check what types do not.

    Raises:
        SettingsError: names the key.
    """
    for section, value in (("quotas", quotas.on_failure), ("audit", audit.on_failure)):
        if value not in FAILURE_MODES:
            raise SettingsError(
                f"{section}.on_failure: one of {', '.join(FAILURE_MODES)}"
            )
    if quotas.store != "local" and not quotas.store.startswith(
        ("redis://", "rediss://")
    ):
        # Not the value: a URL that was mistyped may hold a password.
        raise SettingsError("quotas.store: local, or a redis:// URL")
