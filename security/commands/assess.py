"""`assess`: what a bundle's model withstands, as evidence to be signed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.commands.options import Subparsers
from security.commands.rows import (
    add_data_config,
    add_held_out,
    add_train_data,
    configured_rows,
    data_config,
    file_rows,
    radii,
)
from security.commands.screen import Screen, add_color, show_findings
from security.commands.stages import Stages
from security.commands.standing import standing
from security.commands.wanted import add_policy, deployed_policy, wanted
from security.errors import AssessmentError

if TYPE_CHECKING:
    from security.assessment.engine.assess import AssessRequest, Rows
    from security.assessment.targets.dataconfig import DataConfig

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "assess",
        help="attack a bundle's model and write what it withstands",
        description="Inspect a bundle's model, measure it on held-out rows, attack it, "
        "and write the reports into the bundle: structure, quality, robustness; "
        "fairness where groups are named; membership where the rows it was trained on "
        "are given. The bundle may have been trained here or imported. What the policy "
        "demands is shown beside each figure; `admit` applies it. Exit code 1: "
        "written, and a check in them failed, or robustness could not be measured.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    add_held_out(parser.add_mutually_exclusive_group(required=True), "--data")
    add_data_config(parser)
    add_train_data(parser)
    parser.add_argument(
        "--beside",
        metavar="BUNDLE",
        type=Path,
        help="another model of the same rows, attacked alike: what adversarial "
        "training gained and lost is in the robustness report",
    )
    parser.add_argument(
        "--radius-linf",
        nargs="+",
        metavar="R",
        help="of the stated robust accuracy; policies read the first of several "
        "(default: 0.02 of each range)",
    )
    add_policy(parser, "the deployment's, if it has one")
    add_color(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Assess; returns the exit code."""
    config = data_config(args)
    rows = _rows(args, config)
    with Stages() as stages:
        # Torch takes seconds to import; what cannot be assessed is refused without.
        from security.assessment.engine.assess import assess_bundle  # noqa: PLC0415

        made = assess_bundle(_request(args, config, *rows), stages)
    failed = [
        check for report in made.reports for check in report.checks if not check.passed
    ]
    screen = Screen(color=not args.no_color)
    for kind, reason in made.missing.items():
        screen.finding("error", f"{kind} was not measured: {reason}")
    for check in failed:
        screen.finding("error", f"{check.id}: {check.message}")
    show_findings(screen, made.findings)
    for kind, line in made.lines.items():
        screen.line((f"{kind:<12}", "head"), line)
    for line in standing(args.bundle, made.reports, args.policy):
        screen.line(*_marked(line))
    return 1 if failed or made.missing else 0


def _marked(line: str) -> list[str | tuple[str, str]]:
    """A line about a policy, with the verdict of each in its colour."""
    kind, text = line[:12], line[12:]
    word = text.partition(" ")[0]
    verdict = (word, word.lower()) if word in ("meets", "MISSES") else word
    return [kind, verdict, text[len(word) :]]


def _rows(args: argparse.Namespace, config: DataConfig) -> tuple[Rows, Rows | None]:
    """The held-out rows, and those that it was trained on, where they are given."""
    from models.bundle import read_bundle  # noqa: PLC0415

    source = args.config or args.data
    if args.config is not None or source.suffix == ".toml":
        if args.train_data is not None:
            raise AssessmentError("--train-data is for rows of a file")
        train, holdout = configured_rows(source, args.bundle)
        return holdout, train
    model = read_bundle(args.bundle).manifest
    given = None
    if args.train_data is not None:
        given = file_rows(args.train_data, config, model.columns, model.text)
    return file_rows(source, config, model.columns, model.text), given


def _request(
    args: argparse.Namespace, config: DataConfig, holdout: Rows, train: Rows | None
) -> AssessRequest:
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.assessment.engine.assess import (  # noqa: PLC0415  (as above)
        OPTIONS,
        AssessRequest,
    )

    bundle = read_bundle(args.bundle)
    policy = deployed_policy() if args.policy is None else load_policy(args.policy)
    radius = radii(args, "linf") or OPTIONS.radius_linf
    if isinstance(radius, str):
        raise AssessmentError("--radius-linf: `scan` alone reads radii from a column")
    options = replace(
        OPTIONS,
        radius_linf=radius,
        decision=args.decision,
        **wanted(policy, bundle.manifest.name),
    )
    extras: dict[str, Any] = {}
    if args.config is not None:
        from security.commands import scan_training  # noqa: PLC0415  (as above)

        if "canaries" in options.wanted:
            extras["mechanism"] = scan_training.load_mechanism(args.config, args.bundle)
        if bundle.manifest.number is not None:  # shadows need the recipe
            extras["training"] = scan_training.load_training(args.config, args.bundle)
    return AssessRequest(
        args.bundle,
        holdout,
        train,
        config=config,
        options=options,
        beside=args.beside,
        extras=extras,
    )
