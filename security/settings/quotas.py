"""[quotas]: where it is counted what each subject asks of each model.

Which quotas there are stands in a table of its own, `security.access.quota_table`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from security.settings.checks import check_failure_mode, check_positive, check_store
from security.settings.redis import RedisSettings

__all__ = ["QuotaSettings", "check_quotas"]


@dataclass(frozen=True)
class QuotaSettings:
    """Where it is counted what each subject asks of each model.

    Attributes:
        table: the limits, relative to the folder of service.toml.
        store: "local", shared by the workers of this machine, or the URL of
            a Redis that all machines share, as of `security.stores.places`.
        directory: folder of the local store.
        on_failure: "refuse" answers 503 while the store cannot be asked; "serve" lets
            requests pass that cannot be counted.
        max_entries: counters of the local store at most; more are answered 503.
        redis: how a Redis is reached; the table [redis].
    """

    table: Path = field(default=Path("quotas.toml"), metadata={"base": "config"})
    store: str = "local"
    directory: Path = Path("quotas")
    on_failure: str = "refuse"
    max_entries: int = 1 << 20
    redis: RedisSettings = field(default_factory=RedisSettings)


def check_quotas(quotas: QuotaSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(quotas, "quotas", ("max_entries",))
    check_failure_mode(quotas.on_failure, "quotas.on_failure")
    check_store(quotas.store, "quotas.store")
