"""`store`: put a bundle where `bentoml build` finds it."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.bundle import read_bundle
from security.commands.options import Subparsers
from security.commands.stages import Stages

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "store",
        help="copy a bundle into BentoML's model store",
        description="Copy a bundle into BentoML's model store (BENTOML_HOME) under its "
        "own name and version. A stored version is never replaced.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Store; returns the exit code."""
    read_bundle(args.bundle)  # what is none is refused without BentoML, in no time
    from security.admission.store import store_bundle  # noqa: PLC0415  (bentoml)

    with Stages() as stages:
        stages("storing", 0.0)
        tag, stored = store_bundle(args.bundle)
    print(f"stored {tag}" if stored else f"stored {tag} already, with these contents")
    return 0
