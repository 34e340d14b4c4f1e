"""A user's network, refused with reasons where it cannot be trained privately.

Per-unit clipping bounds what one unit does only if each row's output depends on that
row alone, and only if everything that training changes is a parameter with a gradient.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from models.architectures import NetworkSpec
from security.errors import TrainingError
from security.training.gradients import without_dropout

__all__ = ["check_body", "check_trained", "load_module"]

# How many rows a network is tried with at once, and how many each by itself.
_SIZES = (2, 5, 64)
_ALONE = 5
_ROUNDING = 2e-5
MAX_PARAMETERS = 500_000_000


def load_module(target: str, spec: NetworkSpec, base: Path) -> nn.Module:
    """Call the user's function, which gets the specification and returns a network.

    Args:
        target: ``package.module:function``, found beside the configuration too.
        spec: shape of an input, and how many logits to return.
        base: the configuration's folder.

    Raises:
        TrainingError: it cannot be called, or returns something else.
    """
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, str(base))
    try:
        module = getattr(importlib.import_module(module_name), function_name)(spec)
    except Exception as error:  # noqa: BLE001  (it runs the user's code)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TrainingError(f"model.module {target}: {reason}") from None
    finally:
        sys.path.remove(str(base))
    if not isinstance(module, nn.Module):
        raise TrainingError(f"model.module {target}: returned no nn.Module")
    return module


def check_body(body: nn.Module, spec: NetworkSpec) -> None:
    """Refuse a network that cannot be trained privately.

    It is tried as it is and with other weights: a layer that starts from zero hides
    whatever is before it.

    Raises:
        TrainingError: says every reason in one line.
    """
    reasons = [*_parameter_reasons(body), *_layer_reasons(body)]
    reasons = reasons or _behaviour_reasons(body, spec)
    reasons = reasons or _behaviour_reasons(body, spec, perturbed=True)
    if reasons:
        raise TrainingError(
            "the network cannot be trained privately: " + "; ".join(reasons)
        )


def check_trained(body: nn.Module, spec: NetworkSpec) -> None:
    """Try the weights that training gave as `check_body` tried the first ones.

    Raises:
        TrainingError: rows depend on each other now; nothing is to be released.
    """
    reasons = _behaviour_reasons(body, spec)
    if reasons:
        raise TrainingError(f"the trained network is refused: {reasons[0]}")


def _parameter_reasons(body: nn.Module) -> list[str]:
    trainable = [p for p in body.parameters() if p.requires_grad]
    if not trainable:
        return ["it has no trainable parameter"]
    if sum(p.numel() for p in trainable) > MAX_PARAMETERS:
        return [f"more than {MAX_PARAMETERS} parameters"]
    if any(p.dtype != torch.float32 for p in trainable):
        return ["a parameter is not float32"]
    return []


def _layer_reasons(body: nn.Module) -> list[str]:
    errors = ModuleValidator.validate(body.train(), strict=False)
    return [" ".join(str(error).split())[:200] for error in errors]


def _behaviour_reasons(
    body: nn.Module, spec: NetworkSpec, *, perturbed: bool = False
) -> list[str]:
    """Try a copy, in training and out of it, but for what is random on purpose."""
    random = torch.Generator().manual_seed(0)
    rows = torch.rand(max(_SIZES), *spec.inputs, generator=random)
    try:
        own = copy.deepcopy(body)
        with torch.no_grad():
            if perturbed:
                _perturb(own, random)
            for training in (True, False):
                with without_dropout(own.train(training)):
                    reasons = _reasons(own, rows, spec)
                if reasons:
                    return reasons
    except Exception as error:  # noqa: BLE001  (it runs the user's code)
        return [" ".join(f"{type(error).__name__}: {error}".split())[:200]]
    return []


def _perturb(body: nn.Module, random: torch.Generator) -> None:
    for parameter in body.parameters():
        if parameter.requires_grad:
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            moved = torch.randn(parameter.shape, generator=random) / math.sqrt(fan)
            parameter.add_(moved)


def _reasons(body: nn.Module, rows: Tensor, spec: NetworkSpec) -> list[str]:
    buffers = [item.clone() for item in body.buffers()]
    whole = body(rows)
    wanted = (len(rows), spec.classes)
    if not isinstance(whole, Tensor) or tuple(whole.shape) != wanted:
        return [f"it does not return logits of shape {wanted} for {len(rows)} rows"]
    if tuple(body(rows[:0]).shape) != (0, spec.classes):
        return ["it does not take an empty batch"]
    if not all(_close(seen, whole[part]) for seen, part in _others(body, rows)):
        return ["a row's output depends on the other rows of its batch"]
    if not _close(body(rows), whole):
        return ["a row's output depends on what the network saw before"]
    if any(not torch.equal(a, b) for a, b in zip(buffers, body.buffers())):
        return ["it changes a buffer when it is used"]
    return []


def _others(body: nn.Module, rows: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Outputs of batches of several sizes, of rows alone, and without one row."""
    parts = [slice(0, size) for size in _SIZES]
    parts += [slice(at, at + 1) for at in range(_ALONE)]
    parts += [slice(1, len(rows)), slice(0, len(rows) - 1)]
    for part in parts:
        yield body(rows[part]), part


def _close(one: Tensor, other: Tensor) -> bool:
    scale = max(1.0, float(other.nan_to_num().abs().max())) if len(other) else 1.0
    return torch.allclose(one, other, atol=_ROUNDING * scale, rtol=1e-3, equal_nan=True)
