"""`access issuer`: the development issuer's keys, for others to verify its tokens."""

from __future__ import annotations

import argparse
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from security.access.issuer import DEVELOPMENT_ISSUER, jwks_document, load_issuer_key
from security.commands.options import Subparsers
from security.errors import KeyFileError, SettingsError
from security.settings.loading import Settings, load_settings

__all__ = ["JWKS_PATH", "add_parser", "make_server"]

JWKS_PATH = "/jwks.json"
_TIMEOUT_S = 10


def add_parser(own: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = own.add_parser(
        "issuer",
        help="serve the keys of the development issuer",
        description="Serve the public keys of the development issuer on this machine "
        f"at {JWKS_PATH}, until interrupted; `token` mints what "
        "they verify. With a certificate over https, which servers insist on. Refused "
        "when the environment is production.",
    )
    parser.add_argument(
        "--port", type=int, default=9400, help="on 127.0.0.1; default: %(default)s"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="FILE", help="PEM, for https"
    )
    parser.add_argument(
        "--private-key", type=Path, metavar="FILE", help="PEM, of the certificate"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    server = make_server(
        load_settings(),
        port=args.port,
        certificate=args.certificate,
        private_key=args.private_key,
    )
    scheme = "http" if args.certificate is None else "https"
    print(
        f"{DEVELOPMENT_ISSUER}, for development only: "
        f"{scheme}://127.0.0.1:{server.server_port}{JWKS_PATH}",
        flush=True,
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def make_server(
    settings: Settings,
    *,
    port: int,
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> ThreadingHTTPServer:
    """A server of the keys, on this machine only; it listens, but does not answer yet.

    Raises:
        SettingsError: in production, or half of a certificate.
        KeyFileError: the issuer's key or the certificate cannot be used.
    """
    if settings.service.environment == "production":
        raise SettingsError("the development issuer is refused in production")
    if (certificate is None) != (private_key is None):
        raise SettingsError("--certificate and --private-key go together")
    document = jwks_document(load_issuer_key(settings.home).public_key())
    context: ssl.SSLContext | None = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, private_key)
        except (OSError, ssl.SSLError):
            raise KeyFileError(f"{certificate}: no certificate with its key") from None
    try:
        server = _Server(("127.0.0.1", port), _handler(document))
    except (OSError, OverflowError) as error:
        raise SettingsError(f"port {port}: {error}") from None
    if context is not None:
        # The handshake is each connection's own affair, not the listener's.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is no news."""


def _handler(document: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S
        server_version = "sealgate-development-issuer"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path != JWKS_PATH:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("content-type", "application/jwk-set+json")
            self.send_header("content-length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *args: object) -> None:
            """Nothing is logged."""

    return Handler
