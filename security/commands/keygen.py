"""`keygen`: every key and public document that a deployment starts with."""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.files import write_atomic
from sealgate.protocol.dsse import key_hint, public_pem
from security.access.issuer import jwks_document, load_issuer_key
from security.admission.keys import (
    generate_mldsa_key,
    generate_signing_key,
    load_mldsa_key,
    load_signing_key,
    mldsa_key_file,
)
from security.admission.trust import ROLES, trust_document
from security.commands.options import Subparsers
from security.commands.signing import add_passphrase
from security.key_files import (
    passphrase_file,
    read_passphrase,
    write_private,
    write_secret,
)
from security.sealing import rotation
from security.settings.loading import Settings, load_settings
from security.settings.sealing import SealingSettings

__all__ = ["add_parser", "make_keys", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "keygen",
        help="generate the keys that are missing, and their public documents",
        description="Generate the keys that are missing under SEALGATE_HOME, and write "
        "the trust root and the JWK Set that belong to them. Each signing role gets an "
        "ECDSA P-256 and an ML-DSA-65 key; where a trust root is there already, `keys "
        "generate` adds the second. No key is overwritten. "
        "With a passphrase, the signing keys are encrypted. If "
        "SEALGATE_KEY_PASSPHRASE_FILE names it, where a server finds it too, the "
        "sealing keys, the identity key and the model key are. The identity key is "
        "printed with its fingerprint, which clients can compare.",
    )
    add_passphrase(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; returns the exit code."""
    for line in make_keys(load_settings(), args.passphrase_file):
        print(line, flush=True)
    return 0


def make_keys(settings: Settings, source: Path | None = None) -> Iterator[str]:
    """Generate the keys and public documents that are missing, while lines are taken.

    Args:
        settings: where they are.
        source: file with the passphrase of the signing keys; by default what the
            environment names.

    Yields:
        For each a line: "generated", "wrote", or "kept", and its path.

    Raises:
        KeyFileError: one that is there cannot be used.
    """
    from security.admission.model_keys import (  # noqa: PLC0415  (not for --help)
        generate_model_key,
    )
    from security.audit.journal import (  # noqa: PLC0415
        generate_checkpoint_key,
        generate_ml_dsa_key,
        ml_dsa_path,
    )

    keys = settings.home / "keys"
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = source or passphrase_file()
    passphrase = read_passphrase(source) if source else None
    # A trust root that is there would not name further keys: it is the operator's.
    fresh = not settings.admission.trust.exists()
    for role in ROLES:
        path = keys / f"{role}.pem"
        yield _ensure(path, partial(generate_signing_key, path, passphrase=passphrase))
        second = mldsa_key_file(path)
        if fresh:
            make = partial(generate_mldsa_key, second, passphrase=passphrase)
            yield _ensure(second, make)
    issuer = keys / "issuer.pem"
    yield _ensure(issuer, lambda: write_private(issuer, Ed25519PrivateKey.generate()))
    yield from _ensure_sealing(settings.sealing)
    model_key = settings.admission.model_key
    if isinstance(model_key, Path):  # else it is made where it is kept
        sealed_under = _server_passphrase()
        yield _ensure(
            model_key, partial(generate_model_key, model_key, passphrase=sealed_under)
        )
    for path in (
        settings.audit.pseudonym_key,
        settings.access.dpop_key,
        settings.monitoring.key,
    ):
        yield _ensure(path, partial(_write_secret, path))
    checkpoints = settings.audit.checkpoint_key
    path = ml_dsa_path(checkpoints)
    if path.exists() or not settings.audit.verifier_key.exists():
        # Beside a key that is in use, none: who verifies would ask for its signature.
        yield _ensure(path, partial(generate_ml_dsa_key, path))
    yield _ensure(checkpoints, partial(generate_checkpoint_key, checkpoints))
    yield from _write_public(settings, source)


def _ensure(
    path: Path, generate: Callable[[], object], note: Callable[[], str] = str
) -> str:
    kept = path.exists()
    if not kept:
        generate()
    return f"{'kept     ' if kept else 'generated'} {path}{note()}"


def _write_secret(path: Path) -> None:
    write_secret(path, secrets.token_bytes(32))


def _ensure_sealing(sealing: SealingSettings) -> Iterator[str]:
    """The HPKE keys and the identity keys."""
    from security.sealing.keyring import load_keyring  # noqa: PLC0415
    from security.sealing.publish import (  # noqa: PLC0415
        generate_identity,
        generate_mldsa_identity,
        load_identity,
        load_mldsa_identity,
    )

    passphrase = _server_passphrase()
    folder, identity = sealing.keys, sealing.identity
    if folder.is_dir() and any(folder.iterdir()):
        ids = ", ".join(map(str, load_keyring(folder).ids))
        yield f"kept      {folder}  keys {ids}"
    else:
        for path in rotation.generate(folder, now=time.time(), passphrase=passphrase):
            yield f"generated {path}"
    yield _ensure(
        identity,
        partial(generate_identity, identity, passphrase=passphrase),
        lambda: f"  sha256:{key_hint(load_identity(identity).public_key())}",
    )
    mldsa = sealing.identity_mldsa
    yield _ensure(
        mldsa,
        partial(generate_mldsa_identity, mldsa, passphrase=passphrase),
        lambda: f"  sha256:{key_hint(load_mldsa_identity(mldsa).public_key())}",
    )


def _server_passphrase() -> bytes | None:
    """A server starts unattended: its passphrase is the one the environment names."""
    source = passphrase_file()
    return read_passphrase(source) if source else None


def _write_public(settings: Settings, passphrase: Path | None) -> Iterator[str]:
    from security.audit.journal import ml_dsa_path  # noqa: PLC0415

    documents = {settings.admission.trust: partial(_trust, settings, passphrase)}
    if isinstance(settings.access.jwks, Path):
        documents[settings.access.jwks] = partial(_jwks, settings)
    documents[settings.audit.verifier_key] = partial(_verifier, settings, 0)
    if ml_dsa_path(settings.audit.checkpoint_key).exists():
        path = ml_dsa_path(settings.audit.verifier_key)
        documents[path] = partial(_verifier, settings, 1)
    for path, document in documents.items():
        # An existing document may name more keys than these: it is the operator's.
        if path.exists():
            yield f"kept      {path}"
        else:
            write_atomic(path, document())
            yield f"wrote     {path}"


def _trust(settings: Settings, passphrase: Path | None) -> bytes:
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        path = settings.home / "keys" / f"{role}.pem"
        key = load_signing_key(path, passphrase=passphrase)
        second = load_mldsa_key(mldsa_key_file(path), passphrase=passphrase)
        roles[role] = [public_pem(key.public_key()), public_pem(second.public_key())]
    return trust_document(roles)


def _verifier(settings: Settings, number: int) -> bytes:
    from security.audit.journal import load_signer  # noqa: PLC0415

    return f"{load_signer(settings.audit).verifiers[number]}\n".encode()


def _jwks(settings: Settings) -> bytes:
    return jwks_document(load_issuer_key(settings.home).public_key())
