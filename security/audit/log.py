"""The audit log of one writer: records in files, chained, forced to disk, signed.

A writer is one process at one start. Its records go to ``WRITER.000001.jsonl`` and,
when that is full, to the next number; the chain and the tree go on over its files. From
time to time, when a file is full, and at the end it signs a checkpoint
(`sealgate.protocol.notes`) into the file that all writers share (`checkpoints`), and
makes it a leaf of the deployment's log (`tree_log`). The hashes of the writer's tree
are in ``WRITER.hashes``, for proofs that a record is in it (`stored_hashes`).

What is written in one call is on disk when the call returns, or not in the log at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sealgate.errors import SealgateError
from sealgate.protocol.merkle import Tree
from sealgate.protocol.notes import Checkpoint, Signer
from security.audit import checkpoints
from security.audit.records import chain
from security.audit.stored_hashes import HashWriter, hashes_name
from security.audit.tree_log import TreeLog
from security.errors import AuditError

__all__ = ["AuditLog", "Due", "LogLimits", "segment_name"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogLimits:
    """When a writer forces, rotates and signs.

    Attributes:
        sync: force records to disk before `AuditLog.write` returns. Without it they
            outlive the process from then on, the machine only from the next
            checkpoint on.
        max_file_bytes: a file is not continued beyond this size.
        checkpoint_interval_s: at most this long after a record a checkpoint covers it.
    """

    sync: bool = True
    max_file_bytes: int = 64 << 20
    checkpoint_interval_s: float = 10.0


def segment_name(writer: str, number: int) -> str:
    """The name of a writer's file.

    >>> segment_name("1795276800-7", 1)
    '1795276800-7.000001.jsonl'
    """
    return f"{writer}.{number:06d}.jsonl"


@dataclass(frozen=True)
class Due:
    """A checkpoint that is to be signed.

    Attributes:
        checkpoint: what it says.
        descriptor: a duplicate of the file with the last records that it covers; -1
            where that was given up.
    """

    checkpoint: Checkpoint
    descriptor: int


class AuditLog:
    """Writes one writer's records; safe to use from one thread at a time.

    `commit_checkpoint` alone may run in another thread: it may take as long as the disk
    does, and nothing waits for it.

    Attributes:
        path: the file that is being written.
        limits: when it forces, rotates and signs.
        on_due: is given the checkpoint of a file that is full; commits it by default.
    """

    def __init__(
        self,
        directory: Path,
        *,
        writer: str,
        signer: Signer | None = None,
        log: TreeLog | None = None,
        limits: LogLimits = LogLimits(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open a writer's first file.

        Args:
            directory: made if missing, 0700.
            writer: names the files; unique per process and start.
            signer: of checkpoints; none are made without it.
            log: the deployment's, of which they become leaves; by default the one of
                this folder that the same signer signs.
            limits: when to force, rotate and sign.
            monotonic: seconds, for the interval of checkpoints.

        Raises:
            AuditError: the file exists or cannot be made.
        """
        self._directory = directory
        self._writer = writer
        self._signer = signer
        self.limits = limits
        self._monotonic = monotonic
        self._tree = Tree()
        self._log = TreeLog(directory, signer) if signer and log is None else log
        self._hashes: HashWriter | None = None
        self._signing = threading.Lock()
        self._behind = False
        # Full files that no checkpoint has had forced to disk yet.
        self._full: list[int] = []
        self.on_due: Callable[[Due], None] = self.commit_checkpoint
        self._signed_size = 0
        self._signed_at = monotonic()
        self._number = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise AuditError(f"{directory}: {error.strerror}") from None
        self._previous = checkpoints.file_hash(directory)
        self._descriptor = -1
        self._open_next()
        if signer is not None:
            self._open_hashes()

    @property
    def size(self) -> int:
        """How many records it has: the next one's number."""
        return self._tree.size

    @property
    def writer(self) -> str:
        """Its name."""
        return self._writer

    def write(self, records: Sequence[bytes]) -> range:
        """Write records, in this order; on disk when it returns.

        Args:
            records: from `records.encode`.

        Returns:
            Their numbers among this writer's records.

        Raises:
            AuditError: none of them could be written. The caller refuses to go on: a
                decision that is not recorded is not taken.
        """
        if self._descriptor < 0:
            raise AuditError(f"{self.path}: given up after a failure; restart")
        previous, sequence = self._previous, self._tree.size
        lines, leaves = [], []
        for record in records:
            line, leaf = chain(record, sequence=sequence, previous=previous)
            lines.append(line)
            leaves.append(leaf)
            previous, sequence = leaf.hex(), sequence + 1
        data = b"".join(lines)
        if 0 < self._size > self.limits.max_file_bytes - len(data):
            self._rotate()
        self._write_out(data)
        self._previous = previous
        self._add(leaves)
        return range(sequence - len(leaves), sequence)

    def _add(self, leaves: Sequence[bytes]) -> None:
        tree, hashes = self._tree, self._hashes
        if hashes is None:
            for leaf in leaves:
                tree.add(leaf)
            return
        for leaf in leaves:
            hashes.pending += tree.add(leaf)
        hashes.trim()

    @property
    def is_signed(self) -> bool:
        """Whether a checkpoint would say nothing new, or nobody signs any."""
        return self._signer is None or (
            self._signed_size == self._tree.size and not self._behind
        )

    @property
    def checkpoint_in_s(self) -> float | None:
        """Seconds until a checkpoint is due; None if it would say nothing new."""
        if self.is_signed:
            return None
        age = self._monotonic() - self._signed_at
        return max(0.0, self.limits.checkpoint_interval_s - age)

    def sign_checkpoint(self) -> None:
        """Sign a checkpoint over all records so far.

        A failure is logged and tried again after the interval: the records are safe,
        only their end could still be cut off unseen.
        """
        due = self.prepare_checkpoint()
        if due is not None:
            self.commit_checkpoint(due)

    def prepare_checkpoint(self) -> Due | None:
        """What is to be signed now, if anything; it has to be committed.

        It is quick: nothing is forced to disk, and nobody else is waited for.
        """
        if self._signer is None or self._hashes is None or self.is_signed:
            return None
        self._signed_at = self._monotonic()
        origin = f"{self._signer.name}/{self._writer}"
        checkpoint = Checkpoint(origin, self._tree.size, self._tree.root())
        try:
            self._hashes.flush()
            # None is left after a failure that could not be repaired.
            given_up = self._descriptor < 0
            return Due(checkpoint, -1 if given_up else os.dup(self._descriptor))
        except OSError as error:
            _log.warning("no checkpoint of the audit log: %s", error)
            return None

    def commit_checkpoint(self, due: Due) -> None:
        """Sign it, and make it a leaf of the deployment's log; as `sign_checkpoint`."""
        with self._signing:
            try:
                self._commit(due)
            except (SealgateError, OSError) as error:
                _log.warning("no checkpoint of the audit log: %s", error)
            finally:
                if due.descriptor >= 0:
                    os.close(due.descriptor)

    def _commit(self, due: Due) -> None:
        signer, checkpoint = self._signer, due.checkpoint
        if signer is None or self._log is None or self._hashes is None:
            return
        # One that was prepared later may have been committed before.
        if checkpoint.size > self._signed_size:
            if not self.limits.sync:
                self._force(due.descriptor)
            self._hashes.force()
            # Of another key, or broken: no note is added that could never be a leaf.
            self._log.check()
            checkpoints.append_note(
                self._directory,
                lambda after: signer.sign(replace(checkpoint, after=after)),
            )
            self._behind, self._signed_size = True, checkpoint.size
        checkpoints.add_leaves(self._directory, self._log)
        self._behind = False

    def _force(self, descriptor: int) -> None:
        """Force a file to disk, and the full ones before it."""
        for full in self._full[:]:
            os.fdatasync(full)
            self._full.remove(full)
            os.close(full)
        if descriptor >= 0:
            os.fdatasync(descriptor)

    def close(self) -> None:
        """Sign the last checkpoint and close."""
        if self._descriptor >= 0:
            self.sign_checkpoint()
            os.close(self._descriptor)
            self._descriptor = -1
        if self._hashes is not None:
            self._hashes.close()
            self._hashes = None
        while self._full:
            os.close(self._full.pop())

    def _write_out(self, data: bytes) -> None:
        """All of it, or nothing."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            if self.limits.sync:
                os.fdatasync(self._descriptor)
        except OSError as error:
            self._take_back()
            raise AuditError(f"{self.path}: {error.strerror}") from None
        self._size += len(data)

    def _take_back(self) -> None:
        """Cut off what a failed write left: half a record would spoil the chain."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def _rotate(self) -> None:
        due = self.prepare_checkpoint()
        if due is not None:
            self.on_due(due)
        full = self._descriptor
        self._open_next()
        if self.limits.sync or self._signer is None:
            os.close(full)
        else:
            self._full.append(full)

    def _open_hashes(self) -> None:
        path = self._directory / hashes_name(self._writer)
        try:
            self._hashes = HashWriter(path)
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}") from None

    def _open_next(self) -> None:
        path = self._directory / segment_name(self._writer, self._number + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
            _sync_folder(self._directory)
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}") from None
        self.path = path
        self._descriptor, self._number, self._size = descriptor, self._number + 1, 0


def _sync_folder(folder: Path) -> None:
    """A new file is there after a crash only if its folder was forced to disk too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
