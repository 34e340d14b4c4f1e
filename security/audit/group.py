"""Many requests wait for one write: group commit.

A thread writes; while it waits for the disk, the next group gathers. So a request costs
little however slow the disk is, and its answer waits for about one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping

from security.audit.log import AuditLog
from security.audit.records import Scalar, encode
from security.errors import AuditError

__all__ = ["GroupLog"]

_log = logging.getLogger(__name__)

MAX_WAITING = 1 << 16
RETRY_S = 1.0

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class GroupLog:
    """Writes the records of many tasks through one `AuditLog`, in groups."""

    def __init__(self, log: AuditLog, *, max_held: int = 0) -> None:
        """Start the writer's thread.

        Args:
            log: used by nobody else from now on.
            max_held: how many records may be kept in memory, as if they were written,
                while they cannot be; 0 refuses at once. What is held is lost if the
                process ends before there is room again.
        """
        self.log = log
        self._max_held = max_held
        self._wake = threading.Condition()
        self._records: list[bytes] = []
        self._waiters: list[_Waiter] = []
        self._held: list[bytes] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    async def append(self, fields: Mapping[str, Scalar]) -> None:
        """Write one record; returns when it is on disk.

        Args:
            fields: as `records.encode` takes them.

        Raises:
            AuditError: it could not be written: nothing may be answered.
        """
        record = encode(fields)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._closing or len(self._records) >= MAX_WAITING:
                raise AuditError("the audit log takes no record now")
            self._records.append(record)
            self._waiters.append((loop, waiter))
            if len(self._records) == 1:
                # Not now: what the rest of this turn of the loop appends comes along.
                loop.call_soon(self._begin)
        await waiter

    def _begin(self) -> None:
        with self._wake:
            self._wake.notify()

    def close(self, last: Iterable[Mapping[str, Scalar]] = ()) -> None:
        """Write what waits and the last records, sign a checkpoint, and close."""
        with self._wake:
            self._records += map(encode, last)
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._records and not self._closing:
                    self._wake.wait(self._pause_s())
                records, self._records = self._records, []
                waiters, self._waiters = self._waiters, []
                closing = self._closing
            if records or self._held:
                self._commit(records, waiters)
            if closing:
                self.log.close()
                return
            if self.log.checkpoint_in_s == 0:
                self.log.sign_checkpoint()

    def _pause_s(self) -> float | None:
        return RETRY_S if self._held else self.log.checkpoint_in_s

    def _commit(self, records: list[bytes], waiters: list[_Waiter]) -> None:
        failure: AuditError | None = None
        try:
            self.log.write([*self._held, *records])
            self._held = []
        except AuditError as error:
            failure = self._hold(records, error)
        except Exception as error:  # noqa: BLE001  (a thread that ends answers nobody)
            failure = AuditError(f"{type(error).__name__} while writing a record")
        for loop in {loop for loop, _ in waiters}:
            theirs = [waiter for its, waiter in waiters if its is loop]
            # A loop that was closed meanwhile has nobody waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, theirs, failure)

    def _hold(self, records: list[bytes], error: AuditError) -> AuditError | None:
        """Keep records that cannot be written, if that is allowed; else the error."""
        if len(self._held) + len(records) > self._max_held:
            return error
        if records:
            _log.warning("%d audit records are held in memory: %s", len(records), error)
        self._held += records
        return None


def _settle(waiters: list[asyncio.Future[None]], failure: AuditError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            # Each its own: a raised error carries its traceback.
            waiter.set_exception(AuditError(str(failure)))
