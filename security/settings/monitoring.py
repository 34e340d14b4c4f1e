"""[monitoring]: counting what is asked and answered, released with privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from security.errors import SettingsError
from security.settings.checks import check_positive, check_store
from security.settings.redis import RedisSettings

__all__ = [
    "MAX_GROUP_BYTES",
    "WINDOW_LENGTHS",
    "LabelSettings",
    "MonitoringSettings",
    "check_monitoring",
]

WINDOW_LENGTHS = ("daily", "weekly", "monthly")
_POSITIVE = (
    "epsilon",
    "min_subjects",
    "max_subjects",
    "flush_s",
    "max_labels_per_subject",
)


# Of a group's name; more groups than this leave each only noise.
MAX_GROUP_BYTES = 31
MAX_GROUPS = 16
# A release must still be in the ledger's year when labels are final.
MAX_FINAL_DAYS = 365.0


@dataclass(frozen=True)
class LabelSettings:
    """Labels of one model that come later: how late, and what it means if none comes.

    Attributes:
        labels_final_after_days: after the end of an answer's window labels are taken
            for so long; then the cohort is released, and never changes.
        silence: the class that no label at all means; empty if silence says nothing.
        groups: which a label may name, for accuracy by group.
    """

    labels_final_after_days: float = 30.0
    silence: str = ""
    groups: tuple[str, ...] = ()


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
        store: "local", shared by the workers of this machine, or the URL of
            a Redis that all machines share, as of `security.stores.places`.
        directory: folder of the local store, and of its ledger.
        key: file with the key that counts are encrypted with until they are released.
        labels_final_after_days: as of `LabelSettings`, for models that have none in
            ``[monitoring.models.NAME]``.
        max_labels_per_subject: in the store, of one subject's answers of a version in
            a window; more are refused. There is room for all subjects, so that nobody's
            labels depend on another one's.
        models: values of `LabelSettings` for one model, by its name.
        flush_s: how often a worker gives the store what it has counted; what a worker
            that is killed loses at most.
        redis: how a Redis is reached; the table [redis].
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
    labels_final_after_days: float = 30.0
    max_labels_per_subject: int = 64
    models: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"tables": LabelSettings}
    )
    redis: RedisSettings = field(default_factory=RedisSettings)

    def labels(self, name: str) -> LabelSettings:
        """What holds for a model's labels."""
        days = {"labels_final_after_days": self.labels_final_after_days}
        return LabelSettings(**{**days, **self.models.get(name, {})})


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
    _check_labels(monitoring.labels(""), "monitoring")
    for name in monitoring.models:
        _check_labels(monitoring.labels(name), f"monitoring.models.{name}")


def _check_labels(labels: LabelSettings, where: str) -> None:
    if not 0.0 < labels.labels_final_after_days <= MAX_FINAL_DAYS:
        raise SettingsError(
            f"{where}.labels_final_after_days: above 0, and at most {MAX_FINAL_DAYS:g}"
        )
    groups = labels.groups
    sizes = [len(group.encode()) for group in groups]
    if (
        len(groups) > MAX_GROUPS
        or len(set(groups)) < len(groups)
        or not all(1 <= size <= MAX_GROUP_BYTES for size in sizes)
    ):
        raise SettingsError(
            f"{where}.groups: at most {MAX_GROUPS} different names of 1 to "
            f"{MAX_GROUP_BYTES} bytes"
        )
