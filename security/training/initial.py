"""The weights that a training begins with: drawn here, so that they come from nowhere.

Weights that were trained elsewhere, without privacy, and are only touched here, would
carry their rows into a model that claims a guarantee. So whatever values a network is
made with, they are replaced: only each tensor's spread is kept, or its one value where
it is filled with one. Anybody can draw the same numbers again from the rules and the
seed that the evidence states.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from security.errors import TrainingError

__all__ = [
    "MAX_CONSTANTS",
    "Rule",
    "draw",
    "is_filled",
    "parse_rules",
    "recompute",
    "tensors_digest",
]

# Tensors that may be filled with a value of their own beside 0 and 1, as the scale of
# a layer is: more of them could be weights, one by one.
MAX_CONSTANTS = 64


@dataclass(frozen=True)
class Rule:
    """How one tensor's first values are made.

    Attributes:
        name: of the parameter in the network.
        shape: of it.
        kind: "filled" with ``value``, or "uniform" between plus and minus ``value``.
        value: finite; of "uniform" positive.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    value: float

    def to_object(self) -> dict[str, Any]:
        """JSON values, for the evidence."""
        return {**vars(self), "shape": list(self.shape)}

    def values(self, seed: int, place: int) -> NDArray[np.float32]:
        """The values, for a seed and the rule's place among all."""
        if self.kind == "filled":
            return np.full(self.shape, self.value, dtype=np.float32)
        drawn = np.random.default_rng([seed, place]).random(self.shape, np.float32)
        return np.asarray((2 * drawn - 1) * np.float32(self.value), dtype=np.float32)


def draw(body: nn.Module, seed: int) -> tuple[Rule, ...]:
    """Replace the values of everything that will be trained.

    Raises:
        TrainingError: more than `MAX_CONSTANTS` tensors are filled with other values
            than 0 and 1, or a value is not finite.
    """
    named = [(name, p) for name, p in body.named_parameters() if p.requires_grad]
    rules = tuple(_rule(name, value.detach()) for name, value in named)
    odd = sum(rule.kind == "filled" and rule.value not in (0, 1) for rule in rules)
    if odd > MAX_CONSTANTS:
        raise TrainingError(
            f"the network has {odd} tensors filled with one value other than 0 or 1, "
            f"at most {MAX_CONSTANTS}: they could be weights from elsewhere"
        )
    with torch.no_grad():
        for (_, parameter), (_, value) in zip(named, _drawn(rules, seed)):
            parameter.copy_(torch.from_numpy(value))
    return rules


def parse_rules(value: Any) -> tuple[Rule, ...]:
    """What `Rule.to_object` gave, of one rule after another.

    Raises:
        TrainingError: they are not rules.
    """
    try:
        rules = tuple(
            Rule(
                name=str(item["name"]),
                shape=tuple(int(size) for size in item["shape"]),
                kind=str(item["kind"]),
                value=float(item["value"]),
            )
            for item in value
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise TrainingError("not the rules of initial weights") from None
    for rule in rules:
        sizes = all(size >= 0 for size in rule.shape)
        known = rule.kind in ("filled", "uniform")
        if not (sizes and known and math.isfinite(rule.value)):
            raise TrainingError(f"not a rule of initial weights: {rule.name!r}")
    return rules


def recompute(rules: Sequence[Rule], seed: int) -> str:
    """Hex SHA-256 of the weights that the rules and a seed give.

    >>> rules = [Rule("0.weight", (2, 3), "uniform", 0.5), Rule("0.bias", (2,),
    ...          "filled", 0.0)]
    >>> recompute(rules, 7)[:16]
    'b144809a58827545'
    """
    drawn = {
        name: torch.from_numpy(value) for name, value in _drawn(tuple(rules), seed)
    }
    return tensors_digest(drawn)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors: by name, with type, shape and bytes."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        shape = "x".join(map(str, value.shape))
        state.update(f"{name}\0{value.dtype}\0{shape}\0".encode())
        state.update(value.numpy().tobytes())
    return state.hexdigest()


def is_filled(value: Tensor) -> bool:
    """Whether a tensor holds one value throughout, or none at all."""
    flat = value.detach().flatten()
    return not len(flat) or bool((flat == flat[0]).all())


def _drawn(
    rules: Iterable[Rule], seed: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for place, rule in enumerate(rules):
        yield rule.name, rule.values(seed, place)


def _rule(name: str, value: Tensor) -> Rule:
    shape = tuple(value.shape)
    if not bool(torch.isfinite(value).all()):
        raise TrainingError(f"the network's {name} is not finite")
    if is_filled(value):
        filled = float(value.flatten()[0]) if value.numel() else 0.0
        return Rule(name, shape, "filled", filled)
    # Two digits of the spread: of its own initialisation, as any network has one.
    bound = math.sqrt(3) * float(value.double().std(correction=0))
    return Rule(name, shape, "uniform", float(f"{bound:.1e}"))
