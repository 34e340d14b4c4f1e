"""Runs of one model: gathered from requests, bounded, and stopped at their deadlines.

Requests are validated before they come here. Those that are there at the same moment
may share a run, row under row, if the model is known to treat rows apart. Whatever goes
wrong with a shared run, each of its requests is run again by itself: nobody's request
fails for what another one holds.

A run that is known to be short happens on the event loop itself, since handing it to
a thread and back takes longer than the run. Should such a run take long after all, a
watchdog stops it, it is repeated in a thread, and the model's runs stay there.

All of a batcher's state is touched by the event loop only; threads just run the model.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from sealgate.protocol.tensors import Array
from security.errors import InferenceFailedError
from security.settings.runtime import ModelLimits
from service.inference.items import (
    Budget,
    InferenceTimeoutError,
    Inputs,
    Item,
    OverloadedError,
    classify,
    expired,
    resolve,
    split,
)
from service.inference.watchdog import Watchdog
from service.telemetry.casualties import Notes

__all__ = [
    "Batcher",
    "Budget",
    "InferenceFailedError",
    "InferenceTimeoutError",
    "Item",
    "Observe",
    "OverloadedError",
]

Run = Callable[[Inputs, Sequence[str], ort.RunOptions], list[Array]]
# Told of each run: its requests and rows, the seconds that the first of them waited,
# and the seconds that it took.
Observe = Callable[[int, int, float, float], None]

# Sharing a short run gains less than it costs to copy so many bytes of inputs together.
_COPIED_BYTES = 256 << 10


@dataclass(eq=False)
class _Work:
    """A run that is under way in a thread."""

    items: list[Item]
    options: ort.RunOptions
    slots: list[int]
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Gathers and runs the requests of one model."""

    def __init__(
        self,
        run: Run,
        limits: ModelLimits,
        *,
        executor: Executor,
        slots: int,
        timeout_s: float,
        budget: Budget,
        watchdog: Watchdog,
        notes: Notes,
        rows_apart: bool = False,
        inline_rows: int = 0,
        at_once_rows: int = 0,
        in_work: Sequence[float] | memoryview[float] = (0.0,),
        observe: Observe,
        tidy_up: Callable[[], None],
    ) -> None:
        """Wire a batcher.

        Args:
            run: the model; in a thread, and on the event loop for short runs.
            limits: how many may wait, and share a run.
            executor: threads for the runs that are not short.
            slots: of them at the same time.
            timeout_s: from a request's arrival until its run is stopped.
            budget: counts the bytes that wait.
            watchdog: of the runs on the event loop.
            notes: of the runs that are under way.
            rows_apart: the model gives the same for rows together as for each alone.
            inline_rows: runs of up to so many rows are short; 0: none is.
            at_once_rows: and of up to so many shorter than gathering would be.
            in_work: how many requests this worker works on at this moment, the first
                number of it. With others there, gathering is shorter after all.
            observe: told of each run.
            tidy_up: called in a thread after a run there was stopped.
        """
        self._run = run
        self._limits = limits
        self._executor = executor
        self._slots = slots
        self.timeout_s = timeout_s
        self._budget = budget
        self._watchdog = watchdog
        self._notes = notes
        self._observe = observe
        self._tidy_up = tidy_up
        self._tidying: asyncio.Future[None] | None = None
        self._delay_s = limits.max_batch_delay_ms / 1000
        self.rows_apart = rows_apart and limits.max_batch_rows > 1
        self.inline_rows = inline_rows
        self._at_once_rows = at_once_rows
        self._in_work = in_work
        self._options = ort.RunOptions()
        self._queue: deque[Item] = deque()
        self._running: list[_Work] = []
        self._drain_at: asyncio.Handle | None = None
        self._expiry: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.waiting = 0

    async def infer(
        self, inputs: Inputs, outputs: Sequence[str], note: bytes = b""
    ) -> list[Array]:
        """The outputs of one request, in the order asked for.

        Cancelling takes the request out of the queue, and stops its run if nobody else
        waits for it. The note (`Notes.text`) is kept while it runs.

        Raises:
            OverloadedError: too many wait.
            InferenceTimeoutError: not done at the deadline.
            InferenceFailedError: the model failed on this very input.
        """
        if self._is_at_once(inputs):
            results = self._run_at_once(inputs, outputs, note)
            if results is not None:
                return results
        return await self.wait(self.submit(inputs, outputs, note))

    def submit(self, inputs: Inputs, outputs: Sequence[str], note: bytes) -> Item:
        """Let a request wait for its run; whoever does says when it `leave`s.

        Raises:
            OverloadedError: as `infer`.
        """
        if self.waiting >= self._limits.max_waiting:
            raise OverloadedError("too many requests wait")
        size = 0
        for array in inputs.values():
            size += array.nbytes
        self._budget.take(size)
        self.waiting += 1
        item = self._enqueue(inputs, outputs, note)
        item.size = size
        return item

    def leave(self, item: Item) -> None:
        """Nobody waits for this one any more."""
        self.waiting -= 1
        self._budget.give(item.size)

    async def wait(self, item: Item) -> list[Array]:
        """What came of a request that was submitted, as `infer`; it leaves."""
        try:
            return await item.future
        except asyncio.CancelledError:
            self._abandon(item)
            raise
        finally:
            self.leave(item)

    def run_queued(self) -> None:
        """Run now what waits for the end of this turn."""
        if self._drain_at is not None and not self._delay_s:
            self._drain_at.cancel()
            self._drain()

    def _is_at_once(self, inputs: Inputs) -> bool:
        """Whether a run is so short that waiting for others would take longer."""
        most = min(self._at_once_rows, self.inline_rows)
        if not most or self.waiting or (self.rows_apart and self._in_work[0] > 1):
            return False
        for array in inputs.values():
            if not array.ndim or len(array) > most:
                return False
        return True

    def _run_at_once(
        self, inputs: Inputs, outputs: Sequence[str], note: bytes
    ) -> list[Array] | None:
        """Run now; None if the run was stopped, since it was not short at all.

        Raises:
            InferenceFailedError: as `infer`.
        """
        options = self._options
        began = time.perf_counter()
        slots = self._notes.begin([note])
        self._watchdog.begin(options)
        try:
            results = self._run(inputs, outputs, options)
        except InferenceFailedError:
            if not options.terminate:
                raise
            self._options = ort.RunOptions()
            self.inline_rows = 0
            return None
        finally:
            self._watchdog.end()
            self._notes.end(slots)
        if options.terminate:  # it came too late
            self._options = ort.RunOptions()
        rows = len(next(iter(inputs.values())))
        self._observe(1, rows, 0.0, time.perf_counter() - began)
        return results

    def _enqueue(self, inputs: Inputs, outputs: Sequence[str], note: bytes) -> Item:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what an earlier loop left behind is nobody's
            self._loop, self._drain_at, self._expiry = loop, None, None
            self._queue.clear()
            self._running.clear()
        deadline = loop.time() + self.timeout_s
        item = Item(inputs, outputs, loop.create_future(), deadline=deadline, note=note)
        classify(item, rows_apart=self.rows_apart)
        self._queue.append(item)
        if self._drain_at is None:
            self._drain_at = (
                loop.call_later(self._delay_s, self._drain)
                if self._delay_s and item.key is not None
                else loop.call_soon(self._drain)
            )
        elif self._delay_s and self._is_full():
            self._drain_at.cancel()
            self._drain_at = loop.call_soon(self._drain)
        return item

    def _is_full(self) -> bool:
        return sum(item.rows for item in self._queue) >= self._limits.max_batch_rows

    def _drain(self) -> None:
        self._drain_at = None
        while self._queue and len(self._running) < self._slots:
            items = self._take()
            if not items:
                continue
            rows = sum(item.rows for item in items)
            if rows <= self.inline_rows:
                self._run_inline(items, rows)
            else:
                self._start(items, rows)
        if self._queue:
            self._expire_waiting()

    def _take(self) -> list[Item]:
        """The next requests that may share a run; gone and late ones are dropped."""
        items: list[Item] = []
        rows = size = 0
        now = self._now()
        while self._queue:
            item = self._queue[0]
            if item.future.done() or expired(item, now):
                self._queue.popleft()
                continue
            if items and (item.key is None or item.key != items[0].key):
                break
            if items and rows + item.rows > self._limits.max_batch_rows:
                break
            if items and size > _COPIED_BYTES and rows <= self.inline_rows:
                break
            items.append(self._queue.popleft())
            rows, size = rows + item.rows, size + item.size
            if item.key is None:
                break
        return items

    def _run_inline(self, items: list[Item], rows: int) -> None:
        options = self._options
        began = time.perf_counter()
        slots = self._notes.begin([item.note for item in items])
        self._watchdog.begin(options)
        try:
            results = self._run_items(items, options)
        except Exception as error:  # noqa: BLE001  (whatever it is, they are told)
            self._watchdog.end()
            self._notes.end(slots)
            if options.terminate:
                self._options = ort.RunOptions()
                self.inline_rows = 0
                self._start(items, rows)
            else:
                self._failed(items, error)
            return
        self._watchdog.end()
        self._notes.end(slots)
        if options.terminate:  # it came too late
            self._options = ort.RunOptions()
        resolve(items, results)
        self._tell(items, rows, began)

    def _start(self, items: list[Item], rows: int) -> None:
        """Run in a thread."""
        loop = self._loop
        if loop is None:
            return
        slots = self._notes.begin([item.note for item in items])
        work = _Work(items, ort.RunOptions(), slots)
        self._running.append(work)
        work.timer = loop.call_later(self._allowed_s(items), _terminate, work.options)
        began = time.perf_counter()
        future = loop.run_in_executor(
            self._executor, self._run_items, items, work.options
        )

        def finish(done: asyncio.Future[list[list[Array]]]) -> None:
            self._tell(items, rows, began)
            self._finish(work, done)

        future.add_done_callback(finish)

    def _allowed_s(self, items: list[Item]) -> float:
        left = min(item.deadline for item in items) - self._now()
        if len(items) > 1:
            # If it is stopped, what remains is for each of them alone.
            left /= 2
        budget_s = items[0].budget_s
        return max(0.0, left if budget_s is None else min(left, budget_s))

    def _tell(self, items: list[Item], rows: int, began: float) -> None:
        waited = began - items[0].came
        self._observe(len(items), rows, waited, time.perf_counter() - began)

    def _finish(self, work: _Work, done: asyncio.Future[list[list[Array]]]) -> None:
        if work.timer is not None:
            work.timer.cancel()
        if work in self._running:
            self._running.remove(work)
        self._notes.end(work.slots)
        try:
            results = done.result()
        except Exception as error:  # noqa: BLE001  (whatever it is, they are told)
            stopped = work.options.terminate
            if stopped:
                self._begin_to_tidy()
            late = InferenceTimeoutError("stopped at the deadline")
            self._failed(work.items, late if stopped else error)
        except asyncio.CancelledError:
            for item in work.items:
                item.future.cancel()
        else:
            resolve(work.items, results)
        if self._queue and self._drain_at is None:
            self._drain()

    def _begin_to_tidy(self) -> None:
        under_way = self._tidying is not None and not self._tidying.done()
        if self._loop is not None and not under_way:
            self._tidying = self._loop.run_in_executor(self._executor, self._tidy_up)

    def _run_items(
        self, items: list[Item], options: ort.RunOptions
    ) -> list[list[Array]]:
        """Run, and take the result apart; of one request or of several."""
        first = items[0]
        if len(items) == 1:
            return [self._run(first.inputs, first.outputs, options)]
        inputs = {
            name: np.concatenate([item.inputs[name] for item in items])
            for name in first.inputs
        }
        # In the order of their first mention.
        names = list(dict.fromkeys(name for item in items for name in item.outputs))
        arrays = dict(zip(names, self._run(inputs, names, options)))
        rows = sum(item.rows for item in items)
        if any(array.ndim == 0 or len(array) != rows for array in arrays.values()):
            self.rows_apart = False  # it was not so after all
            raise InferenceFailedError("not a row of output per row of input")
        return split(items, arrays)

    def _failed(self, items: list[Item], error: Exception) -> None:
        """Fail one request; run several again, each by itself."""
        if len(items) == 1:
            if not items[0].future.done():
                items[0].future.set_exception(error)
            return
        left = min(item.deadline for item in items) - self._now()
        for item in reversed(items):
            item.key = None
            item.budget_s = left / len(items)
            self._queue.appendleft(item)
        if self._loop is not None and self._drain_at is None:
            self._drain_at = self._loop.call_soon(self._drain)

    def _expire_waiting(self) -> None:
        """See to it that nobody waits behind a long run beyond the own deadline."""
        loop = self._loop
        if loop is not None and self._expiry is None:
            next_deadline = min(item.deadline for item in self._queue)
            self._expiry = loop.call_at(next_deadline + 0.001, self._drop_expired)

    def _drop_expired(self) -> None:
        self._expiry = None
        now = self._now()
        kept = [item for item in self._queue if not expired(item, now)]
        self._queue = deque(kept)
        if self._queue:
            self._expire_waiting()

    def _abandon(self, item: Item) -> None:
        """Nobody waits for it any more."""
        if item in self._queue:
            self._queue.remove(item)
        for work in self._running:
            if all(item.future.cancelled() for item in work.items):
                work.options.terminate = True

    def _now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()


def _terminate(options: ort.RunOptions) -> None:
    options.terminate = True
