"""`trust`: the trust root as signed versions, each vouched for by the one before."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from security.commands.options import Subparsers

__all__ = ["add_parser", "run"]

ALGORITHMS = ("ecdsa-p256-sha256", "ml-dsa-65")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its own."""
    parser = subparsers.add_parser(
        "trust",
        help="sign, publish and follow versions of the trust root",
        description="A signed trust root names root keys. Its next version is believed "
        "if enough of its own root keys and enough of the last version's signed it: so "
        "keys are replaced, and whoever has an old version follows to the newest.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, add in _ACTIONS:
        action = own.add_parser(name, help=text)
        add(action)
        action.add_argument(
            "--trust",
            type=Path,
            metavar="FILE",
            help="the trust root (default: admission.trust of the settings)",
        )
        action.set_defaults(run=run, trust_action=name)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    from security.commands.trust_versions import ACTIONS  # noqa: PLC0415  (slow)

    action: Callable[[argparse.Namespace], int] = ACTIONS[args.trust_action]
    return action(args)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the version, until when it holds, its root keys, and what is proposed. "
        "Exit code 1 if no door would believe it. With a file: what that would change, "
        "which is what you sign."
    )
    _add_file(parser, nargs="?", text="a proposal")


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a root key: PATH.pem, which stays with its owner, and PATH.pub.pem, "
        "which goes into a proposal."
    )
    parser.add_argument("path", type=Path, metavar="PATH.pem")
    parser.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        default=ALGORITHMS[0],
        help="default: %(default)s",
    )
    _add_passphrase(parser)


def _add_propose(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Propose the next version, or the first one of a bare trust root, beside it in "
        "trust.next.json. `keys rotate`, `add` and `revoke` change the same proposal. "
        "A changed proposal has to be signed anew."
    )
    parser.add_argument(
        "--root-key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.pub.pem",
        help="a further root key; repeatable",
    )
    parser.add_argument(
        "--prehash",
        action="store_true",
        help="the ML-DSA-65 ones among them are in a key service, which signs a "
        "pre-hash",
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="HINT|FILE.pub.pem",
        help="a root key that is none any more, by its public half, its hint, or the "
        "first 8 or more characters of that; repeatable",
    )
    parser.add_argument(
        "--threshold",
        type=int,
        metavar="N",
        help="how many root keys, of each algorithm that there is, must sign the next",
    )
    parser.add_argument(
        "--expires-days",
        type=int,
        metavar="DAYS",
        help="until it expires (default: 365)",
    )


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sign a proposal with a root key, and say whose signatures it lacks."
    )
    _add_file(parser, nargs="?", text="the proposal (default: trust.next.json)")
    parser.add_argument(
        "--key",
        required=True,
        metavar="FILE|URI",
        help="private root key: a PEM file, or a URI of securesystemslib's signers",
    )
    parser.add_argument(
        "--public",
        type=Path,
        metavar="FILE",
        help="public half of a key named by URI",
    )
    _add_passphrase(parser)


def _add_pin(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Believe a signed version because you say so: the first one, or one that is to "
        "replace all that came before, after root keys were lost."
    )
    _add_file(parser, nargs=None, text="the version")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="although another signed version was accepted here",
    )


def _add_update(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Follow from the version that is here to the newest one, one at a time. Exit "
        "code 1 if one is refused, or the newest has expired; what was believed before "
        "that stays."
    )
    parser.add_argument(
        "source",
        metavar="FOLDER|URL|FILE",
        help="where 2.trust.json, 3.trust.json … are published, or the next version",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="certificates of the authority that certifies the URL's host (default: "
        "the system's)",
    )


def _add_file(parser: argparse.ArgumentParser, *, nargs: str | None, text: str) -> None:
    parser.add_argument("file", type=Path, nargs=nargs, metavar="FILE", help=text)


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="file with the key's passphrase or PIN, 0600 (default: what "
        "SEALGATE_KEY_PASSPHRASE_FILE names)",
    )


_ACTIONS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("show", "the version that is here, and what is proposed", _add_show),
    ("key", "make a root key", _add_key),
    ("propose", "the next version: root keys, threshold, expiry", _add_propose),
    ("sign", "sign a proposal with a root key", _add_sign),
    ("pin", "believe a signed version because you say so", _add_pin),
    ("update", "follow to the newest version", _add_update),
)
