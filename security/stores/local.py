"""An SQLite file that all workers of a machine share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["SqliteFile"]

_PAGE_BYTES = 4096
_BUSY_TIMEOUT_S = 0.25

Value = int | float | str | bytes


class SqliteFile:
    """A file that is opened at its first use: connections do not survive a fork.

    Whatever fails closes it, and the next use opens it again.
    """

    def __init__(
        self,
        path: Path,
        schema: Sequence[str],
        *,
        refusal: type[Exception],
        synchronous: str,
        max_bytes: int = 1 << 40,
        must_exist: bool = False,
        timeout_s: float = _BUSY_TIMEOUT_S,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            path: of the file.
            schema: statements that make what is not there.
            refusal: raised where the file cannot be used.
            synchronous: SQLite's word for how much is forced to disk: "OFF", "NORMAL"
                or "FULL".
            max_bytes: of the file.
            must_exist: only `make` makes the file: one that is gone is not empty.
            timeout_s: how long a lock is waited for.
        """
        self.path = path
        self._schema = schema
        self._refusal = refusal
        self._synchronous = synchronous
        self._max_bytes = max_bytes
        self._must_exist = must_exist
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def execute(self, sql: str, *values: Value) -> sqlite3.Cursor:
        """Run one statement.

        Raises:
            Exception: the refusal: the file cannot be used, is locked, full or torn.
        """
        try:
            return self._opened().execute(sql, values)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One step for all: nobody reads between a look and the change after it.

        Raises:
            Exception: the refusal; nothing of the transaction remains.
        """
        try:
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None

    def make(self) -> None:
        """Make the folder, the file and what is in it, unless they are there.

        That it was made is noted beside the folder, where the file's loss leaves it.

        Raises:
            Exception: the refusal.
        """
        self.close()
        try:
            self._open(make=True)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None
        with contextlib.suppress(OSError):  # not everybody may write there
            self._note.touch(mode=0o600)

    @property
    def was_made(self) -> bool:
        """Whether `make` has noted that it made the file, be it there or gone."""
        return self._note.exists()

    @property
    def _note(self) -> Path:
        folder = self.path.absolute().parent
        return folder.with_name(f"{folder.name}.made")

    def version(self) -> tuple[int, int]:
        """What differs whenever another connection has changed this very file."""
        (counter,) = self.execute("PRAGMA data_version").fetchone()
        return self._inode, counter

    def close(self) -> None:
        """Close the file; an unfinished transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        connection = self._connection or self._open(make=not self._must_exist)
        # A file that is not at its path any more is not what others write to.
        if self._must_exist and os.stat(self.path).st_ino != self._inode:
            raise sqlite3.OperationalError("was replaced")
        return connection

    def _open(self, *, make: bool) -> sqlite3.Connection:
        if make:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._inode = os.stat(self.path).st_ino
        connection = self._connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=self._timeout_s,
            check_same_thread=False,
        )
        for statement in (
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {self._synchronous}",
            f"PRAGMA max_page_count = {self._max_bytes // _PAGE_BYTES}",
            *(self._schema if make else ()),
        ):
            connection.execute(statement)
        return connection

    def _failed(self, error: sqlite3.Error | OSError) -> Exception:
        """The refusal that an error becomes; closing rolls back."""
        with contextlib.suppress(sqlite3.Error):
            self.close()
        reason = error.strerror if isinstance(error, OSError) else error
        return self._refusal(f"{self.path}: {reason}")
