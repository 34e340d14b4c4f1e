"""`outputs`: how much of each answer of a bundle may leave, and how it is explained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.bundle import read_bundle
from models.data.sources import rows_of
from models.explanations import QUANTITIES, Explanations
from models.manifest import Manifest
from models.output_policy import OutputPolicy
from models.restriction import restrict
from security.commands.options import Subparsers
from security.errors import SettingsError

__all__ = ["add_parser", "run"]

_MAX_BYTES = 4 << 20


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
        "--abstain",
        action="store_true",
        help="no answer about a row whose set is not one class; `calibrate` makes sets",
    )
    parser.add_argument(
        "--no-explanations",
        action="store_true",
        help="all scores, but no attributions; these never leave where scores do not",
    )
    parser.add_argument(
        "--all-scores", action="store_true", help="everything, as without a policy"
    )
    explained = parser.add_argument_group("how answers are explained")
    explained.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="public rows that a row is compared with, a table with the model's "
        "columns; without any it is the middle of each public range. Never rows that "
        "were trained on",
    )
    explained.add_argument("--explained", metavar="OUTPUT", help="of several outputs")
    explained.add_argument(
        "--quantity",
        choices=QUANTITIES,
        help="what contributions add up to (default: log-odds of probabilities)",
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
    asked |= {"abstain": True} if args.abstain else {}
    asked |= {"explanations": False} if args.no_explanations else {}
    if args.all_scores and asked:
        raise SettingsError("--all-scores goes with no other policy")
    for key, message in OutputPolicy.mistakes(asked):
        raise SettingsError(f"--{key.replace('_', '-')}: {message}")
    bundle = read_bundle(args.bundle)
    policy = None
    if asked or args.all_scores:
        policy = OutputPolicy(**asked)
    before, explained = bundle.manifest, _explanations(args, bundle.manifest)
    manifest = restrict(args.bundle, policy, explained).manifest
    print(f"{manifest.tag}  {manifest.output_policy}")
    print(f"{'answers':<12}{', '.join(manifest.release.names)}")
    if manifest.conformal is not None:
        print(f"{'coverage':<12}{manifest.conformal.coverage:g}")
    elif before.conformal is not None:
        print(f"{'coverage':<12}none any more: calibrate on answers of these decimals")
    if manifest.output_policy.explains:
        rows = len(manifest.explanations.references)
        against = f"{rows} public rows" if rows else "the middle of each public range"
        print(f"{'explained':<12}against {against}")
    return 0


def _explanations(args: argparse.Namespace, manifest: Manifest) -> Explanations | None:
    """What was said of them; None where nothing was.

    Raises:
        DatasetError: the table has not the model's columns.
        SettingsError: the model has no columns by name.
    """
    if (args.references, args.explained, args.quantity) == (None, None, None):
        return None
    rows = manifest.explanations.references
    if args.references is not None:
        if not manifest.columns:
            raise SettingsError("--references: the model's columns have no names")
        file = str(args.references)
        values = rows_of(file, manifest.columns, max_bytes=_MAX_BYTES)
        rows = tuple(map(tuple, values.tolist()))
    return Explanations(rows, args.explained, args.quantity)
