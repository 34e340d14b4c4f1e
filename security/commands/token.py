"""`token`: mint an access token from the development issuer."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sealgate.proofs import ProofKey
from security.access.issuer import DEVELOPMENT_ISSUER, load_issuer_key, mint
from security.commands.options import Subparsers
from security.errors import SettingsError
from security.key_files import read_secret, write_secret
from security.settings.loading import Settings, load_settings

__all__ = ["add_parser", "mint_from_settings", "proof_key", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "token",
        help="mint an access token from the development issuer",
        description="Mint an access token (RFC 9068) from the local development issuer "
        "and print it. Refused when the environment is production.",
    )
    parser.add_argument(
        "--scope",
        action="append",
        required=True,
        metavar="SCOPE",
        help="for instance infer:breast-cancer, infer:* or metrics; repeatable",
    )
    parser.add_argument("--subject", default="developer", help="default: %(default)s")
    parser.add_argument(
        "--lifetime",
        type=int,
        default=900,
        metavar="SECONDS",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--proof-key",
        type=Path,
        metavar="FILE",
        help="bind the token to this key (DPoP, RFC 9449); made if it is not there",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Mint and print; returns the exit code."""
    print(
        mint_from_settings(
            load_settings(),
            scopes=args.scope,
            subject=args.subject,
            lifetime_s=args.lifetime,
            confirmation=args.proof_key and proof_key(args.proof_key).thumbprint,
        )
    )
    return 0


def proof_key(path: Path) -> ProofKey:
    """Read the key that tokens are bound to, or make it.

    Raises:
        KeyFileError: others can read it.
        ProfileError: not a P-256 key.
    """
    if not path.exists():
        key = ProofKey.generate()
        write_secret(path, key.to_pem().encode())
        return key
    return ProofKey.from_pem(read_secret(path).decode("latin-1"))


def mint_from_settings(
    settings: Settings,
    *,
    scopes: list[str],
    subject: str,
    lifetime_s: int,
    confirmation: str | None = None,
) -> str:
    """A token that a server with these settings accepts.

    Raises:
        SettingsError: in production, with another issuer configured, a lifetime that
            the server would refuse, or a scope with a blank in it.
        KeyFileError: the issuer's key is missing.
    """
    access = settings.access
    if settings.service.environment == "production":
        raise SettingsError("the development issuer is refused in production")
    if access.issuer != DEVELOPMENT_ISSUER:
        raise SettingsError(f"tokens for {access.issuer!r} come from that issuer")
    if not 1 <= lifetime_s <= access.max_lifetime_s:
        raise SettingsError(f"lifetime must be 1 to {access.max_lifetime_s} seconds")
    if any(not scope or " " in scope for scope in scopes):
        raise SettingsError("a scope is one word")
    return mint(
        load_issuer_key(settings.home),
        audience=access.audience,
        subject=subject,
        client_id="sealgate-development",
        scopes=scopes,
        lifetime_s=lifetime_s,
        now=int(time.time()),
        confirmation=confirmation,
    )
