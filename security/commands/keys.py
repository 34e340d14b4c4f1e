"""`keys`: which keys sign, in which role, until when."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from models.errors import ReportError
from models.report import format_time, parse_time
from sealgate.protocol.dsse import (
    ECDSA_P256,
    ML_DSA_65,
    PublicKey,
    algorithm_of,
    key_hint,
    public_pem,
)
from security.admission.keys import (
    generate_mldsa_key,
    generate_signing_key,
    load_mldsa_key,
    load_signing_key,
    mldsa_key_file,
)
from security.admission.trust import (
    ROLES,
    Revocation,
    TrustRoot,
)
from security.commands import authorities, model_key, sealing_keys
from security.commands.model_key import MODEL
from security.commands.options import Subparsers
from security.commands.sealing_keys import SEALING
from security.commands.signing import add_passphrase, read_public
from security.errors import KeyFileError
from security.key_files import passphrase_file, read_passphrase
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

__all__ = ["add_parser", "run"]

MIN_HINT_CHARACTERS = 8


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "keys",
        help="list, generate, rotate, retire, add and revoke keys; print public ones",
        description="Manage the signing keys of the trust root, and the sealing keys "
        "that clients seal requests to. A rotated signing key stays trusted until it "
        "is revoked; a revoked one is believed by no door any more. A rotated sealing "
        "key opens requests until its overlap ends; running servers follow by "
        "themselves.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text, add in _ACTIONS:
        add(actions.add_parser(name, help=text))


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the signing keys of the trust root, by hint and role, with who was "
        "revoked when and why; the keys that open models; then the sealing keys: id, "
        "kind, state, age, and when a current key is due for rotation or an old one "
        "stops opening requests."
    )
    parser.add_argument(
        "--role",
        choices=(*ROLES, MODEL, SEALING),
        help="these keys only (default: all)",
    )
    parser.set_defaults(run=run)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sealing: add a fresh key of each kind, X25519 and X-Wing, whatever the age of "
        "those there are. Clients are offered the new ones; the old ones open requests "
        "until their overlap ends. Signing roles: make the ML-DSA-65 key that the role "
        "lacks, and trust it. From then on every statement of the role needs a "
        "signature with it, unless the policy says otherwise: sign and admit again."
    )
    parser.add_argument("--role", required=True, choices=(*ROLES, SEALING))
    add_passphrase(parser)
    parser.set_defaults(run=_generate)


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Signing roles: make a fresh key in place of each that is there, ECDSA P-256 "
        "and ML-DSA-65, trust it, and put the old one aside; the old one stays trusted "
        "until it is revoked. Sealing: replace what is older than "
        "sealing.key_lifetime_s, and delete what is past its overlap; does nothing "
        "where nothing is due, so cron may run it every hour. Model: make a fresh "
        "X-Wing key; the old one is put aside and still opens what is sealed to it."
    )
    parser.add_argument("--role", required=True, choices=(*ROLES, MODEL, SEALING))
    parser.add_argument(
        "--force", action="store_true", help="sealing keys that are not due yet, too"
    )
    add_passphrase(parser)
    parser.set_defaults(run=_rotate)


def _add_retire(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Delete the sealing keys past their overlap, and the ones named, at once. "
        "Clients that still use a deleted key fetch the configurations again."
    )
    parser.add_argument("--role", required=True, choices=(SEALING,))
    parser.add_argument(
        "id", type=int, nargs="*", help="delete this key now, as `keys list` names it"
    )
    parser.set_defaults(run=sealing_keys.retire)


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trust the public half of a key that was made elsewhere, on another machine or "
        "in a key service, in a signing role."
    )
    parser.add_argument("public_key", type=Path, metavar="PUBLIC_KEY.pem")
    parser.add_argument("--role", required=True, choices=ROLES)
    parser.add_argument(
        "--prehash",
        action="store_true",
        help="an ML-DSA-65 key that signs as securesystemslib does, a key service's "
        "for instance: over a prefix and the SHA-512 digest of what is signed",
    )
    parser.set_defaults(run=_add)


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Record that a signing key is believed no more, and evaluate every stored "
        "model that it signed again. Exit code 1 if one of them no longer verifies. "
        "Without --compromised nothing that it ever signed is believed; with it, only "
        "what a trusted authority of time stamped before. A signer with two keys, "
        "ECDSA P-256 and ML-DSA-65, is revoked by revoking both."
    )
    parser.add_argument(
        "hint", help="its hint, or the first 8 or more characters of it"
    )
    parser.add_argument("--reason", required=True, help="one line, for the record")
    parser.add_argument(
        "--compromised",
        metavar="TIME",
        help="since when others may have had the key, in UTC: 2026-11-30T08:00:00Z; "
        "leave out what is not known",
    )
    parser.set_defaults(run=_revoke)


def _add_authority(parser: argparse.ArgumentParser) -> None:
    authorities.add_add(parser)
    parser.set_defaults(run=_change_authorities, change=authorities.with_authority)


def _remove_authority(parser: argparse.ArgumentParser) -> None:
    authorities.add_remove(parser)
    parser.set_defaults(run=_change_authorities, change=authorities.without_authority)


def _add_public(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print public keys in PEM, to hand to others."
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--role", choices=ROLES, help="the trusted keys of a role")
    which.add_argument(
        "--model", action="store_true", help="the key that models are sealed to"
    )
    which.add_argument(
        "--identity",
        action="store_true",
        help="the keys that sign the key configurations, ECDSA P-256 and, where there "
        "is one, ML-DSA-65; clients pin them",
    )
    parser.add_argument(
        "--algorithm",
        choices=(ECDSA_P256, ML_DSA_65),
        default=ECDSA_P256,
        help="of a role's keys (default: %(default)s, which other tools know)",
    )
    parser.set_defaults(run=_public)


_ACTIONS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("list", "every signing and sealing key", _add_list),
    ("generate", "further sealing keys, or the ML-DSA-65 key of a role", _add_generate),
    ("rotate", "a fresh key for a role", _add_rotate),
    ("retire", "delete sealing keys past their overlap, or by id", _add_retire),
    ("add", "trust a key that was made elsewhere", _add_add),
    ("revoke", "believe a key no more, and list what falls with it", _add_revoke),
    ("add-authority", "believe an authority of time", _add_authority),
    ("remove-authority", "believe it no more", _remove_authority),
    ("public", "print public keys in PEM", _add_public),
)


def run(args: argparse.Namespace) -> int:
    """List; returns the exit code."""
    if args.role not in (MODEL, SEALING):
        for line in _signing_lines(args.role):
            print(line)
    if args.role in (None, MODEL):
        for line in model_key.list_lines():
            print(line)
    if args.role in (None, SEALING):
        for line in sealing_keys.list_lines():
            print(line)
    return 0


def _signing_lines(only: str | None) -> Iterator[str]:
    """The signing keys of one role, or of all."""
    from security.admission.trust_store import read_trust  # noqa: PLC0415

    trust = read_trust(load_settings().admission.trust).root
    for role in ROLES if only is None else (only,):
        for hint, key in trust.roles.get(role, {}).items():
            yield f"{hint}  {role:<15}  trusted{_form(hint, key, trust)}"
    for hint, item in trust.revoked.items():
        role = trust.role_of(hint) or "-"
        if only in (None, role):
            since = f", compromised {item.compromised}" if item.compromised else ""
            yield f"{hint}  {role:<15}  revoked {item.time}{since}: {item.reason}"
    if only is None:
        yield from authorities.list_lines(trust)


def _form(hint: str, key: PublicKey, trust: TrustRoot) -> str:
    """What is not ECDSA P-256."""
    if algorithm_of(key) == ECDSA_P256:
        return ""
    return f"  {algorithm_of(key)}" + (", pre-hash" if hint in trust.prehash else "")


def _generate(args: argparse.Namespace) -> int:
    if args.role == SEALING:
        return sealing_keys.generate(args)
    settings = load_settings()
    source = args.passphrase_file or passphrase_file()
    path = mldsa_key_file(settings.home / "keys" / f"{args.role}.pem")
    if path.exists():
        raise KeyFileError(f"{path}: exists already; `keys rotate` makes a fresh one")
    fresh = _next(path)
    if fresh.exists():  # it stopped half way, or was proposed
        key = load_mldsa_key(fresh, passphrase=source)
    else:
        passphrase = read_passphrase(source) if source else None
        key = generate_mldsa_key(fresh, passphrase=passphrase)
    place = _trust_also(settings.admission, args.role, key.public_key())
    if place != settings.admission.trust:
        _tell_proposed(place, key.public_key(), args.role)
        return 0
    os.replace(fresh, path)
    _record(settings, args.role, "added")
    print(f"generated {path}  {key_hint(key.public_key())}")
    return 0


def _rotate(args: argparse.Namespace) -> int:
    """The old key is put aside last, so that every step can be repeated."""
    if args.role == SEALING:
        return sealing_keys.rotate(args)
    if args.role == MODEL:
        return model_key.rotate(args)
    settings = load_settings()
    source = args.passphrase_file or passphrase_file()
    path = settings.home / "keys" / f"{args.role}.pem"
    second = mldsa_key_file(path)
    _renew(settings, args.role, path, source)
    if second.exists():
        _renew(settings, args.role, second, source)
    return 0


def _next(path: Path) -> Path:
    return path.with_suffix(".next.pem")


def _tell_proposed(place: Path, key: PublicKey, role: str) -> None:
    """Of a key that must not sign yet: no trust root in force names it."""
    print(f"proposed  {place}  {key_hint(key)}  {role}")
    print("run this again once that version is in force: then the key is used")


def _renew(settings: Settings, role: str, path: Path, source: Path | None) -> None:
    """A fresh key in place of one of a role's."""
    post_quantum = path == mldsa_key_file(path.parent / f"{role}.pem")
    load = load_mldsa_key if post_quantum else load_signing_key
    generate = generate_mldsa_key if post_quantum else generate_signing_key
    fresh = _next(path)
    old = key_hint(load(path, passphrase=source).public_key())
    passphrase = read_passphrase(source) if source else None
    if fresh.exists():  # an earlier rotation stopped half way
        key = load(fresh, passphrase=source)
    else:
        key = generate(fresh, passphrase=passphrase)
    place = _trust_also(settings.admission, role, key.public_key())
    if place != settings.admission.trust:
        _tell_proposed(place, key.public_key(), role)
        return
    aside = path.with_suffix(f".{old[:16]}.pem")
    os.replace(path, aside)
    os.replace(fresh, path)
    _record(settings, role, "rotated")
    print(f"rotated   {path}  {key_hint(key.public_key())}")
    print(f"old key   {aside}  {old}  trusted until revoked")


