"""What Prometheus is told: every family and label is named in one table here.

Labels come from signed manifests and from this code, never from a request, so their
number is bounded: strangers cannot grow the answer. Counting costs about a microsecond
and no lock; whoever asks for the numbers pays for adding up all workers.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import socket
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.admission.gate import Admission
from security.errors import SettingsError
from service.telemetry.counters import Counters, Key, Values, read_counters

__all__ = [
    "FAMILIES",
    "METRICS_TYPE",
    "Family",
    "Metrics",
    "make_folder",
    "open_metrics",
    "serve_metrics",
]

_FOLDER = "_SEALGATE_METRICS_FOLDER"
# Of the port of their own: connections at once, and seconds for each part of a request.
_MAX_CONNECTIONS = 32
_TIMEOUT_S = 10.0

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = tuple(m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5))
_ROWS = tuple(float(2**power) for power in range(11))


@dataclass(frozen=True)
class Family:
    """Series of one name.

    Attributes:
        kind: "counter", "histogram", "gauge" (added up over workers) or "info" (the
            largest of them).
        help: one sentence.
        labels: their names.
        buckets: upper bounds of a histogram, at most 22.
    """

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# A counter's name is written here without the "_total" that it is exposed with.
FAMILIES: Mapping[str, Family] = {
    "sealgate_requests": Family(
        "counter",
        "Requests answered; model and version are empty unless they are served here.",
        ("model", "version", "action", "status"),
    ),
    "sealgate_refusals": Family(
        "counter", "Requests refused, by the problem type's last part.", ("reason",)
    ),
    "sealgate_exports": Family(
        "counter",
        "Spans and log records for an OTLP receiver, by what became of them.",
        ("signal", "outcome"),
    ),
    "sealgate_rows": Family(
        "counter", "Rows of answered inferences.", ("model", "version")
    ),
    "sealgate_request_seconds": Family(
        "histogram",
        "From a complete request to its answer, neither opening nor sealing included.",
        ("action",),
        _SECONDS,
    ),
    "sealgate_stage_seconds": Family(
        "histogram",
        "One stage of a request; open, verify and seal have no model.",
        ("stage", "model", "version"),
        _SECONDS,
    ),
    "sealgate_batch_rows": Family(
        "histogram", "Rows of one run of a model.", ("model", "version"), _ROWS
    ),
    "sealgate_batch_requests": Family(
        "histogram", "Requests in one run of a model.", ("model", "version"), _ROWS
    ),
    "sealgate_comparisons": Family(
        "counter",
        "Requests that two versions ran, by whether their answers are the same.",
        ("model", "kind", "version", "tried", "result"),
    ),
    "sealgate_comparison_difference": Family(
        "histogram",
        "Largest absolute difference between the numbers of two versions' answers.",
        ("model", "kind", "version", "tried"),
        tuple(10.0**e for e in range(-9, 4)),
    ),
    "sealgate_requests_in_work": Family("gauge", "Requests being worked on."),
    "sealgate_revocations_volatile": Family(
        "info", "1 where a restart of its store would lose the list of revocations."
    ),
    "sealgate_shared_since_seconds": Family(
        "info",
        "Since when a shared store knows what it is asked; later than it was: a loss.",
        ("store",),
    ),
    "sealgate_issuer_keys_stale": Family(
        "info",
        "1 while an issuer's last good keys stand in for those that cannot be read.",
        ("issuer",),
    ),
    "sealgate_trust_root_version": Family(
        "info", "Version of the trust root in force; 0 where it has none."
    ),
    "sealgate_trust_root_expires_seconds": Family(
        "info", "When the trust root expires, Unix seconds; 0 for never."
    ),
    "sealgate_monitoring_away": Family(
        "info", "1 while a worker cannot store what it counts, or release it."
    ),
    "sealgate_witness_answers": Family(
        "counter",
        "Times that a witness of the audit log was asked, by what became of it.",
        ("witness", "outcome"),
    ),
    "sealgate_audit_witnessed_seconds": Family(
        "info",
        "When enough witnesses last cosigned the audit log, Unix time; 0: never.",
    ),
    "sealgate_labels_away": Family(
        "info", "1 while a worker cannot count answers with tickets, or release labels."
    ),
    "sealgate_monitoring_epsilon": Family(
        "info", "What releases have cost a subject in the last 365 days, at most."
    ),
    "sealgate_monitoring_epsilon_cap": Family(
        "info", "What they may cost before nothing more is released."
    ),
    "sealgate_monitoring_unknown": Family(
        "info",
        "1 while it cannot be told whether a version's rows drift.",
        ("model", "version"),
    ),
    "sealgate_monitoring_window_end_seconds": Family(
        "info",
        "End of the last window that was released and tested, Unix time.",
        ("model", "version"),
    ),
    "sealgate_monitoring_subjects": Family(
        "info", "Subjects of that window, with noise.", ("model", "version")
    ),
    "sealgate_drift_alarms": Family(
        "info", "Histograms in alarm in that window.", ("model", "version")
    ),
    "sealgate_drift_alarm": Family(
        "info",
        "1 for a histogram in alarm in that window.",
        ("model", "version", "histogram"),
    ),
    "sealgate_drift_psi": Family(
        "info",
        "Largest population stability index of that window: a size, and no test.",
        ("model", "version"),
    ),
    "sealgate_label_accuracy": Family(
        "info",
        "Accuracy by the last cohort of labels, and its 95% interval.",
        ("model", "version", "end"),
    ),
    "sealgate_label_coverage": Family(
        "info",
        "Share of the last cohort's labels inside their interval or set, and its 95% "
        "interval.",
        ("model", "version", "end"),
    ),
    "sealgate_coverage_below": Family(
        "info",
        "1 while that is less than the manifest states, beyond chance.",
        ("model", "version"),
    ),
    "sealgate_bodies_being_read": Family("gauge", "Requests that are being read."),
    "sealgate_body_bytes": Family(
        "gauge", "Bytes of the bodies of requests that are read or worked on."
    ),
    "sealgate_connections": Family("gauge", "Open HTTP connections."),
    "sealgate_ready": Family("gauge", "Workers that are ready to be sent requests."),
    "sealgate_unready": Family(
        "gauge", "Workers that something is missing to be ready.", ("missing",)
    ),
    "sealgate_model_info": Family(
        "info",
        "A model that this server runs, and the verdict that admitted it.",
        ("model", "version", "root_sha256", "verdict_sha256", "waived"),
    ),
}


class Metrics:
    """Counts for one worker, tells for all of them.

    >>> metrics = Metrics()
    >>> metrics.count("sealgate_refusals", "overloaded")
    >>> [line for line in metrics.text().decode().splitlines() if line[0] != "#"][0]
    'sealgate_refusals_total{reason="overloaded"} 1.0'
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters or Counters()
        # As many as there are series of `sealgate_requests`.
        self._answered: dict[tuple[object, ...], Callable[[float], None]] = {}
        self._values = self._counters.values
        # The process that these were about is gone.
        for key, values in self._counters.items():
            if _family(key).kind in ("gauge", "info"):
                values[0] = 0.0

    @property
    def folder(self) -> Path | None:
        """Where the numbers of all workers are; None if there is only this one."""
        return self._counters.folder

    def count(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Add to a counter of `FAMILIES`."""
        self._values((name, *labels))[0] += amount

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge of `FAMILIES`."""
        self._values((name, *labels))[0] = value

    def cell(self, name: str, *labels: str) -> Values:
        """The numbers of one series, the first of which is a gauge's or counter's."""
        return self._values((name, *labels))

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Add a value to a histogram of `FAMILIES`."""
        values = self._values((name, *labels))
        values[0] += value
        values[1 + bisect_left(FAMILIES[name].buckets, value)] += 1.0

    def histogram(self, name: str, *labels: str) -> Callable[[float], None]:
        """What adds values to one series of a histogram, looked up once."""
        values = self._values((name, *labels))
        buckets = FAMILIES[name].buckets

        def add(value: float) -> None:
            values[0] += value
            values[1 + bisect_left(buckets, value)] += 1.0

        return add

    def counted_histogram(
        self, counter: Sequence[str], histogram: Sequence[str]
    ) -> Callable[[float], None]:
        """What adds one to a counter, and a value to a histogram, looked up once."""
        cell = self.cell(*counter)
        add = self.histogram(*histogram)

        def count(value: float) -> None:
            cell[0] += 1.0
            add(value)

        return count

    def answered(
        self, model: str, version: str, action: str, status: int
    ) -> Callable[[float], None]:
        """What counts an answered request, given the seconds that it took."""
        labels = model, version, action, status
        known = self._answered.get(labels)
        if known is None:
            known = self._answered[labels] = self.counted_histogram(
                ("sealgate_requests", model, version, action, str(status)),
                ("sealgate_request_seconds", action),
            )
        return known

    def serves(self, admission: Admission, *, served: bool = True) -> None:
        """Say that a model is served, or no more, with what admitted it.

        ``waived`` names the kinds of evidence that a waiver let pass.
        """
        subject = admission.bundle.subject
        self.set(
            "sealgate_model_info",
            subject.name,
            subject.version,
            subject.root_sha256,
            admission.verdict_sha256,
            ",".join(sorted(admission.waivers)),
            value=float(served),
        )

    def totals(self) -> dict[Key, list[float]]:
        """The numbers of all workers: of a histogram its sum, then its buckets."""
        return _add_up(self._counters.read())

    def text(self) -> bytes:
        """The numbers of all workers in Prometheus' text format."""
        # Imported late: it is not needed before somebody asks.
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415

        return generate_latest(_registry(self._counters.read))


def make_folder() -> Path:
    """Make the folder of this server's numbers and notes, in the parent process."""
    folder = tempfile.mkdtemp(prefix="sealgate-metrics-")
    os.environ[_FOLDER] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def serve_metrics(host: str, port: int) -> None:
    """Answer with the numbers of all workers on a port of their own, to anyone.

    In the parent process, which outlives its workers, and after `make_folder`.

    Raises:
        SettingsError: the port cannot be had.
    """
    # Imported late: only one process needs them, and not every deployment's.
    from http.server import ThreadingHTTPServer  # noqa: PLC0415

    from prometheus_client import MetricsHandler  # noqa: PLC0415

    folder = Path(os.environ[_FOLDER])

    class Handler(MetricsHandler):
        registry = _registry(lambda: read_counters(folder))
        timeout = _TIMEOUT_S

        def send_response(self, code: int, message: str | None = None) -> None:
            """As the base's, but for the header that says what answers."""
            self.send_response_only(code, message)
            self.send_header("Date", self.date_time_string())

        def do_HEAD(self) -> None:  # noqa: N802  (its name)
            self.do_GET()

        def end_headers(self) -> None:
            super().end_headers()
            if self.command == "HEAD":
                self.wfile = io.BytesIO()

    class Server(_FewConnections, ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise SettingsError(
            f"observability.metrics_port: {port}: {error.strerror}"
        ) from None
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _FewConnections:
    """Mixed into a server of threads: beyond a number of connections the oldest goes.

    Whoever reaches the port could else take all descriptors of the process, and with
    them those of the requests that it answers.
    """

    def __init__(self, *args: Any) -> None:
        self._opened: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._opened[request] = None
            if len(self._opened) > _MAX_CONNECTIONS:
                oldest = next(iter(self._opened))
                del self._opened[oldest]
                with contextlib.suppress(OSError):  # its client has left
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)  # type: ignore[misc]

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)  # type: ignore[misc]

    def handle_error(self, *_: object) -> None:
        """A client that left is no news."""


