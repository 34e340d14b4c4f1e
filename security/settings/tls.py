"""[tls]: TLS of the listening socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError

__all__ = ["TlsSettings", "check_tls"]


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


def check_tls(tls: TlsSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if tls.require_client_certificate and not tls.enabled:
        raise SettingsError("tls.require_client_certificate: needs tls.enabled")
