"""One private training over several processes, as `torchrun` starts them.

Every process owns some units, samples them at the common rate, and clips; so the batch
of all processes is a Poisson sample of all units, and the accounting is that of one
process. Noise is added once, by the first process, to the sum that Opacus' wrapper then
takes over all of them; it alone books, keeps, shows and writes. A guarantee against the
other processes is not meant: they hold the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.optimizers.ddpoptimizer import DistributedDPOptimizer
from torch import distributed, nn

from security.errors import StoppedElsewhereError, TrainingError
from security.training.mechanism import Conformance, Noise, NoisyOptimizer

__all__ = [
    "DistributedNoisyOptimizer",
    "everyone",
    "first_alone",
    "joined",
    "leads",
    "merged",
    "processes",
    "share_of",
    "synchronise",
]

_Result = TypeVar("_Result")


class DistributedNoisyOptimizer(NoisyOptimizer, DistributedDPOptimizer):
    """`NoisyOptimizer` with Opacus' sum over processes.

    Opacus takes the mean over processes, so each divides by its part of the expected
    batch.
    """

    def __init__(
        self, plain: torch.optim.Optimizer, noise: Noise, **options: Any
    ) -> None:
        """See `NoisyOptimizer`."""
        super().__init__(plain, noise, **options)
        self.expected_batch_size = noise.expected_batch / self.world_size

    def add_noise(self) -> None:
        """By the first process alone; the others pass on their clipped sums."""
        if self.rank == 0:
            super().add_noise()
            return
        for parameter in self.params:
            if parameter.summed_grad is None:
                raise TrainingError("a sum without a batch")
            parameter.grad = parameter.summed_grad.view_as(parameter).clone()
        self._tell(0.0)

    def pre_step(self, closure: Any = None) -> bool:
        """As of one process, then the sum over all."""
        with _together():
            ready = super().pre_step(closure)
            self.reduce_gradients()
        return ready

    def _tell(self, deviation: float) -> None:
        """The first process adds up what all have, adds noise, and tells the others."""
        if not any(self._norms):
            return
        whole = torch.tensor(self._sums, dtype=torch.float64, device=_place())
        distributed.reduce(whole, dst=0)
        told = torch.zeros_like(whole)
        if self.rank == 0:
            self._sums = whole.tolist()
            super()._tell(deviation)
            told += torch.tensor([value or 0.0 for value in self._told]).to(told)
        distributed.broadcast(told, src=0)
        self._told = [
            value if norm else None for value, norm in zip(told.tolist(), self._norms)
        ]


def processes() -> int:
    """How many train together; 1 without `torchrun`."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def leads() -> bool:
    """Whether this is the first process: also where it is the only one."""
    return processes() == 1 or distributed.get_rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within it, what `torchrun` started is one training; nothing without it."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def first_alone(action: Callable[[], _Result]) -> _Result:
    """What the first process gets for doing something that it alone may do.

    Raises:
        Exception: what the action raised, in the first process.
        StoppedElsewhereError: it raised something there, in the others.
    """
    if processes() == 1:
        return action()
    box: list[Any] = [False, None]
    try:
        if leads():
            box = [True, action()]
    finally:
        with _together():
            distributed.broadcast_object_list(box, src=0, device=_place())
    if not box[0]:
        raise StoppedElsewhereError("the first process stopped")
    result: _Result = box[1]
    return result


def everyone(action: Callable[[], _Result]) -> _Result:
    """Do something in every process, and go on only if all could.

    Raises:
        Exception: what the action raised here, if no process before this one failed.
        StoppedElsewhereError: it raised something elsewhere.
    """
    if processes() == 1:
        return action()
    failed = torch.ones(1, device=_place())
    try:
        result = action()
        failed.zero_()
    except BaseException:
        if _earliest(failed) < distributed.get_rank():
            raise StoppedElsewhereError("another process stopped") from None
        raise
    if _earliest(failed) < processes():
        raise StoppedElsewhereError("another process stopped")
    return result


def merged(record: Conformance) -> Conformance:
    """The records of all processes as one; the same one where there is one process."""
    if processes() == 1:
        return record
    longest, steps, *rest = record.counts()
    most = torch.tensor([longest, steps], dtype=torch.float64, device=_place())
    sums = torch.tensor(rest, dtype=torch.float64, device=_place())
    with _together():
        distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
        distributed.all_reduce(sums)
    return Conformance([*most.tolist(), *sums.tolist()])


def share_of(units: torch.Tensor) -> torch.Tensor:
    """Which of these units this process owns, as a boolean each; all in one process."""
    if processes() == 1:
        return torch.ones(len(units), dtype=torch.bool)
    return units % processes() == distributed.get_rank()


def synchronise(body: nn.Module) -> None:
    """Give every process the first one's weights, by Opacus' wrapper."""
    if processes() > 1:
        DifferentiallyPrivateDistributedDataParallel(body)


def _earliest(failed: torch.Tensor) -> int:
    """The first process that failed; as many as there are, if none did."""
    mine = distributed.get_rank() if bool(failed) else processes()
    earliest = torch.tensor([mine], device=_place())
    with _together():
        distributed.all_reduce(earliest, op=distributed.ReduceOp.MIN)
    return int(earliest)


def _place() -> torch.device:
    """Where tensors must be for the processes to exchange them."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def _together() -> Iterator[None]:
    """One line where another process is gone, in place of the runtime's."""
    try:
        yield
    except RuntimeError:  # what torch raises for whatever happens to a connection
        if processes() == 1:
            raise
        raise StoppedElsewhereError("a process of this training was lost") from None
