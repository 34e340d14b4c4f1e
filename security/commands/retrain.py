"""`retrain`: the next version of a bundle, compared with the current one."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.errors import AdmissionRefused, SettingsError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from security.settings.loading import Settings

__all__ = ["NOTHING_DRIFTED", "add_parser", "run"]

NOTHING_DRIFTED = 3


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "retrain",
        help="train the next version of a bundle on new data, and compare the two",
        description="Train the next version under the configuration that the bundle "
        "records and within the budget that the ledger has left, and write into its "
        "evidence whether it differs from the current one on the same held-out rows. "
        "Exit codes: 0 retrained; 3 with --if-drifted, nothing has drifted; 1 refused, "
        "for instance because the monitoring report is missing, stale, of another "
        "version or not signed by a role of the policy; 2 usage or error, a spent "
        "budget included.",
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
    parser.add_argument(
        "--if-drifted",
        action="store_true",
        help="only if the signed monitoring report about this bundle, beside the plan, "
        "says that drift was found; otherwise exit with 3 and touch nothing",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Retrain; returns the exit code."""
    # What a mistyped option needs is imported above, the rest where it is needed.
    from models.bundle import read_bundle  # noqa: PLC0415

    bundle = read_bundle(args.bundle)
    from security.commands.train import (  # noqa: PLC0415
        refuse_existing,
        stopped_by_ctrl_c,
    )
    from security.settings.loading import load_settings  # noqa: PLC0415

    if args.if_drifted and not _drifted(bundle, load_settings()):
        return NOTHING_DRIFTED
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


def _drifted(bundle: Bundle, settings: Settings) -> bool:
    """Whether the monitoring report says so; the answer is recorded.

    Raises:
        AdmissionRefused: there is no report that can be believed, or it cannot tell.
        SettingsError: the policy names nobody who may sign one.
    """
    from security.admission.observations import (  # noqa: PLC0415
        check_fresh,
        read_observation,
    )
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.admission.promotion import (  # noqa: PLC0415
        DRIFT_ALARMS,
        PROMOTION_CHECK,
    )
    from security.admission.steps import Scene, demand  # noqa: PLC0415
    from security.admission.trust import load_trust  # noqa: PLC0415
    from security.audit.journal import record_operation  # noqa: PLC0415

    tag = bundle.manifest.tag
    policy = load_policy(settings.admission.policy)
    needed = policy.promotion_of(bundle.manifest.name).of("monitoring")
    if needed is None:
        raise SettingsError(
            "the policy has no [promotion.monitoring]: nobody may say what has drifted"
        )
    trust = load_trust(settings.admission.trust)
    scene = Scene(bundle, policy, trust, datetime.now(UTC))
    read = read_observation(settings.deployment.directory, scene, needed)
    demand(check_fresh(read.report, needed, now=scene.now))
    alarms = read.report.metrics.get(DRIFT_ALARMS)
    if alarms is None:
        raise AdmissionRefused(
            PROMOTION_CHECK, f"monitoring: the report about {tag} cannot tell of drift"
        )
    found = alarms.value > 0
    end = read.report.conditions["window_end"]
    print(f"{'drift':<12}drift_alarms {alarms.value:.0f} about {tag} until {end}")
    record_operation(
        settings.audit,
        [
            {
                "action": "retraining" if found else "no-retraining",
                "model": tag,
                "model_sha256": bundle.subject.root_sha256,
                "reason": read.sha256,
            }
        ],
    )
    return found
