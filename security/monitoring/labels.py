"""Where labels wait for their cohort's release: SQLite, or Redis.

A ticket's id is written once, in one step with its label: the list of labels is the
list of spent tickets. Labels are encrypted; who reads the store without the key learns
how many there are, and how many of them belong to one caller, but not to whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from security.errors import MonitoringStoreError
from security.monitoring.remote import (
    HAS_LEDGER,
    NO_LEDGER,
    ledger_keys,
    names,
    open_redis,
    request_key,
)
from security.settings.monitoring import MonitoringSettings
from security.stores.local import SqliteFile
from security.stores.places import Reach
from security.stores.shared import once

__all__ = [
    "ACCEPTED",
    "FULL",
    "SPENT",
    "LabelStore",
    "LocalLabelStore",
    "RedisLabelStore",
    "Spending",
    "open_label_store",
]

# What became of a label.
ACCEPTED, SPENT, FULL = "accepted", "spent", "full"

_TIMEOUT_S = 2.0
_MAX_BYTES = 8 << 30
# After its tickets have expired: clocks of several hosts differ.
_SLACK_S = 86_400


@dataclass(frozen=True)
class Spending:
    """A label that wants to be kept.

    Attributes:
        id: of its ticket.
        owner: stands for the caller who got the ticket, 8 bytes.
        data: the label, sealed.
    """

    id: bytes
    owner: bytes = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Room:
    """How many labels of one cohort there may be.

    Attributes:
        labels: all together.
        per_owner: of one caller's answers.
    """

    labels: int
    per_owner: int


class LabelStore(Protocol):
    """Keeps labels for all who share it; a scope is a release's key in the ledger."""

    def start(self) -> None:
        """Make what is not there, once for all workers.

        Raises:
            MonitoringStoreError: it cannot be made.
        """

    def spend(
        self, scope: str, until: float, room: Room, items: Sequence[Spending]
    ) -> list[str]:
        """Keep labels whose tickets are new, in one step.

        Args:
            scope: where.
            until: when the tickets expire, Unix seconds.
            room: how many there may be.
            items: labels.

        Returns:
            `ACCEPTED`, `SPENT` or `FULL` for each.

        Raises:
            MonitoringStoreError: the store cannot be asked; nothing was kept.
        """

    def read(self, scope: str) -> dict[bytes, bytes]:
        """All labels of a scope, by the ids of their tickets.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """

    def drop(self, scope: str, now: float) -> None:
        """Forget a scope, and what has expired without one.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """

    def close(self) -> None:
        """Close it; the next use opens it again."""


def open_label_store(settings: MonitoringSettings) -> LabelStore:
    """The store that the settings name.

    Raises:
        MonitoringStoreError: there can be no such store.
    """
    if settings.store == "local":
        return LocalLabelStore(settings.directory)
    return RedisLabelStore(settings.store, settings.redis)


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS labels (scope TEXT, id BLOB, data BLOB NOT NULL,"
    " until REAL NOT NULL, PRIMARY KEY (scope, id)) WITHOUT ROWID",
    # The owner of a scope's total is empty.
    "CREATE TABLE IF NOT EXISTS counted (scope TEXT, owner BLOB, number INTEGER,"
    " until REAL NOT NULL, PRIMARY KEY (scope, owner)) WITHOUT ROWID",
)
_KEEP = "INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?)"
_FORGET = "DELETE FROM labels WHERE scope = ? AND id = ?"
_COUNT = (
    "INSERT INTO counted VALUES (?, ?, 1, ?) ON CONFLICT (scope, owner)"
    " DO UPDATE SET number = number + 1 WHERE number < ?"
)


