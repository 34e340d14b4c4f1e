"""Tokens, subjects and clients that are refused before their tokens expire.

One list for all workers. Each worker keeps a copy, and looks at most half a second
later whether the list has changed: what is revoked is refused within a second. What
cannot be read is not taken for empty: then nothing is answered.

The local list is an SQLite file that is written through to the disk. With several hosts
it is a hash in Redis, which a thread looks at, since a network may be slow. A list that
is lost stays lost until somebody says so: nothing but `RevocationStore.new_list` makes
another one.

Subjects stand in the list under pseudonyms. Lists of earlier releases, which hold the
subjects themselves and in Redis have a key of their own for the version, are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from security.access.claims import Principal
from security.errors import RevocationStoreError, TokenError
from security.key_files import pseudonym
from security.settings.access import AccessSettings
from security.stores.local import SqliteFile
from security.stores.shared import Redis, once, request_key

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
    "subject_name",
]

# A subject is one of an earlier release's list.
KINDS = ("token", "subject", "client", "pseudonym")
CHECK_INTERVAL_S = 0.5
# A look that takes longer than this has failed.
STALE_S = 5.0
KEPT_INTERVAL_S = 60.0
MAX_ENTRIES = 1 << 18
_WRITE_TIMEOUT_S = 10.0
_REDIS_TIMEOUT_S = 1.0
# The second one is where earlier releases had the version.
_REDIS_KEYS = ["sealgate:revocations", "sealgate:revocations:version"]
_NO_LIST = "there is no list of revocations; `access revoke --new-list` makes one"
_NO_FILE = f"{_NO_LIST}, as a server does at its first start"

_log = logging.getLogger(__name__)


def subject_name(key: bytes, subject: str, issuer: str) -> str:
    """What a subject is called in the list: as in the audit log, if of one issuer."""
    return pseudonym(key, f"{issuer}\0{subject}")


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


class Revocations:
    """The list as of one moment."""

    def __init__(self, entries: Iterable[Revocation] = (), *, key: bytes) -> None:
        """Sort it.

        Args:
            entries: its lines.
            key: of the pseudonyms.
        """
        self._key = key
        self._entries = {(one.kind, one.issuer, one.value): one for one in entries}
        self._has_pseudonyms = any(kind == "pseudonym" for kind, *_ in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, principal: Principal) -> None:
        """Refuse a token that was revoked.

        Raises:
            TokenError: it was.
        """
        if not self._entries:
            return
        for issuer in (principal.issuer, ""):
            self._refuse(principal, "token", issuer, principal.token_id)
            self._refuse(principal, "subject", issuer, principal.subject)
            self._refuse(principal, "client", issuer, principal.client_id)
            if self._has_pseudonyms:
                name = subject_name(self._key, principal.subject, issuer)
                self._refuse(principal, "pseudonym", issuer, name)

    def _refuse(self, principal: Principal, kind: str, issuer: str, value: str) -> None:
        entry = self._entries.get((kind, issuer, value))
        if entry is None or 0 < entry.issued_until < principal.issued_at:
            return
        raise TokenError(f"{'subject' if kind == 'pseudonym' else kind} is revoked")


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
    return RedisStore(access.revocation_store, durable=durable)


def open_watched(
    access: AccessSettings,
    *,
    key: bytes,
    report_kept: Callable[[bool], None] = lambda kept: None,
) -> WatchedStore:
    """The list as a worker uses it; arguments as of `WatchedStore`."""
    if access.revocation_store == "local":
        store = LocalStore(access.revocation_directory)
        return WatchedStore(store, key=key, report_kept=report_kept)
    remote = RedisStore(access.revocation_store)
    watched = WatchedStore(remote, key=key, report_kept=report_kept, in_thread=True)
    watched.start()
    return watched


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
# the line was there, or -1 where no list is.
_CHANGE = once("""
local version = redis.call('HGET', KEYS[1], 'version') or redis.call('GET', KEYS[2])
if not version then return -1 end
local found = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], 'version', version + 1)
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
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: ``redis://`` or ``rediss://``.
            durable: refuse to start on a server that a restart makes forget.

        Raises:
            RevocationStoreError: the redis package is not installed, or not such a URL.
        """
        self._durable = durable
        self._redis = Redis(
            url,
            setting="access.revocation_store",
            refusal=RevocationStoreError,
            timeout_s=_REDIS_TIMEOUT_S,
        )
        self._scripts = {
            text: self._redis.client.register_script(text)
            for text in (_VERSION, _ENTRIES, _CHANGE, _NEW)
        }

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
        if not self._run(_NEW, request_key()):
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
        return counter

    def is_kept(self) -> bool:
        """As `RevocationStore.is_kept`."""
        return self._redis.outlives_restart()

    def close(self) -> None:
        """As `RevocationStore.close`."""
        self._redis.close()

    def _change(self, *values: str) -> bool:
        found = self._run(_CHANGE, request_key(), values=values)
        if found < 0:
            raise RevocationStoreError(f"redis: {_NO_LIST}")
        return bool(found)

    def _run(self, script: str, *more_keys: str, values: Iterable[str] = ()) -> Any:
        keys = [*_REDIS_KEYS, *more_keys]
        return self._redis.run(self._scripts[script], keys, list(values))


class WatchedStore:
    """A store's list, kept current: what a worker asks for each request."""

    def __init__(
        self,
        store: RevocationStore,
        *,
        key: bytes,
        in_thread: bool = False,
        report_kept: Callable[[bool], None] = lambda kept: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: where the list is.
            key: of the pseudonyms in it.
            in_thread: look from a thread, which `start` begins; for slow stores.
            report_kept: told each minute whether the list would outlive a restart.
            monotonic: seconds.
        """
        self._store = store
        self._key = key
        self._report_kept = report_kept
        self._next_report = float("-inf")
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
                self._revocations = Revocations(entries, key=self._key)
                self._version = version
            if started >= self._next_report:
                self._next_report = started + KEPT_INTERVAL_S
                self._report_kept(self._store.is_kept())
        except RevocationStoreError as error:
            if self._revocations is not None or self._checked_at < 0:
                _log.warning("revocations cannot be read: %s", error)
            self._revocations = None
        self._checked_at = started
