"""The candidates of a search: every combination of the values that it lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from security.training.config_sections import SearchConfig, TrainingConfig

__all__ = ["MAX_CANDIDATES", "candidates", "described", "listed"]

MAX_CANDIDATES = 1000

# Which section a listed key belongs to.
_SECTIONS = {
    "centre": "model",
    "hidden": "model",
    "clipping": "privacy",
    "expected_batch": "privacy",
    "max_grad_norm": "privacy",
    "ema": "optimizer",
    "learning_rate": "optimizer",
    "momentum": "optimizer",
    "schedule": "optimizer",
}


def listed(search: SearchConfig) -> dict[str, tuple[Any, ...]]:
    """The keys that vary, with their values."""
    values = {name: getattr(search, name) for name in sorted(_SECTIONS)}
    return {name: value for name, value in values.items() if value}


def candidates(config: TrainingConfig) -> Iterator[TrainingConfig]:
    """The configuration with each combination of what its search lists."""
    if config.search is None:
        yield config
        return
    lists = listed(config.search)
    for values in itertools.product(*lists.values()):
        yield _with(config, dict(zip(lists, values)))


def described(config: TrainingConfig) -> str:
    """What a candidate has of the listed keys, for people."""
    names = {} if config.search is None else listed(config.search)
    return ", ".join(
        f"{name} {getattr(getattr(config, _SECTIONS[name]), name)}" for name in names
    )


def _with(config: TrainingConfig, values: dict[str, Any]) -> TrainingConfig:
    for section in ("model", "privacy", "optimizer"):
        own = {name: v for name, v in values.items() if _SECTIONS[name] == section}
        changed = replace(getattr(config, section), **own)
        config = replace(config, **{section: changed})
    return config
