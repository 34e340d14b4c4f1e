"""Which sealed requests were answered already (RFC 9458, section 6.5).

A request is known by the hash of its encapsulated key, which no two honest requests
share. It is remembered in one step with the question whether it was known, after its
token was verified and before anything is done for it, so that of two copies that
arrive together, at whatever workers, one is answered, and strangers fill nothing.

Entries lie in slots, so that forgetting is deleting a range. The slot follows from what
is sealed in the request, its Date, or from its key where it has none: a copy always
meets the original in the same slot.

Nobody has more than a share of the store: who sends more than that is refused, and
nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealgate.errors import SealgateError
from security.errors import QuotaError, ReplayStoreError
from security.stores.local import SqliteFile
from security.stores.places import Reach
from security.stores.shared import AsyncRedis, Client, checked_redis

__all__ = [
    "Insertion",
    "LocalReplayStore",
    "RedisReplayStore",
    "ReplayStore",
    "check_replay_store",
    "fingerprint",
    "open_replay_store",
]

# Half of the hash: finding a second request for one takes 2^128 attempts.
FINGERPRINT_BYTES = 16
# Dates of one slot are forgotten together.
SLOT_S = 10

# A row with its share of half-filled pages, measured over a million random rows.
_ROW_BYTES = 40
_SPARE_BYTES = 64 << 10
# A worker takes so much of an owner's share at once: most inserts then count nothing.
_BLOCK, _BLOCK_PART = 64, 256
_REDIS_TIMEOUT_S = 0.5
# How soon a Redis that was restarted, or replaced by a replica, is noticed.
_BEGIN_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def fingerprint(enc: bytes) -> bytes:
    """What a request is remembered by: the front of SHA-256 of its encapsulated key."""
    return hashlib.sha256(enc).digest()[:FINGERPRINT_BYTES]


@dataclass(slots=True)
class Insertion:
    """An entry to be remembered, as `ReplayStore.insert` has it."""

    entry: bytes
    slot: int
    owner: bytes


class ReplayStore(Protocol):
    """Remembers requests for all who share it."""

    async def insert(
        self, entry: bytes, *, slot: int, owner: bytes, made: int | None = None
    ) -> bool:
        """Remember an entry; say whether it is new.

        Args:
            entry: a `fingerprint`.
            slot: from 0 on by time, below 0 for those that stay until `forget`.
            owner: a name of the verified subject, of whose share it is.
            made: when its maker says that it was made, Unix seconds; None if it says
                nothing.

        Raises:
            QuotaError: the owner's share is used up; it is not remembered.
            ReplayStoreError: it cannot be told.
        """

    def insert_at_once(
        self, group: Sequence[Insertion]
    ) -> list[bool | SealgateError] | None:
        """Remember the entries of one turn, in order, without waiting.

        Returns:
            Of each whether it is new, or what `insert` raises; None if the store has
            to be waited for: nothing was done.
        """

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """Drop slots from 0 to before one, and the ones that are named.

        Raises:
            ReplayStoreError: the store cannot be reached.
        """


def open_replay_store(
    where: str,
    folder: Path,
    *,
    reach: Reach,
    max_entries: int,
    share: int,
    ttls_s: tuple[int, int],
    report_since: Callable[[int], None] = lambda since: None,
) -> ReplayStore:
    """The store that a setting names.

    Args:
        where: "local", or the URL of a Redis.
        reach: prefix of the keys, and certificates, of a Redis.
        folder: of the local store.
        max_entries: of the local store.
        share: entries of one owner at most.
        ttls_s: how long Redis keeps entries with a slot by time, and the others.
        report_since: told since when a Redis knows every request, Unix seconds.

    Raises:
        ReplayStoreError: not such a URL, or the redis package is not installed.
    """
    if where == "local":
        return LocalReplayStore(folder, max_entries=max_entries, share=share)
    return RedisReplayStore(
        where, reach, ttls_s=ttls_s, share=share, report_since=report_since
    )


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS seen (slot INTEGER, entry BLOB,"
    " PRIMARY KEY (slot, entry)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS shares (owner BLOB, slot INTEGER, taken INTEGER,"
    " PRIMARY KEY (owner, slot)) WITHOUT ROWID",
)
_TAKE = (
    "INSERT INTO shares SELECT ?1, ?2, ?3"
    " WHERE (SELECT total(taken) FROM shares WHERE owner = ?1) <= ?4"
    " ON CONFLICT DO UPDATE SET taken = taken + excluded.taken"
)


class LocalReplayStore:
    """An SQLite file that all workers of this machine share.

    It is a cache: it need not outlive the machine. So nothing is forced to disk, and
    each boot begins a new file, since a crash of the machine may tear the old one.
    """

    def __init__(self, folder: Path, *, max_entries: int, share: int) -> None:
        self._folder = folder
        self._file = SqliteFile(
            folder / f"replay-{_boot()}.sqlite",
            _SCHEMA,
            refusal=ReplayStoreError,
            synchronous="OFF",
            max_bytes=_SPARE_BYTES + max_entries * _ROW_BYTES,
        )
        self._share = share
        self._block = max(1, min(_BLOCK, share // _BLOCK_PART))
        # What this worker has taken of shares and not used, by owner and slot.
        self._left: dict[tuple[bytes, int], int] = {}
        self._tidied = False
        self._next: list[tuple[Insertion, asyncio.Future[bool]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<LocalReplayStore {self._file.path}>"

    async def insert(
        self, entry: bytes, *, slot: int, owner: bytes, made: int | None = None
    ) -> bool:
        """As `ReplayStore.insert`; takes microseconds, so no thread is used.

        The entries of one turn of the event loop are one transaction, most of whose
        cost is the same for one entry and for many.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what an earlier loop left behind is nobody's
            self._loop, self._next = loop, []
        answer: asyncio.Future[bool] = loop.create_future()
        self._next.append((Insertion(entry, slot, owner), answer))
        if len(self._next) == 1:
            loop.call_soon(self._flush)
        return await answer

    def _flush(self) -> None:
        """Insert what has gathered."""
        group, self._next = self._next, []
        found = self.insert_at_once([one for one, _ in group])
        for (_, answer), result in zip(group, found):
            if answer.done():
                continue
            if isinstance(result, bool):
                answer.set_result(result)
            else:
                answer.set_exception(result)

    def insert_at_once(self, group: Sequence[Insertion]) -> list[bool | SealgateError]:
        """As `ReplayStore.insert_at_once`: all of it, or, where that fails, nothing."""
        try:
            self._remove_older_files()
            if len(group) == 1:
                return [self._insert(group[0])]
            with self._file.transaction():
                return [self._insert(one) for one in group]
        except ReplayStoreError as error:
            self._left.clear()  # what was taken may have been rolled back
            # Each its own: a raised error carries its traceback.
            return [ReplayStoreError(str(error)) for _ in group]

    def _insert(self, one: Insertion) -> bool | SealgateError:
        """Whether it is new, or why it is not remembered."""
        place = one.owner, one.slot
        left = self._left.get(place, 0) or self._take_share(*place)
        if not left:
            return _share_error()
        sql = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        is_new = self._file.execute(sql, one.slot, one.entry).rowcount == 1
        self._left[place] = left - is_new
        return is_new

    def _take_share(self, owner: bytes, slot: int) -> int:
        """Take a block of an owner's share; 0 if it is used up."""
        block, most = self._block, self._share - self._block
        taken = self._file.execute(_TAKE, owner, slot, block, most).rowcount == 1
        return block if taken else 0

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """As `ReplayStore.forget`."""
        for table in ("seen", "shares"):
            old = f"DELETE FROM {table} WHERE slot >= 0 AND slot < ?"  # noqa: S608
            self._file.execute(old, before_slot)
            for slot in drop:
                named = f"DELETE FROM {table} WHERE slot = ?"  # noqa: S608
                self._file.execute(named, slot)
        for place in list(self._left):
            if 0 <= place[1] < before_slot or place[1] in drop:
                del self._left[place]

    def close(self) -> None:
        """Close the file; the next request opens it again."""
        self._file.close()

    def _remove_older_files(self) -> None:
        """Files of earlier boots; looked for once."""
        if self._tidied:
            return
        self._tidied = True
        for other in self._folder.glob("replay-*.sqlite*"):
            if not other.name.startswith(self._file.path.name):
                other.unlink(missing_ok=True)


