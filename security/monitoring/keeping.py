"""Where encrypted counts wait for the end of their window: SQLite, or Redis.

Each worker has a place of its own in a window, with a line that says since when and
until when it counted there, and segments of what it kept. Who releases reads all of
them; who reads the store without the key learns which versions were watched, by how
many workers, and the powers of two between which numbers of subjects lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from security.errors import MonitoringError, MonitoringStoreError
from security.monitoring.remote import names, open_redis, pairs
from security.monitoring.windows import Window
from security.settings.monitoring import MonitoringSettings
from security.stores.local import SqliteFile
from security.stores.places import Reach

__all__ = [
    "CountStore",
    "LocalCountStore",
    "Presence",
    "RedisCountStore",
    "Segment",
    "lost_of",
    "open_count_store",
]

_TIMEOUT_S = 2.0
_MAX_BYTES = 8 << 30
# What nobody released is gone after this: the longest window, and the latest labels.
_KEPT_S = 434 * 86_400


@dataclass(frozen=True)
class Presence:
    """A worker in a window.

    Attributes:
        worker: a random name.
        since: when it began to count, Unix seconds.
        until: when it last stored what it had.
        closed: it stored all that it ever will.
        jumped: its clock jumped meanwhile.
    """

    worker: str
    since: int
    until: int
    closed: bool = False
    jumped: bool = False


@dataclass(frozen=True)
class Segment:
    """Sealed bytes of a worker.

    Attributes:
        number: 0 for the layout; from 1 on, events.
        data: sealed.
    """

    number: int
    data: bytes


class CountStore(Protocol):
    """Keeps counts for all who share it; a scope is a release's key in the ledger."""

    def put(
        self,
        scope: str,
        presence: Presence,
        segments: Sequence[Segment],
        replaces: Sequence[int] = (),
    ) -> None:
        """Store, in one step.

        Args:
            scope: where.
            presence: in place of the worker's former one.
            segments: new ones.
            replaces: numbers of the worker's own that they stand for.

        Raises:
            MonitoringStoreError: it cannot be stored; nothing was.
        """

    def scopes(self) -> list[str]:
        """All that have a worker.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """

    def read(self, scope: str) -> list[tuple[Presence, list[Segment]]]:
        """Every worker of a scope.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """

    def drop(self, scope: str) -> None:
        """Forget a scope.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """

    def close(self) -> None:
        """Close it; the next use opens it again."""


def open_count_store(settings: MonitoringSettings) -> CountStore:
    """The store that the settings name.

    Raises:
        MonitoringStoreError: there can be no such store.
    """
    if settings.store == "local":
        return LocalCountStore(settings.directory)
    return RedisCountStore(settings.store, settings.redis)


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS present (scope TEXT, worker TEXT, line TEXT NOT NULL,"
    " PRIMARY KEY (scope, worker)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS segments (scope TEXT, worker TEXT, number INTEGER,"
    " data BLOB NOT NULL, PRIMARY KEY (scope, worker, number))",
)


_DELETE = "DELETE FROM segments WHERE scope = ? AND worker = ? AND number = ?"


