"""Wiring, and the service that bentofile.yaml names.

Importing this module reads the settings and names the models; nothing is loaded yet.
`bentoml build` then asks each model for its info, `bentoml serve` runs the deployment
hook in the parent process, each worker builds the application: three doors, one gate.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from sealgate.errors import SealgateError
from security.access.issuer import DEVELOPMENT_ISSUER
from security.access.quotas import Quotas, load_quota_counters
from security.admission.contents import BASE_IMAGE, SERVICE_NAME, SERVICE_OPTIONS
from security.admission.gate import Admission
from security.audit.asking import Asker
from security.audit.checkpoints import add_leaves
from security.audit.journal import load_log, load_signer, record_operation
from security.audit.offers import load_offers
from security.audit.tree_log import TreeLog
from security.deferring import deferring
from security.errors import SettingsError
from security.key_files import read_secret
from security.monitoring.cohorts import Cohorts, check_cohorts, open_cohorts
from security.monitoring.monitor import Monitor, check_monitor, open_monitor
from security.sealing.freshness import Freshness, load_freshness
from security.sealing.keyring import load_keyring
from security.sealing.live import LiveRing
from security.sealing.publish import load_publication
from security.settings.issuers import check_resource, listening_origin
from security.settings.loading import Settings, load_settings

with deferring():
    import bentoml
    from _bentoml_sdk import Service
    from _bentoml_sdk.service import set_current_service
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml.exceptions import BentoMLException

    from security.admission.hooks import (
        AdmittedImage,
        admit_all,
        observe_refusals,
        stored_models,
    )
    from security.admission.loaded import LoadedModel
    from service.access import Access, check_access, open_access
    from service.forking import apart, fork_workers
    from service.gateway import Gateway
    from service.guard import App, Guard
    from service.http import connections
    from service.http.tls import server_context
    from service.inference.follower import Follower
    from service.inference.lineup import Lineup
    from service.inference.memory import bound_memory, keep_freed_memory
    from service.offering import Offering
    from service.readiness import Readiness, answers, own_folders, usable
    from service.receipts import open_receipts
    from service.routes import Routes
    from service.supervision import (
        command_alone,
        end_with_parent,
        leave_no_core,
        name_parent,
        watch_workers,
    )
    from service.telemetry.casualties import Casualties, Notes
    from service.telemetry.exports import Exports, check_exports, open_exports
    from service.telemetry.logs import LineWriter, RequestLog, export_messages, install
    from service.telemetry.metrics import (
        Metrics,
        make_folder,
        open_metrics,
        serve_metrics,
    )
    from service.telemetry.recorder import Recorder, open_recorder, record_refusal
    from service.watching import open_watching

__all__ = ["Sealgate", "name_resource", "open_doors", "read_settings"]


def read_settings() -> Settings:
    """The settings, or the one line that BentoML prints."""
    try:
        settings = load_settings()
        _check_access(settings)
    except SealgateError as error:
        raise BentoMLException(str(error)) from None
    return settings


def _check_access(settings: Settings) -> None:
    issuers = [issuer.issuer for issuer in settings.access.all_issuers]
    if not issuers:
        raise SettingsError("access.issuer and access.audience must be set")
    production = settings.service.environment == "production"
    if production and DEVELOPMENT_ISSUER in issuers:
        raise SettingsError("the development issuer is refused in production")
    if settings.access.resource:
        check_resource(settings.access.resource, production=production)


class AdmittedService(Service):
    """A BentoML service of admitted models, with the guard around all of it."""

    def __attrs_post_init__(self) -> None:
        """Name the models; the settings or the Bento's lock decide which."""
        super().__attrs_post_init__()
        self.models.extend(stored_models(read_settings()))

    def to_asgi(self, is_main: bool = True) -> App:
        """Build one worker's application: the third door."""
        settings = read_settings()
        end_with_parent(settings.service.shutdown_timeout_s + 5.0)
        leave_no_core(hidden=settings.service.environment == "production")
        try:
            install()
            metrics = open_metrics()
            exports = open_exports(metrics)
            if exports.write_line is not None:
                export_messages(exports.write_line)
            app = _guard(_inner(self, is_main), settings, metrics, exports)
            connections.install(settings, metrics, app)
        except SealgateError as error:
            raise BentoMLException(str(error)) from None
        keep_freed_memory()
        bound_memory(settings.runtime.max_memory_bytes)
        # What start-up made stays for ever: keep it out of every later collection.
        gc.collect()
        gc.freeze()
        return app


