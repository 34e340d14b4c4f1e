"""The monitoring ledger: what releases have cost in any 365 days, with a cap.

One ledger for all models and all kinds of release of a deployment, since all of them
may be about the same subjects. A release is booked before its noise is drawn, in one
step with the question whether it fits; of several workers or hosts that book the same
release one does, and makes it. What was booked stays booked: a releaser that dies has
spent its part, and its window is lost.

Whoever can write the ledger can forget what was spent: keep it where backups are. A
local one that is gone is not taken for empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from security.errors import (
    BookedError,
    BudgetSpentError,
    MonitoringError,
    MonitoringStoreError,
)
from security.monitoring.guarantee import epsilon_of, rho_of
from security.monitoring.remote import (
    HAS_LEDGER,
    NO_LEDGER,
    ledger_keys,
    names,
    open_redis,
    pairs,
    request_key,
)
from security.monitoring.windows import PER_YEAR
from security.settings.monitoring import MonitoringSettings
from security.stores.local import SqliteFile
from security.stores.places import Reach
from security.stores.shared import once

__all__ = [
    "YEAR_S",
    "Budget",
    "Entry",
    "Ledger",
    "LocalLedger",
    "RedisLedger",
    "open_ledger",
    "spent",
]

YEAR_S = 365 * 86_400
MAX_RECORD_BYTES = 1 << 20
_TIMEOUT_S = 5.0
# Sums of doubles: a release that fits exactly is not refused for its last digit.
_SLACK = 1e-9


@dataclass(frozen=True)
class Budget:
    """What all releases of any 365 days may cost one subject.

    Attributes:
        epsilon, delta: of all of them together.
    """

    epsilon: float
    delta: float

    @property
    def rho(self) -> float:
        """What their rho may add up to."""
        return rho_of(self.epsilon, self.delta)

    def per_window(self, length: str) -> float:
        """The rho that a window may cost, if every window of a year is to have one."""
        return self.rho / PER_YEAR[length]


@dataclass(frozen=True)
class Entry:
    """One release, as it is booked.

    Attributes:
        key: what it is of; nothing else has it, and it is booked once.
        time: of the booking, Unix seconds.
        rho: that it costs; 0 for the record of a release that was refused.
        record: what was released, JSON; empty until then, and for good if the releaser
            died.
    """

    key: str
    time: float
    rho: float
    record: bytes = b""


class Ledger(Protocol):
    """Books releases, and keeps what was released."""

    def start(self) -> None:
        """Refuse what a server cannot start with; a file that never was is made.

        Raises:
            MonitoringStoreError: it is gone, or cannot be used.
        """

    def new_ledger(self) -> None:
        """Make the ledger where there never was one.

        Raises:
            MonitoringStoreError: there is one, or was one.
        """

    def book(self, entry: Entry, budget: Budget) -> None:
        """Book a release before it is made.

        Raises:
            BookedError: it was booked before.
            BudgetSpentError: it does not fit; nothing is booked.
            MonitoringStoreError: the ledger cannot be asked.
        """

    def publish(self, entry: Entry) -> None:
        """Keep a release's record, once: a second one for its key is ignored.

        Of a release that was refused, and so not booked, the entry has no rho.

        Raises:
            MonitoringStoreError: the ledger cannot be written.
        """

    def entries(self) -> list[Entry]:
        """All that was booked, the oldest first.

        Raises:
            MonitoringStoreError: the ledger cannot be asked.
        """

    def close(self) -> None:
        """Close it; the next use opens it again."""


def spent(entries: Iterable[Entry], *, now: float) -> float:
    """The rho of what was booked less than 365 days ago, or in the clock's future."""
    return math.fsum(item.rho for item in entries if item.time > now - YEAR_S)


def open_ledger(settings: MonitoringSettings) -> Ledger:
    """The ledger that the settings name.

    Raises:
        MonitoringStoreError: there can be no such ledger.
    """
    if settings.store == "local":
        return LocalLedger(settings.directory)
    return RedisLedger(settings.store, settings.redis)


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS booked (key TEXT PRIMARY KEY, time REAL NOT NULL,"
    " rho REAL NOT NULL CHECK (rho >= 0), record BLOB NOT NULL DEFAULT x'')",
)
_KEEP = (
    "INSERT INTO booked VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
    " SET record = excluded.record WHERE record = x''"
)


