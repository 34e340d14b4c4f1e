"""`seal`: encrypt a bundle's model to the deployments that may run it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import new_directory, write_atomic
from sealgate.protocol.kem import KEM_X25519, kem_of
from security.commands.options import Subparsers
from security.commands.signing import add_signing, signers
from security.commands.stages import Stages

if TYPE_CHECKING:
    from models.bundle import Bundle

__all__ = ["add_parser", "run"]

_CLASSICAL = (
    "note: X25519 alone does not withstand a quantum computer; `keys rotate --role "
    "model` gives a deployment an X-Wing key"
)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "seal",
        help="encrypt a bundle's model to the keys of deployments",
        description="Write a bundle whose model only the named deployments can open, "
        "in memory. Its evidence and verdict stay valid; the role release signs which "
        "ciphertext is which model.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--to",
        "--seal-to",
        dest="to",
        type=Path,
        action="append",
        required=True,
        metavar="PUBLIC_KEY.pem",
        help="a deployment's public model key, from `keys public --model`; repeatable, "
        "all X-Wing or all X25519",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to be made"
    )
    add_signing(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Seal; returns the exit code."""
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.confidential import seal_model  # noqa: PLC0415
    from security.admission.model_keys import load_model_public  # noqa: PLC0415

    bundle = read_bundle(args.bundle)
    public_keys = [load_model_public(path) for path in args.to]
    keys = signers(args, "release")
    with Stages() as stages:
        stages("sealing", 0.0)
        _write(
            args.out,
            bundle,
            seal_model(bundle, public_keys, keys),
        )
    print(f"sealed {bundle.manifest.tag} to deployments: {len(public_keys)}")
    if kem_of(public_keys[0]) == KEM_X25519:
        print(_CLASSICAL, file=sys.stderr)
    return 0


def _write(out: Path, bundle: Bundle, sealed: dict[str, bytes]) -> None:
    from models.bundle import MODEL_FILE, read_bundle  # noqa: PLC0415

    with new_directory(out) as folder:
        for name, data in {**bundle.files, **sealed}.items():
            if name != MODEL_FILE:
                write_atomic(folder / name, data)
        read_bundle(folder)
