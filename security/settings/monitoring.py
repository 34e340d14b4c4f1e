"""[monitoring]: counting what is asked and answered, released with privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError
from security.settings.checks import check_positive, check_store

__all__ = ["WINDOW_LENGTHS", "MonitoringSettings", "check_monitoring"]

WINDOW_LENGTHS = ("daily", "weekly", "monthly")
_POSITIVE = ("epsilon", "min_subjects", "max_subjects", "flush_s")


@dataclass(frozen=True)
class MonitoringSettings:
    """Counting what is asked and answered, released with privacy.

    It is off unless the operator turns it on: counting callers is a decision, what is
    released cannot be taken back, and it takes a key that `keygen` makes.

    Attributes:
        enabled: count, and release.
        window: "daily", "weekly" from Monday, or "monthly", in UTC.
        epsilon: what all releases of this deployment in any 365 days may cost one
            subject at most, at ``delta``.
        delta: of that guarantee.
        labels_share: of each window's part of the budget, what is left for labels that
            come later; the rest is for histograms. Between 0 and 1.
        min_subjects: a window with fewer, by a noisy count, is not released.
        max_subjects: of one model version and window, in each worker: about 400 bytes
            of memory each. A window with about as many is not released.
        store: "local", shared by the workers of this machine, or the ``redis://`` or
            ``rediss://`` URL of a store shared by all machines.
        directory: folder of the local store, and of its ledger.
        key: file with the key that counts are encrypted with until they are released.
        flush_s: how often a worker gives the store what it has counted; what a worker
            that is killed loses at most.
    """

    enabled: bool = False
    window: str = "weekly"
    epsilon: float = 8.0
    delta: float = 1e-6
    labels_share: float = 0.2
    min_subjects: int = 200
    max_subjects: int = 1 << 16
    store: str = "local"
    directory: Path = Path("monitoring")
    key: Path = Path("keys/monitoring.key")
    flush_s: float = 5.0


def check_monitoring(monitoring: MonitoringSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(monitoring, "monitoring", _POSITIVE)
    if monitoring.window not in WINDOW_LENGTHS:
        raise SettingsError(f"monitoring.window: one of {', '.join(WINDOW_LENGTHS)}")
    if not 1e-12 <= monitoring.delta <= 1e-3:
        raise SettingsError("monitoring.delta: from 1e-12 to 1e-3")
    if not 0.0 <= monitoring.labels_share < 1.0:
        raise SettingsError("monitoring.labels_share: from 0 to below 1")
    if not math.isfinite(monitoring.epsilon) or monitoring.epsilon > 100.0:
        raise SettingsError("monitoring.epsilon: at most 100, which promises nothing")
    check_store(monitoring.store, "monitoring.store")
