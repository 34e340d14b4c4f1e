"""Where quotas are counted: SQLite for the workers of a machine, Redis for several.

A worker takes a block of a budget at once and spends it by itself, so that a request
costs no step to the store. What is taken counts as spent: whatever happens to the
worker, no budget is ever exceeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from security.errors import QuotaStoreError
from security.stores.local import SqliteFile
from security.stores.places import Reach
from security.stores.shared import AsyncRedis, checked_redis, once

__all__ = [
    "Grant",
    "LocalQuotaStore",
    "QuotaStore",
    "RedisQuotaStore",
    "Turns",
    "Want",
    "check_quota_store",
]

# A row with its share of half-filled pages.
_ROW_BYTES = 64
_SPARE_BYTES = 64 << 10
_REDIS_TIMEOUT_S = 0.5
_CLAIM_INTERVAL_S = 60.0
# Of a counter's name: the subject at a model; the rest says what is counted.
_ACCOUNT_BYTES = 16
# A window's counter is kept for so long after its end, for workers whose clock is late.
GRACE_S = 60


@dataclass(frozen=True)
class Want:
    """A part of one budget.

    Attributes:
        counter: whose, of what; 16 bytes and the kind.
        window: its number since 1970.
        ends: when it does, Unix seconds.
        limit: of the budget.
        need: less than that is of no use.
        block: more than that is not asked for.
    """

    counter: bytes
    window: int
    ends: int
    limit: int
    need: int
    block: int


@dataclass(frozen=True)
class Grant:
    """What was taken of a budget.

    Attributes:
        amount: 0 if nothing was taken.
        left: what others can still take.
    """

    amount: int
    left: int


class QuotaStore(Protocol):
    """Counts for all who share it.

    Attributes:
        answers_at_once: none of its coroutines waits for anything.
    """

    answers_at_once: bool

    async def take(self, wants: Sequence[Want]) -> list[Grant]:
        """Take parts of several budgets: of all of them, or of none.

        Returns:
            One for each. Where ``left`` is less than ``need`` there was not enough, and
            nothing was taken of any.

        Raises:
            QuotaStoreError: the store cannot be asked.
        """

    async def hold(
        self, counter: bytes, holder: bytes, *, slots: int, limit: int, ttl_s: float
    ) -> int:
        """Hold slots, instead of those held before.

        Args:
            counter: of what.
            holder: who; what it holds is free again after ``ttl_s``.
            slots: how many; 0 gives all back.
            limit: of all holders together.
            ttl_s: seconds.

        Returns:
            How many are held now: as many as asked for, or as many as were free.

        Raises:
            QuotaStoreError: the store cannot be asked.
        """

    def forget(self, *, now: float) -> None:
        """Drop what is over.

        Raises:
            QuotaStoreError: the store cannot be asked.
        """

    async def close(self) -> None:
        """Close the connection; the next call opens it again."""


class Turns(asyncio.Lock):
    """Turns to ask a store. Who waits while it cannot be asked is refused at once."""

    def __init__(self) -> None:
        super().__init__()
        self._failures = 0

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """A turn.

        Raises:
            QuotaStoreError: of what is asked within, or meanwhile by somebody else.
        """
        failures = self._failures
        async with self:
            if self._failures != failures:
                raise QuotaStoreError("the store could not be asked a moment ago")
            try:
                yield
            except QuotaStoreError:
                self._failures += 1
                raise


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS spent (counter BLOB, part INTEGER, ends INTEGER,"
    " amount INTEGER, PRIMARY KEY (counter, part)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS held (counter BLOB, holder BLOB, until REAL,"
    " slots INTEGER, PRIMARY KEY (counter, holder)) WITHOUT ROWID",
)
_SPENT = "SELECT amount FROM spent WHERE counter = ? AND part = ?"
_SPEND = (
    "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
    " SET amount = amount + excluded.amount"
)
_HELD = "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)"
_OTHERS = (
    "SELECT coalesce(sum(slots), 0) FROM held"
    " WHERE counter = ? AND holder <> ? AND until > ?"
)


class LocalQuotaStore:
    """An SQLite file that all workers of this machine share.

    It outlives processes and restarts of the machine. It is not forced to disk at each
    step: after a power cut the last seconds may not have been counted.
    """

    answers_at_once = True

    def __init__(
        self,
        folder: Path,
        *,
        max_entries: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._file = SqliteFile(
            folder / "quotas.sqlite",
            _SCHEMA,
            refusal=QuotaStoreError,
            synchronous="NORMAL",
            max_bytes=_SPARE_BYTES + max_entries * _ROW_BYTES,
        )

    def __repr__(self) -> str:
        return f"<LocalQuotaStore {self._file.path}>"

    async def take(self, wants: Sequence[Want]) -> list[Grant]:
        """As `QuotaStore.take`; takes microseconds, so no thread is used."""
        with self._file.transaction() as connection:
            grants = [_grant(connection, want) for want in wants]
            if any(grant.amount < want.need for want, grant in zip(wants, grants)):
                return [Grant(0, grant.amount + grant.left) for grant in grants]
            for want, grant in zip(wants, grants):
                values = (want.counter, want.window, want.ends, grant.amount)
                connection.execute(_SPEND, values)
            return grants

    async def hold(
        self, counter: bytes, holder: bytes, *, slots: int, limit: int, ttl_s: float
    ) -> int:
        """As `QuotaStore.hold`."""
        with self._file.transaction() as connection:
            now = self._clock()
            row = connection.execute(_OTHERS, (counter, holder, now)).fetchone()
            granted = max(0, min(slots, limit - int(row[0])))
            values = (counter, holder, now + ttl_s, granted)
            connection.execute(_HELD, values)
            return granted

    def forget(self, *, now: float) -> None:
        """As `QuotaStore.forget`."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM spent WHERE ends < ?", (now - GRACE_S,))
            connection.execute("DELETE FROM held WHERE until < ? OR slots = 0", (now,))

    async def close(self) -> None:
        """As `QuotaStore.close`."""
        self._file.close()


