"""One private training over several processes, as `torchrun` starts them.

Every process owns some units, samples them at the common rate, and clips; so the batch
of all processes is a Poisson sample of all units, and the accounting is that of one
process. Noise is added once, by the first process, to the sum that Opacus' wrapper then
takes over all of them. A guarantee against the other processes is not meant: they hold
the data.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.optimizers.ddpoptimizer import DistributedDPOptimizer
from torch import distributed, nn

from security.errors import TrainingError
from security.training.mechanism import Noise, NoisyOptimizer

__all__ = ["DistributedNoisyOptimizer", "processes", "share_of", "synchronise"]


class DistributedNoisyOptimizer(NoisyOptimizer, DistributedDPOptimizer):
    """`NoisyOptimizer` with Opacus' sum over processes.

    Opacus takes the mean over processes, so each divides by its part of the expected
    batch.
    """

    def __init__(
        self, plain: torch.optim.Optimizer, noise: Noise, **options: Any
    ) -> None:
        """See `NoisyOptimizer`.

        Raises:
            TrainingError: the loss is to be told, which only one process could.
        """
        if options.get("loss_norm"):
            raise TrainingError("several processes tell no loss: loss_share = 0")
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

    def pre_step(self, closure: Any = None) -> bool:
        """As of one process, then the sum over all."""
        ready = super().pre_step(closure)
        self.reduce_gradients()
        return ready


def processes() -> int:
    """How many train together; 1 without `torchrun`."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def share_of(units: torch.Tensor) -> torch.Tensor:
    """Which of these units this process owns, as a boolean each; all in one process."""
    if processes() == 1:
        return torch.ones(len(units), dtype=torch.bool)
    return units % processes() == distributed.get_rank()


def synchronise(body: nn.Module) -> None:
    """Give every process the first one's weights, by Opacus' wrapper."""
    if processes() > 1:
        DifferentiallyPrivateDistributedDataParallel(body)
