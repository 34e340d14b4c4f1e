"""Where the list of revocations is kept: SQLite for one machine, Redis for several.

What is gone is not empty, and what went back to an earlier state is not what was
written: both are refused until somebody says what holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from security.errors import RevocationStoreError
from security.settings.access import AccessSettings
from security.stores.local import SqliteFile
from security.stores.places import Reach
from security.stores.shared import Redis, once

__all__ = [
    "KINDS",
    "LocalStore",
    "RedisStore",
    "Revocation",
    "RevocationStore",
    "open_store",
]

# A subject is one of an earlier release's list.
KINDS = ("token", "subject", "client", "pseudonym")
MAX_ENTRIES = 1 << 18
_WRITE_TIMEOUT_S = 10.0
_REDIS_TIMEOUT_S = 1.0
_TAG = "revocations"
# Where the list is, and where earlier releases had its version.
_PLACES = (("revocations",), ("revocations", "version"))
_NO_LIST = "there is no list of revocations; `access revoke --new-list` makes one"
_NO_FILE = f"{_NO_LIST}, as a server does at its first start"
_WENT_BACK = (
    "the list of revocations has gone back to an earlier state; revoke again what is "
    "missing: the list holds from its next change on"
)


@dataclass(frozen=True)
class Revocation:
    """One line of the list.

    Attributes:
        kind: of `KINDS`: what ``value`` is.
        value: a token's identifier, a subject's pseudonym or a client.
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


class RevocationStore(Protocol):
    """Where the list is kept. What is gone is not empty: each method refuses then."""

    def start(self) -> None:
        """Refuse what a server cannot start with; a file that was never there is made.

        Raises:
            RevocationStoreError: there is no list, or it may be forgotten.
        """

    def new_list(self) -> None:
        """Make a list where there is none, or none any more.

        Raises:
            RevocationStoreError: there is one.
        """

    def add(self, entry: Revocation) -> None:
        """Write a line, in place of one about the same; lines that expired go."""

    def remove(self, entry: Revocation) -> bool:
        """Take a line back; says whether there was one."""

    def entries(self) -> list[Revocation]:
        """All lines."""

    def version(self) -> object:
        """Something that differs whenever the list does."""

    def is_kept(self) -> bool:
        """Whether the list would outlive a restart of the store."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_store(access: AccessSettings) -> RevocationStore:
    """The store that the settings name, as commands use it.

    Raises:
        RevocationStoreError: there can be no such store.
    """
    if access.revocation_store == "local":
        return LocalStore(access.revocation_directory, timeout_s=_WRITE_TIMEOUT_S)
    durable = access.revocation_require_persistence
    return RedisStore(access.revocation_store, access.redis, durable=durable)


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS revoked (name TEXT PRIMARY KEY, kind TEXT, value TEXT,"
    " issuer TEXT, issued_until INTEGER, expires_at INTEGER, revoked_at INTEGER)",
)


class LocalStore:
    """An SQLite file that all workers of this machine share.

    It is written through to the disk: what is revoked stays so after a power cut.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 0.25) -> None:
        self._file = SqliteFile(
            folder / "revocations.sqlite",
            _SCHEMA,
            refusal=RevocationStoreError,
            synchronous="FULL",
            must_exist=True,
            timeout_s=timeout_s,
        )

    def __repr__(self) -> str:
        return f"<LocalStore {self._file.path}>"

    def start(self) -> None:
        """As `RevocationStore.start`; a file that was emptied is no list."""
        if self._file.path.exists():
            self.entries()
        elif self._file.was_made:
            raise RevocationStoreError(f"{self._file.path}: is gone; {_NO_LIST}")
        self._file.make()

    def new_list(self) -> None:
        """As `RevocationStore.new_list`; a file that is broken must go first."""
        if self._file.path.exists():
            raise RevocationStoreError(f"{self._file.path}: is there")
        self._file.make()

    def add(self, entry: Revocation) -> None:
        """As `RevocationStore.add`."""
        self._must_exist()
        gone = "DELETE FROM revoked WHERE expires_at > 0 AND expires_at < ?"
        self._file.execute(gone, entry.revoked_at)
        if len(self.entries()) >= MAX_ENTRIES:
            raise RevocationStoreError(f"{self._file.path}: {MAX_ENTRIES} lines")
        self._file.execute(
            "INSERT OR REPLACE INTO revoked VALUES (?, ?, ?, ?, ?, ?, ?)",
            entry.name,
            *asdict(entry).values(),
        )

    def remove(self, entry: Revocation) -> bool:
        """As `RevocationStore.remove`."""
        self._must_exist()
        found = self._file.execute("DELETE FROM revoked WHERE name = ?", entry.name)
        return found.rowcount > 0

    def entries(self) -> list[Revocation]:
        """As `RevocationStore.entries`."""
        self._must_exist()
        rows = self._file.execute(
            "SELECT kind, value, issuer, issued_until, expires_at, revoked_at"
            " FROM revoked ORDER BY revoked_at, name"
        )
        return [Revocation(*row) for row in rows.fetchall()]

    def version(self) -> object:
        """As `RevocationStore.version`."""
        return self._file.version()

    def is_kept(self) -> bool:
        """As `RevocationStore.is_kept`."""
        return True

    def close(self) -> None:
        """As `RevocationStore.close`."""
        self._file.close()

    def _must_exist(self) -> None:
        if not self._file.path.exists():
            raise RevocationStoreError(f"{self._file.path}: {_NO_FILE}")


