"""`upgrade-evidence`: older evidence in today's form, without a new claim."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.signing import add_signing
from security.errors import SettingsError

if TYPE_CHECKING:
    from security.admission.attest import Signers

__all__ = ["add_parser", "run"]

_LAST = (
    "reports and payloads keep their bytes: another form of them would be a new claim"
)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "upgrade-evidence",
        help="add second signatures and time stamps to evidence that verifies",
        description="Bring a bundle's older evidence into today's form, without a new "
        "claim. All of it is verified first, under policy and trust root. Then what a "
        "role signed with P-256 alone is signed with its ML-DSA-65 key too, over the "
        "very payload that verified, and with --timestamp-url signatures are stamped. "
        "Nothing there is replaced, what cannot be done is said, and nothing is "
        "written unless all of it was made. Again does nothing more.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE",
        help="sign a second time what this role signed; repeatable where one person "
        "holds several keys; without it only time stamps are added",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="verify, print what would be done, and write nothing",
    )
    add_signing(parser)
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upgrade; returns the exit code."""
    from datetime import UTC, datetime  # noqa: PLC0415  (not for a usage error)

    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.admission.steps import Scene  # noqa: PLC0415
    from security.admission.trust_store import load_trust  # noqa: PLC0415
    from security.admission.upgrade import (  # noqa: PLC0415
        carry_out,
        plan_upgrade,
        refusal_of,
    )
    from security.commands.stamping import stamping  # noqa: PLC0415

    _check_options(args)
    admission = admission_settings(args)
    keys = {role: _signers(args, role) for role in args.role}
    stamp = stamping(args.timestamp_url, admission.trust)
    bundle = read_bundle(args.bundle)
    policy, trust = load_policy(admission.policy), load_trust(admission.trust)
    scene = Scene(bundle, policy, trust, datetime.now(UTC))
    plan = plan_upgrade(scene, keys, stamps=stamp is not None)
    if args.dry_run:
        signed = {name: item.role for name, item in plan.seconds.items()}
        _print("would ", signed, plan.stamps, plan.left)
        return 0
    made = carry_out(plan, scene, keys, stamp)
    _write(args.bundle, bundle.files, made.files)
    _print("", made.signed, made.stamped, plan.left)
    refusal = refusal_of(scene, made.files)
    print("admitted" if refusal is None else f"not admitted: {refusal}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if not args.role and args.timestamp_url is None:
        raise SettingsError("nothing to add: give --role, --timestamp-url, or both")
    if len(args.role) != 1 and (args.key or args.mldsa_key):
        raise SettingsError("--key and --mldsa-key are for one --role")


def _signers(args: argparse.Namespace, role: str) -> Signers:
    """The keys of a role, both of them."""
    from security.admission.trust import ROLES  # noqa: PLC0415
    from security.commands.signing import role_signers  # noqa: PLC0415
    from security.settings.loading import load_settings  # noqa: PLC0415

    if role not in ROLES:
        raise SettingsError(f"no role {role!r}; one of {', '.join(ROLES)}")
    settings = replace(load_settings(), admission=admission_settings(args))
    found = role_signers(
        settings,
        role,
        key=args.key,
        mldsa_key=args.mldsa_key,
        public=(args.public, args.mldsa_public),
        passphrase=args.passphrase_file,
    )
    if found.mldsa is None:
        raise SettingsError(
            f"{role} has no ML-DSA-65 key: `keys generate --role {role}` makes one"
        )
    return found


def _write(
    folder: Path, checked: Mapping[str, bytes], files: Mapping[str, bytes]
) -> None:
    """Write what was made, if the folder is still what was checked.

    Each file comes whole. What stops half way has lost nothing: every file there is one
    that verified, and the rest is done by the same command again.

    Raises:
        BundleError: somebody changed the folder meanwhile; nothing is written.
        OSError: a file cannot be written.
    """
    from models.bundle import read_bundle  # noqa: PLC0415
    from models.errors import BundleError  # noqa: PLC0415
    from models.files import write_atomic  # noqa: PLC0415

    if files and read_bundle(folder).files != checked:
        raise BundleError(f"{folder} changed while it was upgraded: nothing is written")
    for name, data in files.items():
        write_atomic(folder / name, data)


def _print(
    prefix: str,
    signed: Mapping[str, str],
    stamped: Sequence[str],
    left: Mapping[str, str],
) -> None:
    verbs = ("sign", "stamp") if prefix else ("signed", "stamped")
    for name, role in sorted(signed.items()):
        print(f"{prefix}{verbs[0]:8} {name}  as {role}")
    for name in sorted(stamped):
        print(f"{prefix}{verbs[1]:8} {name}")
    for name, why in sorted(left.items()):
        print(f"left     {name}  {why}")
    print(f"left     {_LAST}")
