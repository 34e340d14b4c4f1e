"""What decides about callers, made from the settings: tokens, proofs, grants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sealgate.protocol.bhttp import Response
from security.access.dpop import Nonces, Proofs
from security.access.issuer import DEVELOPMENT_ISSUER, development_jwks
from security.access.jwks import load_jwks
from security.access.key_sources import check_source
from security.access.permissions import Permissions, load_permissions
from security.access.revocation import open_store, open_watched
from security.access.tokens import Verifier
from security.key_files import read_secret
from security.sealing.replay import LocalReplayStore, RedisReplayStore, ReplayStore
from security.settings.loading import Settings
from service.callers import Callers, documents

__all__ = ["Access", "check_access", "open_access"]


@dataclass(frozen=True)
class Access:
    """What one worker decides about callers with.

    Attributes:
        callers: finds out who calls.
        permissions: what they may.
        documents: what answers without a token.
        verifier: of tokens.
    """

    callers: Callers
    permissions: Permissions
    documents: Mapping[bytes, Response]
    verifier: Verifier


def open_access(settings: Settings) -> Access:
    """Open it for one worker.

    Raises:
        SealgateError: a file or a store that it takes cannot be used.
    """
    access = settings.access
    verifier = Verifier(access, revocations=open_watched(access))
    return Access(
        Callers(verifier, access, proofs=_proofs(settings)),
        load_permissions(access.permissions),
        documents(access, jwks=_development_jwks(settings)),
        verifier,
    )


def check_access(settings: Settings) -> None:
    """Fail in the parent what would fail in every worker; make what they share.

    Raises:
        SealgateError: as `open_access`.
    """
    open_store(settings.access).close()
    load_permissions(settings.access.permissions)
    for issuer in settings.access.all_issuers:
        check_source(issuer)
    _proofs(settings)


def _proofs(settings: Settings) -> Proofs | None:
    access = settings.access
    if all(issuer.dpop == "off" for issuer in access.all_issuers):
        return None
    return Proofs(
        _proof_store(settings),
        resource=access.resource,
        nonces=Nonces(read_secret(access.dpop_key)) if access.dpop_nonce else None,
        window_s=access.dpop_window_s,
    )


def _proof_store(settings: Settings) -> ReplayStore:
    """Beside the sealed requests' own store, and of the same kind."""
    sealing = settings.sealing
    if sealing.replay_store == "local":
        folder = sealing.replay_directory / "proofs"
        return LocalReplayStore(folder, max_entries=sealing.max_replay_entries)
    ttl_s = 4 * settings.access.dpop_window_s
    return RedisReplayStore(
        sealing.replay_store, dated_ttl_s=ttl_s, undated_ttl_s=ttl_s
    )


def _development_jwks(settings: Settings) -> bytes | None:
    """The development issuer's keys, for other servers of a developer's machine."""
    if settings.service.environment == "production":
        return None
    for issuer in settings.access.all_issuers:
        if issuer.issuer == DEVELOPMENT_ISSUER and not isinstance(issuer.jwks, str):
            return development_jwks(load_jwks(issuer.jwks))
    return None
