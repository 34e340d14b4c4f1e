"""Where an issuer's keys come from, and how they are kept current without a restart.

A file is looked at once a second. A URL is fetched by a thread of its own: https only,
no redirects, bounded in bytes and time, no proxies from the environment. Whatever fails
leaves the last good set in place. A token that names an unknown key makes the thread
fetch early, once per interval, however many such tokens come.

A source gives the very same object until the keys change: who holds something that was
verified with it can see whether it still stands.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from security.access.bounded_fetch import fetch
from security.access.jwks import (
    MAX_JWKS_BYTES,
    JwkSet,
    load_jwks,
    load_secret,
    parse_jwks,
)
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


class KeySource(Protocol):
    """The keys of one issuer."""

    def current(self) -> JwkSet:
        """The keys to use for one token; the same object until they change.

        Raises:
            KeysUnavailableError: there has not been any yet.
        """

    def unknown(self) -> None:
        """Say that a token named a key that is not there."""


def open_source(issuer: IssuerSettings) -> KeySource:
    """The source that an issuer's settings name, ready for use.

    A URL that cannot be fetched is no error here: an issuer that is down must not keep
    a server from starting that other issuers' callers need.

    Raises:
        KeyFileError: a file that cannot be used.
    """
    if issuer.secret is not None:
        return SecretKeys(issuer.secret)
    if isinstance(issuer.jwks, Path):
        return FileKeys(issuer.jwks, issuer)
    source = UrlKeys(issuer.jwks, issuer)
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
        load_jwks(issuer.jwks, algorithms=issuer.algorithms)
    else:
        _tls(issuer.jwks_ca)


class SecretKeys:
    """The shared secret of an issuer; read once."""

    def __init__(self, path: Path) -> None:
        self._keys = load_secret(path)

    def current(self) -> JwkSet:
        """As `KeySource.current`."""
        return self._keys

    def unknown(self) -> None:
        """Never called: a secret answers to every name."""


class FileKeys:
    """A JWK Set file, read again when it changes."""

    def __init__(
        self,
        path: Path,
        issuer: IssuerSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read it.

        Raises:
            KeyFileError: it cannot be used; only later failures are survived.
        """
        self._path = path
        self._algorithms = issuer.algorithms
        self._clock = clock
        self._monotonic = monotonic
        self._stamp = self._settled_stamp()
        self._keys = load_jwks(path, algorithms=self._algorithms)
        self._next_check = monotonic() + CHECK_INTERVAL_S
        self._complaint = ""

    def current(self) -> JwkSet:
        """As `KeySource.current`."""
        now = self._monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_INTERVAL_S
            self._refresh()
        return self._keys

    def unknown(self) -> None:
        """Nothing: the file is looked at often enough."""

    def _refresh(self) -> None:
        try:
            stamp = self._settled_stamp()
            if stamp is None or stamp != self._stamp:
                keys = load_jwks(self._path, algorithms=self._algorithms)
                self._stamp, self._complaint = stamp, ""
                self._keys = _newer(self._keys, keys)
        except KeyFileError as error:
            self._stamp = None
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("issuer's keys not reloaded: %s", error)

    def _settled_stamp(self) -> tuple[int, int, int] | None:
        """What identifies the file's content; None while that may still change."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise KeyFileError(f"{self._path}: {error.strerror}") from None
        if abs(self._clock() - status.st_mtime) < SETTLED_S:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


class UrlKeys:
    """A JWK Set behind an https URL, fetched by a thread."""

    def __init__(
        self,
        url: str,
        issuer: IssuerSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is fetched yet.

        Raises:
            KeyFileError: the authorities' file cannot be used.
        """
        self._url = url
        self._algorithms = issuer.algorithms
        self._refresh_s = issuer.jwks_refresh_s
        self._retry_s = issuer.jwks_retry_s
        self._context = _tls(issuer.jwks_ca)
        self._monotonic = monotonic
        self._last_attempt = float("-inf")
        self._failures = 0
        self._keys: JwkSet | None = None
        self._wake = threading.Event()
        self._closed = False
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
        if self._keys is None:
            self.unknown()
            raise KeysUnavailableError("the issuer's keys could not be fetched yet")
        return self._keys

    def unknown(self) -> None:
        """Fetch early, if the last time is long enough ago."""
        now = self._monotonic()
        if now - self._last_attempt >= self._retry_s:
            self._last_attempt = now
            self._wake.set()

    def refresh(self) -> None:
        """Fetch now; what fails is logged, and changes nothing."""
        self._last_attempt = self._monotonic()
        try:
            keys = self._fetch()
        except KeyFileError as error:
            self._fail(str(error))
        else:
            self._failures = 0
            self._keys = _newer(self._keys, keys)

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

    def _fail(self, message: str) -> None:
        self._failures += 1
        kept = "none yet" if self._keys is None else "the last good set is kept"
        _log.warning("issuer's keys not fetched, %s: %s", kept, message)

    def _fetch(self) -> JwkSet:
        data = fetch(
            self._url,
            context=self._context,
            max_bytes=MAX_JWKS_BYTES,
            timeout_s=FETCH_TIMEOUT_S,
        )
        return parse_jwks(
            data, source=self._url, algorithms=self._algorithms, lenient=True
        )


def _newer(old: JwkSet | None, new: JwkSet) -> JwkSet:
    """The new set, or the old object where both say the same."""
    return old if old is not None and old == new else new


def _tls(authorities: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError):
        raise KeyFileError(f"{authorities}: no file of certificates") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
