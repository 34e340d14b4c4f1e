"""[sealing]: sealed transport, its keys and its replay window."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from security.errors import SettingsError
from security.settings.checks import check_positive, check_store
from security.settings.redis import RedisSettings

__all__ = ["SealingSettings", "check_sealing"]


# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE = (
    "key_lifetime_s",
    "key_overlap_s",
    "key_cache_s",
    "date_window_s",
    "max_replay_entries",
    "max_replay_entries_per_subject",
)


@dataclass(frozen=True)
class SealingSettings:
    """Sealed transport (RFC 9458).

    Attributes:
        require_sealed: refuse inference in plaintext.
        keys: folder of HPKE private keys.
        identity: the key that signs the key configurations, ECDSA P-256; without the
            file they are only offered unsigned.
        identity_mldsa: the key that signs them beside it, ML-DSA-65, where there is the
            file.
        key_lifetime_s: age at which a key is replaced.
        key_overlap_s: for how long the key before it still opens requests.
        key_cache_s: how long clients may keep the configurations; within the overlap.
        require_date: refuse sealed requests without a ``Date``. Without this they are
            remembered until their key is retired.
        date_window_s: how far a ``Date`` may be from the server's clock, either way.
        replay_store: "local", shared by the workers of this machine, or the URL of
            a Redis that all machines share, as of `security.stores.places`.
        replay_directory: folder of the local store.
        max_replay_entries: requests that the local store remembers at most; more are
            answered 503.
        max_replay_entries_per_subject: of one subject, in either store; more of its
            requests are answered 429.
        redis: how a Redis is reached; the table [redis].
    """

    require_sealed: bool = True
    keys: Path = Path("keys/hpke")
    identity: Path = Path("keys/identity.pem")
    identity_mldsa: Path = Path("keys/identity.mldsa.pem")
    key_lifetime_s: int = 24 * 3600
    key_overlap_s: int = 2 * 3600
    key_cache_s: int = 3600
    require_date: bool = True
    date_window_s: int = 120
    replay_store: str = "local"
    replay_directory: Path = Path("replay")
    max_replay_entries: int = 1 << 20
    max_replay_entries_per_subject: int = 1 << 18
    redis: RedisSettings = field(default_factory=RedisSettings)


def check_sealing(sealing: SealingSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(sealing, "sealing", _POSITIVE)
    if sealing.key_cache_s > sealing.key_overlap_s:
        raise SettingsError("sealing.key_cache_s: may not exceed sealing.key_overlap_s")
    check_store(sealing.replay_store, "sealing.replay_store")
