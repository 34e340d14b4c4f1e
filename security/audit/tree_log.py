"""A log with one origin, which many processes write (C2SP tlog-checkpoint).

Leaves in a Merkle tree (RFC 6962), and one signed checkpoint over all of them, whose
origin is the name of the key that signs, without extension lines: any witness of the
specification follows it. Five files in a folder::

    NAME.leaves      the leaves, one behind the other
    NAME.ends        where each of them ends: 8 bytes, big-endian
    NAME.hashes      the tree's hashes, as `stored_hashes` has them
    NAME.checkpoint  the newest signed checkpoint
    NAME.cosigned    the newest one that witnesses signed, with their signatures

The checkpoint is the commit. Under a lock (flock, on the leaves) the other three are
forced to disk first, then it is signed and renamed into place. What lies behind its
size is what a crash left: it was never signed, no caller was told of it, and the next
one writes over it. No leaf within its size is ever written again, and a tree that does
not have the root that was signed is not signed anew. So two checkpoints of one key
cannot disagree, unless somebody puts the files back to an earlier day: that a witness
sees.
"""

from __future__ import annotations

import fcntl
import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from models.files import write_atomic
from sealgate.errors import MerkleError, NoteError
from sealgate.protocol import merkle
from sealgate.protocol.merkle import HASH_BYTES, Read, Tree
from sealgate.protocol.notes import (
    MAX_NOTE_BYTES,
    Checkpoint,
    Signer,
    open_checkpoint,
    parse_checkpoint,
    split_note,
)
from security.audit.stored_hashes import hashes_at
from security.errors import AuditError

__all__ = ["LOG_NAME", "MAX_LEAF_BYTES", "More", "TreeLog", "read_note"]

LOG_NAME = "log"
MAX_LEAF_BYTES = 64 << 10

_END = struct.Struct(">Q")
_MAX_END = (1 << 63) - 1 - MAX_LEAF_BYTES
_BLOCK_BYTES = 1 << 20

_T = TypeVar("_T")

# Leaves to add, given how many there are and the last of them.
More = Callable[[int, bytes | None], Sequence[bytes]]


