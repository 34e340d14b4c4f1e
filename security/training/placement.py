"""Where a network is trained, and how many examples fit there at once."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from security.errors import TrainingError
from security.training.config_sections import TrainingConfig

__all__ = ["physical_batch", "place_of"]

# Of the memory that is free: the rest is for sums, for the allocator, and for others.
_SHARE = 0.25
# What came out of a layer is kept for the pass backwards, its gradient beside it, and
# patches of a convolution are several times as large as their image.
_COPIES = 8
_NUMBER_BYTES = 4
# Of an example, where bounds are trained: what an attack found, itself, and two ends.
_VIEWS = 4


def place_of(config: TrainingConfig) -> torch.device:
    """The device that a configuration asks for.

    Raises:
        TrainingError: it is not here.
    """
    there = torch.cuda.is_available()
    wanted = config.compute.device
    if wanted == "cuda" and not there:
        raise TrainingError(
            "compute.device: there is no CUDA device here; 'auto' takes the processor"
        )
    if wanted == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def physical_batch(config: TrainingConfig, body: nn.Module, inputs: Tensor) -> int:
    """Examples to hold at once; 0 for all of a batch.

    "auto" asks one example, of zeros, how much the network keeps of it, and how much
    memory is free.
    """
    size = config.compute.physical_batch
    if not isinstance(size, str):
        return size
    device = next(body.parameters()).device
    each = _numbers(body, inputs, device) * _NUMBER_BYTES * _COPIES
    if config.adversarial is not None and config.adversarial.certified:
        each *= _VIEWS
    return max(1, int(_SHARE * _free_bytes(device) / each))


def _numbers(body: nn.Module, inputs: Tensor, device: torch.device) -> int:
    """Of one example: what goes in, what comes out of layers, and every gradient."""
    counted = [sum(p.numel() for p in body.parameters()), inputs[:1].numel()]

    def count(_: nn.Module, __: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            counted.append(out.numel())

    handles = [module.register_forward_hook(count) for module in body.modules()]
    try:
        with torch.no_grad():
            body(torch.zeros_like(inputs[:1], device=device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counted)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
