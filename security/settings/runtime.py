"""[runtime]: how models are run.

``[runtime.models.NAME]`` holds what is different for one model; it has no
``SEALGATE_…`` variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from security.errors import SettingsError

__all__ = ["ModelLimits", "RuntimeSettings", "check_runtime"]


@dataclass(frozen=True)
class ModelLimits:
    """How the requests of one model are gathered, and how many may wait.

    Attributes:
        max_batch_rows: rows of a run that several requests share; 1 never shares one.
        max_batch_delay_ms: how long a request may wait for others to share its run.
            At 0 those share one that are there at the same moment.
        max_waiting: requests that wait or run; more are answered 503.
    """

    max_batch_rows: int = 32
    max_batch_delay_ms: float = 0.0
    max_waiting: int = 256


@dataclass(frozen=True)
class RuntimeSettings(ModelLimits):
    """onnxruntime's sessions, and the bounds of one worker.

    Attributes:
        providers: of onnxruntime, the first one that fits a node runs it. One that is
            not installed is an error: there is no silent fallback.
        intra_op_threads: threads of one run.
        inter_op_threads: likewise, for branches of the graph.
        inference_threads: runs at the same time. One model never takes all of them.
        inline_run_us: models whose runs take at most so long run without a thread;
            at 0 none does.
        at_once_run_us: runs that take at most so long are not gathered either, which
            would take longer than to run one after the other.
        max_waiting_bytes: inputs that wait or run, all models together.
        max_memory_bytes: of one worker (RLIMIT_DATA); 0 sets no bound.
        models: values of `ModelLimits` that differ for one model, by its name.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    inference_threads: int = 2
    inline_run_us: int = 300
    at_once_run_us: int = 25
    max_waiting_bytes: int = 256 << 20
    max_memory_bytes: int = 8 << 30
    models: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"tables": ModelLimits}
    )

    def limits(self, name: str) -> ModelLimits:
        """What holds for a model."""
        own = {item.name: getattr(self, item.name) for item in fields(ModelLimits)}
        return ModelLimits(**{**own, **self.models.get(name, {})})


_AT_LEAST: Mapping[str, int] = {
    "max_batch_rows": 1,
    "max_batch_delay_ms": 0,
    "max_waiting": 1,
    "intra_op_threads": 1,
    "inter_op_threads": 1,
    "inference_threads": 1,
    "inline_run_us": 0,
    "at_once_run_us": 0,
    "max_waiting_bytes": 1,
    "max_memory_bytes": 0,
}


def check_runtime(runtime: RuntimeSettings) -> None:
    """Refuse bounds that bound nothing.

    Raises:
        SettingsError: names the key.
    """
    if not runtime.providers:
        raise SettingsError("runtime.providers: name one at least")
    _check(runtime, "runtime")
    for name in runtime.models:
        _check(runtime.limits(name), f"runtime.models.{name}")


def _check(limits: ModelLimits, where: str) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(limits, name, least)
        # NaN, which TOML can spell, fails this comparison too.
        if not least <= value < math.inf:
            raise SettingsError(f"{where}.{name}: must be at least {least} and finite")
    if limits.max_batch_delay_ms > 1000:
        raise SettingsError(f"{where}.max_batch_delay_ms: at most 1000")
