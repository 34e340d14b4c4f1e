"""The audit log: one record per decision, hash-chained per writer.

Each worker appends JSON lines to a file of its own. A record's hash covers its
canonical bytes, the hash of the record before it included, so a record that was
changed, dropped or moved breaks the chain at that place. Cutting the tail off leaves a
valid chain: only a copy of the last hash kept elsewhere shows that.

A record holds no payload, token or header. The subject is a pseudonym: a keyed hash
whose key is kept apart, so that only who has the key can say whose records these are.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from sealgate.protocol import strict_json
from security.errors import AuditError

__all__ = ["GENESIS", "AuditLog", "pseudonym", "record_hash"]

GENESIS = "0" * 64
Scalar = str | int | bool | None


class AuditLog:
    """Appends records to one file; safe to use from one thread."""

    def __init__(self, directory: Path, *, writer: str) -> None:
        """Open a new file.

        Args:
            directory: made if missing, 0700.
            writer: names the file; unique per process and start.

        Raises:
            AuditError: the file exists or cannot be made.
        """
        path = directory / f"{writer}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}") from None
        self.path = path
        self._previous = GENESIS
        self._sequence = 0
        self._size = 0

    def append(self, record: Mapping[str, Scalar]) -> None:
        """Write one record.

        Args:
            record: flat; ``seq``, ``prev`` and ``hash`` are added here.

        Raises:
            AuditError: it could not be written whole. The caller refuses to go on: a
                decision that is not recorded is not taken.
        """
        body = strict_json.dumps(
            {**record, "seq": self._sequence, "prev": self._previous}
        )
        digest = hashlib.sha256(body).hexdigest()
        line = b'%b,"hash":"%b"}\n' % (body[:-1], digest.encode())
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                # Half a record would spoil the chain for good: take it back.
                os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            raise AuditError(f"{self.path}: {error.strerror}") from None
        if written != len(line):
            raise AuditError(f"{self.path}: record was cut short")
        self._previous, self._sequence = digest, self._sequence + 1
        self._size += written

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def record_hash(body: Mapping[str, Scalar]) -> str:
    """Hex SHA-256 of a record's canonical bytes without its ``hash``."""
    return hashlib.sha256(strict_json.dumps(dict(body))).hexdigest()


def pseudonym(key: bytes, subject: str) -> str:
    """A keyed hash of a subject: the same for the same subject, and no way back.

    >>> len(pseudonym(b"k" * 32, "alice"))
    32
    """
    return hmac.digest(key, subject.encode(), "sha256").hex()[:32]