_VERSION = """
return redis.call('HGET', KEYS[1], 'version') or redis.call('GET', KEYS[2])
"""
_ENTRIES = "return redis.call('HGETALL', KEYS[1])"
# ARGV: a line's name, its text or nothing, names of lines that go. Returns whether
# the line was there, or -1 where no list is. The version is the time at least, so that
# a list that went back passes what it was by its next change.
_CHANGE = once("""
local version = redis.call('HGET', KEYS[1], 'version') or redis.call('GET', KEYS[2])
if not version then return -1 end
local found = redis.call('HEXISTS', KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], 'version', math.max(tonumber(version) + 1, now))
redis.call('DEL', KEYS[2])
for i = 3, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return found
""")
# The first version is the time, so that no list of before has had it.
_NEW = once("""
if redis.call('HEXISTS', KEYS[1], 'version') + redis.call('EXISTS', KEYS[2]) > 0 then
  return 0
end
redis.call('DEL', KEYS[1])
return redis.call('HSET', KEYS[1], 'version', redis.call('TIME')[1])
""")


class RedisStore:
    """A hash in a Redis that all machines of a deployment share: lines and version.

    Redis must be set to keep it (``appendonly yes``, ``maxmemory-policy noeviction``).
    Once this release has changed a list of an earlier one, whose version had a key of
    its own, servers of that release refuse everybody rather than miss a pseudonym.

    A Redis that has an older list than this object saw (a snapshot that came back, a
    replica that took over before it had all) has lost revocations: it is refused.
    """

    def __init__(self, url: str, reach: Reach, *, durable: bool = True) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: of the Redis.
            reach: prefix of the keys, and certificates.
            durable: refuse to start on a server that a restart makes forget.

        Raises:
            RevocationStoreError: the redis package is not installed, or not such a URL.
        """
        self._durable = durable
        self._newest = 0
        self._redis = Redis(
            url,
            reach,
            setting="access.revocation_store",
            refusal=RevocationStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
        )
        self._keys = [self._redis.key(*place, tag=_TAG) for place in _PLACES]

    def __repr__(self) -> str:
        return "<RedisStore>"

    def start(self) -> None:
        """As `RevocationStore.start`; one that is away is waited for."""
        if not self._redis.look():
            return
        if self._durable and not self.is_kept():
            raise RevocationStoreError("redis: set appendonly, or it forgets the list")
        self.version()

    def new_list(self) -> None:
        """As `RevocationStore.new_list`."""
        if not self._run(_NEW, self._redis.request_key(tag=_TAG)):
            raise RevocationStoreError("redis: there is a list")

    def add(self, entry: Revocation) -> None:
        """As `RevocationStore.add`."""
        entries = self.entries()
        if len(entries) >= MAX_ENTRIES:
            raise RevocationStoreError(f"redis: {MAX_ENTRIES} lines")
        gone = [
            old.name
            for old in entries
            if 0 < old.expires_at < entry.revoked_at and old.name != entry.name
        ]
        self._change(entry.name, json.dumps(asdict(entry)), *gone)

    def remove(self, entry: Revocation) -> bool:
        """As `RevocationStore.remove`."""
        return self._change(entry.name, "")

    def entries(self) -> list[Revocation]:
        """As `RevocationStore.entries`."""
        self.version()
        pairs = self._run(_ENTRIES)
        try:
            entries = [
                Revocation(**json.loads(text))
                for name, text in zip(pairs[::2], pairs[1::2])
                if name != b"version"
            ]
        except (ValueError, TypeError):  # what another program left there
            raise RevocationStoreError("redis: a line cannot be read") from None
        return sorted(entries, key=lambda entry: (entry.revoked_at, entry.name))

    def version(self) -> object:
        """As `RevocationStore.version`: a counter that each change raises."""
        counter = self._run(_VERSION)
        if counter is None:
            raise RevocationStoreError(f"redis: {_NO_LIST}")
        if int(counter) < self._newest:
            raise RevocationStoreError(f"redis: {_WENT_BACK}")
        self._newest = int(counter)
        return self._newest

    def is_kept(self) -> bool:
        """As `RevocationStore.is_kept`."""
        return self._redis.outlives_restart()

    def close(self) -> None:
        """As `RevocationStore.close`."""
        self._redis.close()

    def _change(self, *values: str) -> bool:
        name = self._redis.request_key(tag=_TAG)
        found = self._run(_CHANGE, name, values=values)
        if found < 0:
            raise RevocationStoreError(f"redis: {_NO_LIST}")
        return bool(found)

    def _run(self, script: str, *more_keys: str, values: Iterable[str] = ()) -> Any:
        return self._redis.run(script, [*self._keys, *more_keys], list(values))
