"""`calibrate`: intervals, or sets of classes, that hold the truth as stated."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle import Bundle, read_bundle
from models.output_policy import OutputPolicy
from models.restriction import kept_reports, restrict
from security.commands.options import Subparsers
from security.commands.rows import add_data_config, add_held_out, data_config, file_rows
from security.commands.stages import Stages
from security.errors import AssessmentError, SettingsError
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from security.assessment.calibration import Calibration, Wanted
    from security.assessment.targets.dataconfig import DataConfig

__all__ = ["add_parser", "run"]

_PUBLIC = "the configuration declares the data public"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "calibrate",
        help="give a bundle's answers intervals, or sets of classes",
        description="Split conformal prediction: from rows that the model never saw, "
        "find how wide an interval about a predicted number, or how large a set of "
        "classes, holds the truth as often as stated. It stands in the manifest, which "
        "every statement covers, so calibrate before you assess and sign. A part of "
        "the rows calibrates; `assess` measures the coverage on the others. The rows "
        "are private, too: state what their quantile may cost (--epsilon), or why it "
        "need not be private (--not-private; then the same rows always give the same "
        "quantile). docs/conformal.md explains it.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    rows = parser.add_mutually_exclusive_group(required=True)
    add_held_out(rows, "--data", "--rows")
    rows.add_argument(
        "--remove", action="store_true", help="no intervals or sets any more"
    )
    add_data_config(parser)
    _add_options(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.9,
        metavar="C",
        help="how often the truth shall be inside (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        default="",
        help="of a number: identity, sqrt or log (of one more): intervals are wider "
        "where answers are larger (default: identity)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.5,
        metavar="S",
        help="of the rows that calibrates (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="NAME", help="of several outputs")
    parser.add_argument(
        "--abstain",
        action="store_true",
        help="of classes: answer only where the set is one class",
    )
    private = parser.add_mutually_exclusive_group()
    private.add_argument(
        "--epsilon",
        type=float,
        metavar="E",
        help="take the quantile from a histogram with noise, at this cost, which the "
        "privacy ledger books",
    )
    private.add_argument(
        "--not-private",
        metavar="WHY",
        help="take it from the rows as they are; the reason is in the manifest",
    )
    parser.add_argument(
        "--delta", type=float, default=1e-6, help="at this delta (default: %(default)s)"
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="public range of a predicted number, where the manifest has none yet: no "
        "interval leaves it, and --epsilon needs it",
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate, or undo it; returns the exit code."""
    bundle = read_bundle(args.bundle)
    policy = bundle.manifest.output_policy
    if args.remove:
        restrict(args.bundle, replace(policy, abstain=False), conformal=None)
        print("no intervals or sets any more")
        return 0
    if args.abstain:
        policy = replace(policy, abstain=True)
    kept_reports(bundle)  # before a budget is spent on what would be refused
    with Stages():
        made = _calibrated(args, bundle, policy)
    manifest = restrict(
        args.bundle, policy, conformal=made.conformal, answer=made.answer
    ).manifest
    for line in _lines(made, manifest.release.names):
        print(line)
    if any(name.startswith("attestations/") for name in bundle.files):
        print(f"{'signatures':<12}none any more: assess and sign again")
    return 0


def _calibrated(
    args: argparse.Namespace, bundle: Bundle, policy: OutputPolicy
) -> Calibration:
    # Torch takes seconds to import; `--help` and every other command go without.
    from security.assessment.calibration import calibrate  # noqa: PLC0415

    wanted, config = replace(_wanted(args), policy=policy), data_config(args)
    if args.config is not None:
        return _of_training(args, bundle, wanted, config)
    if wanted.epsilon is None and not wanted.waiver:
        raise SettingsError(
            "calibration rows are private, too: state --epsilon, or --not-private WHY"
        )
    model = bundle.manifest
    rows = file_rows(args.data, config, model.columns, model.text)
    book = _booking(
        wanted,
        {
            "name": args.data.stem,
            "digest": rows.sha256,
            "unit": "row",
            "model": model.tag,
        },
    )
    return calibrate(bundle, rows, wanted, config=config, book=book)


