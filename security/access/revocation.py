"""Tokens, subjects and clients that are refused before their tokens expire.

One list for all workers. Each worker keeps a copy, and looks at most half a second
later whether the list has changed: what is revoked is refused within a second. What
cannot be read is not taken for empty: then nothing is answered.

The local list is an SQLite file that is written through to the disk. With several hosts
it is a hash in Redis, which a thread looks at, since a network may be slow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from security.access.claims import Principal
from security.errors import RevocationStoreError, TokenError
from security.redis_client import make_client
from security.settings.access import AccessSettings

__all__ = [
    "KINDS",
    "LocalStore",
    "RedisStore",
    "Revocation",
    "RevocationStore",
    "Revocations",
    "WatchedStore",
    "open_store",
    "open_watched",
]

KINDS = ("token", "subject", "client")
CHECK_INTERVAL_S = 0.5
# A look that takes longer than this has failed.
STALE_S = 5.0
MAX_ENTRIES = 1 << 18
_BUSY_TIMEOUT_S = 0.25
_WRITE_TIMEOUT_S = 10.0
_REDIS_TIMEOUT_S = 1.0
_REDIS_KEY = "sealgate:revocations"
_REDIS_VERSION = "sealgate:revocations:version"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Revocation:
    """One line of the list.

    Attributes:
        kind: of `KINDS`: what ``value`` is.
        value: a token's identifier, a subject or a client.
        issuer: whose; empty stands for any issuer's.
        issued_until: only tokens issued up to then, in seconds since the epoch; 0 for
            all tokens, new ones too.
        expires_at: when the line may go, since no token that it is about can still be
            valid; 0 never.
        revoked_at: when it was written.
    """

    kind: str
    value: str
    issuer: str = ""
    issued_until: int = 0
    expires_at: int = 0
    revoked_at: int = 0

    @property
    def name(self) -> str:
        """What tells it from others: one line per kind, issuer and value."""
        text = json.dumps([self.kind, self.issuer, self.value])
        return hashlib.sha256(text.encode()).hexdigest()


class Revocations:
    """The list as of one moment."""

    def __init__(self, entries: Iterable[Revocation] = ()) -> None:
        self._entries: dict[tuple[str, str, str], Revocation] = {}
        for entry in entries:
            self._entries[entry.kind, entry.issuer, entry.value] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, principal: Principal) -> None:
        """Refuse a token that was revoked.

        Raises:
            TokenError: it was.
        """
        if not self._entries:
            return
        for kind, value in (
            ("token", principal.token_id),
            ("subject", principal.subject),
            ("client", principal.client_id),
        ):
            for issuer in (principal.issuer, ""):
                entry = self._entries.get((kind, issuer, value))
                if entry is not None and (
                    not entry.issued_until or principal.issued_at <= entry.issued_until
                ):
                    raise TokenError(f"{kind} is revoked")


class RevocationStore(Protocol):
    """Where the list is kept."""

    def create(self) -> None:
        """Make it where there is none. What is gone while it is used is not empty."""

    def add(self, entry: Revocation) -> None:
        """Write a line, in place of one about the same."""

    def remove(self, entry: Revocation) -> bool:
        """Take a line back; says whether there was one."""

    def entries(self) -> list[Revocation]:
        """All lines."""

    def version(self) -> object:
        """Something that differs whenever the list does."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_store(access: AccessSettings) -> RevocationStore:
    """The store that the settings name; made if it is a file that is not there.

    Raises:
        RevocationStoreError: it cannot be opened.
    """
    store: RevocationStore
    if access.revocation_store == "local":
        store = LocalStore(access.revocation_directory)
    else:
        store = RedisStore(access.revocation_store)
    store.create()
    return store


def open_watched(access: AccessSettings) -> WatchedStore:
    """The list as a worker uses it."""
    if access.revocation_store == "local":
        return WatchedStore(LocalStore(access.revocation_directory))
    watched = WatchedStore(RedisStore(access.revocation_store), in_thread=True)
    watched.start()
    return watched