# KEYS: since when every request is known. It begins anew with each run of the server: a
# restart may have lost its last second, a snapshot its last hour, a replica its last
# moments. It begins with the next second, since a Date has no smaller part.
_BEGIN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local known = redis.call('GET', KEYS[1])
if known and string.match(known, ' (%w+)$') == run then
  return tonumber(string.match(known, '^%d+'))
end
local since = redis.call('TIME')[1] + 1
redis.call('SET', KEYS[1], string.format('%d %s', since, run))
return since
"""

# KEYS: the entry; how many entries its owner added in this period and in the one
# before, which together are at least those that are still kept; since when every
# request is known. ARGV: the request's id, how long the entry is kept in milliseconds,
# the owner's share, when the request was made, or -1.
_INSERT = """
local known = redis.call('GET', KEYS[1])
if known then return known == ARGV[1] and 1 or 0 end
local since = redis.call('GET', KEYS[4])
if not since then return -2 end
local made = tonumber(ARGV[4])
if made >= 0 and made < tonumber(string.match(since, '^%d+')) then return -3 end
local now = tonumber(redis.call('GET', KEYS[2]) or 0)
local before = tonumber(redis.call('GET', KEYS[3]) or 0)
if now + before >= tonumber(ARGV[3]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], 2 * ARGV[2])
return 1
"""
_NO_SHARE, _EMPTIED, _BEFORE = -1, -2, -3
_SETTING = "sealing.replay_store"
# Parts of a cluster's keys; each lies on one of its servers.
_PARTS = 16


class RedisReplayStore:
    """A Redis that all machines of a deployment share.

    Its own memory limit bounds it; it must be set to refuse writes when full
    (``maxmemory-policy noeviction``), or it would forget what it must know.

    One that was restarted, emptied or replaced may have forgotten requests: those that
    were made before it began to know every one are refused until their window is over.
    Requests without a Date do not say when they were made; after such a loss their keys
    must go (``keys retire``).
    """

    def __init__(
        self,
        url: str,
        reach: Reach,
        *,
        ttls_s: tuple[int, int],
        share: int,
        report_since: Callable[[int], None] = lambda since: None,
    ) -> None:
        """Prepare; nothing connects yet; arguments as of `open_replay_store`.

        Raises:
            ReplayStoreError: the redis package is not installed, or not such a URL.
        """
        self._ttls_s = ttls_s
        self._share = share
        self._report_since = report_since
        # By part: since when it knows every request, and when to ask again.
        self._since: dict[str, int] = {}
        self._begin_at: dict[str, float] = {}
        self._redis = AsyncRedis(
            url,
            reach,
            setting=_SETTING,
            refusal=ReplayStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
        )
        self._names = _names(self._redis)

    def __repr__(self) -> str:
        return "<RedisReplayStore>"

    async def insert(
        self, entry: bytes, *, slot: int, owner: bytes, made: int | None = None
    ) -> bool:
        """As `ReplayStore.insert`: one script, whose repetition is no replay."""
        # A copy has its original's owner, whose token is sealed in both.
        name = self._names[owner[0] % len(self._names)]
        if time.monotonic() >= self._begin_at.get(name, 0.0):
            await self._begin(name)
        undated = slot < 0
        ttl_s = self._ttls_s[undated]
        period = int(time.time()) // ttl_s
        share = f"{name}:share:{owner.hex()}:{undated:d}"
        keys = [
            f"{name}:{slot}:{entry.hex()}",
            f"{share}:{period}",
            f"{share}:{period - 1}",
            f"{name}:since",
        ]
        date = -1 if made is None or undated else made
        values = [secrets.token_bytes(8), ttl_s * 1000, self._share, date]
        try:
            answer = await self._redis.run(_INSERT, keys, values)
            if answer == _EMPTIED:
                raise ReplayStoreError("redis: was emptied, and begins anew")
        except BaseException:
            self._begin_at[name] = 0.0
            raise
        if answer == _BEFORE:
            raise ReplayStoreError("redis: began anew after this was made")
        if answer == _NO_SHARE:
            raise _share_error()
        return bool(answer)

    def insert_at_once(self, group: Sequence[Insertion]) -> None:
        """As `ReplayStore.insert_at_once`: Redis has to be waited for."""

    async def _begin(self, name: str) -> None:
        """Learn since when every request is known, in one part."""
        known = self._since.get(name, 0)
        if known:  # one request asks; the others go on meanwhile
            self._begin_at[name] = time.monotonic() + _BEGIN_INTERVAL_S
        try:
            since = await self._redis.run(_BEGIN, [f"{name}:since"], [])
        except BaseException:  # also of one that ended before it had an answer
            self._begin_at[name] = 0.0
            raise
        self._begin_at[name] = time.monotonic() + _BEGIN_INTERVAL_S
        if 0 < known < since:
            _log.warning("redis began anew: sealed requests from before are refused")
        self._since[name] = since
        self._report_since(max(self._since.values()))

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """Nothing to do: entries expire by themselves."""

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.close()


def check_replay_store(where: str, reach: Reach) -> None:
    """Refuse a Redis that may forget; where it is new, it knows requests from now on.

    Raises:
        ReplayStoreError: not such a URL, or not such a Redis.
    """
    with checked_redis(
        where, reach, setting=_SETTING, refusal=ReplayStoreError
    ) as client:
        if client is None:
            return
        for name in _names(client):
            client.run(_BEGIN, [f"{name}:since"], [])


def _names(redis: Client) -> tuple[str, ...]:
    """What the keys of each part begin with."""
    parts = range(_PARTS if redis.is_cluster else 1)
    return tuple(redis.key("replay", tag=f"replay-{part}") for part in parts)


def _share_error() -> QuotaError:
    return QuotaError(("remembered-requests",), SLOT_S, ())


def _boot() -> str:
    """What this boot of the machine is called, for a file name."""
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        return "0"
    return re.sub("[^0-9a-f]", "", text)[:16]
