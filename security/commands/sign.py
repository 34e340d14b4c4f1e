"""`sign`: vouch for reports in a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.bundle import MODEL_SIGNATURE_FILE, read_bundle
from models.files import write_atomic
from models.report import KINDS
from sealgate.protocol.dsse import Signer
from security.admission.attest import place, sign_report
from security.admission.keys import ROLES
from security.admission.model_signature import sign_model
from security.admission.policy import load_policy
from security.commands.options import Subparsers
from security.commands.signing import add_signing, signer
from security.errors import SettingsError
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "sign",
        help="sign the reports of a bundle as in-toto statements",
        description="Sign reports of a bundle as in-toto statements (DSSE, ECDSA "
        "P-256) into its attestations/ folder, or its model for other people's tools.",
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
    if len(args.role) > 1 and args.key:
        raise SettingsError("--key is for one --role")
    keys = {role: signer(args, role) for role in args.role}
    if args.model_signature:
        for role, key in keys.items():
            _sign_model(args.bundle, role, key)
        return 0
    for role, key in keys.items():
        _sign_reports(args, role, key)
    return 0


def _sign_reports(args: argparse.Namespace, role: str, key: Signer) -> None:
    settings = load_settings()
    policy = load_policy(args.policy or settings.admission.policy)
    bundle = read_bundle(args.bundle)
    required = {item.kind: item for item in policy.required(bundle.manifest.name)}
    allowed = [kind for kind, item in required.items() if role in item.signers]
    kinds = args.kind or allowed
    if not kinds:
        raise SettingsError(f"the policy lets {role} sign no report; use --kind")
    signed = {}
    for kind in kinds:
        data = sign_report(bundle, kind, key)
        signers = required[kind].min_signers if kind in required else 1
        signed[place(bundle, kind, data, signers=signers)] = data
    for (name, data), kind in zip(signed.items(), kinds):
        write_atomic(args.bundle / name, data)
        print(f"signed {kind} as {role}")


def _sign_model(folder: Path, role: str, key: Signer) -> None:
    bundle = read_bundle(folder)
    write_atomic(folder / MODEL_SIGNATURE_FILE, sign_model(bundle, key))
    print(f"signed {MODEL_SIGNATURE_FILE} as {role}")
