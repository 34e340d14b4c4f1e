"""[tls]: TLS of the listening socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError

__all__ = ["TlsSettings", "check_tls"]


_MODES = ("off", "optional", "required")


@dataclass(frozen=True)
class TlsSettings:
    """TLS of the listening socket; at least 1.2, with forward secrecy.

    Attributes:
        enabled: serve HTTPS, and nothing else.
        certificate: PEM file, the server's certificate first, then its chain. It and
            the key are read again when they change.
        key: PEM file of its private key, readable by its owner only.
        client_ca: PEM file of the authorities that issue clients' certificates; read at
            the start. A self-signed certificate in it stands for itself.
        client_certificates: "off" asks for none; "optional" takes one of theirs, for
            tokens that are bound to it (RFC 8705); "required" refuses connections
            without one.
    """

    enabled: bool = False
    certificate: Path = Path("tls/certificate.pem")
    key: Path = Path("tls/key.pem")
    client_ca: Path = Path("tls/clients.pem")
    client_certificates: str = "off"


def check_tls(tls: TlsSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if tls.client_certificates not in _MODES:
        raise SettingsError(f"tls.client_certificates: one of {', '.join(_MODES)}")
    if tls.client_certificates != "off" and not tls.enabled:
        raise SettingsError("tls.client_certificates: needs tls.enabled")