class LocalCountStore:
    """An SQLite file that all workers of this machine share."""

    def __init__(self, folder: Path) -> None:
        self._file = SqliteFile(
            folder / "counts.sqlite",
            _SCHEMA,
            refusal=MonitoringStoreError,
            synchronous="NORMAL",
            max_bytes=_MAX_BYTES,
            timeout_s=_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return f"<LocalCountStore {self._file.path}>"

    def put(
        self,
        scope: str,
        presence: Presence,
        segments: Sequence[Segment],
        replaces: Sequence[int] = (),
    ) -> None:
        """As `CountStore.put`."""
        place, line = (scope, presence.worker), json.dumps(asdict(presence))
        with self._file.transaction() as connection:
            for number in replaces:
                connection.execute(_DELETE, (*place, number))
            for item in segments:
                sql = "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)"
                connection.execute(sql, (*place, item.number, item.data))
            sql = "INSERT OR REPLACE INTO present VALUES (?, ?, ?)"
            connection.execute(sql, (*place, line))

    def scopes(self) -> list[str]:
        """As `CountStore.scopes`."""
        rows = self._file.execute("SELECT DISTINCT scope FROM present ORDER BY scope")
        return [scope for (scope,) in rows.fetchall()]

    def read(self, scope: str) -> list[tuple[Presence, list[Segment]]]:
        """As `CountStore.read`."""
        with self._file.transaction() as connection:
            lines = connection.execute(
                "SELECT line FROM present WHERE scope = ? ORDER BY worker", (scope,)
            ).fetchall()
            rows = connection.execute(
                "SELECT worker, number, data FROM segments WHERE scope = ?"
                " ORDER BY worker, number",
                (scope,),
            ).fetchall()
        return _sorted([line for (line,) in lines], rows)

    def drop(self, scope: str) -> None:
        """As `CountStore.drop`."""
        with self._file.transaction() as connection:
            for table in ("present", "segments"):
                sql = f"DELETE FROM {table} WHERE scope = ?"  # noqa: S608  (own names)
                connection.execute(sql, (scope,))

    def close(self) -> None:
        """As `CountStore.close`."""
        self._file.close()


# KEYS: hashes of workers to lines and of segments to bytes, the set of scopes. ARGV:
# seconds to live, the scope, the worker and its line, how many segments go, their
# names, names and bytes of new ones.
_PUT = """
local gone = tonumber(ARGV[5])
for at = 6, 5 + gone do redis.call('HDEL', KEYS[2], ARGV[at]) end
for at = 6 + gone, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""
_READ = "return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}"
_DROP = """
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], ARGV[1])
"""


class RedisCountStore:
    """A Redis that all machines of a deployment share."""

    def __init__(self, url: str, reach: Reach) -> None:
        """As `open_redis`."""
        self._redis = open_redis(url, reach, timeout_s=_TIMEOUT_S)
        (self._scopes,) = names(self._redis, "scopes")

    def __repr__(self) -> str:
        return "<RedisCountStore>"

    def put(
        self,
        scope: str,
        presence: Presence,
        segments: Sequence[Segment],
        replaces: Sequence[int] = (),
    ) -> None:
        """As `CountStore.put`; done twice it is the same."""
        worker = presence.worker
        values: list[Any] = [_KEPT_S, scope, worker, json.dumps(asdict(presence))]
        values += [len(replaces), *(f"{worker}/{number}" for number in replaces)]
        for item in segments:
            values += [f"{worker}/{item.number}", item.data]
        self._redis.run(_PUT, self._keys(scope), values)

    def scopes(self) -> list[str]:
        """As `CountStore.scopes`."""
        with self._redis.asking() as client:
            return sorted(name.decode() for name in client.smembers(self._scopes))

    def read(self, scope: str) -> list[tuple[Presence, list[Segment]]]:
        """As `CountStore.read`."""
        present, counted = map(pairs, self._redis.run(_READ, self._keys(scope), []))
        rows = []
        for name, data in counted.items():
            worker, _, number = name.decode().partition("/")
            rows.append((worker, int(number), data))
        lines = [line.decode() for _, line in sorted(present.items())]
        return _sorted(lines, sorted(rows, key=lambda row: row[:2]))

    def drop(self, scope: str) -> None:
        """As `CountStore.drop`; possible where nothing more can be written."""
        self._redis.run(_DROP, self._keys(scope), [scope])

    def close(self) -> None:
        """As `CountStore.close`."""
        self._redis.close()

    def _keys(self, scope: str) -> tuple[str, ...]:
        own = names(self._redis, f"present:{scope}", f"counts:{scope}")
        return (*own, self._scopes)


def lost_of(workers: Sequence[Presence], unread: int, window: Window) -> dict[str, Any]:
    """What is known not to be in a window's counts."""
    ended = [one for one in workers if not one.closed]
    lost: dict[str, Any] = {}
    if ended:
        lost["workers_ended"] = len(ended)
        lost["last_heard"] = sorted(min(one.until, window.end) for one in ended)
    if unread:
        lost["unreadable"] = True
    if any(one.jumped for one in workers):
        lost["clock_jumped"] = True
    return lost


def _sorted(
    lines: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Presence, list[Segment]]]:
    try:
        found = [Presence(**json.loads(line)) for line in lines]
    except (ValueError, TypeError):
        raise MonitoringError("a line in the store of counts is malformed") from None
    return [
        (one, [Segment(*rest) for worker, *rest in rows if worker == one.worker])
        for one in found
    ]
