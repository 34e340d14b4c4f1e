"""The parent process and its workers: who ends with whom, and what a dead one leaves.

BentoML's parent starts a worker again that is gone, when it looks the next time, ten
seconds later at most, and in a container not at all. Nothing is said of why it went.
Here a thread of the parent waits for that: it reads the notes of what the dead worker
ran (`service.telemetry.casualties`), writes a line to the log and records to the audit
log, and has the parent look at once. Meanwhile the other workers answer, since all of
them take connections from one listening socket.

No other account commands the parent: circus, by which BentoML starts workers, takes
orders from whoever reaches its socket, and BentoML gives it ports for that.

The other way round a worker ends with its parent, however that ended, and neither of
them leaves a core dump, which would hold keys and payloads.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sealgate.errors import SealgateError
from security.audit.journal import record_operation
from security.settings.audit import AuditSettings
from service.telemetry.casualties import Casualties, Casualty, Note, read_notes

__all__ = [
    "command_alone",
    "end_with_parent",
    "leave_no_core",
    "name_parent",
    "watch_workers",
]

_PARENT = "_SEALGATE_PARENT"
# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
# The two sockets of circus, and the bytes that the kernel has for a path.
_ORDERS_AT, _EVENTS_AT = "control", "events"
_MAX_SOCKET_PATH = 107
# How these are stopped in an orderly way: uvicorn ends by the signal that it was sent.
_ORDERS = frozenset({signal.SIGTERM, signal.SIGINT})
_LOOK_S = 0.1
# A worker that dies sooner after another one waits for BentoML's own look.
_PAUSE_S = 3.0

_log = logging.getLogger(__name__)


def name_parent() -> None:
    """Tell workers, in the parent process, whose they are."""
    os.environ[_PARENT] = str(os.getpid())


def end_with_parent(bound_s: float) -> None:
    """Let this worker end when its parent has, even if that was killed.

    It is stopped in an orderly way, and killed if that takes too long.

    Args:
        bound_s: from the order to the end.
    """
    parent = int(os.environ.get(_PARENT, "0"))
    if not parent:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        # Also if the parent was gone before this process could say what it wants then.
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(bound_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def leave_no_core(*, hidden: bool) -> None:
    """Leave no core dump of this process and of those that it starts.

    A limit of zero does not keep the kernel from handing a core to a program
    (core(5), "|" in core_pattern); a process that is not dumpable is not handed over.

    Args:
        hidden: be not dumpable, so that other processes of the same user cannot read
            this one's memory either. A debugger or a profiler cannot, then.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hidden:
        _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def command_alone(folder: Path) -> None:
    """Have the parent take orders from no other user, and listen on no port for them.

    They come by Unix domain sockets then (zmq_ipc(7)): BentoML's `--reload` gives some.

    Args:
        folder: that only this user enters.
    """
    # Imported late: only the parent process has it.
    from circus.arbiter import Arbiter  # noqa: PLC0415

    make: Callable[..., None] = Arbiter.__init__

    place = _short(folder)

    def make_closed(arbiter: Any, watchers: Any, **options: Any) -> None:
        options["endpoint"] = f"ipc://{place}/{_ORDERS_AT}"
        options["pubsub_endpoint"] = f"ipc://{place}/{_EVENTS_AT}"
        make(arbiter, watchers, **options)

    # BentoML has no option for it.
    Arbiter.__init__ = make_closed


def _short(folder: Path) -> Path:
    """A folder by a name that leaves room for those of its sockets.

    A socket's path has 107 bytes (unix(7)), and TMPDIR may be longer. The folder's
    descriptor, which stays open with this process, is another name of it.
    """
    if len(os.fsencode(folder / _ORDERS_AT)) <= _MAX_SOCKET_PATH:
        return folder
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def watch_workers(audit: AuditSettings, folder: Path) -> None:
    """From the parent's start on, tell of workers that end by a signal.

    Args:
        audit: whose log gets the records.
        folder: of the notes.
    """
    # Imported late: only the parent process has it.
    from circus.controller import Controller  # noqa: PLC0415

    start: Callable[[Any], None] = Controller.start

    def start_watched(controller: Any) -> None:
        start(controller)
        watch = _Watch(controller.arbiter, controller.loop, audit, folder)
        threading.Thread(target=watch.run, name="workers", daemon=True).start()

    # Circus has hooks for this, and BentoML no way to set them.
    Controller.start = start_watched


class _Watch:
    def __init__(
        self, arbiter: Any, loop: Any, audit: AuditSettings, folder: Path
    ) -> None:
        self._arbiter, self._loop = arbiter, loop
        self._audit = audit
        self._folder = folder
        self._casualties = Casualties(folder)
        self._last = float("-inf")

    def run(self) -> None:
        """Wait for children that end, without taking their status from the parent."""
        told = 0
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                info = None
            if info is not None and info.si_pid != told:
                told = info.si_pid
                if info.si_code != os.CLD_EXITED and info.si_status not in _ORDERS:
                    self._take(told, signal.Signals(info.si_status).name)
            # It is there again at once until the parent has taken it.
            time.sleep(_LOOK_S)

    def _take(self, pid: int, name: str) -> None:
        watchers = list(self._arbiter.iter_watchers())
        if not any(watcher.is_active() for watcher in watchers):
            return  # the server is being stopped, and this one did not in time
        notes = read_notes(self._folder, pid)
        self._tell(Casualty(time.time(), pid, name, notes))
        now = time.monotonic()
        if now - self._last > _PAUSE_S:
            self._loop.add_callback(self._restart)
        self._last = now

    def _restart(self) -> None:
        from circus.exc import ConflictError  # noqa: PLC0415  (as in `watch_workers`)

        for watcher in self._arbiter.iter_watchers():
            watcher.respawn = True
        # If the parent does something else just now, it looks later.
        with contextlib.suppress(ConflictError):
            self._arbiter.manage_watchers()

    def _tell(self, casualty: Casualty) -> None:
        ran = "; ".join(map(_describe, casualty.notes)) or "nothing"
        _log.error(
            "worker %d ended by %s while it ran %s",
            casualty.pid, casualty.signal, ran,
        )  # fmt: skip
        try:
            self._casualties.add(casualty)
            record_operation(
                self._audit,
                [
                    {
                        "client": "server",
                        "action": "worker-ended",
                        "request_id": note.request or None,
                        "subject": note.subject or None,
                        "model": note.model.partition(":")[0] or None,
                        "outcome": "refuse",
                        "reason": casualty.signal,
                    }
                    for note in casualty.notes or (Note("", "", ""),)
                ],
            )
        except (SealgateError, OSError) as error:
            _log.error("the end of worker %d is not recorded: %s", casualty.pid, error)


def _describe(note: Note) -> str:
    if not note.request:
        return f"{note.model} for the first time"
    return f"request {note.request} of {note.subject} on {note.model}"
