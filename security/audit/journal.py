"""The log of this deployment: opened by its settings, for servers and for commands.

A server needs the checkpoint key. A machine that has none, where models are trained or
signed, say, keeps no log: there the commands record nothing.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.errors import NoteError
from sealgate.protocol.notes import Signer, Verifier
from security.audit.log import AuditLog, LogLimits
from security.audit.records import Scalar, encode
from security.errors import AuditError, KeyFileError
from security.key_files import pseudonym, read_private, read_secret, write_private
from security.settings.audit import AuditSettings

__all__ = [
    "generate_checkpoint_key",
    "load_signer",
    "load_verifier",
    "open_log",
    "record_operation",
    "recording",
    "user_name",
]

MAX_VERIFIER_BYTES = 4 << 10


def generate_checkpoint_key(path: Path, *, passphrase: bytes | None = None) -> None:
    """Write a fresh key for checkpoints, Ed25519.

    Raises:
        KeyFileError: the file exists.
    """
    write_private(path, Ed25519PrivateKey.generate(), passphrase=passphrase)


def load_signer(settings: AuditSettings) -> Signer:
    """What signs this deployment's checkpoints.

    Raises:
        KeyFileError: the key is missing, or not an Ed25519 key.
        AuditError: ``audit.name`` is not a name for a key.
    """
    key = read_private(settings.checkpoint_key)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{settings.checkpoint_key}: not an Ed25519 key")
    try:
        return Signer(settings.name, key)
    except NoteError as error:
        raise AuditError(f"audit.name: {error}") from None


def load_verifier(path: Path) -> Verifier:
    """Read the public half: a ``vkey``, one line.

    Raises:
        AuditError: missing, or not one.
    """
    try:
        with path.open("rb") as file:
            return Verifier.parse(file.read(MAX_VERIFIER_BYTES).decode())
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None
    except (NoteError, UnicodeDecodeError):
        raise AuditError(f"{path}: not a verifier key, name+id+key") from None


def open_log(settings: AuditSettings) -> AuditLog:
    """A new writer in this deployment's log, for this process.

    Raises:
        KeyFileError: as `load_signer`.
        AuditError: as `AuditLog`.
    """
    return AuditLog(
        settings.directory,
        writer=f"{time.time_ns()}-{os.getpid()}",
        signer=load_signer(settings),
        limits=LogLimits(
            sync=settings.sync,
            max_file_bytes=settings.max_file_bytes,
            checkpoint_interval_s=settings.checkpoint_interval_s,
        ),
    )


def record_operation(
    settings: AuditSettings, operations: Iterable[Mapping[str, Scalar]]
) -> None:
    """Record what an operator's command decided, if this machine keeps a log.

    Time, the operator's pseudonym and ``outcome`` (allow, unless given) are added.

    Args:
        settings: whose log.
        operations: fields of `records.FIELDS`; at least ``action``.

    Raises:
        AuditError: this machine keeps a log, but it cannot be written.
        KeyFileError: a key of the log cannot be read.
    """
    if not settings.checkpoint_key.exists():
        return
    with recording(settings) as record:
        record(operations)


@contextmanager
def recording(
    settings: AuditSettings, client: str = "command"
) -> Iterator[Callable[[Iterable[Mapping[str, Scalar]]], None]]:
    """Record what a long command does, as it goes on; as `record_operation`.

    What is recorded is signed at once: whoever kills the command leaves a log that
    verifies.

    Args:
        settings: whose log; this machine must keep one.
        client: what the command runs as.

    Raises:
        AuditError: it cannot be written.
        KeyFileError: a key of the log cannot be read.
    """
    operator = pseudonym(read_secret(settings.pseudonym_key), f"os:{user_name()}")
    common: dict[str, Scalar] = {
        "subject": operator,
        "client": client,
        "outcome": "allow",
    }
    log = open_log(settings)

    def record(operations: Iterable[Mapping[str, Scalar]]) -> None:
        now: dict[str, Scalar] = {"time_us": time.time_ns() // 1000}
        log.write([encode({**now, **common, **fields}) for fields in operations])
        log.sign_checkpoint()

    try:
        yield record
    finally:
        log.close()


def user_name() -> str:
    """Who runs this: the user's name, or the number where it has none.

    In a container the number need not be in /etc/passwd, and mostly is not.
    """
    try:
        return getpass.getuser()
    except KeyError:
        return str(os.getuid())
