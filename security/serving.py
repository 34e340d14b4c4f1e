"""What the server shows of itself, and over what: tables of service.toml.

Below `security.settings`, which reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError

__all__ = ["ObservabilitySettings", "TlsSettings", "check_serving"]


@dataclass(frozen=True)
class TlsSettings:
    """TLS of the listening socket; at least 1.2, with forward secrecy.

    Attributes:
        enabled: serve HTTPS, and nothing else.
        certificate: PEM file, the server's certificate first, then its chain. It and
            the key are read again when they change.
        key: PEM file of its private key, readable by its owner only.
        client_ca: PEM file of the authorities that issue clients' certificates.
        require_client_certificate: refuse connections without one of theirs.
    """

    enabled: bool = False
    certificate: Path = Path("tls/certificate.pem")
    key: Path = Path("tls/key.pem")
    client_ca: Path = Path("tls/clients.pem")
    require_client_certificate: bool = False


@dataclass(frozen=True)
class ObservabilitySettings:
    """Logs, metrics, and the description of the interface.

    Attributes:
        log_requests: one line of JSON for each request, to standard error.
        metrics_port: also serve the metrics there, without a token; 0 does not. For a
            network that only the operator reaches.
        metrics_host: address that port listens on.
        serve_openapi: answer GET /openapi.yaml, to callers with a valid token.
    """

    log_requests: bool = False
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    serve_openapi: bool = False


def check_serving(tls: TlsSettings, observability: ObservabilitySettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if tls.require_client_certificate and not tls.enabled:
        raise SettingsError("tls.require_client_certificate: needs tls.enabled")
    if not 0 <= observability.metrics_port < 1 << 16:
        raise SettingsError("observability.metrics_port: 0 to 65535")
