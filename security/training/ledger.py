"""What all trainings on one data set have spent, with a cap that none can pass.

Data is one data set if it has the same rows, in any order, or the same declared name,
also through a third training that shares one with each. A training reserves all of its
steps before it touches a row, in one transaction with the question whether they fit;
then it books steps before it takes them. So two cannot both take the last of the
budget, and one that is killed has spent what it booked, no more and no less.

Whoever can write the file can forget what was spent: keep it where backups are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from security.errors import LedgerError
from security.training.accounting import compose
from security.training.entries import (
    Account,
    Entry,
    Request,
    known,
    linked,
    names_of,
)
from security.training.overlap import sketch
from security.training.selection import Selection

__all__ = [
    "DEFAULT_CAP",
    "Account",
    "Entry",
    "Forecast",
    "Ledger",
    "Request",
    "Reservation",
]

# Of a data set for which nobody set one.
DEFAULT_CAP = 10.0

_BUSY_TIMEOUT_S = 120.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trainings (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, unit TEXT NOT NULL,
    model TEXT NOT NULL, created_at TEXT NOT NULL, state TEXT NOT NULL,
    rate REAL NOT NULL, noise REAL NOT NULL, group_size INTEGER NOT NULL,
    planned INTEGER NOT NULL, spent INTEGER NOT NULL, delta REAL NOT NULL,
    token TEXT NOT NULL, tries REAL NOT NULL DEFAULT 0,
    distribution TEXT NOT NULL DEFAULT '', score_noise REAL NOT NULL DEFAULT 0,
    former TEXT NOT NULL DEFAULT '',
    sketch BLOB NOT NULL DEFAULT x'',
    CHECK (0 <= spent AND spent <= planned)
);
CREATE TABLE IF NOT EXISTS secret (key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS caps (
    name TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL
);
"""


_SELECTION = ("tries", "distribution", "score_noise")
# Columns that files of an earlier version lack.
_ADDED = {
    "tries": "REAL NOT NULL DEFAULT 0",
    "distribution": "TEXT NOT NULL DEFAULT ''",
    "score_noise": "REAL NOT NULL DEFAULT 0",
    "former": "TEXT NOT NULL DEFAULT ''",
    "sketch": "BLOB NOT NULL DEFAULT x''",
}


@dataclass(frozen=True)
class Forecast:
    """A data set's account with one more training.

    Attributes:
        names: under which it was declared.
        cap: on epsilon.
        delta: at which epsilon is stated.
        before, after: epsilon that is taken, without the training and with it.
    """

    names: tuple[str, ...]
    cap: float
    delta: float
    before: float
    after: float