class LocalLedger:
    """An SQLite file that all workers of this machine share, written to the disk."""

    def __init__(self, folder: Path) -> None:
        self._file = SqliteFile(
            folder / "ledger.sqlite",
            _SCHEMA,
            refusal=MonitoringStoreError,
            synchronous="FULL",
            must_exist=True,
            timeout_s=_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return f"<LocalLedger {self._file.path}>"

    def start(self) -> None:
        """As `Ledger.start`."""
        if self._file.path.exists():
            self.entries()
        elif self._file.was_made:
            raise MonitoringStoreError(
                f"{self._file.path}: is gone, and with it what was spent; bring it "
                "back, or turn monitoring off until a year has passed"
            )
        self._file.make()

    def new_ledger(self) -> None:
        """As `Ledger.new_ledger`."""
        if self._file.path.exists():
            raise MonitoringStoreError(f"{self._file.path}: is there")
        self.start()

    def book(self, entry: Entry, budget: Budget) -> None:
        """As `Ledger.book`."""
        _check(entry)
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT key, time, rho FROM booked").fetchall()
            known = [Entry(*row) for row in rows]
            refusal = _refusal(known, entry, budget)
            if refusal is None:
                values = (entry.key, entry.time, entry.rho)
                sql = "INSERT INTO booked (key, time, rho) VALUES (?, ?, ?)"
                connection.execute(sql, values)
        if refusal is not None:
            raise refusal

    def publish(self, entry: Entry) -> None:
        """As `Ledger.publish`."""
        _check(entry)
        self._file.execute(_KEEP, entry.key, entry.time, 0.0, entry.record)

    def entries(self) -> list[Entry]:
        """As `Ledger.entries`."""
        sql = "SELECT key, time, rho, record FROM booked ORDER BY time, key"
        return [Entry(*row) for row in self._file.execute(sql).fetchall()]

    def close(self) -> None:
        """As `Ledger.close`."""
        self._file.close()


# KEYS: those of the ledger, of which the second is a hash of keys to "time rho". ARGV:
# key, time, rho, cap, since when.
_BOOK = once(
    HAS_LEDGER
    + """
if redis.call('HEXISTS', booked, ARGV[1]) == 1 then return 'booked' end
local spent = 0
for _, one in ipairs(redis.call('HVALS', booked)) do
  local time, rho = string.match(one, '(%S+) (%S+)')
  if tonumber(time) > tonumber(ARGV[5]) then spent = spent + tonumber(rho) end
end
if spent + tonumber(ARGV[3]) > tonumber(ARGV[4]) then return 'spent' end
redis.call('HSET', booked, ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
return 'done'
"""
)

# KEYS: those of the ledger, and a hash of keys to records. ARGV: key, time, record.
_PUBLISH = (
    HAS_LEDGER
    + """
redis.call('HSETNX', booked, ARGV[1], ARGV[2] .. ' 0')
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
)
_ENTRIES = (
    HAS_LEDGER
    + """
return {redis.call('HGETALL', booked), redis.call('HGETALL', KEYS[1])}
"""
)
_NEW = once("""
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[1], redis.call('TIME')[1])
return 1
""")


class RedisLedger:
    """A Redis that all machines of a deployment share.

    It must outlive a restart (``appendonly yes``): what it forgets is spent twice.
    """

    def __init__(self, url: str, reach: Reach) -> None:
        """As `open_redis`."""
        self._redis = open_redis(url, reach, timeout_s=_TIMEOUT_S)
        self._keys = (*ledger_keys(self._redis), *names(self._redis, "records"))

    def __repr__(self) -> str:
        return "<RedisLedger>"

    def start(self) -> None:
        """As `Ledger.start`; one that is away is waited for, without a release."""
        if not self._redis.look():
            return
        if not self._redis.outlives_restart():
            raise MonitoringStoreError(
                "redis: a restart would forget what releases have spent; set "
                "appendonly yes"
            )
        self.entries()

    def new_ledger(self) -> None:
        """As `Ledger.new_ledger`; that one was lost it cannot tell."""
        keys = [*ledger_keys(self._redis), request_key(self._redis)]
        if not self._redis.run(_NEW, keys, []):
            raise MonitoringStoreError("redis: there is a ledger")

    def book(self, entry: Entry, budget: Budget) -> None:
        """As `Ledger.book`."""
        _check(entry)
        cap, since = budget.rho * (1 + _SLACK), entry.time - YEAR_S
        values = [entry.key, *map(repr, (entry.time, entry.rho, cap, since))]
        keys = [*ledger_keys(self._redis), request_key(self._redis)]
        if self._run(_BOOK, keys, values) not in ("done", b"done"):
            known = self.entries()
            raise _refusal(known, entry, budget) or BookedError(_booked(entry))

    def publish(self, entry: Entry) -> None:
        """As `Ledger.publish`."""
        _check(entry)
        values = [entry.key, repr(entry.time), entry.record]
        self._run(_PUBLISH, self._keys, values)

    def entries(self) -> list[Entry]:
        """As `Ledger.entries`."""
        booked, records = map(pairs, self._run(_ENTRIES, self._keys, []))
        found = []
        for key, text in booked.items():
            time, _, rho = text.decode().partition(" ")
            record = records.get(key, b"")
            found.append(Entry(key.decode(), float(time), float(rho), record))
        return sorted(found, key=lambda item: (item.time, item.key))

    def close(self) -> None:
        """As `Ledger.close`."""
        self._redis.close()

    def _run(self, script: str, keys: Sequence[str], values: list[Any]) -> Any:
        answer = self._redis.run(script, keys, values)
        if answer in ("lost", b"lost"):
            raise MonitoringStoreError(NO_LEDGER)
        return answer


def _check(entry: Entry) -> None:
    if not (0.0 <= entry.rho < math.inf and 0.0 < entry.time < math.inf):
        raise MonitoringError("a release's rho and time are numbers from 0")
    if len(entry.record) > MAX_RECORD_BYTES:
        raise MonitoringError(f"a release has more than {MAX_RECORD_BYTES} bytes")


def _refusal(
    known: list[Entry], entry: Entry, budget: Budget
) -> MonitoringError | None:
    """Why a release is not booked, if it is not."""
    if any(item.key == entry.key for item in known):
        return BookedError(_booked(entry))
    before = spent(known, now=entry.time)
    if before + entry.rho <= budget.rho * (1 + _SLACK):
        return None
    taken = epsilon_of(before, budget.delta)
    after = epsilon_of(before + entry.rho, budget.delta)
    return BudgetSpentError(
        f"epsilon {taken:.2f} of {budget.epsilon:g} is spent on the last 365 days' "
        f"releases, at delta {budget.delta:g}, and {entry.key} would make it "
        f"{after:.2f}"
    )


def _booked(entry: Entry) -> str:
    return f"{entry.key} was booked before"