def _of_training(
    args: argparse.Namespace, bundle: Bundle, wanted: Wanted, config: DataConfig
) -> Calibration:
    """On the rows that a training held out.

    Raises:
        SettingsError: they are personal, and neither a cost nor a waiver is stated.
        AssessmentError: the data is declared public, and costs nothing.
    """
    from models.data.held_out import holdout_of  # noqa: PLC0415  (as above)
    from security.assessment.calibration import calibrate  # noqa: PLC0415
    from security.training.data import load_split, read_config  # noqa: PLC0415
    from security.training.session import booked_data, owners_of  # noqa: PLC0415

    training = read_config(args.config, args.bundle)
    train, holdout = load_split(training)
    if not holdout.personal:
        if wanted.epsilon is not None:
            raise AssessmentError("the data is declared public: --epsilon buys nothing")
        wanted = replace(wanted, waiver=wanted.waiver or _PUBLIC)
    elif wanted.epsilon is None and not wanted.waiver:
        raise SettingsError(
            "the held-out rows are personal, and their quantile tells of them: state "
            "--epsilon, or --not-private WHY"
        )
    every = training, train, holdout
    book = _booking(wanted, booked_data(*every), owners_of(*every))
    rows = holdout_of(holdout)
    return calibrate(
        bundle, rows, wanted, config=config, units=holdout.units, book=book
    )


def _wanted(args: argparse.Namespace) -> Wanted:
    """What the options say.

    Raises:
        SettingsError: an option is out of range.
    """
    from security.assessment.calibration import Wanted  # noqa: PLC0415  (as above)

    for name in ("coverage", "share", "delta"):
        if not 0 < getattr(args, name) < 1:
            raise SettingsError(f"--{name}: expected a number above 0 and below 1")
    if args.epsilon is not None and not 0 < args.epsilon < 1e6:
        raise SettingsError("--epsilon: expected a number above 0")
    bounds = None if args.range is None else (args.range[0], args.range[1])
    if bounds is not None and not bounds[0] < bounds[1]:
        raise SettingsError("--range: the low end is below the high one")
    waiver = args.not_private
    if waiver is not None and not 1 <= len(waiver) <= 200:
        raise SettingsError("--not-private: a reason of 1 to 200 characters")
    return Wanted(
        coverage=args.coverage,
        share=args.share,
        scale=args.scale,
        output=args.output,
        decision=args.decision,
        bounds=bounds,
        epsilon=args.epsilon,
        delta=args.delta,
        waiver=waiver or "",
    )


def _booking(
    wanted: Wanted, whose: dict[str, object], owners: object = ()
) -> Callable[[float], None]:
    """Books one step over all rows: that is what a histogram costs."""
    from security.training.entries import Request  # noqa: PLC0415  (as above)
    from security.training.ledger import Ledger  # noqa: PLC0415

    ledger = Ledger(load_settings().home / "ledger")

    def book(noise: float) -> None:
        request = Request(
            **whose,  # type: ignore[arg-type]
            rate=1.0,
            noise=noise,
            group=1,
            steps=1,
            delta=wanted.delta,
            sketch=ledger.sketch(owners) if owners else b"",  # type: ignore[arg-type]
        )
        reservation = ledger.reserve(request)
        reservation.take(1)
        reservation.close("finished")

    return book


def _lines(made: Calibration, names: list[str]) -> list[str]:
    found = made.conformal
    what, value = "half width", f"{found.quantile:.4g}"
    if found.of_classes:
        what = "in the set"
        value = f"classes of a probability of {1.0 - found.quantile:.4g} or more"
    elif found.scale != "identity":
        value += f" on the {found.scale} of the number"
    cost = f"epsilon {found.epsilon:g}" if found.epsilon else f"no: {found.waiver}"
    lines = [
        f"{'coverage':<12}{found.coverage:g}, from {found.rows} rows; {made.left} are "
        "left to measure it",
        f"{what:<12}{value}",
        f"{'private':<12}{cost}",
        f"{'answers':<12}{', '.join(names)}",
    ]
    if made.owners:
        lines.append(f"{'owners':<12}{made.owners} further rows of theirs left out")
    if made.abstained is not None:
        lines.append(
            f"{'not one':<12}{made.abstained:.1%} of rows: their set is not one class, "
            "or not the decided one"
        )
    return lines