def open_metrics() -> Metrics:
    """This process's numbers, in the parent's folder if it made one."""
    folder = os.environ.get(_FOLDER)
    return Metrics(Counters(None if folder is None else Path(folder)))


class _Collector:
    """All families that have numbers, as prometheus_client wants them."""

    def __init__(self, read: Callable[[], Iterable[tuple[Key, list[float]]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Any]:
        totals = _add_up(self._read())
        for name, family in FAMILIES.items():
            series = {k[1:]: v for k, v in totals.items() if k[0] == name}
            if series:
                yield _expose(name, family, series)


def _registry(read: Callable[[], Iterable[tuple[Key, list[float]]]]) -> Any:
    from prometheus_client import CollectorRegistry  # noqa: PLC0415  (as in `text`)

    registry = CollectorRegistry()
    registry.register(_Collector(read))
    return registry


def _family(key: Key) -> Family:
    return FAMILIES[key[0]]


def _add_up(series: Iterable[tuple[Key, list[float]]]) -> dict[Key, list[float]]:
    totals: dict[Key, list[float]] = {}
    for key, values in series:
        total = totals.get(key)
        if total is None:
            totals[key] = values
        elif _family(key).kind == "info":
            totals[key] = [max(pair) for pair in zip(total, values)]
        else:
            totals[key] = [sum(pair) for pair in zip(total, values)]
    return totals


def _expose(name: str, family: Family, series: Mapping[Key, Sequence[float]]) -> Any:
    from prometheus_client import core  # noqa: PLC0415  (as in `text`)

    if family.kind == "histogram":
        histogram = core.HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, values in sorted(series.items()):
            histogram.add_metric(labels, _buckets(family, values), values[0])
        return histogram
    counter = family.kind == "counter"
    kind = core.CounterMetricFamily if counter else core.GaugeMetricFamily
    exposed = kind(name, family.help, labels=family.labels)
    for labels, values in sorted(series.items()):
        exposed.add_metric(labels, values[0])
    return exposed


def _buckets(family: Family, values: Sequence[float]) -> list[tuple[str, float]]:
    result, total = [], 0.0
    bounds = [*(f"{bound:g}" for bound in family.buckets), "+Inf"]
    for bound, count in zip(bounds, values[1:]):
        total += count
        result.append((bound, total))
    return result
