"""Many requests wait for one write: group commit.

The records of one turn of the event loop are one group. A thread forces it to disk;
until it is there the next group gathers. So a request costs little however slow the
disk is, and its answer waits for about one write. Where nothing is forced to disk, the
loop writes by itself: handing over would cost more than the write. It still gathers a
turn's records: with 16 requests at once, writing each by itself took a tenth more CPU
for the whole request, since each write pushes their common code out of the caches.

Checkpoints are committed by a second thread: they are forced to disk several times, and
no record waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from security.audit.log import AuditLog, Due
from security.audit.records import Scalar, encode
from security.errors import AuditError

__all__ = ["GroupLog"]

_log = logging.getLogger(__name__)

MAX_WAITING = 1 << 16
RETRY_S = 1.0

# Of the number of the record.
_Waiter = asyncio.Future[int]


@dataclass
class _Group:
    """Records that are written together, and who waits for them."""

    records: list[bytes] = field(default_factory=list)
    waiters: list[_Waiter] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None
    last: bool = False


class GroupLog:
    """Writes the records of many tasks of one event loop through one `AuditLog`."""

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
        self._held: list[bytes] = []
        self._lock = threading.Lock()
        self._next = _Group()
        self._busy = self._closed = False
        self._jobs: queue.SimpleQueue[_Group] = queue.SimpleQueue()
        self._due: queue.SimpleQueue[Due | None] = queue.SimpleQueue()
        self._signer: threading.Thread | None = None
        log.on_due = self._hand_over
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    async def append(self, fields: Mapping[str, Scalar]) -> int:
        """Write one record; returns when it is written, and on disk if it is forced.

        Args:
            fields: as `records.encode` takes them.

        Returns:
            Its number among this writer's records.

        Raises:
            AuditError: it could not be written: nothing may be answered.
        """
        record = encode(fields)
        if self._closed or len(self._next.records) >= MAX_WAITING:
            raise AuditError("the audit log takes no record now")
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        self._next.records.append(record)
        self._next.waiters.append(waiter)
        if not self._busy:
            self._busy = True
            # Behind the other tasks of this turn: theirs are in the same group.
            loop.call_soon(self._begin, loop)
        return await waiter

    @property
    def writes_at_once(self) -> bool:
        """Whether the event loop writes by itself, since nothing is forced to disk."""
        return not (self.log.limits.sync or self._closed)

    def write(self, records: list[bytes]) -> range:
        """Write the records of one turn of the event loop, where it `writes_at_once`.

        Args:
            records: from `records.encode`.

        Returns:
            Their numbers among this writer's records.

        Raises:
            AuditError: as `append`; none of them was written.
        """
        outcome = self._write_here(records)
        if isinstance(outcome, AuditError):
            raise outcome
        return outcome

    def close(self, last: Iterable[Mapping[str, Scalar]] = ()) -> None:
        """Write what waits and the last records, sign a checkpoint, and close."""
        self._closed = True
        group, self._next = self._next, _Group()
        group.records += map(encode, last)
        group.last = True
        self._jobs.put(group)
        self._thread.join()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        group, self._next = self._next, _Group()
        group.loop = loop
        if self.log.limits.sync:
            self._jobs.put(group)
            return
        self._end(group, self._write_here(group.records))

    def _write_here(self, records: list[bytes]) -> range | AuditError:
        signed = self.log.is_signed
        outcome = self._write(records)
        if self._held or (signed and not self.log.is_signed):
            self._jobs.put(_Group())  # the thread shall look when it is due
        return outcome

    def _end(self, group: _Group, outcome: range | AuditError) -> None:
        """Let the answers go; then, behind the tasks that go on, the next group."""
        if isinstance(outcome, AuditError):
            for waiter in group.waiters:
                if not waiter.done():
                    # Each its own: a raised error carries its traceback.
                    waiter.set_exception(AuditError(str(outcome)))
        else:
            for number, waiter in enumerate(group.waiters, outcome.start):
                if not waiter.done():
                    waiter.set_result(number)
        self._busy = bool(self._next.records)
        if self._busy and group.loop is not None:
            group.loop.call_soon(self._begin, group.loop)

    def _run(self) -> None:
        while True:
            try:
                group = self._jobs.get(timeout=self._pause_s())
            except queue.Empty:
                group = _Group()
            outcome: range | AuditError = range(0)
            if group.records or self._held:
                outcome = self._write(group.records)
            if group.loop is not None:
                self._report(group.loop, group, outcome)
            if group.last:
                if self._signer is not None:
                    self._due.put(None)
                    self._signer.join()
                self.log.close()
                return
            if self.log.checkpoint_in_s == 0:
                with self._lock:
                    due = self.log.prepare_checkpoint()
                    if due is not None:
                        self._hand_over(due)

    def _hand_over(self, due: Due) -> None:
        """To the second thread, which begins with the first one; under the lock."""
        if self._signer is None:
            self._signer = threading.Thread(
                target=self._commit, name="audit checkpoints", daemon=True
            )
            self._signer.start()
        self._due.put(due)

    def _commit(self) -> None:
        while (due := self._due.get()) is not None:
            self.log.commit_checkpoint(due)

    def _report(
        self,
        loop: asyncio.AbstractEventLoop,
        group: _Group,
        outcome: range | AuditError,
    ) -> None:
        try:
            loop.call_soon_threadsafe(self._end, group, outcome)
        except RuntimeError:  # the loop was closed: nobody waits
            self._busy = False

    def _pause_s(self) -> float:
        """Until something may be due; what is missed meanwhile is found then."""
        if self._held:
            return RETRY_S
        due_s, most_s = self.log.checkpoint_in_s, self.log.limits.checkpoint_interval_s
        return most_s if due_s is None else min(due_s, most_s)

    def _write(self, records: list[bytes]) -> range | AuditError:
        """The numbers that these records have, or why they are not written."""
        with self._lock:
            held = self._held
            try:
                written = self.log.write([*held, *records] if held else records)
            except AuditError as error:
                return self._hold(records, error)
            except Exception as error:  # noqa: BLE001  (a thread must answer)
                return AuditError(f"{type(error).__name__} while writing a record")
            self._held = []
            return written[len(held) :] if held else written

    def _hold(self, records: list[bytes], error: AuditError) -> range | AuditError:
        """Keep records that cannot be written, if that is allowed; else the error.

        They are written in this order before any other, so their numbers are known.
        """
        if len(self._held) + len(records) > self._max_held:
            return error
        if records:
            _log.warning("%d audit records are held in memory: %s", len(records), error)
        first = self.log.size + len(self._held)
        self._held += records
        return range(first, first + len(records))