def read_note(path: Path) -> bytes | None:
    """A file that holds one note, or None where there is no such file.

    Raises:
        AuditError: it cannot be read, or is longer than a note.
    """
    try:
        with path.open("rb") as file:
            note = file.read(MAX_NOTE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None
    if len(note) > MAX_NOTE_BYTES:
        raise AuditError(f"{path}: longer than a note")
    return note


@dataclass(frozen=True)
class _Files:
    """The open files of a log."""

    leaves: int
    ends: int
    hashes: int

    @property
    def read(self) -> Read:
        return hashes_at(self.hashes)

    def end(self, size: int) -> int:
        """Where so many leaves end."""
        if size == 0:
            return 0
        raw = os.pread(self.ends, _END.size, _END.size * (size - 1))
        if len(raw) != _END.size:
            raise MerkleError("leaves that were signed are missing")
        end = int(_END.unpack(raw)[0])
        if end > _MAX_END:
            raise MerkleError(f"no leaf ends at {end}")
        return end

    def leaf(self, index: int) -> bytes:
        start, end = self.end(index), self.end(index + 1)
        if not 0 <= end - start <= MAX_LEAF_BYTES:
            raise MerkleError(f"leaf {index} is not what was signed")
        leaf = os.pread(self.leaves, end - start, start)
        if len(leaf) != end - start:
            raise MerkleError("leaves that were signed are missing")
        return leaf

    def search(self, prefix: bytes, start: int, size: int) -> Iterator[int]:
        """The leaves that begin with a prefix, in a part of them, newest first."""
        least, high = self.end(start), self.end(size)
        while high > least:
            low = max(high - _BLOCK_BYTES, least)
            block = os.pread(self.leaves, high - low + len(prefix) - 1, low)
            at = high - low
            while (at := block.rfind(prefix, 0, at + len(prefix) - 1)) >= 0:
                index = bisect_left(range(size), low + at, key=self.end)
                if index < size and self.end(index) == low + at:
                    yield index
            high = low

    def places(self, size: int) -> Sequence[tuple[int, int]]:
        """Each file, and where it ends with so many leaves."""
        return (
            (self.leaves, self.end(size)),
            (self.ends, _END.size * size),
            (self.hashes, HASH_BYTES * merkle.stored_hash_count(size)),
        )


class TreeLog:
    """Adds leaves to a log, and proves what is in it; from any thread and process.

    Attributes:
        origin: of the checkpoints, the signer's name.
        directory: of the files.
        name: which the files begin with.
    """

    def __init__(
        self, directory: Path, signer: Signer, *, name: str = LOG_NAME
    ) -> None:
        """Nothing is read or made yet.

        Args:
            directory: made if missing, 0700.
            signer: of the checkpoints.
            name: of the files, where several logs share a folder.
        """
        self.directory = directory
        self.name = name
        self.origin = signer.name
        self._signer = signer
        self._seen: tuple[bytes, Checkpoint] | None = None

    def append(self, leaves: Sequence[bytes]) -> range:
        """Add leaves, in this order; signed and on disk when it returns.

        Args:
            leaves: of at most 64 KiB each.

        Returns:
            Their indices.

        Raises:
            AuditError: none of them is in the log.
        """
        return self.extend(lambda size, last: leaves)

    def extend(self, more: More) -> range:
        """Add leaves that depend on those that are there; as `append`.

        Args:
            more: called while nobody else adds any.
        """
        with self._opened(fcntl.LOCK_EX) as files:
            checkpoint = self._newest() or self._begin(files)
            size = checkpoint.size
            leaves = list(more(size, files.leaf(size - 1) if size else None))
            if leaves:
                self._add(files, checkpoint, leaves)
            return range(size, size + len(leaves))

    def checkpoint(self) -> bytes:
        """The newest signed note, with the cosignatures collected for it.

        It is on disk when it is returned: what is published never vanishes.

        Raises:
            AuditError: it cannot be read, or is not signed by this log.
        """
        with self._opened(fcntl.LOCK_SH):
            note, cosigned = read_note(self._path("checkpoint")), self.cosigned()
            _sync_folder(self.directory)
        if note is None:
            self.extend(lambda size, last: ())
            return self.checkpoint()
        self._open(note)
        if cosigned is not None and _parsed(cosigned) == _parsed(note):
            return cosigned
        return note

    def cosigned(self) -> bytes | None:
        """The newest note that witnesses signed; None where there is none yet."""
        return read_note(self._path("cosigned"))

    def put_cosigned(self, note: bytes) -> None:
        """Keep a note with the cosignatures that were collected for it.

        Args:
            note: of this log, with at least one cosignature; whoever hands it in has
                verified them. One that is older than what is kept changes nothing.

        Raises:
            AuditError: it is not of this log, or cannot be kept.
        """
        with self._opened(fcntl.LOCK_EX) as files:
            checkpoint, newest = self._open(note), self._newest()
            if newest is None or checkpoint.size > newest.size:
                raise AuditError(f"{self.name}: a checkpoint that was never signed")
            if merkle.tree_root(checkpoint.size, files.read) != checkpoint.root:
                raise AuditError(f"{self.name}: a checkpoint of another tree")
            kept = self.cosigned()
            if kept is None or _parsed(kept).size <= checkpoint.size:
                self._put("cosigned", note)

    def check(self) -> None:
        """Whether leaves can be added: what is there was signed by this log's key.

        Raises:
            AuditError: it was not, or its checkpoint is gone.
        """
        if self._newest() is None:
            self.extend(lambda size, last: ())

    @property
    def size(self) -> int:
        """How many leaves the newest checkpoint covers.

        Raises:
            AuditError: as `checkpoint`.
        """
        newest = self._newest()
        return 0 if newest is None else newest.size

    def leaf(self, index: int) -> bytes:
        """A leaf.

        Raises:
            AuditError: there is none of this index, or it cannot be read.
        """
        if not 0 <= index < self.size:
            raise AuditError(f"{self.name}: no leaf {index}")
        with self._opened() as files:
            return files.leaf(index)

    def leaves(self, start: int = 0) -> Iterator[bytes]:
        """The leaves from an index on, up to the newest checkpoint's size.

        Raises:
            AuditError: they cannot be read.
        """
        size = self.size
        if start < size:
            with self._opened() as files:
                for index in range(start, size):
                    yield files.leaf(index)

    def search(
        self, prefix: bytes, *, start: int = 0, size: int | None = None
    ) -> Iterator[int]:
        """The indices of the leaves that begin with a prefix, the newest first.

        The file is searched from its end, block by block.

        Args:
            prefix: of the leaves.
            start: none before this one is looked at.
            size: of the part that is looked at, from the first leaf on; all of them by
                default.

        Raises:
            AuditError: it cannot be read, or there are not so many.
        """
        there = self.size
        size = there if size is None else size
        if size > there:
            raise AuditError(f"{self.name}: has no {size} leaves")
        if start < size:
            with self._opened() as files:
                yield from files.search(prefix, start, size)

    def nodes(self, level: int, numbers: Sequence[int]) -> Sequence[bytes]:
        """The hashes of complete subtrees of a height, which ascend.

        Raises:
            AuditError: one of them is not complete.
        """
        indices = [merkle.stored_hash_index(level, number) for number in numbers]
        size = max(numbers, default=-1) + 1 << level
        return self._prove(size, lambda read: read(indices))

    def root(self, size: int) -> bytes:
        """The root over the first leaves.

        Raises:
            AuditError: there are not so many.
        """
        return self._prove(size, lambda read: merkle.tree_root(size, read))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path that proves a leaf to be in the tree over the first ``size``.

        Raises:
            AuditError: there is no such leaf, or no tree of that size.
        """
        return self._prove(size, lambda read: merkle.inclusion_proof(index, size, read))

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The path that proves the tree over ``new`` leaves to begin with an older one.

        Raises:
            AuditError: there is no tree of one of these sizes, or ``old`` is larger.
        """
        return self._prove(new, lambda read: merkle.consistency_proof(old, new, read))

    def _prove(self, size: int, prove: Callable[[Read], _T]) -> _T:
        if size > self.size:
            raise AuditError(f"{self.name}: has no {size} leaves")
        with self._opened() as files:
            return prove(files.read)

    def _path(self, kind: str) -> Path:
        return self.directory / f"{self.name}.{kind}"

    @contextmanager
    def _opened(self, lock: int = fcntl.LOCK_UN) -> Iterator[_Files]:
        """The files, locked if that is asked for; with this log's errors."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with ExitStack() as stack:
                opened = []
                for kind in ("leaves", "ends", "hashes"):
                    opened.append(os.open(self._path(kind), flags, 0o600))
                    stack.callback(os.close, opened[-1])
                if lock != fcntl.LOCK_UN:
                    fcntl.flock(opened[0], lock)
                yield _Files(*opened)
        except OSError as error:
            raise AuditError(
                f"{self.directory / self.name}: {error.strerror}"
            ) from None
        except MerkleError as error:
            raise AuditError(f"{self.directory / self.name}: {error}") from None

    def _newest(self) -> Checkpoint | None:
        note = read_note(self._path("checkpoint"))
        return None if note is None else self._open(note)

    def _open(self, note: bytes) -> Checkpoint:
        """Whether this log signed it; asked once of the same bytes."""
        if self._seen is not None and self._seen[0] == note:
            return self._seen[1]
        try:
            # Beside it, a key of another kind may have signed, or not yet have existed.
            checkpoint = open_checkpoint(note, [self._signer.verifier])
        except NoteError as error:
            raise AuditError(f"{self._path('checkpoint')}: {error}") from None
        if checkpoint.origin != self.origin or checkpoint.after:
            raise AuditError(f"{self._path('checkpoint')}: is of another log")
        self._seen = note, checkpoint
        return checkpoint

    def _begin(self, files: _Files) -> Checkpoint:
        """Sign the empty log, so that one whose checkpoint is gone never seems new."""
        if any(os.fstat(each).st_size for each, _ in files.places(0)):
            raise AuditError(
                f"{self._path('checkpoint')}: is missing, and there are leaves"
            )
        return self._sign(Tree())

    def _add(
        self, files: _Files, checkpoint: Checkpoint, leaves: Sequence[bytes]
    ) -> None:
        if any(len(leaf) > MAX_LEAF_BYTES for leaf in leaves):
            raise AuditError(f"{self.name}: a leaf of more than {MAX_LEAF_BYTES} bytes")
        places = files.places(checkpoint.size)
        for descriptor, place in places:
            if os.fstat(descriptor).st_size < place:
                raise MerkleError("leaves that were signed are missing")
        tree = Tree.restore(checkpoint.size, files.read)
        if tree.root() != checkpoint.root:
            raise MerkleError("its hashes are not what was signed")
        end, ends, hashes = places[0][1], bytearray(), bytearray()
        for leaf in leaves:
            end += len(leaf)
            ends += _END.pack(end)
            hashes += b"".join(tree.add(merkle.leaf_hash(leaf)))
        parts: list[bytes | bytearray] = [b"".join(leaves), ends, hashes]
        for (descriptor, place), data in zip(places, parts, strict=True):
            os.ftruncate(descriptor, place)
            _write_at(descriptor, data, place)
            os.fdatasync(descriptor)
        self._sign(tree)

    def _sign(self, tree: Tree) -> Checkpoint:
        checkpoint = Checkpoint(self.origin, tree.size, tree.root())
        note = self._signer.sign(checkpoint)
        self._put("checkpoint", note)
        self._seen = note, checkpoint
        return checkpoint

    def _put(self, kind: str, note: bytes) -> None:
        write_atomic(self._path(kind), note, mode=0o600)
        _sync_folder(self.directory)


def _parsed(note: bytes) -> Checkpoint:
    """A note of ours, which this log alone writes."""
    try:
        return parse_checkpoint(split_note(note)[0])
    except NoteError as error:
        raise AuditError(str(error)) from None


def _write_at(descriptor: int, data: bytes | bytearray, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