class LocalLabelStore:
    """An SQLite file that all workers of this machine share, written to the disk.

    While it is gone nothing is spent: labels would be written where nobody reads them.
    """

    def __init__(self, folder: Path) -> None:
        self._file = SqliteFile(
            folder / "labels.sqlite",
            _SCHEMA,
            refusal=MonitoringStoreError,
            synchronous="FULL",
            max_bytes=_MAX_BYTES,
            must_exist=True,
            timeout_s=_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return f"<LocalLabelStore {self._file.path}>"

    def start(self) -> None:
        """As `LabelStore.start`."""
        self._file.make()

    def spend(
        self, scope: str, until: float, room: Room, items: Sequence[Spending]
    ) -> list[str]:
        """As `LabelStore.spend`."""
        found = []
        with self._file.transaction() as connection:
            for item in items:
                kept = (scope, item.id, item.data, until)
                if not connection.execute(_KEEP, kept).rowcount:
                    found.append(SPENT)
                    continue
                connection.execute("SAVEPOINT counting")
                counted = all(
                    connection.execute(_COUNT, (scope, owner, until, most)).rowcount
                    for owner, most in (
                        (item.owner, room.per_owner),
                        (b"", room.labels),
                    )
                )
                if not counted:
                    connection.execute("ROLLBACK TO counting")
                    connection.execute(_FORGET, (scope, item.id))
                connection.execute("RELEASE counting")
                found.append(ACCEPTED if counted else FULL)
        return found

    def read(self, scope: str) -> dict[bytes, bytes]:
        """As `LabelStore.read`."""
        sql = "SELECT id, data FROM labels WHERE scope = ?"
        return dict(self._file.execute(sql, scope).fetchall())

    def drop(self, scope: str, now: float) -> None:
        """As `LabelStore.drop`."""
        with self._file.transaction() as connection:
            for table in ("labels", "counted"):
                sql = f"DELETE FROM {table} WHERE scope = ? OR until < ?"  # noqa: S608  (own names)
                connection.execute(sql, (scope, now - _SLACK_S))

    def close(self) -> None:
        """As `LabelStore.close`."""
        self._file.close()


# KEYS: those of the ledger, hashes of ids to labels, and of owners to numbers. ARGV:
# when they go by the server's own clock, labels at most, of one owner at most, and for
# each label its id, owner and bytes.
_SPEND = once(
    HAS_LEDGER
    + """
local found, most, most_owned = {}, tonumber(ARGV[2]), tonumber(ARGV[3])
for at = 4, #ARGV, 3 do
  local id, owner, data = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local owned = tonumber(redis.call('HGET', KEYS[2], owner) or '0')
  if redis.call('HEXISTS', KEYS[1], id) == 1 then
    table.insert(found, 'spent')
  elseif redis.call('HLEN', KEYS[1]) >= most or owned >= most_owned then
    table.insert(found, 'full')
  else
    redis.call('HSET', KEYS[1], id, data)
    redis.call('HINCRBY', KEYS[2], owner, 1)
    table.insert(found, 'accepted')
  end
end
local ends = math.max(ARGV[1], redis.call('TIME')[1] + 1)
redis.call('EXPIREAT', KEYS[1], ends)
redis.call('EXPIREAT', KEYS[2], ends)
return found
"""
)


class RedisLabelStore:
    """A Redis that all machines of a deployment share."""

    def __init__(self, url: str, reach: Reach) -> None:
        """As `open_redis`."""
        self._redis = open_redis(url, reach, timeout_s=_TIMEOUT_S)

    def __repr__(self) -> str:
        return "<RedisLabelStore>"

    def start(self) -> None:
        """As `LabelStore.start`: there is nothing to make."""

    def spend(
        self, scope: str, until: float, room: Room, items: Sequence[Spending]
    ) -> list[str]:
        """As `LabelStore.spend`; refuses where the ledger is lost."""
        values: list[object] = [int(until) + _SLACK_S, room.labels, room.per_owner]
        for item in items:
            values += [item.id, item.owner, item.data]
        keys = [*ledger_keys(self._redis), *self._keys(scope), request_key(self._redis)]
        answer = self._redis.run(_SPEND, keys, values)
        if answer in ("lost", b"lost"):
            raise MonitoringStoreError(NO_LEDGER)
        return [word.decode() if isinstance(word, bytes) else word for word in answer]

    def read(self, scope: str) -> dict[bytes, bytes]:
        """As `LabelStore.read`."""
        with self._redis.asking() as client:
            found: dict[bytes, bytes] = client.hgetall(self._keys(scope)[0])
            return found

    def drop(self, scope: str, now: float) -> None:
        """As `LabelStore.drop`; what has expired goes by itself."""
        del now
        with self._redis.asking() as client:
            client.delete(*self._keys(scope))

    def close(self) -> None:
        """As `LabelStore.close`."""
        self._redis.close()

    def _keys(self, scope: str) -> tuple[str, ...]:
        return names(self._redis, f"labels:{scope}", f"owners:{scope}")