def _inner(service: Service, is_main: bool) -> App:
    """BentoML's application, which gets no request: only its start and its end."""
    with deferring():
        from _bentoml_impl.server.app import ServiceAppFactory  # noqa: PLC0415

    class Factory(ServiceAppFactory):
        """Without a client of itself, since it has no API, and without middleware."""

        middlewares = ()

        async def create_instance(self, app: Any) -> None:
            self._service_instance = self.service()
            set_current_service(self._service_instance)

        async def destroy_instance(self, _: Any) -> None:
            self._service_instance = None
            set_current_service(None)

    service.inject_config()
    return Factory(service, is_main=is_main)()


def _guard(inner: App, settings: Settings, metrics: Metrics, exports: Exports) -> Guard:
    lineup, follower = _followed(settings, metrics)
    access = open_access(settings, metrics)
    recorder = open_recorder(settings.audit, lineup.admissions)
    monitor, cohorts = _monitors(settings, lineup, metrics)
    readiness = _readiness(settings, lineup, access, metrics)
    quotas, freshness = _counters(settings, metrics)
    offering, own = _offering(settings, lineup, metrics)
    routes = Routes(
        lineup,
        access.callers,
        recorder,
        permissions=access.permissions,
        documents=access.documents,
        require_sealed=settings.sealing.require_sealed,
        metrics=metrics,
        log=_request_log(settings, exports),
        max_body_bytes=settings.service.max_body_bytes,
        interface=_interface() if settings.observability.serve_openapi else None,
        readiness=readiness,
        monitor=monitor,
        watching=open_watching(settings.monitoring, lineup=lineup, metrics=metrics),
        cohorts=cohorts,
        receipts=open_receipts(
            settings.audit, quotas=quotas, pseudonym=recorder.pseudonym
        ),
        quotas=quotas,
        offering=offering,
    )
    asker = _asker(settings, metrics, load_log(settings.audit), _witnessed(metrics))
    running = (follower, monitor, cohorts, offering, own)
    return Guard(
        inner,
        routes,
        _gateway(settings, routes, freshness, offering),
        settings.service,
        on_shutdown=partial(_end, running, recorder, asker, exports),
        tracer=exports.tracer,
        offering=offering,
    )


def _followed(settings: Settings, metrics: Metrics) -> tuple[Lineup, Follower]:
    """The versions in use, once they are loaded, and what follows the plan."""
    lineup = Lineup(
        timeout_s=settings.service.inference_timeout_s,
        settings=settings.runtime,
        metrics=metrics,
        notes=Notes(metrics.folder),
    )
    follower = Follower(
        settings,
        lineup,
        record=lambda fields: record_operation(settings.audit, [fields]),
        casualties=Casualties(metrics.folder),
        metrics=metrics,
    )
    follower.load_first()
    follower.start()
    return lineup, follower


def _readiness(
    settings: Settings, lineup: Lineup, access: Access, metrics: Metrics
) -> Readiness:
    readiness = Readiness(
        {
            "model": lambda: answers(lineup),
            "keys": access.verifier.has_keys,
            "stores": lambda: all(map(usable, own_folders(settings))),
        },
        metrics,
    )
    readiness.start()
    return readiness


