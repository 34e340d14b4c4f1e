"""`sealgate`: the client on the command line.

Exit codes: 0 done; 1 the server refused, or is not ready; 2 wrong usage, or an error.
An error is one line on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sealgate import commands, receipt_commands
from sealgate.errors import SealgateError, ServerRefusedError
from sealgate.tables import KINDS
from sealgate.version import PrintVersion

__all__ = ["build_parser", "main"]

DEFAULT_PROFILE = ".sealgate/profile.json"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="sealgate",
        description="Sealed, authenticated inference: requests and answers are "
        "readable by the server alone.",
        epilog="Exit codes: 0 done; 1 the server refused; 2 wrong usage, or an error.",
    )
    parser.add_argument(
        "--version", action=PrintVersion, nargs=0, help="print it and end"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, add in _COMMANDS:
        add(subparsers.add_parser(name, help=text))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except ServerRefusedError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except SealgateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads our output has enough of it. Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=Path,
        default=Path(os.environ.get("SEALGATE_PROFILE", DEFAULT_PROFILE)),
        metavar="FILE",
        help=f"server, token and trusted keys (default: {DEFAULT_PROFILE}, or "
        "SEALGATE_PROFILE)",
    )
    parser.add_argument(
        "--client-certificate",
        type=Path,
        metavar="FILE",
        help="PEM certificate to show to the server, instead of the profile's",
    )
    parser.add_argument(
        "--client-key",
        type=Path,
        metavar="FILE",
        help="PEM file of its key, if that is not in the same file",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="PEM file of the authorities that the server's certificate must come from",
    )
    parser.add_argument(
        "--proxy",
        metavar="URL",
        help="connect by this proxy, or '' by none (default: as HTTPS_PROXY and "
        "NO_PROXY say)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="default: %(default)s",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="default: the profile's model"
    )
    _add_profile(parser)


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", metavar="URL", help="of the server, instead of a profile's"
    )
    _add_profile(parser)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise ValueError(text)
    return value


def _add_infer(parser: argparse.ArgumentParser) -> None:
    parser.description = "Seal the rows of files, send them, print the answer."
    _add_model(parser)
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help=".json, .npz, .csv or .parquet, or - for standard input; the answers to "
        "several files are joined, and more rows than the model takes at once are sent "
        "in several requests",
    )
    parser.add_argument(
        "--input-format",
        choices=KINDS,
        help="instead of what the files' names say (default for -: csv)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, not a table")
    form.add_argument(
        "--csv",
        action="store_true",
        help="print CSV: the input's columns, and the answer with the labels' names",
    )
    form.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write that as .csv or .parquet, or the answer as .json or .npz; print "
        "nothing",
    )
    parser.add_argument(
        "--tickets",
        type=Path,
        metavar="FILE",
        help="have a ticket for each row, and write them as CSV with an empty column "
        "for the labels that `sealgate feedback` sends later",
    )
    parser.add_argument(
        "--receipts",
        type=Path,
        metavar="FILE",
        help="write the numbers by which `sealgate receipt fetch` gets proof that the "
        "requests are on record",
    )
    parser.set_defaults(run=commands.infer)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ask why a model answers so, about rows of a file: what each column "
        "contributes, as bars. Each row counts as many rows of your quota as it takes "
        "evaluations."
    )
    _add_model(parser)
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="as for infer",
    )
    parser.add_argument("--input-format", choices=KINDS, help="as for infer")
    parser.add_argument(
        "--row",
        type=_count,
        action="append",
        metavar="N",
        help="explain only this row, from 0; repeatable (default: the first)",
    )
    parser.add_argument(
        "--of", metavar="CLASS", help="class to explain; default: the one answered"
    )
    parser.add_argument(
        "--method",
        choices=("shapley", "local"),
        default="shapley",
        help="local: a linear model of what is answered nearby (default: shapley)",
    )
    parser.add_argument(
        "--pairs",
        type=_count,
        metavar="N",
        help="of permutations; more make errors smaller (default: 10)",
    )
    parser.add_argument(
        "--samples", type=_count, metavar="N", help="rows nearby (default: 1000)"
    )
    parser.add_argument("--version", metavar="V", help="default: the model's default")
    parser.add_argument(
        "--top",
        type=_count,
        default=12,
        metavar="N",
        help="columns to show, the others added up (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not bars")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the bars, too"
    )
    parser.set_defaults(run=commands.explain)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _add_feedback(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send labels of earlier answers, each with the ticket that came with its "
        "answer. Rows without a label are left out. The token needs the scope "
        "feedback:MODEL."
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help=".csv or .jsonl, with ticket, label and perhaps group; or - for CSV on "
        "standard input",
    )
    _add_model(parser)
    parser.set_defaults(run=commands.feedback)


def _add_metadata(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show a model's inputs and outputs, columns and labels."
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the v2 document")
    parser.set_defaults(run=commands.metadata)


def _add_monitoring(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show what monitoring found of a model: a line per window, what drifted, and "
        "accuracy by labels. Takes a token with the scope monitoring:MODEL."
    )
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.set_defaults(run=commands.monitoring)


def _add_passport(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch a model's signed verdict and evidence, verify them against the "
        "profile's trusted keys, and print what they state."
    )
    _add_model(parser)
    parser.set_defaults(run=commands.passport)


def _add_receipt(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Receipts: proof that answers are in the deployment's audit log."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_receipt_fetch(subparsers.add_parser("fetch", help="fetch receipts"))
    _add_receipt_verify(subparsers.add_parser("verify", help="verify them offline"))


def _add_receipt_fetch(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the receipts for answers, wait for those that no checkpoint covers yet, "
        "and verify them by the profile's keys of the log and its witnesses."
    )
    parser.add_argument(
        "numbers", type=Path, metavar="FILE", help="what `infer --receipts` wrote"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("receipts"),
        metavar="FOLDER",
        help="for a file per request (default: %(default)s)",
    )
    _add_profile(parser)
    parser.set_defaults(run=receipt_commands.fetch)


def _add_receipt_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Verify receipts, without asking the server: by the keys of the log and its "
        "witnesses that are given, or else the profile's."
    )
    parser.add_argument("receipts", type=Path, nargs="+", metavar="FILE")
    _add_log_keys(parser)
    parser.add_argument(
        "--numbers",
        type=Path,
        metavar="FILE",
        help="what `infer --receipts` wrote: refuse receipts for other requests",
    )
    parser.add_argument("--request-id", metavar="ID", help="refuse another request's")
    parser.add_argument(
        "--model-sha256", metavar="DIGEST", help="refuse another model's"
    )
    parser.add_argument(
        "--tlog-proof",
        type=Path,
        metavar="FILE",
        help="write the log's part as C2SP tlog-proof, and its leaf beside it",
    )
    _add_profile(parser)
    parser.set_defaults(run=receipt_commands.verify)


def _add_log_keys(parser: argparse.ArgumentParser) -> None:
    for name, text in (
        ("--log-key", "vkey of the audit log; each that is given must have signed"),
        ("--witness", "vkey of a witness"),
    ):
        parser.add_argument(
            name, type=Path, action="append", default=[], metavar="FILE", help=text
        )
    parser.add_argument(
        "--required",
        type=_count,
        metavar="M",
        help="how many of the witnesses must have cosigned",
    )


def _add_offers(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read and verify the public log of what a deployment offers: key "
        "configurations, releases, and verdicts as salted hashes. It takes no token."
    )
    parser.add_argument(
        "--vkeys",
        action="store_true",
        help="print that log's own vkeys, as its witnesses need them; ask nobody",
    )
    _add_log_keys(parser)
    _add_url(parser)
    parser.set_defaults(run=receipt_commands.offers)


def _add_health(parser: argparse.ArgumentParser) -> None:
    parser.description = "Say whether the server is ready. Asked without a token."
    _add_url(parser)
    parser.set_defaults(run=commands.health)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the keys that requests are sealed to, and show their fingerprints. With "
        "an identity key, given or in the profile, only keys that it signed are shown."
    )
    _add_url(parser)
    parser.add_argument(
        "--identity",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="PEM public key of the deployment, to verify the keys against",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the application/ohttp-keys document there",
    )
    parser.set_defaults(run=commands.keys)


def _add_proxy(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Listen on this machine and seal every request for the server, so that any "
        "Open Inference Protocol client can talk to it. Requests without a token get "
        "the profile's where they come from your own account."
    )
    parser.add_argument(
        "--to", metavar="URL", help="server to seal to; default: the profile's"
    )
    parser.add_argument(
        "--listen",
        type=commands.address,
        metavar="ADDRESS",
        help="host:port (default: 127.0.0.1:8080, or none beside --grpc)",
    )
    parser.add_argument(
        "--grpc",
        type=commands.address,
        metavar="ADDRESS",
        help="host:port for clients that speak gRPC; needs sealgate[grpc]",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="listen on a Unix socket that only you can open, instead of an address",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--allow-others",
        action="store_true",
        help="lend the profile's token to every account of this machine",
    )
    token.add_argument(
        "--no-token",
        action="store_true",
        help="lend it to nobody: clients bring their own",
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen beyond this machine; what is sent to the proxy is not sealed",
    )
    _add_profile(parser)
    parser.set_defaults(run=commands.proxy)


_COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("infer", "run a model on the rows of files", _add_infer),
    ("explain", "say why a model answers so", _add_explain),
    ("feedback", "send labels of earlier answers", _add_feedback),
    ("metadata", "show a model's inputs and outputs", _add_metadata),
    ("health", "say whether the server is ready", _add_health),
    ("monitoring", "show what monitoring found of a model", _add_monitoring),
    ("passport", "check and show a model's evidence", _add_passport),
    ("receipt", "fetch and verify proof that answers are on record", _add_receipt),
    ("offers", "read the public log of what is offered", _add_offers),
    ("keys", "show, verify and save the server's keys", _add_keys),
    ("proxy", "seal what any client sends", _add_proxy),
)
