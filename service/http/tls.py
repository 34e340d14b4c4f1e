"""TLS of the listening socket: modern, explicit, and renewed without a restart.

BentoML's defaults allow TLS 1.0 and ask nobody for a certificate. Here every choice is
made: TLS 1.2 with forward secrecy and an AEAD, or TLS 1.3 (RFC 9325, section 4).

Which certificate a client has is known by its handshake with this process and nothing
else: what a header says of one, whoever wrote it, is never looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

from security.errors import SettingsError
from security.key_files import passphrase_file, read_passphrase, read_secret
from security.settings.tls import TlsSettings

__all__ = ["client_thumbprint", "harden", "server_context"]

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_LOG = logging.getLogger("sealgate.tls")
_LOOK_EVERY_S = 1.0


def harden(context: ssl.SSLContext) -> None:
    """Leave a context nothing that is older than it must be."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_CIPHER_SERVER_PREFERENCE
        | ssl.OP_SINGLE_ECDH_USE
    )
    context.set_alpn_protocols(["http/1.1"])


def client_thumbprint(transport: asyncio.BaseTransport) -> str | None:
    """``x5t#S256`` of the certificate that a client proved to have (RFC 8705, 3.1).

    None without TLS, or where the client has shown none.
    """
    tls = transport.get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(binary_form=True)
    if der is None:
        return None
    return urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def server_context(
    settings: TlsSettings, *, clock: Callable[[], float] = time.monotonic
) -> ssl.SSLContext:
    """The context to listen with; it follows its files as they are renewed.

    Raises:
        SettingsError: a file is missing, malformed, or does not fit the others.
        KeyFileError: others may read the key.
    """
    context = _context(settings)
    files = _Files(settings, clock)

    def renew(_: object, __: object, current: ssl.SSLContext) -> None:
        # Asked at each handshake; what it loads serves the next one.
        if files.changed():
            _reload(current, settings)

    context.sni_callback = renew
    return context


class _Files:
    """Whether certificate or key were replaced since the last look."""

    def __init__(self, settings: TlsSettings, clock: Callable[[], float]) -> None:
        self._paths = (settings.certificate, settings.key)
        self._clock = clock
        self._seen = [_stamp(path) for path in self._paths]
        self._looked = clock()

    def changed(self) -> bool:
        now = self._clock()
        if now - self._looked < _LOOK_EVERY_S:
            return False
        self._looked = now
        stamps = [_stamp(path) for path in self._paths]
        changed = stamps != self._seen
        self._seen = stamps
        return changed


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (state.st_ino, state.st_mtime_ns, state.st_size)


def _reload(context: ssl.SSLContext, settings: TlsSettings) -> None:
    try:
        # Into another one first: half a pair would leave this one useless.
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
        _load(context, settings)
    except Exception as error:  # noqa: BLE001  (the old pair goes on)
        _LOG.warning("the TLS certificate was not renewed: %s", error)
    else:
        _LOG.info("the TLS certificate was renewed")


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    _load(context, settings)
    if settings.client_certificates != "off":
        try:
            context.load_verify_locations(settings.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"tls.client_ca: {_reason(error)}") from None
        required = settings.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    read_secret(settings.key)  # refuses a key that others may read
    try:
        context.load_cert_chain(settings.certificate, settings.key, _passphrase)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"tls.certificate, tls.key: {_reason(error)}") from None


def _passphrase() -> bytes:
    path = passphrase_file()
    # Without one OpenSSL would ask on the terminal.
    return b"" if path is None else read_passphrase(path)


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return str(reason or "cannot be used")
