"""`sign`: vouch for reports in a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import write_atomic
from models.report import KINDS
from security.commands.options import Subparsers
from security.commands.signing import add_signing, signers
from security.errors import SettingsError
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from security.admission.attest import Signers
    from security.admission.policy import Policy

__all__ = ["add_parser", "run", "sign_reports"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from security.admission.trust import ROLES  # noqa: PLC0415

    parser = subparsers.add_parser(
        "sign",
        help="sign the reports of a bundle as in-toto statements",
        description="Sign reports of a bundle as in-toto statements (DSSE, ECDSA "
        "P-256, and ML-DSA-65 in a second file where the role has such a key) into its "
        "attestations/ folder, or its model for other people's tools.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--role",
        action="append",
        required=True,
        choices=ROLES,
        help="sign every report that the policy lets this role sign; repeatable where "
        "one person holds several keys",
    )
    parser.add_argument(
        "--kind", action="append", choices=KINDS, help="sign only this kind; repeatable"
    )
    parser.add_argument(
        "--model-signature",
        action="store_true",
        help="write model.sig instead, which `model_signing verify key` accepts",
    )
    add_signing(parser)
    parser.add_argument(
        "--policy", type=Path, help="policy (default: admission.policy of the settings)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sign; returns the exit code."""
    from security.admission.policy import load_policy  # noqa: PLC0415

    if len(args.role) > 1 and (args.key or args.mldsa_key or args.model_signature):
        raise SettingsError("--key and --model-signature are for one --role")
    keys = {role: signers(args, role) for role in args.role}
    if args.model_signature:
        return _sign_model(args, *keys.values())
    policy = load_policy(args.policy or load_settings().admission.policy)
    for role, key in keys.items():
        kinds = sign_reports(args.bundle, role, key, policy, kinds=args.kind or ())
        if not kinds:
            raise SettingsError(f"the policy lets {role} sign no report; use --kind")
        for kind in kinds:
            print(f"signed {kind} as {role}")
    return 0


def sign_reports(
    folder: Path, role: str, keys: Signers, policy: Policy, *, kinds: Sequence[str] = ()
) -> Sequence[str]:
    """Vouch for reports of a bundle, in its folder; nothing is written if one fails.

    Args:
        folder: of the bundle.
        role: whose keys they are.
        keys: of the role.
        policy: says which reports the role may sign.
        kinds: of the reports; all that the policy lets the role sign if empty.

    Returns:
        The kinds that were signed; none if the policy lets the role sign none.

    Raises:
        BundleError: not a bundle, or a report is missing or malformed.
        AdmissionRefused: a report is about another model.
    """
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.attest import (  # noqa: PLC0415
        place,
        report_payload,
        signed_files,
    )
    from security.admission.signers import write_signed  # noqa: PLC0415
    from security.commands.stamping import remind  # noqa: PLC0415

    bundle = read_bundle(folder)
    required = {item.kind: item for item in policy.required(bundle.manifest.name)}
    kinds = kinds or [kind for kind, it in required.items() if role in it.signers]
    signed: dict[str, bytes] = {}
    for kind in kinds:
        needed = required[kind].min_signers if kind in required else 1
        name = place(bundle, kind, keys.hint, signers=needed)
        signed |= signed_files(name, report_payload(bundle, kind), keys)
    write_signed(folder, signed)
    stamps = [required[kind].timestamps for kind in kinds if kind in required]
    remind(keys, demanded=any(stamps))
    return kinds


def _sign_model(args: argparse.Namespace, keys: Signers) -> int:
    from models.bundle import MODEL_SIGNATURE_FILE, read_bundle  # noqa: PLC0415
    from security.admission.model_signature import sign_model  # noqa: PLC0415

    bundle = read_bundle(args.bundle)
    signed = sign_model(bundle, keys.ecdsa)
    if keys.stamp is not None:
        signed = keys.stamp(signed)
    write_atomic(args.bundle / MODEL_SIGNATURE_FILE, signed)
    print(f"signed {MODEL_SIGNATURE_FILE} as {args.role[0]}")
    return 0
