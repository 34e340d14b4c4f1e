"""The sealing keys' part of `keys`: HPKE keys, rotated with overlap."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime

from models.report import format_time
from sealgate.protocol.kem import KEM_NAMES
from security.audit.journal import record_operation
from security.errors import KeyFileError
from security.key_files import (
    PASSPHRASE_VARIABLE,
    passphrase_file,
    read_passphrase,
)
from security.sealing import rotation
from security.sealing.rotation import KeyStatus
from security.settings.loading import Settings, load_settings

__all__ = ["SEALING", "generate", "list_lines", "retire", "rotate"]

SEALING = "sealing"


def generate(args: argparse.Namespace) -> int:
    """A fresh key of each KEM, whatever the age of the ones there are."""
    del args
    settings, passphrase = load_settings(), _passphrase()
    folder = settings.sealing.keys
    for path in rotation.generate(folder, now=time.time(), passphrase=passphrase):
        print(f"generated {path}")
    _record(settings, "generated")
    return 0


def rotate(args: argparse.Namespace) -> int:
    """Replace the keys that are due, delete the ones past their overlap."""
    if args.passphrase_file:
        raise KeyFileError(
            "sealing keys: name the passphrase's file in "
            f"{PASSPHRASE_VARIABLE}, where the server finds it too"
        )
    settings = load_settings()
    sealing = settings.sealing
    done = rotation.rotate(
        sealing.keys,
        now=time.time(),
        lifetime_s=0 if args.force else sealing.key_lifetime_s,
        overlap_s=sealing.key_overlap_s,
        passphrase=_passphrase(),
    )
    for path in done.generated:
        print(f"generated {path}")
    for key_id in done.retired:
        print(f"retired   {key_id}")
    if done.generated or done.retired:
        _record(settings, "rotated")
    if not done.generated:
        print("no sealing key is due; --force replaces them now")
    return 0


def retire(args: argparse.Namespace) -> int:
    """Delete keys past their overlap, and the ones named, at once."""
    settings = load_settings()
    sealing = settings.sealing
    gone = rotation.retire(
        sealing.keys,
        now=time.time(),
        overlap_s=sealing.key_overlap_s,
        key_ids=args.id or (),
    )
    for key_id in gone:
        print(f"retired   {key_id}")
    if gone:
        _record(settings, "retired")
    print(f"retired {len(gone)} keys")
    return 0


def _record(settings: Settings, what: str) -> None:
    operation = {"action": "key-rotation", "reason": f"{SEALING}-{what}"}
    record_operation(settings.audit, [operation])


def list_lines() -> list[str]:
    """Where each sealing key stands, a line each."""
    sealing, now = load_settings().sealing, time.time()
    if not sealing.keys.is_dir() or not any(sealing.keys.iterdir()):
        return []
    statuses = rotation.list_keys(
        sealing.keys,
        now=now,
        lifetime_s=sealing.key_lifetime_s,
        overlap_s=sealing.key_overlap_s,
    )
    return [_line(status, now) for status in statuses]


def _line(status: KeyStatus, now: float) -> str:
    kem = KEM_NAMES[status.kem_id]
    until = format_time(datetime.fromtimestamp(status.until, UTC))
    words = {"current": "due", "overlap": "opens until", "over": "closed since"}
    age = _duration(max(0.0, now - status.created_at))
    state = f"{status.state}, {age} old, {words[status.state]} {until}"
    return f"{status.key_id:<3} {kem:<7} {SEALING}  {state}"


def _duration(seconds: float) -> str:
    """Roughly how long.

    >>> _duration(59), _duration(7200), _duration(200_000)
    ('0 min', '2 h', '2 d')
    """
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 60:.0f} min"


def _passphrase() -> bytes | None:
    source = passphrase_file()
    return read_passphrase(source) if source else None
