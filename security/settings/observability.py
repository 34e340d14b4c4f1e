"""[observability]: logs, metrics, and the description of the interface."""

from __future__ import annotations

from dataclasses import dataclass

from security.errors import SettingsError

__all__ = ["ObservabilitySettings", "check_observability"]


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


def check_observability(observability: ObservabilitySettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if not 0 <= observability.metrics_port < 1 << 16:
        raise SettingsError("observability.metrics_port: 0 to 65535")
