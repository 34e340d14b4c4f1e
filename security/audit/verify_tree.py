"""The log of all writers' checkpoints, held to what it must be.

What is checked, in the numbers of `verify`:

9. the log's checkpoint is signed by every key that the log is known to have, its
   origin is the key's name;
10. its leaves are the texts of the writers' checkpoints, in their order, none left out;
    what is stored beside them, and the root that was signed, are those of the leaves;
11. a checkpoint of the log that witnesses cosigned, that was kept elsewhere, or that a
    witness shows, is one of this tree at an earlier size;
12. the newest cosigned checkpoint bears the cosignatures of enough witnesses, and of
    the writers' checkpoints that it does not cover none is older than a grace.

A checkpoint without a leaf is what a crash leaves, for the next one to add: it is
reported, and step 12 says how long that may last.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.errors import NoteError
from sealgate.protocol.merkle import Tree, leaf_hash
from sealgate.protocol.notes import (
    Checkpoint,
    Verifier,
    open_checkpoint,
    parse_checkpoint,
)
from security.audit.checkpoints import leaf_of
from security.audit.tree_log import LOG_NAME, MAX_LEAF_BYTES, read_note
from security.audit.witnesses import Quorum
from security.errors import AuditError

__all__ = ["Demand", "HashCheck", "TreeReport", "TreeSnapshot"]

_PART_BYTES = 1 << 20
_END = struct.Struct(">Q")


@dataclass(frozen=True)
class Demand:
    """What witnesses must have seen.

    Attributes:
        quorum: how many of whom.
        now_s: Unix time.
        grace_s: how old a writer's checkpoint may be that they have not seen.
    """

    quorum: Quorum
    now_s: float
    grace_s: float


@dataclass
class TreeReport:
    """What a log of checkpoints that verifies holds.

    Attributes:
        size: leaves that its checkpoint covers.
        cosigned_size: leaves that the newest cosigned checkpoint covers.
        witnessed_s: since when enough witnesses have it, Unix time; None where that is
            not asked.
        without_leaf: checkpoints of writers that are no leaves yet.
    """

    size: int
    cosigned_size: int = 0
    witnessed_s: int | None = None
    without_leaf: int = 0


class HashCheck:
    """Compares the hashes that were stored with those that are computed.

    The file may be longer, where its writer goes on.
    """

    def __init__(self, path: Path | None, *, whole: bool) -> None:
        """Nothing is read yet.

        Args:
            path: of the file, if there is one.
            whole: none may be missing; else the end may be, as a crash leaves it.
        """
        self._path = path
        self._whole = whole
        self._descriptor = -1
        self._place = 0
        self._computed = bytearray()
        if path is not None and path.exists():
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def add(self, hashes: Sequence[bytes]) -> None:
        """Take hashes in their order.

        Raises:
            AuditError: others were stored.
        """
        if self._descriptor >= 0 or self._whole:
            self._computed += b"".join(hashes)
            if len(self._computed) >= _PART_BYTES:
                self._compare()

    def end(self) -> None:
        """All hashes were given.

        Raises:
            AuditError: as `add`.
        """
        try:
            self._compare()
        finally:
            self._close()

    def _compare(self) -> None:
        computed, self._computed = bytes(self._computed), bytearray()
        stored = b""
        if self._descriptor >= 0:
            stored = os.pread(self._descriptor, len(computed), self._place)
        self._place += len(stored)
        if stored == computed or (computed.startswith(stored) and not self._whole):
            return
        self._close()
        name = "" if self._path is None else self._path.name
        what = "missing" if computed.startswith(stored) else "not that of the tree"
        raise AuditError(f"{name}: a stored hash is {what}")

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass
class TreeSnapshot:
    """A log as it is at a moment: what is added later is not looked at.

    Attributes:
        folder: where it is.
        checkpoint: its newest note; None where there is no log.
        cosigned: the newest note that witnesses signed.
    """

    folder: Path
    cosigned: bytes | None = field(init=False)
    checkpoint: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        # In this order: the second one covers the first.
        self.cosigned = read_note(self._path("cosigned"))
        self.checkpoint = read_note(self._path("checkpoint"))
        leaves = self._path("leaves")
        if self.checkpoint is None and (
            self.cosigned is not None
            # One that begins has files, and nothing in them.
            or (leaves.exists() and leaves.stat().st_size > 0)
        ):
            raise AuditError(f"{self._path('checkpoint').name}: the file is missing")

    def verify(
        self,
        notes: Sequence[bytes],
        verifiers: Sequence[Verifier],
        *,
        copies: Sequence[bytes] = (),
        ages_us: Mapping[tuple[str, int], int],
        demand: Demand | None = None,
    ) -> TreeReport | None:
        """Steps 9 to 12.

        Args:
            notes: of all writers, which verified; read after this snapshot was made.
            verifiers: of the log, each of which must have signed.
            copies: notes of the log that were kept elsewhere, or a witness showed.
            ages_us: when the last record was made that a writer's checkpoint covers,
                microseconds since 1970, by the writer's name and the size.
            demand: what witnesses must have seen; None asks for none.

        Returns:
            None where there is no log, and none is asked for.

        Raises:
            AuditError: names what is not as it must be.
        """
        if self.checkpoint is None:
            if demand is not None or copies:
                raise AuditError(
                    f"there is no log of checkpoints, {LOG_NAME}.checkpoint: no "
                    "witness can have seen it"
                )
            return None
        newest = self._opened(self.checkpoint, verifiers, "checkpoint")
        report = TreeReport(newest.size, without_leaf=len(notes) - newest.size)
        shown = {"cosigned": self._cosigned(verifiers)}
        for number, copy in enumerate(copies, start=1):
            # A witness keeps the lines of the keys that it knows.
            shown[f"copy {number}"] = self._opened(
                copy, verifiers[:1], f"copy {number}"
            )
        self._compare(newest, notes, {k: v for k, v in shown.items() if v is not None})
        cosigned = shown["cosigned"]
        report.cosigned_size = 0 if cosigned is None else cosigned.size
        if demand is not None:
            report.witnessed_s = self._enough(demand)
            self._check_ages(notes[report.cosigned_size :], ages_us, demand)
        return report

    def _path(self, kind: str) -> Path:
        return self.folder / f"{LOG_NAME}.{kind}"

    def _cosigned(self, verifiers: Sequence[Verifier]) -> Checkpoint | None:
        if self.cosigned is None:
            return None
        return self._opened(self.cosigned, verifiers, "cosigned")

    def _opened(
        self, note: bytes, verifiers: Sequence[Verifier], what: str
    ) -> Checkpoint:
        """Step 9."""
        try:
            checkpoint = open_checkpoint(note, verifiers, every=True)
        except NoteError as error:
            raise AuditError(f"{LOG_NAME}.{what}: {error}") from None
        if checkpoint.origin != verifiers[0].name or checkpoint.after:
            raise AuditError(f"{LOG_NAME}.{what}: is of another log")
        return checkpoint

    def _compare(
        self,
        newest: Checkpoint,
        notes: Sequence[bytes],
        shown: Mapping[str, Checkpoint],
    ) -> None:
        """Steps 10 and 11."""
        for what, each in shown.items():
            if each.size > newest.size:
                raise AuditError(
                    f"the log was cut off: {LOG_NAME}.{what} has {each.size} "
                    f"checkpoints of writers, the log {newest.size}"
                )
        if len(notes) < newest.size:
            raise AuditError(
                f"{newest.size - len(notes)} checkpoints were cut off, of which the "
                "log has leaves"
            )
        tree, hashes = Tree(), HashCheck(self._path("hashes"), whole=True)
        roots: dict[int, list[tuple[str, bytes]]] = {}
        for what, each in {"checkpoint": newest, **shown}.items():
            roots.setdefault(each.size, []).append((what, each.root))
        _check_root(tree, roots)
        for number, leaf in enumerate(self._leaves(newest.size)):
            if leaf != leaf_of(notes[number]):
                raise AuditError(
                    f"{LOG_NAME}.leaves, leaf {number + 1}: is not the text of that "
                    "note in the checkpoints"
                )
            hashes.add(tree.add(leaf_hash(leaf)))
            _check_root(tree, roots)
        hashes.end()

    def _leaves(self, size: int) -> Iterator[bytes]:
        where = f"{LOG_NAME}.leaves"
        try:
            with (
                self._path("leaves").open("rb") as leaves,
                self._path("ends").open("rb") as ends,
            ):
                start = 0
                for number in range(1, size + 1):
                    raw = ends.read(_END.size)
                    end = _END.unpack(raw)[0] if len(raw) == _END.size else -1
                    bounded = 0 <= end - start <= MAX_LEAF_BYTES
                    leaf = leaves.read(end - start) if bounded else b""
                    if not bounded or len(leaf) != end - start:
                        raise AuditError(f"{where}, leaf {number}: is missing")
                    yield leaf
                    start = end
        except OSError as error:
            raise AuditError(f"{where}: {error.strerror}") from None

    def _enough(self, demand: Demand) -> int:
        """Step 12, first half."""
        quorum = demand.quorum
        if self.cosigned is None:
            raise AuditError(
                f"no witness has cosigned the log, {quorum.required} are required"
            )
        witnessed = quorum.witnessed_at(self.cosigned)
        if witnessed is None:
            found = sorted(quorum.times(self.cosigned))
            raise AuditError(
                f"{quorum.required} witnesses are required, and {len(found)} cosigned "
                f"the log: {', '.join(found) or 'none'}"
            )
        if witnessed > demand.now_s + demand.grace_s:
            raise AuditError("a cosignature is of a time that is yet to come")
        return witnessed

    def _check_ages(
        self,
        notes: Sequence[bytes],
        ages_us: Mapping[tuple[str, int], int],
        demand: Demand,
    ) -> None:
        """Step 12, second half."""
        bound_us = (demand.now_s - demand.grace_s) * 1e6
        for note in notes:
            checkpoint = parse_checkpoint(leaf_of(note))
            writer = checkpoint.origin.rpartition("/")[2]
            made_us = ages_us.get((writer, checkpoint.size), 0)
            if made_us < bound_us:
                raise AuditError(
                    f"{writer}: no witness has seen its checkpoint over "
                    f"{checkpoint.size} records, the last of them older than "
                    f"{demand.grace_s:g} s"
                )


def _check_root(tree: Tree, roots: Mapping[int, Sequence[tuple[str, bytes]]]) -> None:
    for what, root in roots.get(tree.size, ()):
        if root != tree.root():
            raise AuditError(
                f"{LOG_NAME}.{what}: is signed, and of another tree: the log forked"
            )
