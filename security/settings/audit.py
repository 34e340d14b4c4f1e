"""[audit]: the audit log, its keys and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError
from security.settings.checks import check_failure_mode, check_positive
from security.settings.issuers import https_url

__all__ = ["AuditSettings", "WitnessAddress", "WitnessSettings", "check_audit"]


# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE = (
    "max_held_records",
    "max_file_bytes",
    "checkpoint_interval_s",
    "refusal_interval_s",
    "refusal_records",
)
_WITNESSES_POSITIVE = ("interval_s", "refresh_s", "timeout_s", "grace_s")


@dataclass(frozen=True)
class WitnessAddress:
    """A witness of the log.

    Attributes:
        url: its submission prefix; https, or http to this machine.
        vkeys: its verifier keys, ``name+id+key``, of one name.
        monitoring_url: its monitoring prefix, if that is another one.
    """

    url: str = ""
    vkeys: tuple[str, ...] = ()
    monitoring_url: str = ""


@dataclass(frozen=True)
class WitnessSettings:
    """Who cosigns the log's checkpoints (C2SP tlog-witness).

    Attributes:
        witness: the witnesses; none by default, and then nobody is asked.
        required: how many of them must have cosigned a checkpoint.
        interval_s: how often they are asked, if there is something new.
        refresh_s: a cosignature older than this is asked for anew, though nothing is
            new: it also says that nothing was.
        timeout_s: for one witness's answer.
        grace_s: how old a checkpoint of a writer may be that too few of them have
            seen, for `audit verify`.
        ca: file of the authorities that may certify their hosts; the system's if
            absent.
    """

    witness: tuple[WitnessAddress, ...] = ()
    required: int = 0
    interval_s: float = 10.0
    refresh_s: float = 600.0
    timeout_s: float = 10.0
    grace_s: float = 300.0
    ca: Path | None = None


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
        offers: keep a public log of key configurations, release and salted verdicts,
            which anybody may read.
        refusal_interval_s: for which refusals of strangers are counted together,
            beyond the first ``refusal_records``.
        refusal_records: of strangers, in one interval, recorded one by one.
        witnesses: who cosigns the log's checkpoints.
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
    offers: bool = False
    refusal_interval_s: float = 60.0
    refusal_records: int = 60
    witnesses: WitnessSettings = WitnessSettings()


def check_audit(audit: AuditSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(audit, "audit", _POSITIVE)
    check_failure_mode(audit.on_failure, "audit.on_failure")
    _check_witnesses(audit.witnesses)


def _check_witnesses(witnesses: WitnessSettings) -> None:
    where = "audit.witnesses"
    check_positive(witnesses, where, _WITNESSES_POSITIVE)
    least, count = min(1, len(witnesses.witness)), len(witnesses.witness)
    if not least <= witnesses.required <= count:
        raise SettingsError(f"{where}.required: {least} to {count}, of {count}")
    for number, witness in enumerate(witnesses.witness, start=1):
        for url in filter(None, (witness.url, witness.monitoring_url)):
            https_url(url, f"{where}, witness {number}: url", or_here=True)
        names = {vkey.partition("+")[0] for vkey in witness.vkeys}
        if not witness.url or len(names) != 1:
            raise SettingsError(
                f"{where}, witness {number}: a url and vkeys of one name are needed"
            )
