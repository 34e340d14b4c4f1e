"""`witness`: cosign the checkpoints of transparency logs, of this deployment or others.

Needs no settings, and nothing of a deployment: whoever runs it should be someone else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.endpoints import address, answers_to, listening
from security.commands.options import Subparsers, count
from security.commands.signing import add_passphrase
from security.errors import KeyFileError, WitnessError

if TYPE_CHECKING:
    import socket

    from sealgate.protocol.cosignatures import Cosigner
    from sealgate.protocol.notes import NoteKey
    from security.witness.server import Server

__all__ = ["add_parser", "run"]

ML_DSA_44, ED25519 = "ml-dsa-44", "ed25519"
MAX_LOGS_BYTES = 1 << 20
_MAX_GIB = 1 << 13
_REQUIRED = ("name", "key", "state")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "witness",
        help="run a witness: cosign checkpoints of logs, refuse forks",
        description="Run a witness of transparency logs (C2SP tlog-witness): it "
        "cosigns a log's checkpoint if a known key of the log signed it and it follows "
        "from the last one it cosigned, keeps each before it answers, and shows them "
        "to whoever asks. Runs until it is interrupted.",
    )
    _add_identity(parser, required=False)
    _add_logs(parser)
    parser.add_argument(
        "--listen",
        type=address,
        default=("127.0.0.1", 7380),
        metavar="HOST:PORT",
        help="where to listen, without TLS (default: 127.0.0.1:7380)",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="what it has seen is kept here; never lose it, never restore an old one",
    )
    parser.add_argument(
        "--max-gib",
        type=count(_MAX_GIB),
        default=16,
        metavar="N",
        help="of what is kept; beyond it nothing is cosigned (default: 16)",
    )
    parser.set_defaults(run=run)
    # By itself argparse shows an action as if one had to be named.
    prog = parser.prog
    parser.usage = (
        f"{prog} --name NAME --key FILE --state DIR --log VKEY [option ...]\n"
        f"       {prog} {{keygen,vkey}} ..."
    )
    actions = parser.add_subparsers(metavar="ACTION", prog=prog)
    for name, text, add in (
        ("keygen", "generate a witness's key, and print its verifier key", _add_keygen),
        ("vkey", "print the verifier keys that logs and clients are given", _add_vkey),
    ):
        add(actions.add_parser(name, help=text))


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="VKEY",
        help="verifier key of a log to cosign, named as its origin; again for others, "
        "or for another key of the same one",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="FILE",
        help="more of them, one a line; lines that begin with # are comments",
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="cosign a log so often, and 30 times at once (default: 5)",
    )


def _add_keygen(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a fresh private key; print the verifier key."
    _add_identity(parser, required=True)
    parser.add_argument(
        "--algorithm",
        choices=(ML_DSA_44, ED25519),
        default=ML_DSA_44,
        help="(default: %(default)s; older tools know ed25519 alone)",
    )
    add_passphrase(parser)
    parser.set_defaults(run=_keygen)


def _add_vkey(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print the verifier keys, one a line."
    _add_identity(parser, required=True)
    parser.set_defaults(run=_vkey)


def _add_identity(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--name",
        required=required,
        help="of the witness: a URL without its scheme, like witness.example/w1",
    )
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        required=required,
        metavar="FILE",
        help="private key in PEM; again for one of another algorithm",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 86400:
        raise argparse.ArgumentTypeError("seconds, from 0.01 to 86400")
    return value


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    import asyncio  # noqa: PLC0415  (not for --help)

    from security.witness.server import Server  # noqa: PLC0415
    from security.witness.state import State  # noqa: PLC0415
    from security.witness.witness import Rate, Witness, known_logs  # noqa: PLC0415

    missing = [f"--{name}" for name in _REQUIRED if not getattr(args, name)]
    if missing:
        raise WitnessError(f"{', '.join(missing)} is missing")
    logs = known_logs(_log_keys(args))
    cosigners = _cosigners(args)
    with listening(args.listen[0], args.listen[1], None) as endpoint:
        state = State(args.state, max_bytes=args.max_gib << 30)
        witness = Witness(
            cosigners, logs, state, rate=Rate(every_s=args.every), tell=_tell
        )
        server = Server(witness, state, origins=logs, tell=_tell)
        for cosigner in cosigners:
            print(cosigner.verifier, flush=True)
        try:
            asyncio.run(_serve(server, endpoint, args))
        finally:
            server.close()
            state.close()
    return 0


async def _serve(
    server: Server, endpoint: socket.socket, args: argparse.Namespace
) -> None:
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    where, _ = answers_to(endpoint, args.listen[0])

    def started() -> None:
        print(f"witness {args.name} on {where}", flush=True)

    await server.serve(endpoint, stop=stop, started=started)


def _keygen(args: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.asymmetric.mldsa import (  # noqa: PLC0415
        MLDSA44PrivateKey,
    )

    from sealgate.protocol.cosignatures import Cosigner  # noqa: PLC0415
    from security.key_files import (  # noqa: PLC0415
        passphrase_file,
        read_passphrase,
        write_private,
    )

    if len(args.key) != 1:
        raise KeyFileError("keygen makes one key: give --key once")
    kind = MLDSA44PrivateKey if args.algorithm == ML_DSA_44 else Ed25519PrivateKey
    key = kind.generate()
    verifier = Cosigner(args.name, key).verifier
    source = args.passphrase_file or passphrase_file()
    passphrase = read_passphrase(source) if source else None
    write_private(args.key[0], key, passphrase=passphrase)
    print(verifier)
    return 0


def _vkey(args: argparse.Namespace) -> int:
    for cosigner in _cosigners(args):
        print(cosigner.verifier)
    return 0


def _cosigners(args: argparse.Namespace) -> list[Cosigner]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.asymmetric.mldsa import (  # noqa: PLC0415
        MLDSA44PrivateKey,
    )

    from sealgate.protocol.cosignatures import Cosigner  # noqa: PLC0415
    from security.key_files import read_private  # noqa: PLC0415

    cosigners: list[Cosigner] = []
    for path in args.key:
        key = read_private(path)
        if not isinstance(key, (Ed25519PrivateKey, MLDSA44PrivateKey)):
            raise KeyFileError(f"{path}: neither an ML-DSA-44 nor an Ed25519 key")
        cosigners.append(Cosigner(args.name, key))
    if len({cosigner.verifier.encoded[:1] for cosigner in cosigners}) < len(cosigners):
        raise KeyFileError("two keys of one algorithm: a witness has one of each")
    return cosigners


def _log_keys(args: argparse.Namespace) -> list[NoteKey]:
    from sealgate.errors import NoteError  # noqa: PLC0415
    from sealgate.protocol.cosignatures import parse_note_key  # noqa: PLC0415

    lines = [*args.log]
    if args.logs is not None:
        with args.logs.open("rb") as file:
            data = file.read(MAX_LOGS_BYTES + 1)
        if len(data) > MAX_LOGS_BYTES:
            raise WitnessError(f"{args.logs}: larger than {MAX_LOGS_BYTES} bytes")
        lines += data.decode(errors="replace").splitlines()
    texts = [line.strip() for line in lines]
    keys = []
    for text in texts:
        if text and not text.startswith("#"):
            try:
                keys.append(parse_note_key(text))
            except NoteError as error:
                raise WitnessError(f"log {text[:60]}: {error}") from None
    if not keys:
        raise WitnessError("no log to cosign: name the verifier key of one with --log")
    return keys


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