class Ledger:
    """An SQLite file, and one lock per running training, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, request: Request) -> Reservation:
        """Book a training's whole plan, or refuse it.

        Raises:
            LedgerError: it does not fit under the cap, it protects another unit than
                earlier trainings on the data, or the ledger cannot be written.
        """
        identity = secrets.token_hex(8)
        with self._transaction() as database:
            entries = self._entries(database)
            new = Entry(identity, request, "running", 0, _now())
            self._check(database, entries, new)
            lock = self._lock(identity)
            if lock is None:
                raise LedgerError(f"training {identity} is running already")
            _insert(database, new)
        return Reservation(self, identity, request.steps, 0, lock)

    def forecast(self, request: Request) -> Forecast:
        """What would be spent with a training, of which nothing is booked.

        Raises:
            LedgerError: it does not fit under the cap, it protects another unit than
                earlier trainings on the data, or the ledger cannot be read.
        """
        with self._transaction() as database:
            entries = self._entries(database)
            new = Entry("", request, "running", 0, _now())
            self._check(database, entries, new)
            return self._forecast(database, entries, new)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever booked, and there is no file."""
        return not (self._folder / "ledger.sqlite").exists()

    def resume(self, identity: str, *, token: str, successor: str) -> Reservation:
        """Take up an interrupted training, once per checkpoint.

        The checkpoint that was last booked is the only one that can be taken up, and by
        being taken up it is replaced: from one checkpoint, two sets of noisy steps
        would otherwise be made while only one is counted.

        Args:
            identity: of the training.
            token: digest of the checkpoint to go on from.
            successor: digest of the checkpoint that replaces it.

        Raises:
            LedgerError: unknown, finished, running, another checkpoint, or the budget
                was spent elsewhere meanwhile.
        """
        with self._transaction() as database:
            entries = self._entries(database)
            entry = known(entries, identity)
            if entry.state == "running":
                raise LedgerError(f"training {identity} is running already")
            if not token or entry.token != token:
                raise LedgerError(
                    f"training {identity} went on from this checkpoint already, or it "
                    "was changed: a second continuation would spend the budget twice"
                )
            if entry.spent < entry.request.steps:
                others = [item for item in entries if item.id != identity]
                again = Entry(identity, entry.request, "running", entry.spent, _now())
                self._check(database, others, again)
            lock = self._lock(identity)
            if lock is None:
                raise LedgerError(f"training {identity} is running already")
            database.execute(
                "UPDATE trainings SET state = 'running', token = ? WHERE id = ?",
                (successor, identity),
            )
        return Reservation(self, identity, entry.request.steps, entry.spent, lock)

    def token(self, identity: str) -> str:
        """The digest of the checkpoint that a training can be taken up from.

        Raises:
            LedgerError: unknown, or the ledger cannot be read.
        """
        with self._transaction() as database:
            return known(self._entries(database), identity).token

    def sketch(self, owners: Iterable[bytes]) -> bytes:
        """`overlap.sketch` with this ledger's key.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        with self._transaction() as database:
            row = database.execute("SELECT key FROM secret").fetchone()
            if row is None:
                row = (secrets.token_bytes(32),)
                database.execute("INSERT INTO secret VALUES (?)", row)
        return sketch(owners, row[0])

    def check_public(
        self, name: str, digests: Sequence[str], owners: Iterable[bytes]
    ) -> None:
        """Refuse to take data as public that a training booked as personal.

        Raises:
            LedgerError: it is in the ledger, or the ledger cannot be read.
        """
        if self.is_new:
            return
        digest, *former = digests
        asked = Request(name, digest, "", "", 1.0, 1.0, 1, 0, 1.0)
        asked = replace(asked, former=tuple(former), sketch=self.sketch(owners))
        with self._transaction() as database:
            found = linked(self._entries(database), asked)
        if found:
            raise LedgerError(
                f"data {name} is booked as personal, as {', '.join(names_of(found))}: "
                "it cannot be declared public (data.personal = false)"
            )

    def set_cap(self, name: str, epsilon: float, delta: float | None) -> None:
        """Set what may be spent on the data sets of a name.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO caps VALUES (?, ?, ?)", (name, epsilon, delta)
            )

    def accounts(self) -> list[Account]:
        """Every data set with what was spent on it.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._transaction() as database:
            entries = self._entries(database)
            caps = [row[0] for row in database.execute("SELECT name FROM caps")]
            accounts = []
            left = list(entries)
            while left:
                same = linked(left, left[0].request)
                left = [item for item in left if item not in same]
                accounts.append(self._account(database, same))
            names = {name for account in accounts for name in account.names}
            for name in caps:
                if name not in names:
                    cap, delta, _ = self._cap(database, (name,), ())
                    accounts.append(Account((name,), cap, False, delta, 0.0, 0.0, ()))
        return sorted(accounts, key=lambda account: account.names)

    def update(self, identity: str, **values: Any) -> None:
        """Change a training's row.

        Raises:
            LedgerError: it cannot be written.
        """
        columns = ", ".join(f"{name} = ?" for name in sorted(values))
        with self._transaction() as database:
            database.execute(
                f"UPDATE trainings SET {columns} WHERE id = ?",  # noqa: S608  (own names)
                (*(values[name] for name in sorted(values)), identity),
            )

    def _check(
        self, database: sqlite3.Connection, entries: Sequence[Entry], new: Entry
    ) -> None:
        """Refuse what would pass the cap."""
        found = self._forecast(database, entries, new)
        if found.after > found.cap:
            raise LedgerError(
                f"data {', '.join(found.names)}: epsilon {found.before:.2f} of "
                f"{found.cap:g} is taken at delta {found.delta:.1e}, and with this "
                f"training it would be {found.after:.2f}; see "
                "`ledger show`"
            )

    def _forecast(
        self, database: sqlite3.Connection, entries: Sequence[Entry], new: Entry
    ) -> Forecast:
        earlier = linked(entries, new.request)
        units = {item.request.unit for item in earlier} - {new.request.unit}
        if units:
            raise LedgerError(
                f"this training protects a {new.request.unit}, earlier ones on this "
                f"data a {', a '.join(sorted(units))}: their sum has no meaning"
            )
        names = names_of([*earlier, new])
        cap, delta, _ = self._cap(database, names, [*earlier, new])
        before = [item.cost(item.held) for item in earlier]
        after = compose([*before, new.cost(new.held)], delta)
        return Forecast(names, cap, delta, compose(before, delta), after)

    def _account(
        self, database: sqlite3.Connection, entries: Sequence[Entry]
    ) -> Account:
        names = names_of(entries)
        cap, delta, default = self._cap(database, names, entries)
        return Account(
            names=names,
            cap=cap,
            cap_is_default=default,
            delta=delta,
            spent=compose([item.cost(item.spent) for item in entries], delta),
            held=compose([item.cost(item.held) for item in entries], delta),
            entries=tuple(entries),
        )

    def _cap(
        self,
        database: sqlite3.Connection,
        names: Sequence[str],
        entries: Sequence[Entry],
    ) -> tuple[float, float, bool]:
        """The lowest cap of any of the names, its delta, and if it is the default."""
        marks = ", ".join("?" * len(names))
        rows = database.execute(
            f"SELECT epsilon, delta FROM caps WHERE name IN ({marks})",  # noqa: S608
            tuple(names),
        ).fetchall()
        lowest = min((item.request.delta for item in entries), default=1e-5)
        if not rows:
            return DEFAULT_CAP, lowest, True
        epsilon, delta = min(rows, key=lambda row: row[0])
        return epsilon, lowest if delta is None else delta, False

    def _entries(self, database: sqlite3.Connection) -> list[Entry]:
        """All trainings; those whose process is gone are interrupted from now on."""
        rows = database.execute(
            "SELECT id, name, digest, unit, model, rate, noise, group_size, planned, "
            "delta, former, tries, distribution, score_noise, sketch, state, spent, "
            "created_at, token FROM trainings ORDER BY created_at, rowid"
        ).fetchall()
        return [self._entry(database, row) for row in rows]

    def _entry(self, database: sqlite3.Connection, row: Sequence[Any]) -> Entry:
        identity, *asked, state, spent, created_at, token = row
        former, tries, distribution, score_noise, marks = asked[-5:]
        selection = Selection(tries, distribution, score_noise) if tries else None
        request = replace(
            Request(*asked[:-5]),
            selection=selection,
            former=tuple(former.split()),
            sketch=marks,
        )
        if state == "running":
            lock = self._lock(identity, create=False)
            if lock is not None:  # the kernel let go of it when the process died
                os.close(lock)
                state = "interrupted"
                database.execute(
                    "UPDATE trainings SET state = ? WHERE id = ?", (state, identity)
                )
        return Entry(identity, request, state, spent, created_at, token)

    def _lock(self, identity: str, *, create: bool = True) -> int | None:
        """Take a training's lock; None if a living process has it, or it is gone.

        A lock file that somebody deleted counts as held: the steps stay reserved.
        """
        path = self._folder / "running" / identity
        path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The write lock from the first read on, and all or nothing."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / "ledger.sqlite"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None
            )
            with contextlib.closing(connection) as database:
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                try:
                    _prepare(database)
                    yield database
                    database.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        database.execute("ROLLBACK")
                    raise
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"ledger {self._folder}: {error}") from None


class Reservation:
    """A running training's hold on the budget; it ends with the process.

    Attributes:
        id: of the training in the ledger.
        planned: steps in all.
        spent: steps booked.
    """

    def __init__(
        self, ledger: Ledger, identity: str, planned: int, spent: int, lock: int
    ) -> None:
        self._ledger, self._lock = ledger, lock
        self.id, self.planned, self.spent = identity, planned, spent

    def take(self, upto: int) -> None:
        """Book steps, before they are taken.

        Raises:
            LedgerError: more than was reserved.
        """
        if not self.spent <= upto <= self.planned:
            raise LedgerError(f"step {upto} of {self.planned} was not reserved")
        self._ledger.update(self.id, spent=upto)
        self.spent = upto

    def settle(self, taken: int, token: str) -> None:
        """Book a checkpoint, and give back steps that were booked but not begun."""
        self._ledger.update(self.id, spent=taken, token=token)
        self.spent = taken

    def close(self, state: str) -> None:
        """End: "finished" keeps all, "interrupted" gives back what was not taken."""
        if self._lock >= 0:
            self._ledger.update(self.id, state=state)
            os.close(self._lock)
            self._lock = -1


def _prepare(database: sqlite3.Connection) -> None:
    """Create what is not there yet."""
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    known = {row[1] for row in database.execute("PRAGMA table_info(trainings)")}
    for name, kind in _ADDED.items():
        if name not in known:
            database.execute(f"ALTER TABLE trainings ADD COLUMN {name} {kind}")


def _insert(database: sqlite3.Connection, entry: Entry) -> None:
    item, chosen = entry.request, entry.request.selection
    kept = {
        "id": entry.id,
        "state": entry.state,
        "created_at": entry.created_at,
        "group_size": item.group,
        "planned": item.steps,
        "spent": 0,
        "token": "",
        "former": " ".join(item.former),
    }
    asked = ("name", "digest", "unit", "model", "rate", "noise", "delta", "sketch")
    kept |= {name: getattr(item, name) for name in asked}
    if chosen is not None:
        kept |= {name: getattr(chosen, name) for name in _SELECTION}
    names, marks = ", ".join(kept), ", ".join("?" * len(kept))
    database.execute(
        f"INSERT INTO trainings ({names}) VALUES ({marks})",  # noqa: S608  (own names)
        tuple(kept.values()),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
