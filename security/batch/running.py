"""Parts, done: in this process, in several, or on a Ray cluster.

Whoever does them, this process books each before it is begun, and gets what it gave.
Where a part fails or may not be begun, those that were begun are still handed out; then
the error of the first of them is raised.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from sealgate.errors import SealgateError
from security.batch.plan import Part
from security.batch.work import Done, Task, Worker
from security.errors import BatchError

__all__ = ["Where", "run_parts"]

# Parts that are begun ahead on a cluster, for each of its processors.
_AHEAD = 16
_DIED = "a process of the job died; --resume goes on with it"

Book = Callable[[Part], None]


@dataclass(frozen=True)
class Where:
    """Who does the parts.

    Attributes:
        processes: here.
        ray: address of a Ray cluster instead; "auto" finds one, "local" starts one.
    """

    processes: int = 1
    ray: str | None = None


def run_parts(
    task: Task, parts: Sequence[Part], where: Where, book: Book
) -> Iterator[Done]:
    """Do parts, in some order.

    Args:
        task: of the job.
        parts: those that are not done.
        where: who does them.
        book: called before a part is begun; raises if it may not be.

    Raises:
        SealgateError: a part failed, or may not be begun.
        BatchError: as `Worker.do`, or a process died, or there is no cluster.
    """
    if where.ray is not None:
        return _on_ray(task, parts, book, where.ray)
    jobs = min(where.processes, len(parts))
    if jobs < 2:
        return _here(task, parts, book)
    return _in_processes(task, parts, book, jobs)


def _here(task: Task, parts: Sequence[Part], book: Book) -> Iterator[Done]:
    worker = Worker(task) if parts else None
    for part in parts:
        book(part)
        if worker is not None:
            yield worker.do(part)


class _Failures:
    """What went wrong, of which the first part's counts."""

    def __init__(self) -> None:
        self._found: list[tuple[int, SealgateError]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, part: int, error: SealgateError) -> None:
        self._found.append((part, error))

    def book(self, part: Part, book: Book) -> bool:
        """Whether a part may be begun."""
        try:
            book(part)
        except SealgateError as error:
            self.add(part.number, error)
        return not self

    def check(self) -> None:
        if self:
            raise min(self._found, key=lambda item: item[0])[1]


def _in_processes(
    task: Task, parts: Sequence[Part], book: Book, jobs: int
) -> Iterator[Done]:
    Worker(task)  # what is refused, is refused here
    # A fork server starts clean, imports the libraries once, and copies itself.
    method = multiprocessing.get_context("forkserver")
    method.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(
        jobs, mp_context=method, initializer=_start, initargs=(task,)
    )
    failures, waiting = _Failures(), list(reversed(parts))
    running: dict[Future[Done], Part] = {}
    try:
        while running or (waiting and not failures):
            # No more than keep everyone busy: what is begun is booked.
            while waiting and not failures and len(running) < jobs + 1:
                part = waiting.pop()
                if failures.book(part, book):
                    running[pool.submit(_work, part)] = part
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                part = running.pop(future)
                try:
                    found = future.result()
                except SealgateError as error:
                    failures.add(part.number, error)
                else:
                    yield found
        failures.check()
    except BrokenProcessPool:
        raise BatchError(_DIED) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_HERE: dict[str, Worker] = {}


def _start(task: Task) -> None:
    """Prepare a process that ends with the one that started it, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _HERE[""] = Worker(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(part: Part) -> Done:
    return _HERE[""].do(part)


def _on_ray(
    task: Task, parts: Sequence[Part], book: Book, address: str
) -> Iterator[Done]:
    try:
        import ray  # type: ignore[import-not-found]  # noqa: PLC0415  (optional)
        import ray.data  # type: ignore[import-not-found]  # noqa: PLC0415  (optional)
    except ImportError:
        raise BatchError("--ray needs the package 'ray', as ray[data]") from None
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, **own)
    except Exception as error:  # noqa: BLE001  (what it raises shares no other base)
        raise _of_ray(error) from None
    try:
        yield from _windows(ray, task, parts, book)
    except ray.exceptions.RayError as error:
        raise _of_ray(error) from None
    finally:
        ray.shutdown()


def _of_ray(error: Exception) -> BatchError:
    line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return BatchError(f"Ray: {line[0][:200]}")


def _windows(ray: Any, task: Task, parts: Sequence[Part], book: Book) -> Iterator[Done]:
    """Some parts after others, so that no more is booked than is soon done."""
    Worker(task)  # what is refused, is refused here
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    shared = ray.put((task, {part.number: part for part in parts}))
    most = _AHEAD * int(ray.cluster_resources().get("CPU", 1))
    failures = _Failures()
    for start in range(0, len(parts), most):
        window = []
        for part in parts[start : start + most]:
            if not failures.book(part, book):
                break
            window.append({"number": part.number})
        if window:
            rows = ray.data.from_items(window, override_num_blocks=len(window))
            for row in rows.map(partial(_ray_work, shared)).iter_rows():
                found = orjson.loads(row["done"])
                if "error" in found:
                    failures.add(found["number"], BatchError(found["error"]))
                else:
                    columns = tuple(found.pop("columns"))
                    yield Done(**found, columns=columns)
        failures.check()


def _ray_work(shared: Any, item: dict[str, Any]) -> dict[str, Any]:
    """A part, in whatever process of the cluster: what it gave, as one text."""
    import ray  # noqa: PLC0415  (optional)

    task, parts = ray.get(shared)
    if task.name not in _HERE:
        _HERE.clear()
        _HERE[task.name] = Worker(task)
    number = int(item["number"])
    try:
        found: dict[str, Any] = {**vars(_HERE[task.name].do(parts[number]))}
    except SealgateError as error:
        found = {"number": number, "error": str(error)}
    return {"done": orjson.dumps(found).decode()}
