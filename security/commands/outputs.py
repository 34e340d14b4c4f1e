"""`outputs`: say how much of each answer of a bundle may leave."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.bundle import read_bundle
from models.output_policy import OutputPolicy
from models.restriction import restrict
from security.commands.options import Subparsers
from security.errors import SettingsError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "outputs",
        help="say how much of each answer of a bundle may leave",
        description="Show or set a bundle's output policy: scores of few decimals, the "
        "highest ones, or the label alone. It stands in the manifest, which every "
        "statement covers, so set it before you assess and sign: what the training "
        "says is kept, signatures and what was measured are removed.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--decimals",
        type=int,
        metavar="N",
        help="round scores, or a predicted number; below 0 to tens, hundreds, …",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="only the K highest scores of a row"
    )
    parser.add_argument(
        "--label-only", action="store_true", help="no score, only the class decided"
    )
    parser.add_argument(
        "--no-explanations",
        action="store_true",
        help="all scores, but no attributions; these never leave where scores do not",
    )
    parser.add_argument(
        "--all-scores", action="store_true", help="everything, as without a policy"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show or set it; returns the exit code."""
    asked: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("decimals", "top_k")
        if getattr(args, name) is not None
    }
    asked |= {"label_only": True} if args.label_only else {}
    asked |= {"explanations": False} if args.no_explanations else {}
    if args.all_scores and asked:
        raise SettingsError("--all-scores goes with no other policy")
    for key, message in OutputPolicy.mistakes(asked):
        raise SettingsError(f"--{key.replace('_', '-')}: {message}")
    bundle = read_bundle(args.bundle)
    if asked or args.all_scores:
        bundle = restrict(args.bundle, OutputPolicy(**asked))
    manifest = bundle.manifest
    print(f"{manifest.tag}  {manifest.output_policy}")
    print(f"{'answers':<12}{', '.join(manifest.release.names)}")
    return 0
