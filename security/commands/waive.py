"""`waive`: let one requirement of the policy pass for a bundle, for a while."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from models.report import KINDS, format_time
from sealgate.errors import StatementError
from sealgate.protocol.statement import WAIVER_TYPE, Statement, Waiver
from security.commands.options import Subparsers
from security.commands.signing import add_signing, signers
from security.errors import AdmissionRefused, SettingsError
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from models.bundle import Bundle

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from security.admission.rules import PROMOTION_KINDS  # noqa: PLC0415
    from security.admission.trust import ROLES  # noqa: PLC0415

    parser = subparsers.add_parser(
        "waive",
        help="let a requirement pass for one bundle, for a while",
        description="Sign a waiver: this bundle need not meet one requirement until a "
        "day, for a reason. The policy says which kinds may be waived, by whom, and "
        "for how long; the waiver shows in the verdict. Run `admit` afterwards. A "
        "waiver of what a promotion needs is kept beside the plan instead, and counts "
        "where `promote` is told to --force.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--kind", required=True, choices=(*KINDS, *PROMOTION_KINDS))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--metric", help="waive only the bound on this metric")
    what.add_argument("--condition", help="waive only this condition")
    what.add_argument("--check", metavar="ID", help="waive only this failed check")
    parser.add_argument("--reason", required=True, help="one line; everyone sees it")
    parser.add_argument("--days", required=True, type=int, help="how long it holds")
    parser.add_argument("--role", required=True, choices=ROLES)
    add_signing(parser)
    parser.add_argument(
        "--policy", type=Path, help="policy (default: admission.policy of the settings)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sign a waiver that the policy allows; returns the exit code."""
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.attest import signed_files, waiver_payload  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.admission.rules import PROMOTION_KINDS  # noqa: PLC0415
    from security.admission.signers import write_signed  # noqa: PLC0415
    from security.admission.steps import demand  # noqa: PLC0415
    from security.admission.waivers import check_waiver  # noqa: PLC0415

    settings = load_settings()
    policy = load_policy(args.policy or settings.admission.policy)
    if args.role not in policy.waivers.signers:
        raise AdmissionRefused(20, f"the policy does not let {args.role} sign waivers")
    bundle, now = read_bundle(args.bundle), datetime.now(UTC)
    waiver = _waiver(args, now)
    name = bundle.manifest.name
    required = (
        policy.promotion_of(name).requirements
        if args.kind in PROMOTION_KINDS
        else policy.required(name)
    )
    demand(check_waiver(waiver, policy, required, now=now))
    path = _place(args, bundle, settings.deployment.directory)
    keys = signers(args, args.role)
    signed = signed_files(path.name, waiver_payload(bundle, waiver), keys)
    write_signed(path.parent, signed)
    print(f"signed as {args.role}: {waiver}")
    return 0


def _place(args: argparse.Namespace, bundle: Bundle, directory: Path) -> Path:
    """In the bundle what admits it, beside the plan what promotes it."""
    from security.admission.attest import waiver_file  # noqa: PLC0415
    from security.admission.observations import observation_file  # noqa: PLC0415
    from security.admission.rules import PROMOTION_KINDS  # noqa: PLC0415

    if args.kind in PROMOTION_KINDS:
        return observation_file(directory, bundle.subject, f"waiver-{args.kind}")
    folder: Path = args.bundle
    return folder / waiver_file(args.kind)


def _waiver(args: argparse.Namespace, now: datetime) -> Waiver:
    """From the options, through the parser that the gate will read it with."""
    try:
        waiver = Waiver(
            kind=args.kind,
            reason=args.reason,
            created=format_time(now),
            expires=format_time(now + timedelta(days=args.days)),
            metric=args.metric,
            condition=args.condition,
            check=args.check,
        )
        statement = Statement((), WAIVER_TYPE, waiver.to_predicate())
        return Waiver.from_statement(statement)
    except (StatementError, OverflowError) as error:
        raise SettingsError(f"waiver: {error}") from None
