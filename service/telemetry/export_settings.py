"""What is exported, and where to: the standard ``OTEL_*`` variables, without I/O.

Specification: opentelemetry.io, "Environment Variable Specification" and "OTLP Exporter
Configuration". What is invalid is named, never repeated, and counts as not set; but if
that would send anything to somebody else than was meant, nothing is sent.

A signal is exported where an endpoint is set, or its exporter is ``otlp``. Only
OTLP/JSON over HTTP is spoken, which receivers of OTLP/HTTP take on the same paths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["ExportSettings", "Sampling", "SignalSettings", "read_export"]

_DEFAULT_ENDPOINT = "http://localhost:4318"
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
# Fields that the exporter sets itself.
_OWN_HEADERS = frozenset(
    ("content-type", "content-length", "content-encoding", "host", "transfer-encoding")
)
_SAMPLERS = {
    # Whether the parent decides, and the share of what has none that is kept; None is
    # what the argument says.
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}
_MAX_ITEMS = 1 << 20
_MAX_MS = 86_400_000


@dataclass(frozen=True)
class Sampling:
    """Which requests are traced.

    Attributes:
        by_parent: as the caller decided, where it did.
        share: of the others, 0 to 1.
    """

    by_parent: bool = True
    share: float = 1.0


@dataclass(frozen=True)
class SignalSettings:
    """Where one signal goes.

    Attributes:
        url: to POST to.
        headers: to send along; secrets.
        certificate: file of authorities, or None for the system's.
        client_certificate, client_key: files of the certificate to show, or None.
        gzip: compress what is sent.
        timeout_s: of one attempt.
        delay_s: how long items are gathered.
        export_s: for all attempts of a batch.
        max_queue: items that wait; further ones are dropped.
        max_batch: items in a request.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    certificate: Path | None
    client_certificate: Path | None
    client_key: Path | None
    gzip: bool
    timeout_s: float
    delay_s: float
    export_s: float
    max_queue: int
    max_batch: int


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    Attributes:
        traces, logs: where to; None is nowhere.
        sampling: of traces.
        resource: attributes of this process.
        warnings: about variables, one line each, without their values.
    """

    traces: SignalSettings | None = None
    logs: SignalSettings | None = None
    sampling: Sampling = Sampling()
    resource: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_export(environment: Mapping[str, str]) -> ExportSettings:
    """What the variables ask for.

    >>> read_export({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}).traces.url
    'http://c:4318/v1/traces'
    """
    reader = _Reader(environment)
    if reader.flag("OTEL_SDK_DISABLED"):
        return ExportSettings(warnings=tuple(reader.warnings))
    return ExportSettings(
        traces=reader.signal("TRACES", "BSP", delay_ms=5000),
        logs=reader.signal("LOGS", "BLRP", delay_ms=1000),
        sampling=reader.sampling(),
        resource=reader.resource(),
        warnings=tuple(dict.fromkeys(reader.warnings)),
    )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.warnings: list[str] = []

    def signal(self, name: str, batch: str, *, delay_ms: int) -> SignalSettings | None:
        """Where a signal goes."""
        if not self._wanted(name):
            return None
        url, headers = self._url(name), self._headers(name)
        files = [
            self._file(name, what)
            for what in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
        ]
        spoken = self._speaks(name)
        if url is None or headers is None or not spoken or "" in files:
            return None  # one of them warns, and says why
        certificate, client, key = (Path(file) if file else None for file in files)
        max_queue = self._number(f"OTEL_{batch}_MAX_QUEUE_SIZE", 2048, _MAX_ITEMS)
        max_batch = self._number(f"OTEL_{batch}_MAX_EXPORT_BATCH_SIZE", 512, _MAX_ITEMS)
        delay = self._number(f"OTEL_{batch}_SCHEDULE_DELAY", delay_ms, _MAX_MS, least=0)
        export = self._number(f"OTEL_{batch}_EXPORT_TIMEOUT", 30_000, _MAX_MS)
        return SignalSettings(
            url=url,
            headers=headers,
            certificate=certificate,
            client_certificate=client,
            client_key=key,
            gzip=self._choice(name, "COMPRESSION", ("none", "gzip")) == "gzip",
            timeout_s=self._number(self._name(name, "TIMEOUT"), 10_000, _MAX_MS) / 1000,
            delay_s=delay / 1000,
            export_s=export / 1000,
            max_queue=max_queue,
            max_batch=min(max_batch, max_queue),
        )

    def sampling(self) -> Sampling:
        """Which requests are traced."""
        name = self._get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
        if name not in _SAMPLERS:
            self._warn("OTEL_TRACES_SAMPLER", "no sampler that is known here")
            name = "parentbased_always_on"
        by_parent, share = _SAMPLERS[name]
        return Sampling(by_parent, self._share() if share is None else share)

    def resource(self) -> dict[str, str]:
        """Attributes of the process; one that is malformed makes all of them so."""
        name, found = "OTEL_RESOURCE_ATTRIBUTES", {"service.name": "sealgate"}
        pairs = self._pairs(name)
        if pairs is None:
            self._warn(name, "not key=value,…")
        found |= dict(pairs or ())
        service = self._get("OTEL_SERVICE_NAME")
        return found | ({"service.name": service} if service else {})

    def flag(self, name: str) -> bool:
        """A boolean: true or false, in any case."""
        value = self._get(name).lower()
        if value not in ("", "true", "false"):
            self._warn(name, "neither true nor false")
        return value == "true"

    def _wanted(self, signal: str) -> bool:
        exporter = self._get(f"OTEL_{signal}_EXPORTER")
        if exporter and exporter not in ("otlp", "none"):
            self._warn(f"OTEL_{signal}_EXPORTER", "neither otlp nor none: not exported")
            return False
        named = any(self._get(name) for name in self._names(signal, "ENDPOINT"))
        return exporter == "otlp" or (not exporter and named)

    def _url(self, signal: str) -> str | None:
        name = self._name(signal, "ENDPOINT")
        url = self._get(name) or _DEFAULT_ENDPOINT
        try:
            parts = urlsplit(url)
            good = (
                parts.scheme in ("http", "https") and parts.hostname and url.isascii()
            )
            if not good or parts.username is not None or parts.port == 0:
                raise ValueError
        except ValueError:
            self._warn(name, "no http or https URL without a user: not exported")
            return None
        if f"_{signal}_" in name:  # taken as it is
            return url
        return f"{url.rstrip('/')}/v1/{signal.lower()}"

    def _headers(self, signal: str) -> tuple[tuple[str, str], ...] | None:
        name = self._name(signal, "HEADERS")
        pairs = self._pairs(name)
        for key, value in pairs or ():
            if (
                not _HEADER_NAME.fullmatch(key)
                or not _HEADER_VALUE.fullmatch(value)
                or key.lower() in _OWN_HEADERS
            ):
                pairs = None
                break
        if pairs is None:
            self._warn(name, "no header fields: not exported")
            return None
        return tuple((key.lower(), value) for key, value in pairs)

    def _file(self, signal: str, what: str) -> str | None:
        """A file's name, None without one, empty if it cannot be read."""
        name = self._name(signal, what)
        path = self._get(name)
        if not path:
            return None
        try:
            with Path(path).open("rb"):
                return path
        except OSError:
            self._warn(name, "the file cannot be read: not exported")
            return ""

    def _speaks(self, signal: str) -> bool:
        name = self._name(signal, "PROTOCOL")
        protocol = self._get(name) or "http/json"
        if protocol == "grpc":
            self._warn(name, "only http/json is spoken here: not exported")
            return False
        if protocol != "http/json":
            self._warn(name, "only http/json is spoken here: that is sent")
        return True

    def _choice(self, signal: str, what: str, known: tuple[str, ...]) -> str:
        name = self._name(signal, what)
        value = self._get(name)
        if value and value not in known:
            self._warn(name, f"none of {', '.join(known)}")
        return value if value in known else known[0]

    def _share(self) -> float:
        name = "OTEL_TRACES_SAMPLER_ARG"
        text = self._get(name)
        try:
            share = float(text) if text else 1.0
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            self._warn(name, "no number from 0 to 1")
            return 1.0
        return share

    def _number(self, name: str, default: int, most: int, *, least: int = 1) -> int:
        text = self._get(name)
        if not text:
            return default
        good = text.isascii() and text.isdigit() and len(text) < 12
        if not good or not least <= int(text) <= most:
            self._warn(name, f"no number from {least} to {most}")
            return default
        return int(text)

    def _pairs(self, name: str) -> list[tuple[str, str]] | None:
        """Texts of key=value, percent-encoded, between commas; None if malformed."""
        pairs = []
        for part in self._get(name).split(","):
            key, equals, value = part.strip().partition("=")
            if not part.strip():
                continue
            if not equals or not key.strip():
                return None
            pairs.append((unquote(key.strip()), unquote(value.strip())))
        return pairs

    def _names(self, signal: str, what: str) -> tuple[str, str]:
        own = f"OTEL_EXPORTER_OTLP_{signal}_{what}"
        return own, f"OTEL_EXPORTER_OTLP_{what}"

    def _name(self, signal: str, what: str) -> str:
        """The variable that counts: the signal's own before the one for all."""
        own, common = self._names(signal, what)
        return own if self._get(own) else common

    def _get(self, name: str) -> str:
        """A value; an empty one counts as not set."""
        return self._environment.get(name, "").strip()

    def _warn(self, name: str, what: str) -> None:
        self.warnings.append(f"{name}: {what}")
