"""A user's network, refused with reasons where it cannot be trained privately.

Per-unit clipping bounds what one unit does only if each row's output depends on that
row alone, and only if everything that training changes is a parameter with a gradient.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from models.architectures import NetworkSpec
from security.errors import TrainingError

__all__ = ["check_body", "load_module"]

_ROWS = 5
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

    Raises:
        TrainingError: says every reason in one line.
    """
    reasons = [*_parameter_reasons(body), *_layer_reasons(body)]
    reasons = reasons or _behaviour_reasons(body, spec)
    if reasons:
        raise TrainingError(
            "the network cannot be trained privately: " + "; ".join(reasons)
        )


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


def _behaviour_reasons(body: nn.Module, spec: NetworkSpec) -> list[str]:
    """Try it, as in training but for what is random on purpose."""
    for layer in body.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):  # noqa: SLF001  (their base)
            layer.eval()
    rows = torch.rand(_ROWS, *spec.inputs, generator=torch.Generator().manual_seed(0))
    buffers = [item.clone() for item in body.buffers()]
    with torch.no_grad():
        try:
            whole = body(rows)
            single = torch.cat([body(rows[i : i + 1]) for i in range(_ROWS)])
            empty = body(rows[:0])
        except Exception as error:  # noqa: BLE001  (it runs the user's code)
            return [" ".join(f"{type(error).__name__}: {error}".split())[:200]]
    body.train()
    wanted = (_ROWS, spec.classes)
    if not isinstance(whole, Tensor) or tuple(whole.shape) != wanted:
        return [f"it does not return logits of shape {wanted} for {_ROWS} rows"]
    if tuple(empty.shape) != (0, spec.classes):
        return ["it does not take an empty batch"]
    if not torch.allclose(whole, single, atol=1e-4, rtol=1e-3):
        return ["a row's output depends on the other rows of its batch"]
    if any(not torch.equal(a, b) for a, b in zip(buffers, body.buffers())):
        return ["it changes a buffer when it is used"]
    return []
