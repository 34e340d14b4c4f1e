"""`profile`: write the client's profile for a server of this deployment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.files import write_atomic
from sealgate.profile import Profile
from sealgate.proofs import ProofKey
from sealgate.protocol.dsse import ECDSA_P256, algorithm_of, public_pem
from sealgate.protocol.tpm2 import TPM2
from security.access.permissions import MODEL_ACTIONS, model_scope
from security.admission.trust_store import load_trust
from security.attestation.quotes import client_policy
from security.audit.journal import load_verifier, ml_dsa_path
from security.commands.options import Subparsers
from security.commands.token import mint_from_settings, proof_key
from security.sealing.keyring import load_keyring
from security.sealing.publish import load_identities
from security.settings.attestation import AttestationSettings
from security.settings.audit import AuditSettings
from security.settings.loading import Settings, load_settings
from security.settings.sealing import SealingSettings

__all__ = ["add_parser", "run", "write_profile"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "profile",
        help="write a client profile with a fresh development token",
        description="Write the profile that `sealgate` and the SDK read: the server's "
        "URL, a fresh token from the development issuer, the identity keys that sign "
        "the server's key configurations, what its TPM holds now if it attests, the "
        "keys trusted to sign verdicts, and those of the audit log and its witnesses.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="%(default)s")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument(
        "--lifetime", type=int, default=900, metavar="SECONDS", help="%(default)s"
    )
    parser.add_argument(
        "--out", type=Path, help="default: profile.json in SEALGATE_HOME"
    )
    parser.add_argument(
        "--allow",
        action="append",
        choices=MODEL_ACTIONS,
        default=["infer"],
        help="what else the token may do with the model, beside infer; repeatable",
    )
    parser.add_argument(
        "--proof-key",
        type=Path,
        metavar="FILE",
        help="bind the token to this key (DPoP, RFC 9449), and put the key into the "
        "profile; made if it is not there",
    )
    parser.add_argument(
        "--classical",
        action="store_true",
        help="for clients of release 0.1: ECDSA P-256 keys alone, no evidence of the "
        "machine, and nothing of the audit log",
    )
    parser.set_defaults(run=run)


def _pins(
    sealing: SealingSettings, attestation: AttestationSettings, *, classical: bool
) -> dict[str, Any]:
    """What the client knows the server's keys by: they rotate, the signer does not."""
    if not sealing.identity.exists():
        return {"key_configs": load_keyring(sealing.keys).document}
    pins: dict[str, Any] = {
        "identity_keys": tuple(
            public_pem(key)
            for key in load_identities(sealing)
            if not classical or algorithm_of(key) == ECDSA_P256
        )
    }
    if attestation.type == TPM2 and not classical:
        pins["attestation"] = client_policy(attestation, window_s=sealing.key_overlap_s)
    return pins


def _log(audit: AuditSettings) -> dict[str, Any]:
    """What the client knows the audit log by, as far as it is here: receipts' keys."""
    paths = (audit.verifier_key, ml_dsa_path(audit.verifier_key))
    keys = tuple(str(load_verifier(path)) for path in paths if path.exists())
    witnesses = audit.witnesses
    return {
        "log_keys": keys,
        "witness_keys": tuple(key for each in witnesses.witness for key in each.vkeys),
        "required_witnesses": witnesses.required,
    }


def run(args: argparse.Namespace) -> int:
    """Write the profile; returns the exit code."""
    path = write_profile(
        load_settings(),
        url=args.url,
        models=[args.model],
        actions=args.allow,
        lifetime_s=args.lifetime,
        out=args.out,
        bound=None if args.proof_key is None else proof_key(args.proof_key),
        classical=args.classical,
    )
    print(f"wrote {path}, token valid for {args.lifetime} s")
    return 0


def write_profile(
    settings: Settings,
    *,
    url: str,
    models: Sequence[str],
    actions: Sequence[str] = ("infer",),
    lifetime_s: int,
    out: Path | None = None,
    bound: ProofKey | None = None,
    classical: bool = False,
) -> Path:
    """Write a profile with a fresh development token, for its owner alone.

    Args:
        settings: of the server's deployment.
        url: of the server.
        models: that the token is for; the first is the profile's own.
        actions: what it grants with each.
        lifetime_s: of the token.
        out: where; by default profile.json in SEALGATE_HOME.
        bound: the key that the token is bound to, if any.
        classical: name no ML-DSA-65 key, no evidence and no key of the audit log, of
            which clients of release 0.1 know nothing.

    Returns:
        The file.

    Raises:
        SettingsError: as `mint_from_settings`.
        KeyFileError: a key that it takes cannot be used.
    """
    token = mint_from_settings(
        settings,
        scopes=[model_scope(model, action) for model in models for action in actions],
        subject="developer",
        lifetime_s=lifetime_s,
        confirmation=None if bound is None else bound.thumbprint,
    )
    trust = load_trust(settings.admission.trust)
    profile = Profile(
        url=url,
        token=token,
        model=models[0],
        **_pins(settings.sealing, settings.attestation, classical=classical),
        proof_key=None if bound is None else bound.to_pem(),
        **({} if classical else _log(settings.audit)),
        # A client knows signatures of the encoding itself, and no other form.
        trusted_keys=tuple(
            public_pem(key)
            for hint, key in trust.keys(("release",)).items()
            if hint not in trust.prehash
            and (not classical or algorithm_of(key) == ECDSA_P256)
        ),
    )
    path = out or settings.home / "profile.json"
    write_atomic(path, profile.to_json(), mode=0o600)
    return path
