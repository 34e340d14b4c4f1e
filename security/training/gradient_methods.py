"""Which way to make clipped gradients, by measurement (docs/training.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from security.errors import TrainingError
from security.training.bookkeeping import BookkeepingMethod, supports
from security.training.gradients import GradientMethod, Objective, cross_entropy
from security.training.per_example import HooksMethod

__all__ = ["METHODS", "choose", "make_method"]

METHODS: Mapping[str, Callable[[nn.Module, Objective], GradientMethod]] = {
    "bookkeeping": BookkeepingMethod,
    "hooks": HooksMethod,
}
# Of earlier versions: what is taken for them now (decision 0072).
_BEFORE = ("functorch", "ghost", "vmap")


def choose(body: nn.Module, name: str = "auto") -> str:
    """The method for a network: bookkeeping where it has a rule, hooks elsewhere.

    >>> choose(nn.Linear(3, 2)), choose(nn.LSTM(3, 2))
    ('bookkeeping', 'hooks')

    Raises:
        TrainingError: there is no such method.
    """
    if name == "auto":
        return "bookkeeping" if supports(body) else "hooks"
    if name in _BEFORE:
        return "hooks"
    if name not in METHODS:
        raise TrainingError(
            f"no gradient method {name!r}; there are auto, {', '.join(METHODS)}"
        )
    return name


def make_method(
    body: nn.Module, name: str = "auto", objective: Objective = cross_entropy
) -> GradientMethod:
    """Attach a method to a network.

    Raises:
        TrainingError: there is no such method, or it cannot take this network.
    """
    return METHODS[choose(body, name)](body, objective)