# KEYS: the counters. ARGV: limit, need, block, expiry for each. Returns amount and left
# for each; all amounts are 0 if one of them is not enough. What was counted stays for
# two minutes at least: by the server's own clock a late worker's window may be over.
_TAKE = once("""
local grants, enough = {}, true
local soonest = redis.call('TIME')[1] + 120
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 4
  local spent = tonumber(redis.call('GET', key) or 0)
  local left = math.max(0, tonumber(ARGV[at + 1]) - spent)
  local amount = math.min(tonumber(ARGV[at + 3]), left)
  if left < tonumber(ARGV[at + 2]) then enough = false end
  grants[i] = {amount, left - amount}
end
for i, key in ipairs(KEYS) do
  if enough then
    redis.call('INCRBY', key, grants[i][1])
    redis.call('EXPIREAT', key, math.max(ARGV[(i - 1) * 4 + 4], soonest))
  else
    grants[i] = {0, grants[i][1] + grants[i][2]}
  end
end
return grants
""")

# KEYS: a hash of holders to "slots until". ARGV: holder, slots, limit, milliseconds.
# It says what is held, so a repetition changes nothing. The time is Redis's own: the
# hosts need not agree on theirs.
_HOLD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local slots, expires = string.match(all[i + 1], '(%d+) (%d+)')
  if tonumber(expires) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    others = others + tonumber(slots)
  end
end
local granted = math.max(0, math.min(tonumber(ARGV[2]), tonumber(ARGV[3]) - others))
if granted == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  local expires = string.format('%d %.0f', granted, now + tonumber(ARGV[4]))
  redis.call('HSET', KEYS[1], ARGV[1], expires)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return granted
