"""What a witness cosigned, of each log: every checkpoint, and proofs of misbehaviour.

A row is on the disk before its cosignature leaves: SQLite with ``synchronous = FULL``.
Look and change are one transaction, so that neither two requests nor two processes
cosign what does not follow from each other. That the file was made is noted beside its
folder: a witness that lost its memory must not go on as if it had seen nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from security.errors import WitnessError
from security.stores.local import SqliteFile

__all__ = ["Cosigned", "State"]

FILE_NAME = "witness.db"
_MAX_BYTES = 16 << 30
MAX_FORKS = 64
_BUSY_TIMEOUT_S = 5.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS cosigned (origin TEXT NOT NULL, size INTEGER NOT NULL,"
    " root BLOB NOT NULL, time_s INTEGER NOT NULL, note BLOB NOT NULL,"
    " PRIMARY KEY (origin, size))",
    "CREATE TABLE IF NOT EXISTS forks (origin TEXT NOT NULL, size INTEGER NOT NULL,"
    " root BLOB NOT NULL, time_s INTEGER NOT NULL, note BLOB NOT NULL,"
    " PRIMARY KEY (origin, size, root))",
)
_COLUMNS = "size, root, time_s, note"


@dataclass(frozen=True)
class Cosigned:
    """A checkpoint that was cosigned.

    Attributes:
        size: how many entries the log had.
        root: of its tree, 32 bytes.
        time_s: of the cosignatures, seconds since 1970.
        note: the checkpoint, signed by its log and by the witness.
    """

    size: int
    root: bytes
    time_s: int
    note: bytes


class State:
    """The file. One thread at a time may use it; other processes may, too."""

    def __init__(self, folder: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        """Open the file, or make it if there never was one.

        Args:
            folder: where it is kept; its owner's alone.
            max_bytes: of the file. Beyond it nothing is cosigned any more.

        Raises:
            WitnessError: it cannot be opened, or it was made before and is gone.
        """
        self._file = SqliteFile(
            folder / FILE_NAME,
            _SCHEMA,
            refusal=WitnessError,
            synchronous="FULL",
            max_bytes=max_bytes,
            must_exist=True,
            timeout_s=_BUSY_TIMEOUT_S,
        )
        if self._file.was_made and not self._file.path.exists():
            raise WitnessError(
                f"{self._file.path}: is gone, and with it what this witness has seen; "
                "under the same key it could cosign a fork. Begin with a new key"
            )
        self._file.make()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def latest(self, origin: str) -> Cosigned | None:
        """The largest checkpoint that was cosigned of a log.

        Raises:
            WitnessError: the file cannot be read.
        """
        row = self._file.execute(
            f"SELECT {_COLUMNS} FROM cosigned WHERE origin = ?"  # noqa: S608
            " ORDER BY size DESC LIMIT 1",
            origin,
        ).fetchone()
        return None if row is None else Cosigned(*row)

    def at(self, origin: str, size: int) -> Cosigned | None:
        """The checkpoint of a size, if it was cosigned.

        Raises:
            WitnessError: the file cannot be read.
        """
        row = self._file.execute(
            f"SELECT {_COLUMNS} FROM cosigned WHERE origin = ? AND size = ?",  # noqa: S608
            origin,
            size,
        ).fetchone()
        return None if row is None else Cosigned(*row)

    def after(self, origin: str, size: int, count: int) -> list[tuple[int, bytes, int]]:
        """Size, root and time of the checkpoints that follow a size, ascending.

        Raises:
            WitnessError: the file cannot be read.
        """
        return self._file.execute(
            "SELECT size, root, time_s FROM cosigned WHERE origin = ? AND size > ?"
            " ORDER BY size LIMIT ?",
            origin,
            size,
            count,
        ).fetchall()

    def forks(self, origin: str) -> list[Cosigned]:
        """Checkpoints that contradict what was cosigned of the same size.

        Raises:
            WitnessError: the file cannot be read.
        """
        rows = self._file.execute(
            f"SELECT {_COLUMNS} FROM forks WHERE origin = ? ORDER BY size, root",  # noqa: S608
            origin,
        ).fetchall()
        return [Cosigned(*row) for row in rows]

    def advance(
        self, origin: str, decide: Callable[[Cosigned | None], Cosigned | None]
    ) -> None:
        """Keep another checkpoint; on the disk when this returns.

        Args:
            origin: of the log.
            decide: gets the latest one, returns the one to keep, or None; it must not
                raise. Nobody else decides about this state meanwhile.

        Raises:
            WitnessError: it was not kept.
        """
        with self._file.transaction() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM cosigned WHERE origin = ?"  # noqa: S608
                " ORDER BY size DESC LIMIT 1",
                (origin,),
            ).fetchone()
            kept = decide(None if row is None else Cosigned(*row))
            if kept is not None:
                connection.execute(
                    "INSERT INTO cosigned VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (origin, size) DO UPDATE"
                    " SET time_s = excluded.time_s, note = excluded.note",
                    (origin, kept.size, kept.root, kept.time_s, kept.note),
                )

    def keep_fork(self, origin: str, fork: Cosigned) -> bool:
        """Keep what a log signed against itself; whether it is one more.

        Raises:
            WitnessError: it was not kept.
        """
        with self._file.transaction() as connection:
            (count,) = connection.execute(
                "SELECT COUNT(*) FROM forks WHERE origin = ?", (origin,)
            ).fetchone()
            if count >= MAX_FORKS:
                return False
            return (
                connection.execute(
                    "INSERT OR IGNORE INTO forks VALUES (?, ?, ?, ?, ?)",
                    (origin, fork.size, fork.root, fork.time_s, fork.note),
                ).rowcount
                > 0
            )
