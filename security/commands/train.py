"""`train`: a differentially private model, with the evidence of its guarantee."""

from __future__ import annotations

import argparse
from pathlib import Path

from security.commands.options import Subparsers

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a private model and write its bundle",
        description="Train a model with DP-SGD to the guarantee that the configuration "
        "states, export it to ONNX and write a new bundle with the privacy, parity and "
        "provenance reports.",
    )
    parser.add_argument("config", metavar="CONFIG.toml", type=Path)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the new bundle's folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    # Torch takes seconds to import; `--help` and every other command go without.
    from security.commands.stages import Stages  # noqa: PLC0415
    from security.training.config import load_config  # noqa: PLC0415
    from security.training.run import train_bundle  # noqa: PLC0415

    config = load_config(args.config)
    with Stages() as stages:
        train_bundle(config, args.out, stages)
    print(f"{'bundle':<12}{args.out}")
    return 0
