"""Where an issuer's keys come from, and how they are kept current without a restart.

A file is looked at once a second. A URL is fetched by a thread of its own: https only,
no redirects, bounded in bytes and time, no proxies from the environment. A token that
names an unknown key makes the thread fetch early, once per interval, however many such
tokens come; who sent it may wait for that one fetch.

Whatever fails leaves the last good set in place for ``jwks_max_stale_s``, and is said:
in the log once, and to who opened the source as long as it lasts. After that there are
no keys. A set that is empty is no failure, but the issuer's stop: it is taken at once.

A source gives the very same object until the keys change: who holds something that was
verified with it can see whether it still stands.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from security.access.jwks import (
    MAX_JWKS_BYTES,
    SIGNATURE_USES,
    JwkSet,
    KeyRules,
    load_jwks,
    load_secret,
    parse_jwks,
)
from security.bounded_fetch import fetch, trusting
from security.errors import KeyFileError, KeysUnavailableError
from security.settings.issuers import IssuerSettings

__all__ = [
    "FileKeys",
    "KeySource",
    "SecretKeys",
    "UrlKeys",
    "check_source",
    "open_source",
]

CHECK_INTERVAL_S = 1.0
# File systems stamp changes with a coarse clock: a file that changed this recently may
# have changed again since without showing it.
SETTLED_S = 2.0
FETCH_TIMEOUT_S = 10.0
# After a failure the URL is asked again soon, then less and less often.
FIRST_BACKOFF_S = 2.0

_log = logging.getLogger(__name__)


# Told whether an issuer's last good keys stand in for those that cannot be read.
ReportStale = Callable[[bool], None]


class KeySource(Protocol):
    """The keys of one issuer."""

    def current(self) -> JwkSet:
        """The keys to use for one token; the same object until they change.

        Raises:
            KeysUnavailableError: there has not been any yet, or not for too long.
        """

    def unknown(self) -> Future[None] | None:
        """Say that a token named a key that is not there.

        Returns:
            The fetch that may bring it, or None if none is under way.
        """


def open_source(
    issuer: IssuerSettings, report_stale: ReportStale = lambda stale: None
) -> KeySource:
    """The source that an issuer's settings name, ready for use.

    A URL that cannot be fetched is no error here: an issuer that is down must not keep
    a server from starting that other issuers' callers need.

    Raises:
        KeyFileError: a file that cannot be used.
    """
    if issuer.secret is not None:
        return SecretKeys(issuer.secret)
    if isinstance(issuer.jwks, Path):
        return FileKeys(issuer.jwks, issuer, report_stale=report_stale)
    source = UrlKeys(issuer.jwks, issuer, report_stale=report_stale)
    source.start()
    return source


def check_source(issuer: IssuerSettings) -> None:
    """Refuse what can be seen to be unusable without asking anybody.

    Raises:
        KeyFileError: a file that cannot be used.
    """
    if issuer.secret is not None:
        load_secret(issuer.secret)
    elif isinstance(issuer.jwks, Path):
        load_jwks(issuer.jwks, rules=_rules(issuer))
    else:
        trusting(issuer.jwks_ca)


class SecretKeys:
    """The shared secret of an issuer; read once."""

    def __init__(self, path: Path) -> None:
        self._keys = load_secret(path)

    def current(self) -> JwkSet:
        """As `KeySource.current`."""
        return self._keys

    def unknown(self) -> None:
        """Never called: a secret answers to every name."""


class _LastGood:
    """The last good set of an issuer, for as long as it may stand in for a new one."""

    def __init__(
        self,
        issuer: IssuerSettings,
        *,
        report_stale: ReportStale,
        monotonic: Callable[[], float],
    ) -> None:
        self._max_stale_s = issuer.jwks_max_stale_s
        self._report_stale = report_stale
        self._monotonic = monotonic
        self._keys: JwkSet | None = None
        self._good_at = 0.0
        self._stale = False
        self._said: set[str] = set()

    def current(self) -> JwkSet:
        """The set.

        Raises:
            KeysUnavailableError: there is none, or it may not be used any more.
        """
        keys = self._keys
        if keys is None:
            raise KeysUnavailableError("the issuer's keys could not be fetched yet")
        if self._monotonic() - self._good_at > self._max_stale_s:
            raise KeysUnavailableError("the issuer's keys are too old")
        return keys

    def take(self, keys: JwkSet, left_out: list[str]) -> None:
        """A set that was read; the old object stays where both say the same."""
        if not keys and self._keys:
            _log.warning("issuer's keys: the set is empty, its tokens are refused")
        if self._keys is None or self._keys != keys:
            self._keys = keys
        self.still_good()
        self._said &= set(left_out)
        for line in left_out:
            self._say("issuer's key left out: %s", line)

    def still_good(self) -> None:
        """It was looked, and nothing has changed."""
        self._good_at = self._monotonic()
        if self._stale:
            self._stale = False
            self._report_stale(False)

    def fail(self, message: str) -> None:
        """A set could not be read; said once for as long as the reason is the same."""
        kept = "none yet" if self._keys is None else "the last good set is kept"
        self._say(f"issuer's keys not read, {kept}: %s", message)
        self._said = {message}
        self._stale = True
        self._report_stale(True)

    def _say(self, text: str, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _log.warning(text, line)


class FileKeys:
    """A JWK Set file, read again when it changes."""

    def __init__(
        self,
        path: Path,
        issuer: IssuerSettings,
        *,
        report_stale: ReportStale = lambda stale: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read it.

        Raises:
            KeyFileError: it cannot be used; only later failures are survived.
        """
        self._path = path
        self._rules = _rules(issuer)
        self._clock = clock
        self._monotonic = monotonic
        self._good = _LastGood(issuer, report_stale=report_stale, monotonic=monotonic)
        self._stamp = self._settled_stamp()
        self._load()
        self._next_check = monotonic() + CHECK_INTERVAL_S

    def current(self) -> JwkSet:
        """As `KeySource.current`."""
        now = self._monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_INTERVAL_S
            self._refresh()
        return self._good.current()

    def unknown(self) -> None:
        """Nothing: the file is looked at often enough."""

    def _load(self) -> None:
        left_out: list[str] = []
        keys = load_jwks(self._path, rules=self._rules, left_out=left_out)
        self._good.take(keys, left_out)

    def _refresh(self) -> None:
        try:
            stamp = self._settled_stamp()
            if stamp is not None and stamp == self._stamp:
                self._good.still_good()
                return
            self._load()
            self._stamp = stamp
        except KeyFileError as error:
            self._stamp = None
            self._good.fail(str(error))

    def _settled_stamp(self) -> tuple[int, ...] | None:
        """What identifies the file's content; None while that may still change."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise KeyFileError(f"{self._path}: {error.strerror}") from None
        if abs(self._clock() - status.st_mtime) < SETTLED_S:
            return None
        # A copy in place can keep size and time of change; no program sets the ctime.
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


class UrlKeys:
    """A JWK Set behind an https URL, fetched by a thread."""

    def __init__(
        self,
        url: str,
        issuer: IssuerSettings,
        *,
        report_stale: ReportStale = lambda stale: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is fetched yet.

        Raises:
            KeyFileError: the authorities' file cannot be used.
        """
        self._url = url
        self._rules = _rules(issuer)
        self._refresh_s = issuer.jwks_refresh_s
        self._retry_s = issuer.jwks_retry_s
        self._context = trusting(issuer.jwks_ca)
        self._monotonic = monotonic
        self._good = _LastGood(issuer, report_stale=report_stale, monotonic=monotonic)
        self._last_attempt = float("-inf")
        self._failures = 0
        self._wake = threading.Event()
        self._closed = False
        self._early: Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="jwks", daemon=True)

    def __repr__(self) -> str:
        return f"<UrlKeys {self._url}>"

    def start(self) -> None:
        """Fetch once, then again and again in a thread that ends with the process."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def current(self) -> JwkSet:
        """As `KeySource.current`."""
        try:
            return self._good.current()
        except KeysUnavailableError:
            self.unknown()
            raise

    def unknown(self) -> Future[None] | None:
        """Fetch early, if the last time is long enough ago."""
        early = self._early
        if early is not None and not early.done():
            return early
        now = self._monotonic()
        if now - self._last_attempt < self._retry_s:
            return None
        self._last_attempt = now
        self._early = early = Future()
        self._wake.set()
        return early

    def refresh(self) -> None:
        """Fetch now; what fails is logged, and changes nothing."""
        self._last_attempt = self._monotonic()
        if self._early is None or self._early.done():
            self._early = Future()
        early = self._early
        left_out: list[str] = []
        try:
            keys = self._fetch(left_out)
        except KeyFileError as error:
            self._failures += 1
            self._good.fail(str(error))
        else:
            self._failures = 0
            self._good.take(keys, left_out)
        early.set_result(None)

    def _run(self) -> None:
        while True:
            self._wake.wait(timeout=self._delay_s())
            self._wake.clear()
            if self._closed:
                return
            self.refresh()

    def _delay_s(self) -> float:
        if not self._failures:
            return self._refresh_s
        backoff = FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 16)
        return min(self._refresh_s, backoff)

    def _fetch(self, left_out: list[str]) -> JwkSet:
        data = fetch(
            self._url,
            context=self._context,
            max_bytes=MAX_JWKS_BYTES,
            timeout_s=FETCH_TIMEOUT_S,
        )
        return parse_jwks(data, source=self._url, rules=self._rules, left_out=left_out)


def _rules(issuer: IssuerSettings) -> KeyRules:
    uses = SIGNATURE_USES | set(issuer.key_uses)
    return KeyRules(issuer.algorithms, uses)