class LocalStore:
    """An SQLite file that all workers of this machine share."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "revocations.sqlite"
        # Opened at the first use: connections do not survive a fork.
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def __repr__(self) -> str:
        return f"<LocalStore {self._path}>"

    def create(self) -> None:
        """Make the file if it is not there.

        Raises:
            RevocationStoreError: it cannot be made.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise RevocationStoreError(f"{self._path}: {error.strerror}") from None
        self._execute(
            "CREATE TABLE IF NOT EXISTS revoked (name TEXT PRIMARY KEY, kind TEXT,"
            " value TEXT, issuer TEXT, issued_until INTEGER, expires_at INTEGER,"
            " revoked_at INTEGER)",
            writing=True,
        )

    def add(self, entry: Revocation) -> None:
        """As `RevocationStore.add`; lines that have expired go."""
        self._execute(
            "DELETE FROM revoked WHERE expires_at > 0 AND expires_at < ?",
            entry.revoked_at,
            writing=True,
        )
        if len(self.entries()) >= MAX_ENTRIES:
            raise RevocationStoreError(f"{self._path}: {MAX_ENTRIES} lines already")
        self._execute(
            "INSERT OR REPLACE INTO revoked VALUES (?, ?, ?, ?, ?, ?, ?)",
            entry.name,
            *asdict(entry).values(),
            writing=True,
        )

    def remove(self, entry: Revocation) -> bool:
        """As `RevocationStore.remove`."""
        found = self._execute(
            "DELETE FROM revoked WHERE name = ?", entry.name, writing=True
        )
        return found.rowcount > 0

    def entries(self) -> list[Revocation]:
        """As `RevocationStore.entries`."""
        rows = self._execute(
            "SELECT kind, value, issuer, issued_until, expires_at, revoked_at"
            " FROM revoked ORDER BY revoked_at, name"
        )
        return [Revocation(*row) for row in rows.fetchall()]

    def version(self) -> object:
        """As `RevocationStore.version`: what SQLite counts, of this very file."""
        (counter,) = self._execute("PRAGMA data_version").fetchone()
        return self._inode, counter

    def close(self) -> None:
        """As `RevocationStore.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _execute(
        self, sql: str, *values: int | str, writing: bool = False
    ) -> sqlite3.Cursor:
        try:
            connection = self._connection or self._open(writing=writing)
            if os.stat(self._path).st_ino != self._inode:
                raise RevocationStoreError(f"{self._path}: was replaced")
            return connection.execute(sql, values)
        except (sqlite3.Error, OSError, RevocationStoreError) as error:
            with contextlib.suppress(sqlite3.Error):
                self.close()
            if isinstance(error, RevocationStoreError):
                raise
            raise RevocationStoreError(f"{self._path}: {error}") from None

    def _open(self, *, writing: bool) -> sqlite3.Connection:
        self._inode = os.stat(self._path).st_ino
        # Never made here: a file that is gone is not an empty list.
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=_WRITE_TIMEOUT_S if writing else _BUSY_TIMEOUT_S,
            check_same_thread=False,
        )
        self._connection = connection
        # Through to the disk: what is revoked stays so after a power cut.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection


class RedisStore:
    """A hash in a Redis that all machines of a deployment share.

    Redis must be set to keep it (``appendonly yes``, ``maxmemory-policy noeviction``).
    """

    def __init__(self, url: str) -> None:
        """Prepare; nothing connects yet.

        Raises:
            RevocationStoreError: the redis package is not installed, or not such a URL.
        """
        self._client, errors = make_client(
            url,
            setting="access.revocation_store",
            refusal=RevocationStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
            module="redis",
            decode_responses=True,
        )
        # What another program left there may be no number, or no text.
        self._errors: tuple[type[Exception], ...] = (*errors, ValueError, TypeError)

    def __repr__(self) -> str:
        return "<RedisStore>"

    def create(self) -> None:
        """As `RevocationStore.create`: the counter says that there is a list."""
        with self._reaching() as pipe:
            pipe.setnx(_REDIS_VERSION, 1)
            pipe.execute()

    def add(self, entry: Revocation) -> None:
        """As `RevocationStore.add`; lines that have expired go."""
        gone = [
            old.name
            for old in self.entries()
            if 0 < old.expires_at < entry.revoked_at and old.name != entry.name
        ]
        with self._reaching() as pipe:
            for name in gone:
                pipe.hdel(_REDIS_KEY, name)
            pipe.hset(_REDIS_KEY, entry.name, json.dumps(asdict(entry)))
            pipe.incr(_REDIS_VERSION)
            pipe.execute()

    def remove(self, entry: Revocation) -> bool:
        """As `RevocationStore.remove`."""
        with self._reaching() as pipe:
            pipe.hdel(_REDIS_KEY, entry.name)
            pipe.incr(_REDIS_VERSION)
            return bool(pipe.execute()[0])

    def entries(self) -> list[Revocation]:
        """As `RevocationStore.entries`."""
        with self._reaching() as pipe:
            pipe.hgetall(_REDIS_KEY)
            (found,) = pipe.execute()
            entries = [Revocation(**json.loads(text)) for text in found.values()]
        return sorted(entries, key=lambda entry: (entry.revoked_at, entry.name))

    def version(self) -> object:
        """As `RevocationStore.version`: a counter that each change raises."""
        with self._reaching() as pipe:
            pipe.get(_REDIS_VERSION)
            (counter,) = pipe.execute()
        if counter is None:
            raise RevocationStoreError("redis: the list is gone")
        return counter

    def close(self) -> None:
        """As `RevocationStore.close`."""
        self._client.close()

    @contextlib.contextmanager
    def _reaching(self) -> Any:
        try:
            with self._client.pipeline(transaction=True) as pipe:
                yield pipe
        except self._errors as error:
            # The class says enough; the message may hold the address.
            raise RevocationStoreError(f"redis: {type(error).__name__}") from None


class WatchedStore:
    """A store's list, kept current: what a worker asks for each request."""

    def __init__(
        self,
        store: RevocationStore,
        *,
        in_thread: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: where the list is.
            in_thread: look from a thread, which `start` begins; for slow stores.
            monotonic: seconds.
        """
        self._store = store
        self._monotonic = monotonic
        self._in_thread = in_thread
        self._version: object = None
        self._revocations: Revocations | None = None
        self._checked_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="revoked", daemon=True)

    def start(self) -> None:
        """Look once, then again and again from a thread."""
        self._look()
        self._thread.start()

    def close(self) -> None:
        """End the thread, let go of the store."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._store.close()

    def check(self, principal: Principal) -> None:
        """Refuse a token that was revoked.

        Raises:
            TokenError: it was.
            RevocationStoreError: it cannot be told.
        """
        age = self._monotonic() - self._checked_at
        if not self._in_thread and age >= CHECK_INTERVAL_S:
            self._look()
        if self._revocations is None or (self._in_thread and age > STALE_S):
            raise RevocationStoreError("the list of revocations cannot be read")
        self._revocations.check(principal)

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        started = self._monotonic()
        try:
            version = self._store.version()
            if self._revocations is None or version != self._version:
                entries = self._store.entries()
                # Of what changed in between, the next look sees that it did.
                self._revocations, self._version = Revocations(entries), version
        except RevocationStoreError as error:
            if self._revocations is not None or self._checked_at < 0:
                _log.warning("revocations cannot be read: %s", error)
            self._revocations = None
        self._checked_at = started
