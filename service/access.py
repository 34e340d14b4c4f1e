"""What decides about callers, made from the settings: tokens, proofs, grants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from sealgate.protocol.bhttp import Response
from security.access.dpop import Nonces, Proofs
from security.access.introspection import check_introspection
from security.access.issuer import DEVELOPMENT_ISSUER, development_jwks
from security.access.jwks import load_jwks
from security.access.key_sources import check_source
from security.access.permissions import Permissions, load_permissions
from security.access.quota_stores import check_quota_store
from security.access.revocation import open_watched
from security.access.revocation_stores import open_store
from security.access.tokens import Verifier
from security.key_files import read_secret
from security.sealing.replay import (
    ReplayStore,
    check_replay_store,
    open_replay_store,
)
from security.settings.loading import Settings
from service.callers import Callers, documents
from service.telemetry.metrics import Metrics

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


def open_access(settings: Settings, metrics: Metrics) -> Access:
    """Open it for one worker, which counts in ``metrics``.

    Raises:
        SealgateError: a file or a store that it takes cannot be used.
    """
    access = settings.access
    revocations = open_watched(
        access,
        key=read_secret(settings.audit.pseudonym_key),
        report_kept=partial(_report_kept, metrics),
    )
    for issuer in access.all_issuers:
        _report_stale(metrics, issuer.issuer, False)
    verifier = Verifier(
        access, revocations=revocations, report_stale=partial(_report_stale, metrics)
    )
    return Access(
        Callers(verifier, access, proofs=_proofs(settings)),
        load_permissions(access.permissions),
        documents(
            access,
            certificates=settings.tls.client_certificates != "off",
            jwks=_development_jwks(settings),
        ),
        verifier,
    )


def check_access(settings: Settings) -> None:
    """Fail in the parent what would fail in every worker; make what they share.

    Raises:
        SealgateError: as `open_access`.
    """
    with closing(open_store(settings.access)) as store:
        store.start()
    if settings.sealing.replay_store != "local":
        check_replay_store(settings.sealing.replay_store, settings.redis)
    if settings.quotas.store != "local":
        check_quota_store(settings.quotas.store, settings.redis)
    load_permissions(settings.access.permissions)
    for issuer in settings.access.all_issuers:
        (check_introspection if issuer.introspection else check_source)(issuer)
    _proofs(settings)


def _report_kept(metrics: Metrics, kept: bool) -> None:
    metrics.set("sealgate_revocations_volatile", value=float(not kept))


def _report_stale(metrics: Metrics, issuer: str, stale: bool) -> None:
    metrics.set("sealgate_issuer_keys_stale", issuer, value=float(stale))


def _proofs(settings: Settings) -> Proofs | None:
    access = settings.access
    if all(issuer.dpop == "off" for issuer in access.all_issuers):
        return None
    return Proofs(
        _proof_store(settings),
        key=read_secret(settings.audit.pseudonym_key),
        resource=access.resource,
        nonces=Nonces(read_secret(access.dpop_key)) if access.dpop_nonce else None,
        window_s=access.dpop_window_s,
    )


def _proof_store(settings: Settings) -> ReplayStore:
    """Beside the sealed requests' own store, and of the same kind."""
    sealing = settings.sealing
    ttl_s = 4 * settings.access.dpop_window_s
    return open_replay_store(
        sealing.replay_store,
        sealing.replay_directory / "proofs",
        reach=sealing.redis,
        max_entries=sealing.max_replay_entries,
        share=sealing.max_replay_entries_per_subject,
        ttls_s=(ttl_s, ttl_s),
    )


def _development_jwks(settings: Settings) -> bytes | None:
    """The development issuer's keys, for other servers of a developer's machine."""
    if settings.service.environment == "production":
        return None
    for issuer in settings.access.all_issuers:
        if issuer.issuer == DEVELOPMENT_ISSUER and not isinstance(issuer.jwks, str):
            return development_jwks(load_jwks(issuer.jwks))
    return None
