"""Which sealed requests were answered already (RFC 9458, section 6.5).

A request is known by the hash of its encapsulated key, which no two honest requests
share. It is remembered in one step with the question whether it was known, after it
opened and before anything is done for it, so that of two copies that arrive together,
at whatever workers, one is answered.

Entries lie in slots, so that forgetting is deleting a range. The slot follows from what
is sealed in the request, its Date, or from its key where it has none: a copy always
meets the original in the same slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from security.errors import ReplayStoreError
from security.redis_client import make_client

__all__ = ["LocalReplayStore", "RedisReplayStore", "ReplayStore", "fingerprint"]

# Half of the hash: finding a second request for one takes 2^128 attempts.
FINGERPRINT_BYTES = 16

_PAGE_BYTES = 4096
# A row with its share of half-filled pages, measured over a million random rows.
_ROW_BYTES = 40
_BUSY_TIMEOUT_S = 0.25
_REDIS_TIMEOUT_S = 0.5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def fingerprint(enc: bytes) -> bytes:
    """What a request is remembered by: the front of SHA-256 of its encapsulated key."""
    return hashlib.sha256(enc).digest()[:FINGERPRINT_BYTES]


class ReplayStore(Protocol):
    """Remembers requests for all who share it."""

    async def insert(self, entry: bytes, *, slot: int) -> bool:
        """Remember an entry; say whether it is new.

        Args:
            entry: a `fingerprint`.
            slot: from 0 on by time, below 0 for those that stay until `forget`.

        Raises:
            ReplayStoreError: it cannot be told.
        """

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """Drop slots from 0 to before one, and the ones that are named.

        Raises:
            ReplayStoreError: the store cannot be reached.
        """


@dataclass(frozen=True)
class _Insertion:
    entry: bytes
    slot: int
    answer: asyncio.Future[bool]


class LocalReplayStore:
    """An SQLite file that all workers of this machine share.

    It is a cache: it need not outlive the machine. So nothing is forced to disk, and
    each boot begins a new file, since a crash of the machine may tear the old one.
    """

    def __init__(self, folder: Path, *, max_entries: int) -> None:
        self._folder = folder
        self._path = folder / f"replay-{_boot()}.sqlite"
        self._max_pages = 16 + max_entries * _ROW_BYTES // _PAGE_BYTES
        # Opened at the first request: connections do not survive a fork.
        self._connection: sqlite3.Connection | None = None
        self._next: list[_Insertion] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<LocalReplayStore {self._path}>"

    async def insert(self, entry: bytes, *, slot: int) -> bool:
        """As `ReplayStore.insert`; takes microseconds, so no thread is used.

        The entries of one turn of the event loop are one transaction, most of whose
        cost is the same for one entry and for many.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what an earlier loop left behind is nobody's
            self._loop, self._next = loop, []
        new = _Insertion(entry, slot, loop.create_future())
        self._next.append(new)
        if len(self._next) == 1:
            loop.call_soon(self._flush)
        return await new.answer

    def _flush(self) -> None:
        """Insert what has gathered: all of it, or, where that fails, nothing."""
        group, self._next = self._next, []
        try:
            if len(group) > 1:
                self._execute("BEGIN IMMEDIATE")
            found = [self._insert(one) for one in group]
            if len(group) > 1:
                self._execute("COMMIT")
        except ReplayStoreError as error:
            for one in group:
                if not one.answer.done():
                    # Each its own: a raised error carries its traceback.
                    one.answer.set_exception(ReplayStoreError(str(error)))
            return
        for one, is_new in zip(group, found):
            if not one.answer.done():
                one.answer.set_result(is_new)

    def _insert(self, one: _Insertion) -> bool:
        sql = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        return self._execute(sql, one.slot, one.entry).rowcount == 1

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """As `ReplayStore.forget`."""
        self._execute("DELETE FROM seen WHERE slot >= 0 AND slot < ?", before_slot)
        for slot in drop:
            self._execute("DELETE FROM seen WHERE slot = ?", slot)

    def close(self) -> None:
        """Close the file; the next request opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _execute(self, sql: str, *values: int | bytes) -> sqlite3.Cursor:
        try:
            connection = self._connection or self._open()
            return connection.execute(sql, values)
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                self.close()
            raise ReplayStoreError(f"{self._path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in self._folder.glob("replay-*.sqlite*"):
            if not other.name.startswith(self._path.name):
                other.unlink(missing_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=_BUSY_TIMEOUT_S
        )
        for pragma in (
            "journal_mode = WAL",
            "synchronous = OFF",
            f"max_page_count = {self._max_pages}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS seen (slot INTEGER, entry BLOB,"
            " PRIMARY KEY (slot, entry)) WITHOUT ROWID"
        )
        self._connection = connection
        return connection


class RedisReplayStore:
    """A Redis that all machines of a deployment share.

    Its own memory limit bounds it; it must be set to refuse writes when full
    (``maxmemory-policy noeviction``), or it would forget what it must know.
    """

    def __init__(self, url: str, *, dated_ttl_s: int, undated_ttl_s: int) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: ``redis://`` or ``rediss://``.
            dated_ttl_s: how long entries with a slot by time are kept.
            undated_ttl_s: how long the others are.

        Raises:
            ReplayStoreError: the redis package is not installed, or not such a URL.
        """
        self._ttl_ms = (dated_ttl_s * 1000, undated_ttl_s * 1000)
        self._client, self._errors = make_client(
            url,
            setting="sealing.replay_store",
            refusal=ReplayStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return "<RedisReplayStore>"

    async def insert(self, entry: bytes, *, slot: int) -> bool:
        """As `ReplayStore.insert`: one SET with NX."""
        key = b"sealgate:replay:%d:%b" % (slot, entry.hex().encode())
        ttl_ms = self._ttl_ms[slot < 0]
        try:
            return bool(await self._client.set(key, b"", nx=True, px=ttl_ms))
        except self._errors as error:
            # The class says enough; the message may hold the address.
            raise ReplayStoreError(f"redis: {type(error).__name__}") from None

    def forget(self, *, before_slot: int, drop: Collection[int]) -> None:
        """Nothing to do: entries expire by themselves."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _boot() -> str:
    """What this boot of the machine is called, for a file name."""
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        return "0"
    return re.sub("[^0-9a-f]", "", text)[:16]