def _offering(
    settings: Settings, lineup: Lineup, metrics: Metrics
) -> tuple[Offering | None, Asker | None]:
    """What offers in public what is in use, and what has that log cosigned."""
    offers = load_offers(settings.audit)
    if offers is None:
        return None, None
    offering = Offering(
        offers,
        ring=_live_ring(settings).current,
        admissions=lambda: lineup.admissions,
    )
    offering.start()
    # Its age is not the audit log's: that one's alert must not rest on this one.
    return offering, _asker(settings, metrics, offers.log, lambda time_s: None)


def _witnessed(metrics: Metrics) -> Callable[[int], None]:
    """Says when enough witnesses last cosigned the audit log."""
    name = "sealgate_audit_witnessed_seconds"
    return lambda time_s: metrics.set(name, value=float(time_s))


def _asker(
    settings: Settings, metrics: Metrics, log: TreeLog, witnessed: Callable[[int], None]
) -> Asker:
    """What has a log cosigned, if there are witnesses."""
    asker = Asker(
        settings.audit,
        log,
        report=partial(metrics.count, "sealgate_witness_answers"),
        witnessed=witnessed,
    )
    if settings.audit.witnesses.witness:
        metrics.set("sealgate_audit_witnessed_seconds", value=0.0)
    asker.start()
    return asker


def _live_ring(settings: Settings) -> LiveRing:
    sealing = settings.sealing
    return LiveRing(sealing.keys, overlap_s=sealing.key_overlap_s)


def _gateway(
    settings: Settings,
    routes: Routes,
    freshness: Freshness,
    offering: Offering | None,
) -> Gateway:
    published = (lambda ring: ring) if offering is None else offering.published
    return Gateway(
        _live_ring(settings).current,
        routes,
        published=published,
        max_body_bytes=settings.service.max_body_bytes,
        freshness=freshness,
        publication=load_publication(settings.sealing, settings.attestation),
    )


def _request_log(settings: Settings, exports: Exports) -> RequestLog | None:
    if not settings.observability.log_requests:
        return None
    return RequestLog(LineWriter(), export=exports.write_line)


def _monitors(
    settings: Settings, lineup: Lineup, metrics: Metrics
) -> tuple[Monitor | None, Cohorts | None]:
    """What counts what is asked and answered, and what gives tickets for answers."""

    def report(kind: str, name: str, value: float) -> None:
        family = "monitoring" if name == "epsilon" else kind
        metrics.set(f"sealgate_{family}_{name}", value=value)

    monitor = open_monitor(
        settings.monitoring,
        versions=lambda: lineup.watched,
        report=partial(report, "monitoring"),
    )
    cohorts = open_cohorts(
        settings.monitoring,
        versions=lambda: lineup.manifests,
        report=partial(report, "labels"),
    )
    for each in (monitor, cohorts):
        if each is not None:
            each.start()
    return monitor, cohorts


def _counters(settings: Settings, metrics: Metrics) -> tuple[Quotas, Freshness]:
    """What counts requests, and what knows each of them again."""
    key = read_secret(settings.audit.pseudonym_key)
    report = partial(_report_since, metrics)
    return (
        load_quota_counters(
            settings.quotas, key=key, report_since=partial(report, "quotas")
        ),
        load_freshness(
            settings.sealing, key=key, report_since=partial(report, "replays")
        ),
    )


def _report_since(metrics: Metrics, store: str, since: int) -> None:
    """Since when a Redis knows what is asked of it: later than it was is a loss."""
    metrics.set("sealgate_shared_since_seconds", store, value=float(since))


def _end(
    running: Iterable[Follower | Monitor | Cohorts | Offering | Asker | None],
    recorder: Recorder,
    asker: Asker,
    exports: Exports,
) -> None:
    """At the end of the lifespan: after it a signal may end the process at once."""
    for thread in running:
        if thread is not None:
            thread.stop()
    recorder.close()
    asker.stop()
    exports.stop()


observe_refusals(record_refusal)


