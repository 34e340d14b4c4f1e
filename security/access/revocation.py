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

import logging
import threading
import time
from collections.abc import Callable, Iterable

from security.access.claims import Principal
from security.access.revocation_stores import (
    LocalStore,
    RedisStore,
    Revocation,
    RevocationStore,
)
from security.errors import RevocationStoreError, TokenError
from security.key_files import pseudonym
from security.settings.access import AccessSettings

__all__ = ["Revocations", "WatchedStore", "open_watched", "subject_name"]

CHECK_INTERVAL_S = 0.5
# A look that takes longer than this has failed.
STALE_S = 5.0
KEPT_INTERVAL_S = 60.0

_log = logging.getLogger(__name__)


def subject_name(key: bytes, subject: str, issuer: str) -> str:
    """What a subject is called in the list: as in the audit log, if of one issuer."""
    return pseudonym(key, f"{issuer}\0{subject}")


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
    remote = RedisStore(access.revocation_store, access.redis)
    watched = WatchedStore(remote, key=key, report_kept=report_kept, in_thread=True)
    watched.start()
    return watched


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
