"""The checkpoints of all writers of a folder: one file, which only grows.

Notes follow one another, each with a blank line behind it. Each names in its line
``after`` the SHA-256 of what stood before it, back to the last note that had such a
line, and so, one after the other, binds the checkpoints of all writers so far. Whoever
takes one away, to hide what it shows missing, must take away every later one of every
writer: only a common tail can go. A writer that starts binds itself too: its first
record's ``prev`` is the hash of the whole file.

The text of each note is also a leaf of the deployment's log (`tree_log`), in the order
of this file: the first leaf is the first note's, and so on. A note is there first; what
a crash left out is added with the next one. So the one checkpoint of that log stands
for those of all writers, and witnesses follow that.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from security.audit.tree_log import TreeLog
from security.errors import AuditError

__all__ = [
    "FILE_NAME",
    "add_leaves",
    "append_note",
    "bindings",
    "file_hash",
    "leaf_of",
    "prefix_hashes",
    "split_notes",
]

FILE_NAME = "checkpoints"
# The last line of a note, and the blank line behind it. No origin begins with a dash
# and a blank, so nothing else in a file of ours reads like that.
_END = re.compile(rb"^\xe2\x80\x94 [^\n]+\n\n", re.MULTILINE)
_BOUND = re.compile(rb"^after [0-9a-f]{64}$", re.MULTILINE)
_TAIL_BYTES = 64 << 10


def append_note(directory: Path, sign: Callable[[str], bytes]) -> None:
    """Add a note, and force it to disk.

    Half a note that a crash left at the end is taken away: nobody was told of it.

    Args:
        directory: of the log.
        sign: makes the note, given what it must name as ``after``; nobody else adds one
            meanwhile.

    Raises:
        AuditError: it could not be added; the file is as before.
    """
    path = directory / FILE_NAME
    try:
        with _locked(path) as descriptor:
            size = _complete_size(descriptor)
            os.ftruncate(descriptor, size)
            note = sign(_last_binding(descriptor, size))
            try:
                _write_all(descriptor, note + b"\n")
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None


def add_leaves(directory: Path, log: TreeLog) -> None:
    """Make a leaf of each note that is none yet.

    Args:
        directory: of the notes.
        log: the deployment's.

    Raises:
        AuditError: they cannot be added, or a note is gone whose leaf is there.
    """
    log.extend(partial(_new_leaves, directory))


def leaf_of(note: bytes) -> bytes:
    r"""A note's text, which is its leaf.

    >>> leaf_of("a\n1\n\n— k sig\n".encode())
    b'a\n1\n'
    """
    return note.rpartition(b"\n\n")[0] + b"\n"


def _new_leaves(directory: Path, size: int, last: bytes | None) -> Sequence[bytes]:
    path = directory / FILE_NAME
    try:
        with _locked(path) as descriptor:
            # A note that a killed process left, too: its leaf must not outlive it.
            os.fdatasync(descriptor)
            return _after(descriptor, _complete_size(descriptor), size, last)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None


def _after(descriptor: int, end: int, size: int, last: bytes | None) -> Sequence[bytes]:
    """The texts of the notes after the one that is the last leaf."""
    begin = max(end - _TAIL_BYTES, 0)
    if begin and last is not None:
        # The first of a tail may be half a note.
        texts = list(map(leaf_of, _notes(descriptor, begin, end)))[1:]
        if last in texts:
            return texts[texts.index(last) + 1 :]
    texts = list(map(leaf_of, _notes(descriptor, 0, end)))
    if last is not None and (len(texts) < size or texts[size - 1] != last):
        raise AuditError(f"{FILE_NAME}: a note is gone whose leaf is in the log")
    return texts[size:]


def _notes(descriptor: int, begin: int, end: int) -> list[bytes]:
    return split_notes(os.pread(descriptor, end - begin, begin))


def file_hash(directory: Path) -> str:
    """Hex SHA-256 of the complete notes so far; of nothing if there are none."""
    path = directory / FILE_NAME
    try:
        with _locked(path) as descriptor:
            return _hash_front(descriptor, _complete_size(descriptor))
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None


def split_notes(content: bytes) -> list[bytes]:
    r"""The notes in a file's content; a torn one at its end is left out.

    >>> split_notes("a\n\n— k sig\n\nb\n\n— k sig\n\ntorn".encode())
    [b'a\n\n\xe2\x80\x94 k sig\n', b'b\n\n\xe2\x80\x94 k sig\n']
    """
    ends = [match.end() for match in _END.finditer(content)]
    return [content[start : end - 1] for start, end in zip([0, *ends], ends)]


def bindings(notes: Iterable[bytes]) -> Iterator[str]:
    """What each note must name as ``after``, if it names anything, and then the next.

    >>> next(bindings([])) == hashlib.sha256(b"").hexdigest()
    True
    """
    running = hashlib.sha256()
    for note in notes:
        yield running.hexdigest()
        if _BOUND.search(note):
            running = hashlib.sha256()
        running.update(note + b"\n")
    yield running.hexdigest()


def prefix_hashes(content: bytes) -> Iterator[str]:
    """Hex SHA-256 of the file at each time of its life: after none, one, two… notes."""
    running = hashlib.sha256()
    yield running.hexdigest()
    for note in split_notes(content):
        running.update(note + b"\n")
        yield running.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _complete_size(descriptor: int) -> int:
    """Bytes up to the end of the last complete note."""
    size = os.fstat(descriptor).st_size
    start = max(size - _TAIL_BYTES, 0)
    ends = [m.end() for m in _END.finditer(os.pread(descriptor, _TAIL_BYTES, start))]
    return start + ends[-1] if ends else 0


def _last_binding(descriptor: int, size: int) -> str:
    """The last of `bindings`; of the tail alone, where that has a note that binds."""
    start = max(size - _TAIL_BYTES, 0)
    for begin in (start, 0):
        notes = _notes(descriptor, begin, size)
        # The first of a tail may be half a note.
        whole = notes[1:] if begin else notes
        if not begin or any(map(_BOUND.search, whole)):
            break
    *_, last = bindings(whole)
    return last


def _hash_front(descriptor: int, size: int) -> str:
    running, position = hashlib.sha256(), 0
    while part := os.pread(descriptor, min(1 << 20, size - position), position):
        running.update(part)
        position += len(part)
    return running.hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
