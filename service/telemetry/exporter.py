"""Sends items to a receiver, from a bounded queue, in a thread of its own.

Nothing here holds a request up: what does not fit the queue is dropped and counted, and
so is a batch that the receiver did not take in time. Attempts are repeated as OTLP says
("OTLP/HTTP Response"): after 429, 502, 503 and 504, and where there was no answer, with
exponential backoff and jitter, or as Retry-After says.
"""

from __future__ import annotations

import gzip
import logging
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from security.bounded_fetch import StatusError, fetch, trusting
from security.errors import KeyFileError
from service.telemetry.export_settings import SignalSettings
from service.telemetry.otlp import rejected

__all__ = ["Exporter"]

_log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 64 << 10
_RETRIED = (429, 502, 503, 504)
_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 10.0
# A delay of nothing would have the thread look without a pause.
_LEAST_DELAY_S = 0.01
_JSON = b"application/json"

T = TypeVar("T")
# Told what became of how many items: "sent", "full", "refused", "unreachable".
Count = Callable[[str, int], None]


class Exporter(Generic[T]):
    """The way of one signal."""

    def __init__(
        self,
        settings: SignalSettings,
        encode: Callable[[Sequence[T]], bytes],
        count: Count,
        *,
        name: str,
    ) -> None:
        """Begin.

        Args:
            settings: where to, and within which bounds.
            encode: a request of items; called in the thread.
            count: what became of items; called in either thread.
            name: of the signal, for messages.

        Raises:
            KeyFileError: a certificate cannot be used.
        """
        self._settings = settings
        self._encode = encode
        self._count = count
        self._name = name
        self._context = self.context(settings)
        self._items: deque[T] = deque()
        self._full = threading.Event()
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._away = False
        self._thread = threading.Thread(
            target=self._run, name=f"export of {name}", daemon=True
        )
        self._thread.start()

    @staticmethod
    def context(settings: SignalSettings) -> ssl.SSLContext:
        """Whom to believe, and what to show.

        Raises:
            KeyFileError: a certificate cannot be used.
        """
        context, own = trusting(settings.certificate), settings.client_certificate
        if own is not None:
            try:
                context.load_cert_chain(own, settings.client_key, password="")
            except (OSError, ValueError):
                raise KeyFileError(f"{own}: cannot be shown to a receiver") from None
        return context

    def put(self, item: T) -> None:
        """Send an item, soon; or count it as dropped."""
        items, settings = self._items, self._settings
        if len(items) >= settings.max_queue:
            self._count("full", 1)
            return
        items.append(item)
        if len(items) >= settings.max_batch:
            self._full.set()

    def stop(self, timeout_s: float) -> None:
        """Send what waits, but no longer than this; the rest is counted as dropped."""
        self._deadline = time.monotonic() + timeout_s
        self._ending.set()
        self._full.set()
        self._thread.join(timeout_s + 0.5)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._full.wait(max(self._settings.delay_s, _LEAST_DELAY_S))
            if not self._ending.is_set():
                self._full.clear()
            self._drain()
        if left := len(self._items):
            self._count("unreachable", left)

    def _drain(self) -> None:
        items = self._items
        while items and time.monotonic() < self._deadline:
            most = min(len(items), self._settings.max_batch)
            self._send([items.popleft() for _ in range(most)])
            if len(items) < self._settings.max_batch and not self._ending.is_set():
                return  # the rest is gathered

    def _send(self, batch: Sequence[T]) -> None:
        """One batch, to its end."""
        try:
            content = self._encode(batch)
        except (TypeError, ValueError):  # a text that is no Unicode, for example
            self._count("refused", len(batch))
            return None
        if self._settings.gzip:
            content = gzip.compress(content, 6)
        until = time.monotonic() + self._settings.export_s
        backoff = _BACKOFF_S
        while True:
            # An attempt that begins at the end is the last one.
            last = self._ending.is_set()
            left = min(until, self._deadline) - time.monotonic()
            if left <= 0:
                return self._lost("unreachable", len(batch))
            try:
                answer = self._post(content, min(left, self._settings.timeout_s))
                return self._took(len(batch), rejected(answer))
            except StatusError as error:
                if error.status not in _RETRIED:
                    return self._lost("refused", len(batch), f"status {error.status}")
                wait = error.retry_after_s
                if wait is not None:  # zero is no leave to storm
                    wait = max(wait, _BACKOFF_S)
            except KeyFileError:
                wait = None
            if wait is None:
                wait = backoff * (0.5 + random.random())
                backoff = min(2 * backoff, _MAX_BACKOFF_S)
            if last or time.monotonic() + wait >= until:
                return self._lost("unreachable", len(batch))
            self._ending.wait(wait)

    def _post(self, content: bytes, timeout_s: float) -> bytes:
        fields = [(k.encode(), v.encode()) for k, v in self._settings.headers]
        if self._settings.gzip:
            fields.append((b"content-encoding", b"gzip"))
        return fetch(
            self._settings.url,
            context=self._context,
            max_bytes=_MAX_ANSWER_BYTES,
            timeout_s=timeout_s,
            form=content,
            content_type=_JSON,
            statuses=range(200, 300),
            fields=fields,
        )

    def _took(self, count: int, refused: int) -> None:
        refused = min(refused, count)
        if refused:
            self._count("refused", refused)
        self._count("sent", count - refused)
        if self._away:
            self._away = False
            _log.info("%s are exported again", self._name)

    def _lost(self, outcome: str, count: int, why: str = "no answer in time") -> None:
        self._count(outcome, count)
        if not self._away:
            self._away = True
            _log.warning("%s are not exported: %s; they are dropped", self._name, why)
