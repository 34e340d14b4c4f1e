"""Workers that are forked from BentoML's parent, which has imported all that they need.

BentoML's parent starts each worker as a new interpreter: it imports everything again,
and shares no page of it with the others. Here the child that the parent forks for it
goes on in this very process image, as the worker that it would have started.

What makes that safe:

1. No model is loaded in the parent, ever: `apart` tries each in a child of its own. So
   onnxruntime has no session and no thread there.
2. What the parent opened to check it is closed again. Of its descriptors a worker keeps
   the standard ones and the listening socket; each other one becomes /dev/null, at its
   own number, so that what is closed late of the parent's closes nothing else.
3. Handlers of signals, the wakeup descriptor, the environment and the collector of
   garbage are set as a new interpreter would have them: `subprocess` stops the
   collector before it forks, and lets SIGPIPE end a child. Python seeds `random` again,
   and OpenSSL its generator; keys and nonces come from the system.
4. Of the parent's threads none is there, and none of them holds a lock that a worker
   takes: the one that waits for children forks by the parent's own loop.

Settings, policy, trust root, keys and bundles are read by the worker itself, as before.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from sealgate.errors import SealgateError
from security.deferring import deferring
from security.errors import AdmissionRefused

__all__ = ["apart", "fork_workers"]

_WORKER = "_bentoml_impl.worker.service"
# What a worker imports beside what its parent has: once here is once for all of them.
_SHARED = (
    _WORKER,
    "_bentoml_impl.server.app",
    "uvicorn.lifespan.on",
    "uvloop",
)
# What Python ignores from its start: a client that is gone is an error of a write.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
_MAX_TEXT = 4096


def apart(task: Callable[[], None]) -> None:
    """Do something in a process of its own that ends with it.

    Args:
        task: what it does stays there; a SealgateError that it raises comes here.

    Raises:
        SealgateError: its text is that of the one that was raised.
        AdmissionRefused: the process ended by a signal.
    """
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _end(lambda: _told(task, theirs))
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        text = pipe.read().decode(errors="ignore")  # its end may be cut
    _, status = os.waitpid(pid, 0)
    if text:
        raise SealgateError(text)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise AdmissionRefused(17, f"{name} ended the process that loaded the models")
    if status:
        raise AdmissionRefused(17, "the process that loaded the models failed")


def _told(task: Callable[[], None], pipe: int) -> None:
    try:
        task()
    except SealgateError as error:
        os.write(pipe, str(error).encode()[:_MAX_TEXT])


def fork_workers() -> None:
    """From now on, have BentoML's parent fork its workers; called there."""
    from circus import process  # noqa: PLC0415  (only the parent process has it)

    with deferring():
        for name in _SHARED:
            importlib.import_module(name)
    popen = process.Popen

    def fork(args: Sequence[str], **options: Any) -> Any:
        if list(args[1:3]) == ["-m", _WORKER]:
            prepare, environment = options["preexec_fn"], options["env"]
            # It runs in the child, which so never comes to execute anything.
            options["preexec_fn"] = lambda: _become(args[3:], prepare, environment)
        return popen(args, **options)

    process.Popen = fork
    # What is not collected any more is not written to, and stays one page for all.
    gc.collect()
    gc.freeze()


def _become(
    arguments: Sequence[str],
    prepare: Callable[[], None],
    environment: Mapping[str, str],
) -> NoReturn:
    """Be the worker that BentoML would start with these arguments."""
    prepare()
    _forget_signals()
    gc.enable()
    _forget_descriptors(keep=int(arguments[arguments.index("--fd") + 1]))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [_WORKER, *arguments]
    worker = importlib.import_module(_WORKER)
    _end(lambda: worker.main(args=list(arguments)))


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            ours = number == signal.SIGINT
            signal.signal(
                number, signal.default_int_handler if ours else signal.SIG_DFL
            )
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)


def _forget_descriptors(*, keep: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        number = int(name)
        if number > 2 and number not in {keep, nothing}:
            # One of them was of the listing itself, and is closed by now.
            os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _end(run: Callable[[], None]) -> NoReturn:
    """Run, and end this process without what its parent does at its end."""
    code = 1
    try:
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:  # noqa: BLE001  (as the interpreter would tell it)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