def _check_operable(settings: Settings) -> None:
    """Fail in the parent what would otherwise fail again and again in every worker."""
    check_access(settings)
    publication = load_publication(settings.sealing, settings.attestation)
    publication.signed_v2(load_keyring(settings.sealing.keys))
    load_freshness(settings.sealing, key=b"")
    read_secret(settings.audit.pseudonym_key)
    load_signer(settings.audit)
    log = load_log(settings.audit)
    Asker(settings.audit, log)
    # What could take no checkpoint records nothing that anybody can verify.
    add_leaves(settings.audit.directory, log)
    if settings.tls.enabled:
        server_context(settings.tls)
    load_quota_counters(settings.quotas, key=b"")
    check_exports()
    check_monitor(settings.monitoring)
    check_cohorts(settings.monitoring)


def _load(admissions: Iterable[Admission], settings: Settings) -> None:
    """Load each once, for what else only workers would meet."""
    for admission in admissions:
        LoadedModel(admission, settings.runtime)


def _interface() -> bytes:
    """The description of the interface that clients may read (OpenAPI)."""
    return Path(__file__).with_name("openapi.yaml").read_bytes()


def _serve_metrics(settings: Settings) -> None:
    observability = settings.observability
    if not observability.metrics_port:
        return
    try:
        serve_metrics(observability.metrics_host, observability.metrics_port)
    except SealgateError as error:
        raise BentoMLException(str(error)) from None


def open_doors(settings: Settings, *, load: bool) -> Path:
    """What comes before the first worker: the gate, and what all workers share.

    Args:
        settings: of the deployment.
        load: whether each model is loaded once, for what only workers would meet.

    Returns:
        The folder of the server's numbers and notes.

    Raises:
        BentoMLException: one line for what ends the start.
    """
    admissions = admit_all(settings)
    try:
        if load:
            apart(lambda: _load(admissions, settings))
        _check_operable(settings)
    except SealgateError as error:
        raise BentoMLException(str(error)) from None
    leave_no_core(hidden=settings.service.environment == "production")
    folder = make_folder()
    _serve_metrics(settings)
    for admission in admissions:
        print(
            f"admitted {admission.bundle.manifest.tag}, "
            f"verdict sha256:{admission.verdict_sha256}",
            flush=True,
        )
    return folder


def name_resource(settings: Settings, host: str, port: int) -> None:
    """In development, call this server by where it listens, if no setting does.

    What starts after this reads it as ``access.resource``, workers too.
    """
    if settings.access.resource or settings.service.environment == "production":
        return
    origin = listening_origin(host, port, tls=settings.tls.enabled)
    if origin:
        os.environ["SEALGATE_ACCESS_RESOURCE"] = origin


def _given() -> dict[str, Any]:
    """The options of `bentoml serve`; none where this is another command."""
    context = click.get_current_context(silent=True)
    return {} if context is None else context.params


def _address() -> tuple[str, int]:
    """Where `bentoml serve` will listen: its options, or else BentoML's settings."""
    given, http = _given(), BentoMLContainer.http
    return given.get("host") or http.host.get(), given.get("port") or http.port.get()


@bentoml.service(
    name=SERVICE_NAME,
    service_class=AdmittedService,
    image=AdmittedImage(base_image=BASE_IMAGE, distro="custom"),
    **SERVICE_OPTIONS,
)
class Sealgate:
    """Sealed, authenticated inference on admitted ONNX models."""

    @bentoml.on_deployment
    @staticmethod
    def admit() -> None:
        """Run the gate in the parent process: a refusal ends `bentoml serve`."""
        settings = read_settings()
        name_resource(settings, *_address())
        folder = open_doors(settings, load=True)
        name_parent()
        command_alone(folder)
        watch_workers(settings.audit, folder)
        # With --reload workers are to run what the sources say by then.
        if settings.service.fork_workers and not _given().get("reload"):
            fork_workers()
