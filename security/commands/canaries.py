"""`canaries`: train again and again with a planted unit; does epsilon hold?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.protocol import strict_json
from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.errors import AssessmentError
from security.training.config import load_config

if TYPE_CHECKING:
    from security.assessment.checks.privacy.canaries import AuditedMechanism, Verdict

__all__ = ["add_parser", "run"]

_AT_ONCE = 250


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "canaries",
        help="audit what a training configuration claims, by many trainings",
        description="Train the configured mechanism many times, every second time with "
        "a planted unit, and compare how well the two are told apart with what the "
        "claimed epsilon allows. All rows are random ones: nothing of the data is "
        "used, no budget is spent. Exit code 1: the claim is contradicted.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument(
        "--trainings",
        type=int,
        default=2000,
        metavar="K",
        help="of each kind of canary (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit; returns the exit code."""
    # Before torch, which takes seconds to import.
    if load_config(args.config).additive:
        raise AssessmentError(
            f"{args.config.name}: canaries are planted among gradients, and an ebm has "
            "none; `scan` looks for members in its answers"
        )
    from security.assessment.checks.privacy.canaries import (  # noqa: PLC0415  (as above)
        KINDS,
        MIN_TRAININGS,
    )
    from security.commands.scan_training import load_mechanism  # noqa: PLC0415

    if args.trainings < MIN_TRAININGS:
        raise AssessmentError(
            f"--trainings {args.trainings}: nothing can be concluded from fewer than "
            f"{MIN_TRAININGS}"
        )
    if args.seed < 0:
        raise AssessmentError("--seed must not be negative")
    with Stages() as stages:
        audited = load_mechanism(args.config, None)
        if audited is None:
            raise AssessmentError(f"{args.config.name}: the training claims no epsilon")
        verdicts = [
            _judged(audited, kind, args.trainings, args.seed + place, stages)
            for place, kind in enumerate(KINDS)
        ]
    print(_json(audited, verdicts) if args.json else _text(audited, verdicts))
    return int(any(verdict.reasons for verdict in verdicts))


def _judged(
    audited: AuditedMechanism, kind: str, trainings: int, seed: int, stages: Stages
) -> Verdict:
    import numpy as np  # noqa: PLC0415  (not for --help)

    from security.assessment.checks.privacy.canaries import judge_kind  # noqa: PLC0415

    scores, planted = [], []
    for first in range(0, trainings, _AT_ONCE):
        count = min(_AT_ONCE, trainings - first)
        own = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
        watched = audited.trainings.several(kind, count, own)
        scores.append(watched.scores)
        planted.append(watched.planted)
        stages(kind, (first + count) / trainings, "", f"{first + count} of {trainings}")
    return judge_kind(audited, kind, np.concatenate(scores), np.concatenate(planted))


def _text(audited: AuditedMechanism, verdicts: list[Verdict]) -> str:
    from security.assessment.checks.privacy.canaries import LEVEL  # noqa: PLC0415

    lines = [
        f"claimed     epsilon {audited.epsilon:g} at delta {audited.delta:g}, one unit "
        "added or removed"
    ]
    for verdict in verdicts:
        rates = verdict.gaussian
        lines += [
            f"{verdict.kind:<12}{verdict.words}",
            f"{'':<12}epsilon at least {verdict.epsilon_counting:.2f} by counting, "
            f"{verdict.epsilon_gaussian:.2f} if Gaussian",
            f"{'':<12}{rates.found} of {rates.trained} canaries found, "
            f"{rates.accused} of {rates.clean} others accused; at least "
            f"{rates.low:.3f} are found, the claim allows {verdict.allowed:.3f}",
            *(f"{'':<12}{reason}" for reason in verdict.reasons),
        ]
    lines.append(f"confidence  {1 - LEVEL:g}, of all bounds together")
    return "\n".join(lines)


def _json(audited: AuditedMechanism, verdicts: list[Verdict]) -> str:
    from security.assessment.checks.privacy.canaries import LEVEL  # noqa: PLC0415

    document: dict[str, Any] = {
        "claimed": {"epsilon": audited.epsilon, "delta": audited.delta},
        "mechanism": dict(audited.conditions),
        "confidence": 1 - LEVEL,
        "canaries": [
            {
                "kind": verdict.kind,
                "verdict": verdict.words,
                "reasons": list(verdict.reasons),
                "epsilon_at_least_counting": verdict.epsilon_counting,
                "epsilon_at_least_gaussian": verdict.epsilon_gaussian,
                "allowed_true_rate": verdict.allowed,
                "gaussian_threshold": vars(verdict.gaussian),
                "counting_threshold": vars(verdict.counting),
            }
            for verdict in verdicts
        ],
    }
    return strict_json.dumps(document).decode()
