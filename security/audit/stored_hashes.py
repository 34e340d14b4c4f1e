"""The hashes of a tree in a file, so that a proof costs a few reads.

One after the other, 32 bytes each, in the order of `sealgate.protocol.merkle`: a leaf,
then each subtree that it completes. Nothing in such a file is ever written again, and
all of it can be made anew from the leaves. Nobody believes it: `verify` recomputes
every hash, and a proof that was made of false ones does not verify.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sealgate.errors import MerkleError
from sealgate.protocol.merkle import HASH_BYTES, Read
from security.errors import AuditError

__all__ = ["HashWriter", "hashes_at", "hashes_name", "open_hashes"]

# Beyond it, what is added is written before it is asked for: 64 KiB.
_PENDING = 2048


def hashes_name(writer: str) -> str:
    """The name of the file with the hashes of a writer's tree.

    >>> hashes_name("1795276800-7")
    '1795276800-7.hashes'
    """
    return f"{writer}.hashes"


def hashes_at(descriptor: int) -> Read:
    """Reads hashes of an open file by their indices."""

    def read(indices: Sequence[int]) -> list[bytes]:
        pread = os.pread
        found = [pread(descriptor, HASH_BYTES, HASH_BYTES * index) for index in indices]
        if len(b"".join(found)) != HASH_BYTES * len(found):
            raise MerkleError("hashes of the tree are missing")
        return found

    return read


@contextmanager
def open_hashes(path: Path) -> Iterator[Read]:
    """Reads hashes of a file, which may be growing.

    Raises:
        AuditError: there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None
    try:
        yield hashes_at(descriptor)
    finally:
        os.close(descriptor)


class HashWriter:
    """Adds hashes to a file of its own; safe to use from one thread at a time.

    They gather in memory: until a checkpoint covers them nobody makes a proof.

    Attributes:
        pending: what was added since; whoever adds to it calls `trim` then.
    """

    def __init__(self, path: Path) -> None:
        """Make the file.

        Raises:
            OSError: it exists, or cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._size = 0
        self.pending: list[bytes] = []

    def trim(self) -> None:
        """Keep memory in bounds, as far as the disk has room."""
        if len(self.pending) >= _PENDING:
            with suppress(OSError):  # they stay; `flush` says so when it matters
                self.flush()

    def flush(self) -> None:
        """Hand all of them to the operating system.

        Raises:
            OSError: they stay in memory; the file is as before.
        """
        pending = b"".join(self.pending)
        try:
            view = memoryview(pending)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(pending)
        self.pending.clear()

    def force(self) -> None:
        """Force to disk what was flushed.

        Raises:
            OSError: the disk does not take it.
        """
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; what was not flushed is lost, and can be made anew."""
        os.close(self._descriptor)
