"""Between the trainer and the ledger: books steps before they are taken, keeps them.

Steps are booked in chunks, each before its first step, and a checkpoint ends each
chunk. A process that is killed loses at most the chunk it was in: those steps are
spent, and a resume takes that many fewer, so that all steps together are never more
than planned.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from security.errors import TrainingError
from security.training.checkpoint import Checkpoint, read_checkpoints, write_checkpoint
from security.training.ledger import Ledger, Request, Reservation
from security.training.loop import Monitor, State, StepReport

__all__ = ["Identity", "Keeper", "Taken", "begin", "resume", "work_folder"]

# Writing checkpoints may take this share of the time, if a chunk stays short enough.
_OVERHEAD = 0.05
_CHUNKS = 50  # at least so many in a training

Show = Callable[[StepReport], None]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree in with the training that takes it up.

    Attributes:
        config_sha256: of the configuration.
        data_sha256: of the data.
        bound_sha256: of what training began with and does not change.
        unbound: whether a checkpoint that does not state it will do: where every first
            weight is known without it.
    """

    config_sha256: str
    data_sha256: str
    bound_sha256: str
    unbound: bool = False

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            TrainingError: says what differs.
        """
        if checkpoint.config_sha256 != self.config_sha256:
            raise TrainingError("the interrupted training had another configuration")
        if checkpoint.data_sha256 != self.data_sha256:
            raise TrainingError("the interrupted training had other data")
        if not checkpoint.bound_sha256 and not self.unbound:
            raise TrainingError(
                "an earlier version began this training and did not keep which weights "
                "it began with: finish it with that version"
            )
        if checkpoint.bound_sha256 not in ("", self.bound_sha256):
            raise TrainingError(
                "the interrupted training began with other weights, or the network has "
                "other buffers or frozen weights now"
            )


@dataclass(frozen=True)
class Taken:
    """Where a training goes on.

    Attributes:
        reservation: of its budget; None for public data.
        start: None for a fresh one.
        steps: still to do.
    """

    reservation: Reservation | None
    start: State | None
    steps: int


def work_folder(out: Path) -> Path:
    """Where the checkpoints of the bundle-to-be are."""
    return out.with_name(f".{out.name}.training")


def begin(
    out: Path, ledger: Ledger | None, request: Request | None, *, steps: int
) -> Taken:
    """Start a fresh training.

    Raises:
        TrainingError: an interrupted one is there.
        LedgerError: the budget does not allow it.
    """
    folder = work_folder(out)
    if folder.exists():
        raise TrainingError(
            f"{folder} holds an interrupted training: go on with --resume, or "
            "remove it (what it spent stays spent)"
        )
    reservation = None
    if ledger is not None and request is not None:
        reservation = ledger.reserve(request)
    folder.mkdir(mode=0o700, parents=True)
    return Taken(reservation, None, steps)


def resume(
    out: Path, ledger: Ledger | None, identity: Identity, *, steps: int
) -> Taken:
    """Take up an interrupted training where it stands.

    Raises:
        TrainingError: nothing to take up, or of another configuration or data.
        LedgerError: it went on from there already, or the budget is gone.
    """
    folder = work_folder(out)
    found = read_checkpoints(folder) if folder.is_dir() else {}
    if not found:
        raise TrainingError(f"{folder} holds no checkpoint to resume from")
    for checkpoint in found.values():
        identity.check(checkpoint)
    newest = max(found.values(), key=lambda item: item.state.step)
    if ledger is None:
        return Taken(None, newest.state, steps - newest.state.step)
    return _resume_booked(folder, ledger, found, newest)


def _resume_booked(
    folder: Path, ledger: Ledger, found: dict[str, Checkpoint], newest: Checkpoint
) -> Taken:
    known = ledger.token(newest.training)
    checkpoint = found.get(known, newest)
    # Written before the ledger is told, so that a crash in between loses nothing.
    _, successor = write_checkpoint(folder, checkpoint)
    reservation = ledger.resume(
        checkpoint.training, token=checkpoint.digest, successor=successor
    )
    _drop_others(folder, successor)
    return Taken(reservation, checkpoint.state, reservation.planned - reservation.spent)


class Keeper(Monitor):
    """A monitor that books, keeps, shows, and stops when it is asked to."""

    def __init__(
        self,
        folder: Path,
        taken: Taken,
        identity: Identity,
        *,
        show: Show,
        stop: threading.Event,
        chunk: int = 0,
    ) -> None:
        """Take over a training that has begun.

        Args:
            folder: of its checkpoints.
            taken: where it goes on.
            identity: what a resume must agree in.
            show: told at the end of each chunk.
            stop: set by whoever wants it to end after the step it is in.
            chunk: steps between checkpoints; 0 for as many as makes them cheap.
        """
        self._folder, self._identity = folder, identity
        self._show, self._stop = show, stop
        self._reservation = taken.reservation
        done = 0 if taken.start is None else taken.start.step
        spent = done if taken.reservation is None else taken.reservation.spent
        self._lost = spent - done
        self._end = done + taken.steps
        self._granted = done
        self._fixed, self._chunk = chunk, chunk or 1
        self._began = time.monotonic()

    def before(self, step: int) -> None:
        """Book the chunk that the step begins; see `loop.Monitor.before`."""
        if step <= self._granted:
            return
        # The last step is a chunk of its own: a crash in it leaves something to do.
        last = self._end if step == self._end else self._end - 1
        self._granted = max(step, min(step + self._chunk - 1, last))
        self._began = time.monotonic()
        if self._reservation is not None:
            self._reservation.take(self._granted + self._lost)

    def after(self, report: StepReport, state: Callable[[], State]) -> None:
        """Keep what a chunk ends with; see `loop.Monitor.after`."""
        stopped = self._stop.is_set()
        if report.step == self._granted or stopped:
            self._adapt(self.keep(state()))
            self._show(report)
        if stopped and report.step < self._end:
            raise TrainingError(
                f"interrupted after step {report.step} of {self._end}; go on with "
                "--resume"
            )

    def keep(self, state: State) -> float:
        """Write a checkpoint and book it; returns how long that took, in seconds."""
        started = time.monotonic()
        training = "" if self._reservation is None else self._reservation.id
        identity = self._identity
        _, digest = write_checkpoint(
            self._folder,
            Checkpoint(
                training,
                identity.config_sha256,
                identity.data_sha256,
                state,
                identity.bound_sha256,
            ),
        )
        if self._reservation is not None:
            self._reservation.settle(state.step + self._lost, digest)
        _drop_others(self._folder, digest)
        return time.monotonic() - started

    def close(self, state: str) -> None:
        """End the reservation."""
        if self._reservation is not None:
            self._reservation.close(state)

    def _adapt(self, cost_s: float) -> None:
        """Chunks as long as makes checkpoints cheap, and no longer than allowed."""
        if self._fixed:
            return
        spent_s = max(1e-6, time.monotonic() - self._began - cost_s)
        step_s = spent_s / self._chunk
        wanted = math.ceil(cost_s / _OVERHEAD / step_s)
        most = max(1, self._end // _CHUNKS)
        self._chunk = max(1, min(wanted, most, 2 * self._chunk))


def _drop_others(folder: Path, digest: str) -> None:
    for path in folder.glob("*.npz"):
        if path.stem != digest[:32]:
            path.unlink(missing_ok=True)
