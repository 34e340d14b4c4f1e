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
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.errors import NoteError
from sealgate.protocol.notes import Signer, Verifier
from security.audit.log import AuditLog, LogLimits
from security.audit.records import Scalar, encode
from security.audit.tree_log import TreeLog
from security.errors import AuditError, KeyFileError
from security.key_files import pseudonym, read_private, read_secret, write_private
from security.settings.audit import AuditSettings

__all__ = [
    "generate_checkpoint_key",
    "generate_ml_dsa_key",
    "load_log",
    "load_log_verifiers",
    "load_signer",
    "load_verifier",
    "ml_dsa_path",
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


def generate_ml_dsa_key(path: Path) -> None:
    """Write a fresh ML-DSA-65 key, which signs the log's checkpoint beside the other.

    Raises:
        KeyFileError: the file exists.
    """
    write_private(path, MLDSA65PrivateKey.generate())


def ml_dsa_path(path: Path) -> Path:
    """Where the ML-DSA-65 key is, beside an Ed25519 one, private or public.

    >>> ml_dsa_path(Path("keys/checkpoint.pem")), ml_dsa_path(Path("audit.vkey"))
    (PosixPath('keys/checkpoint.mldsa.pem'), PosixPath('audit.mldsa.vkey'))
    """
    return path.with_suffix(f".mldsa{path.suffix}")


def load_signer(settings: AuditSettings) -> Signer:
    """What signs the checkpoints of this deployment's logs.

    Where there is a key of ML-DSA-65 beside the other, both sign.

    Raises:
        KeyFileError: the key is missing, or one of the two is of another kind.
        AuditError: ``audit.name`` is not a name for a key.
    """
    path = ml_dsa_path(settings.checkpoint_key)
    key = read_private(path) if path.exists() else None
    if not isinstance(key, MLDSA65PrivateKey | None):
        raise KeyFileError(f"{path}: not an ML-DSA-65 key")
    return _signer(settings, key)


def load_log(settings: AuditSettings) -> TreeLog:
    """The log of all writers' checkpoints.

    Raises:
        KeyFileError, AuditError: as `load_signer`.
    """
    return TreeLog(settings.directory, load_signer(settings))


def _signer(settings: AuditSettings, ml_dsa_key: MLDSA65PrivateKey | None) -> Signer:
    key = read_private(settings.checkpoint_key)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{settings.checkpoint_key}: not an Ed25519 key")
    try:
        return Signer(settings.name, key, ml_dsa_key=ml_dsa_key)
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


def load_log_verifiers(path: Path) -> list[Verifier]:
    """The further keys that must sign the log: what lies beside the first one's file.

    Raises:
        AuditError: as `load_verifier`.
    """
    path = ml_dsa_path(path)
    return [load_verifier(path)] if path.exists() else []


def open_log(settings: AuditSettings) -> AuditLog:
    """A new writer in this deployment's log, for this process.

    Raises:
        KeyFileError: as `load_signer`.
        AuditError: as `AuditLog`.
    """
    return AuditLog(
        settings.directory,
        writer=f"{time.time_ns()}-{os.getpid()}",
        # Writers' checkpoints are many, and all are leaves: Ed25519 alone, 3 KB less.
        signer=_signer(settings, None),
        log=load_log(settings),
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
