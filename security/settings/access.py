"""[access]: whose tokens are accepted, and for what."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from security.errors import SettingsError
from security.settings.checks import check_positive, check_store
from security.settings.issuers import IssuerSettings, check_issuers, check_resource
from security.settings.redis import RedisSettings

__all__ = ["AccessSettings", "check_access"]


# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE = (
    "max_lifetime_s",
    "max_token_bytes",
    "dpop_window_s",
)


@dataclass(frozen=True)
class AccessSettings(IssuerSettings):
    """Whose tokens are accepted, and for what.

    What an issuer is said by stands here for the first issuer; `IssuerSettings` lists
    it. One that is not named here is none.

    Attributes:
        issuers: further ones.
        resource: this server's own URL, ``https://host[:port]``: what clients find it
            by (RFC 9728), and what proofs of possession are made for (RFC 9449).
        permissions: the table of grants, relative to the folder of service.toml.
        leeway_s: tolerated clock difference.
        max_token_bytes: refuse longer tokens before decoding.
        token_cache_entries: verified tokens that are remembered; 0 remembers none.
        revocation_store: "local", shared by the workers of this machine, or the URL of
            a Redis that all machines share, as of `security.stores.places`.
        revocation_directory: folder of the local store.
        revocation_require_persistence: refuse to start on a Redis that would lose the
            list when it is restarted (``appendonly no``).
        dpop_key: file with the key that nonces are made with.
        dpop_nonce: proofs must hold a nonce of this server (RFC 9449, section 9).
        dpop_window_s: how far a proof's time may be from our clock, either way.
        redis: how a Redis is reached; the table [redis].
    """

    issuers: tuple[IssuerSettings, ...] = ()
    resource: str = ""
    permissions: Path = field(default=Path("access.toml"), metadata={"base": "config"})
    leeway_s: int = 5
    max_token_bytes: int = 8 << 10
    token_cache_entries: int = 4096
    revocation_store: str = "local"
    revocation_directory: Path = Path("revocations")
    revocation_require_persistence: bool = True
    dpop_key: Path = Path("keys/dpop.key")
    dpop_nonce: bool = True
    dpop_window_s: int = 60
    redis: RedisSettings = field(default_factory=RedisSettings)

    @property
    def all_issuers(self) -> tuple[IssuerSettings, ...]:
        """The first issuer, if one is named, and the further ones."""
        own = {item.name: getattr(self, item.name) for item in fields(IssuerSettings)}
        return (*([IssuerSettings(**own)] if self.issuer else []), *self.issuers)


def check_access(access: AccessSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(access, "access", _POSITIVE)
    for name in ("leeway_s", "token_cache_entries"):
        if getattr(access, name) < 0:
            raise SettingsError(f"access.{name}: may not be negative")
    check_store(access.revocation_store, "access.revocation_store")
    issuers = access.all_issuers
    check_issuers(issuers)
    if access.resource:
        check_resource(access.resource)
    elif any(issuer.dpop != "off" for issuer in issuers):
        raise SettingsError("access.resource: must be set where DPoP is not off")