"""

# KEYS: what the names of all counters are made with, of which the first machine's one
# holds; since when there is a count. Returns nothing for another machine's key.
_CLAIM = """
redis.call('SETNX', KEYS[1], ARGV[1])
redis.call('SETNX', KEYS[2], redis.call('TIME')[1])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
return tonumber(redis.call('GET', KEYS[2]))
"""


class RedisQuotaStore:
    """A Redis that all machines of a deployment share.

    Its own memory limit bounds it; it must be set to refuse writes when full
    (``maxmemory-policy noeviction``), or it would forget what was spent.

    One that was emptied counts from nothing: budgets that end in a minute or a day are
    not worth refusing everybody for, but somebody must hear of it. So a key says since
    when there is a count, and is reported each minute.
    """

    answers_at_once = False

    def __init__(
        self,
        url: str,
        reach: Reach,
        *,
        key: bytes,
        report_since: Callable[[int], None] = lambda since: None,
    ) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: of the Redis.
            reach: prefix of the keys, and certificates.
            key: that the counters' names are made with; machines with different ones
                would count apart, so the first one's is the one that holds.
            report_since: told since when there is a count, Unix seconds.

        Raises:
            QuotaStoreError: the redis package is not installed, or not such a URL.
        """
        self._key_check = hashlib.sha256(b"sealgate quota key\0" + key).hexdigest()
        self._claim_at = 0.0
        self._report_since = report_since
        self._redis = AsyncRedis(
            url,
            reach,
            setting=_SETTING,
            refusal=QuotaStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return "<RedisQuotaStore>"

    async def take(self, wants: Sequence[Want]) -> list[Grant]:
        """As `QuotaStore.take`; the counters are of one subject at one model."""
        tag = _account(wants[0].counter)
        keys = [self._key(want.counter, want.window) for want in wants]
        numbers = [
            number
            for want in wants
            for number in (want.limit, want.need, want.block, want.ends + GRACE_S)
        ]
        keys.append(self._redis.request_key(tag=tag))
        answer = await self._call(_TAKE, keys, numbers)
        return [Grant(amount, left) for amount, left in answer]

    async def hold(
        self, counter: bytes, holder: bytes, *, slots: int, limit: int, ttl_s: float
    ) -> int:
        """As `QuotaStore.hold`."""
        values = [holder.hex(), slots, limit, int(ttl_s * 1000)]
        return int(await self._call(_HOLD, [self._key(counter, "held")], values))

    def forget(self, *, now: float) -> None:
        """Nothing to do: entries expire by themselves."""

    async def close(self) -> None:
        """As `QuotaStore.close`."""
        await self._redis.close()

    def _key(self, counter: bytes, part: object) -> str:
        return self._redis.key("quota", counter.hex(), part, tag=_account(counter))

    async def _call(self, script: str, keys: list[str], values: list[Any]) -> Any:
        if time.monotonic() >= self._claim_at:
            await self._claim()
        return await self._redis.run(script, keys, values)

    async def _claim(self) -> None:
        names = [self._redis.key("quota", name, tag="quota") for name in _CLAIMED]
        since = await self._redis.run(_CLAIM, names, [self._key_check])
        if since is None:
            raise QuotaStoreError("redis: another machine counts with another key")
        self._claim_at = time.monotonic() + _CLAIM_INTERVAL_S
        self._report_since(since)


_SETTING = "quotas.store"
_CLAIMED = ("key", "since")


def check_quota_store(url: str, reach: Reach) -> None:
    """Refuse a Redis that may forget; one that is away is waited for.

    Raises:
        QuotaStoreError: not such a URL, or not such a Redis.
    """
    with checked_redis(url, reach, setting=_SETTING, refusal=QuotaStoreError):
        pass


def _account(counter: bytes) -> str:
    return counter[:_ACCOUNT_BYTES].hex()


def _grant(connection: sqlite3.Connection, want: Want) -> Grant:
    row = connection.execute(_SPENT, (want.counter, want.window)).fetchone()
    left = max(0, want.limit - (row[0] if row else 0))
    amount = min(want.block, left)
    return Grant(amount, left - amount)
