"""`python -m service`: the server as one process, or as several by BentoML.

Exit codes: 0 stopped in an orderly way; 1 a model was refused; 2 wrong usage, or
something else that keeps it from starting. No port is open before every model that
would be served has been admitted and loaded.

Inside a Bento it serves that Bento; elsewhere what ``service.models`` names.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.admission.contents import SERVICE_NAME
from security.deferring import deferring
from security.settings.loading import Settings

with deferring():
    import bentoml
    import uvicorn
    from bentoml._internal.resource import system_resources
    from bentoml.exceptions import BentoMLException

__all__ = ["main"]

_SOURCE = Path(__file__).resolve().parents[1]
_BACKLOG = 2048
_MAX_WORKERS = 1024
_MAX_GRACE_S = 86_400


def main() -> int:
    """Serve until a signal; returns the exit code."""
    args = _parser().parse_args()
    try:
        # Importing it reads the settings, and may refuse them.
        with deferring():
            from service.app import (  # noqa: PLC0415
                name_resource,
                open_doors,
                read_settings,
            )

        settings = read_settings()
        name_resource(settings, args.host, args.port)
        if args.workers > 1:
            return _serve_by_bentoml(args, settings)
        service = bentoml.load(_target(), working_dir=str(_SOURCE))
        # Loading follows at once, in this very process.
        open_doors(settings, load=False)
        return _listen(args, settings, service.to_asgi())
    except BentoMLException as error:
        # A refusal of the gate says so itself.
        text = " ".join(str(error).split())
        print(text if "refused:" in text else f"error: {text}", file=sys.stderr)
        return 1 if "refused:" in text else 2
    except OSError as error:
        # Python adds to what the system says where it tried; a resolver has numbers of
        # its own, below 0.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        where = error.filename or f"{args.host}:{args.port}"
        print(f"error: {where}: {reason}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve the admitted models that service.toml, the operator's plan "
        "or the Bento around this code names.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["serve"],
        help="changes nothing: manifests have it, as `bentoml serve` did",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port",
        type=_count(65_535),
        # As `bentoml serve` has it, which images started before.
        default=os.environ.get("BENTOML_PORT", "3000"),
        help="default: BENTOML_PORT, or else 3000",
    )
    parser.add_argument(
        "--workers",
        type=_count(_MAX_WORKERS),
        default=_configured_workers(),
        metavar="N",
        help="processes that answer, under a parent of BentoML's that starts them "
        "again; 1 is this process alone (default, if BENTOML_CONFIG_OPTIONS names "
        "no other number)",
    )
    parser.add_argument(
        "--timeout-graceful-shutdown",
        type=_count(_MAX_GRACE_S),
        metavar="S",
        help="seconds for requests in work at the end; the setting "
        "service.shutdown_timeout_s, if that is less (default)",
    )
    return parser


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a number from 1 to {most}")
        return int(text)

    return read


def _configured_workers() -> int:
    """What BentoML's own settings ask for in this process's environment."""
    options = os.environ.get("BENTOML_CONFIG_OPTIONS", "")
    name = rf"(?:^|\s)services\.{SERVICE_NAME}\.workers="
    found = re.findall(rf"{name}(\d+|cpu_count)(?!\S)", options)
    if found and found[-1] == "cpu_count":
        return int(system_resources()["cpu"]) or 1
    return int(found[-1]) if found else 1


def _target() -> str:
    """What BentoML serves: the Bento around this code, or this code."""
    bento = _SOURCE.parent
    return str(bento) if (bento / "bento.yaml").exists() else "service.app:Sealgate"


def _serve_by_bentoml(args: argparse.Namespace, settings: Settings) -> int:
    """Be what `bentoml serve` is, whose parent runs the gate before it starts workers.

    Its command would import BentoML's cloud, and everything else once more.
    """
    from _bentoml_impl.server.serving import serve_http  # noqa: PLC0415
    from bentoml._internal.log import configure_server_logging  # noqa: PLC0415

    configure_server_logging()
    # BentoML's own option for this counts for services of its older kind only.
    given = os.environ.get("BENTOML_CONFIG_OPTIONS", "")
    workers = f"{given} services.{SERVICE_NAME}.workers={args.workers}".strip()
    os.environ["BENTOML_CONFIG_OPTIONS"] = workers
    service = bentoml.load(_target(), working_dir=str(_SOURCE))
    service.inject_config()
    serve_http(
        _target(),
        working_dir=str(_SOURCE),
        host=args.host,
        port=args.port,
        timeout_graceful_shutdown=_grace_s(args, settings),
    )
    return 0


def _grace_s(args: argparse.Namespace, settings: Settings) -> int:
    return args.timeout_graceful_shutdown or math.ceil(
        settings.service.shutdown_timeout_s
    )


def _listen(args: argparse.Namespace, settings: Settings, app: Any) -> int:
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    address = (args.host, args.port)
    listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    scheme = "https" if settings.tls.enabled else "http"
    host = f"[{args.host}]" if family is socket.AF_INET6 else args.host
    config = uvicorn.Config(
        app, log_config=None, timeout_graceful_shutdown=_grace_s(args, settings)
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # Until uvicorn takes signals itself; and it raises the one that it was stopped by
    # once more, after it has stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    print(f"listening on {scheme}://{host}:{args.port}", flush=True)
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
