"""`retrain`: the next version of a bundle, compared with the current one."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.bundle import read_bundle
from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.commands.train import refuse_existing, stopped_by_ctrl_c
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "retrain",
        help="train the next version of a bundle on new data, and compare the two",
        description="Train the next version under the configuration that the bundle "
        "records and within the budget that the ledger has left, and write into its "
        "evidence whether it differs from the current one on the same held-out rows.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--data",
        metavar="NEW",
        required=True,
        help="the new data: a file, or python:package.module:function",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the new bundle's folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Retrain; returns the exit code."""
    read_bundle(args.bundle)
    refuse_existing(args.out)
    with Stages() as stages, stopped_by_ctrl_c() as stop:
        # Torch takes seconds to import; `--help` and every other command go without.
        from security.training.ledger import Ledger  # noqa: PLC0415
        from security.training.retrain import retrain  # noqa: PLC0415

        ledger = Ledger(load_settings().home / "ledger")
        retrain(
            args.bundle,
            args.data,
            args.out,
            stages,
            ledger=ledger,
            base=Path.cwd(),
            stop=stop,
        )
    print(f"{'bundle':<12}{args.out}")
    return 0