def _add(args: argparse.Namespace) -> int:
    key, settings = read_public(args.public_key), load_settings()
    if args.prehash and algorithm_of(key) != ML_DSA_65:
        raise KeyFileError(f"{args.public_key}: --prehash is for ML-DSA-65 keys")
    place = _trust_also(settings.admission, args.role, key, prehash=args.prehash)
    proposed = place != settings.admission.trust
    _record(settings, args.role, "add-proposed" if proposed else "added")
    what = f"proposed  {place}" if proposed else "trusted "
    print(f"{what}  {key_hint(key)}  {args.role}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from security.admission.trust_store import change, read_trust  # noqa: PLC0415

    settings = load_settings()
    trust = read_trust(settings.admission.trust).root
    hint = _find(args.hint, trust)
    item = _revocation(hint, args, datetime.now(UTC))
    place = change(
        settings.admission.trust,
        lambda root: replace(root, revoked={**root.revoked, hint: item}),
    )
    proposed, role = place != settings.admission.trust, trust.role_of(hint) or "key"
    _record(settings, role, "revoke-proposed" if proposed else "revoked")
    print(f"{f'proposed  {place}' if proposed else 'revoked '}  {hint}  {role}")
    with _bare(place) as trust_file:
        judged = replace(settings.admission, trust=trust_file)
        return _report_fallen(judged, hint)


@contextmanager
def _bare(place: Path) -> Iterator[Path]:
    """A file of what a trust root or a proposal says, to see what it would refuse."""
    from security.admission.trust_store import read_document  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        file = Path(folder, place.name)
        file.write_bytes(read_document(place).root.to_json())
        yield file


def _revocation(hint: str, args: argparse.Namespace, now: datetime) -> Revocation:
    try:
        if args.compromised and parse_time(args.compromised) > now:
            raise KeyFileError("--compromised: that time is yet to come")
    except ReportError as error:
        raise KeyFileError(f"--compromised: {error}") from None
    return Revocation(hint, format_time(now), args.reason, args.compromised or None)


def _change_authorities(args: argparse.Namespace) -> int:
    from security.admission.trust_store import change, read_document  # noqa: PLC0415

    settings = load_settings()
    place = change(settings.admission.trust, lambda root: args.change(root, args))
    proposed = place != settings.admission.trust
    _record(settings, "timestamps", "change-proposed" if proposed else "changed")
    if proposed:
        print(f"proposed  {place}")
    for line in authorities.list_lines(read_document(place).root):
        print(line)
    return 0


def _record(settings: Settings, role: str, what: str) -> None:
    from security.audit.journal import record_operation  # noqa: PLC0415

    operation = {"action": "key-rotation", "reason": f"{role}-{what}"}
    record_operation(settings.audit, [operation])


def _public(args: argparse.Namespace) -> int:
    from security.admission.trust_store import read_trust  # noqa: PLC0415
    from security.sealing.publish import load_identities  # noqa: PLC0415

    settings = load_settings()
    if args.model:
        print(model_key.public_half(), end="")
        return 0
    if args.identity:
        for key in load_identities(settings.sealing):
            print(public_pem(key), end="")
        return 0
    trust = read_trust(settings.admission.trust).root
    keys = trust.keys((args.role,), algorithm=args.algorithm)
    if not keys:
        raise KeyFileError(f"no {args.algorithm} key holds the role {args.role}")
    for key in keys.values():
        print(public_pem(key), end="")
    return 0


def _find(hint: str, trust: TrustRoot) -> str:
    """The trusted key that a hint, or the beginning of one, names."""
    if len(hint) < MIN_HINT_CHARACTERS:
        raise KeyFileError(f"{hint!r}: give {MIN_HINT_CHARACTERS} characters or more")
    found = [full for full in trust.keys(ROLES) if full.startswith(hint.lower())]
    if len(found) != 1:
        raise KeyFileError(f"{hint!r} names {len(found)} trusted keys, not one")
    return found[0]


def _trust_also(
    admission: AdmissionSettings, role: str, key: PublicKey, *, prehash: bool = False
) -> Path:
    """Add a key to a role; adding it again is no harm, and may change its form.

    Returns:
        The file that says so: the trust root, or what is proposed.
    """
    from security.admission.trust_store import change, read_trust  # noqa: PLC0415

    hint = key_hint(key)
    known = read_trust(admission.trust).root
    if hint in known.keys((role,)) and prehash == (hint in known.prehash):
        return admission.trust

    def add(root: TrustRoot) -> TrustRoot:
        if hint in root.revoked:
            raise KeyFileError(f"{hint} was revoked: {root.revoked[hint].reason}")
        roles = {**root.roles, role: {**root.roles.get(role, {}), hint: key}}
        forms = root.prehash | {hint} if prehash else root.prehash - {hint}
        return replace(root, roles=roles, prehash=forms)

    return change(admission.trust, add)


def _report_fallen(admission: AdmissionSettings, hint: str) -> int:
    from security.admission.lineage import signed_by  # noqa: PLC0415  (bentoml)

    fallen = 0
    for item in signed_by(hint, admission):
        verdict = (
            "still verifies" if item.refusal is None else f"refused: {item.refusal}"
        )
        print(f"{item.tag}  signed {', '.join(item.signed)}  {verdict}")
        fallen += item.refusal is not None
    print(f"stored models that no longer verify: {fallen}")
    return 1 if fallen else 0
