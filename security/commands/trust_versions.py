"""What `trust` does with versions of the trust root."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256

from models.files import write_atomic
from models.report import format_time
from sealgate.protocol.dsse import (
    ECDSA_P256,
    ML_DSA_65,
    KeySigner,
    PrivateKey,
    PublicKey,
    Signer,
    algorithm_of,
    key_hint,
    public_pem,
)
from security.admission import trust_store
from security.admission.keys import generate_mldsa_key, generate_signing_key
from security.admission.trust import ROLES, RootKeys, TrustRoot
from security.commands.signing import read_public
from security.errors import KeyFileError, TrustRefused
from security.key_files import (
    is_uri,
    passphrase_file,
    read_passphrase,
    read_private,
)
from security.settings.issuers import https_url
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from security.admission.trust_chain import TrustDocument

__all__ = ["ACTIONS"]

FETCH_TIMEOUT_S = 30.0
MIN_HINT_CHARACTERS = 8
MAX_LIFETIME_DAYS = 3650
# What a folder of published versions answers for one that is not there yet, as
# python-tuf's client takes it: some stores say 403 for a file that is missing.
_ABSENT = (403, 404)


def _path(args: argparse.Namespace) -> Path:
    given: Path | None = args.trust
    return given or load_settings().admission.trust


def show(args: argparse.Namespace) -> int:
    """Print what is here, or what a proposal changes; returns the exit code."""
    path = _path(args)
    if args.file is not None:
        _print_proposal(trust_store.read_document(args.file), _in_force(path))
        return 0
    document = trust_store.read_document(path)
    for line in _lines(document):
        print(line)
    known = trust_store.accepted(path)
    if known is not None:
        print(f"accepted here: version {known.version}, sha256:{known.digest}")
    trust_store.load_trust(path)  # refuses what no door would believe
    proposed = trust_store.proposal(path)
    if proposed is not None:
        _print_proposal(proposed, document)
    return 0


def key(args: argparse.Namespace) -> int:
    """Make a root key; returns the exit code."""
    private: Path = args.path
    public = private.with_suffix(f".pub{private.suffix}")
    if public.exists():
        raise KeyFileError(f"{public}: exists already; keys are never overwritten")
    source = args.passphrase_file or passphrase_file()
    passphrase = read_passphrase(source) if source else None
    generate = _GENERATE[args.algorithm]
    made = generate(private, passphrase=passphrase).public_key()
    write_atomic(public, public_pem(made).encode())
    print(f"generated {private}  {args.algorithm}")
    print(f"wrote     {public}  {key_hint(made)}")
    return 0


def propose(args: argparse.Namespace) -> int:
    """Propose the next version; returns the exit code."""
    path = _path(args)

    def change(root: TrustRoot) -> TrustRoot:
        root = _with_root_keys(root, args)
        if args.expires_days is not None:
            root = replace(root, expires=_expiry(args.expires_days))
        return root

    current = trust_store.read_trust(path)
    document = trust_store.propose(path, change)
    print(f"proposed  {trust_store.proposal_file(path)}")
    _print_proposal(document, current)
    return 0


def sign(args: argparse.Namespace) -> int:
    """Sign a proposal; returns the exit code."""
    path = _path(args)
    file: Path = args.file or trust_store.proposal_file(path)
    document, current = trust_store.read_document(file), _in_force(path)
    signer = _signer(args)
    signed = document.signed_by(signer)
    _check_counts(signed, current, signer.hint)
    signed = trust_store.add_signature(file, signed)
    print(f"signed    {file}  version {signed.version}, sha256:{signed.digest}")
    _print_proposal(signed, current)
    return 0


def pin(args: argparse.Namespace) -> int:
    """Believe a version because the operator says so; returns the exit code."""
    from security.admission.trust_chain import accept, check_fresh  # noqa: PLC0415

    path = _path(args)
    document = accept(trust_store.read_document(args.file))
    check_fresh(document, datetime.now(UTC))
    if document.envelope is None:
        raise KeyFileError(f"{args.file}: is not signed; put a bare one in place as is")
    known = trust_store.accepted(path)
    if known is not None and known.digest != document.digest and not args.replace:
        raise TrustRefused(
            f"version {known.version} was accepted here: `trust update` follows from "
            "it, --replace forgets it"
        )
    trust_store.pin(path, document)
    _tell(path, document, "pinned")
    return 0


def update(args: argparse.Namespace) -> int:
    """Follow to the newest version; returns the exit code."""
    from security.admission.trust_chain import check_fresh, steps  # noqa: PLC0415

    path, now = _path(args), datetime.now(UTC)
    newest = known = trust_store.anchor(path)
    if known.root.root is None:
        raise KeyFileError(
            f"{known.where}: names no root keys; `trust pin` the first signed version"
        )
    for newest in steps(known, _published(args, known.version)):
        trust_store.put(path, newest)
        _tell(path, newest, "accepted")
    if newest is known and known.envelope is not None:
        trust_store.put(path, known)  # the file may have been an older one
        print(f"version {known.version} is the newest")
    check_fresh(newest, now)
    return 0


ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "show": show,
    "key": key,
    "propose": propose,
    "sign": sign,
    "pin": pin,
    "update": update,
}
_GENERATE: Mapping[str, Callable[..., PrivateKey]] = {
    ECDSA_P256: generate_signing_key,
    ML_DSA_65: generate_mldsa_key,
}


def _tell(path: Path, document: TrustDocument, what: str) -> None:
    """Print, and record, that a version is in force."""
    from security.audit.journal import record_operation  # noqa: PLC0415

    record_operation(
        load_settings().audit,
        [
            {
                "action": "key-rotation",
                "reason": f"trust-root-{document.version}-{what}",
            }
        ],
    )
    print(f"{what:<9} {path}  version {document.version}, {_until(document)}")


def _in_force(path: Path) -> TrustDocument:
    """What a proposal is held to; it may be the first version of anything."""
    from security.admission.trust_chain import TrustDocument  # noqa: PLC0415

    if path.exists():
        return trust_store.anchor(path)
    return TrustDocument(TrustRoot({}), where="nothing")


def _print_proposal(document: TrustDocument, current: TrustDocument) -> None:
    """A proposal in words: what it changes, and whose signatures it lacks."""
    for line in _lines(document):
        print(line)
    before, after = _facts(current.root), _facts(document.root)
    for mark, facts in (("-", before - after), ("+", after - before)):
        for fact in sorted(facts):
            print(f"{mark} {fact}")
    print(_state(document, current))


def _facts(trust: TrustRoot) -> set[str]:
    """All that a trust root says, beside version and expiry: a line for each."""
    root = trust.root
    keys = {**trust.roles, **({} if root is None else {"root": root.keys})}
    facts = {
        f"{role} {hint} {algorithm_of(public)}"
        + (", pre-hash" if hint in trust.prehash else "")
        for role, of in keys.items()
        for hint, public in of.items()
    }
    # A revoked key that goes from a role can take with it that the role needs two.
    facts |= {
        f"{role} {hint} {algorithm_of(public)}, revoked"
        for role, of in trust.retired.items()
        for hint, public in of.items()
    }
    facts |= {
        f"revoked {item.hint} {item.time}"
        + (f", compromised {item.compromised}" if item.compromised else "")
        + f": {item.reason}"
        for item in trust.revoked.values()
    }
    for item in trust.timestamp_authorities:
        prints = (each.fingerprint(SHA256()).hex() for each in item.certificates)
        facts.add(f"timestamps {item.name}: {' '.join(prints)}")
    if root is not None:
        facts.add(f"threshold {root.threshold}")
    return facts


def _lines(document: TrustDocument) -> Iterator[str]:
    """A document in words: what it is, and its root keys."""
    from security.admission.trust_chain import signers_of  # noqa: PLC0415

    root, envelope = document.root.root, document.envelope
    keys = {} if root is None else root.keys
    signers = signers_of(document, document.root)
    version = f"version {document.version}" if document.version else "no version"
    signed = (
        "bare" if envelope is None else f"signed by {len(signers)} of its root keys"
    )
    yield f"{document.where}: {version}, {signed}, {_until(document)}"
    for hint, public in keys.items():
        mark = "  signed" if hint in signers else ""
        yield f"  {hint}  {algorithm_of(public)}{mark}"
    if root is not None:
        algorithms = sorted({algorithm_of(public) for public in keys.values()})
        wanted = " and ".join(f"{root.threshold} {name}" for name in algorithms)
        yield f"root keys that sign the next version: {wanted}"
        if ML_DSA_65 not in algorithms and _has_mldsa(document.root):
            yield (
                f"notice: no root key is of {ML_DSA_65}: whoever can forge "
                f"{ECDSA_P256} signatures can replace every key"
            )


def _has_mldsa(trust: TrustRoot) -> bool:
    return any(trust.has(role, ML_DSA_65) for role in ROLES)


def _until(document: TrustDocument) -> str:
    expires = document.root.expires
    if expires is None:
        return "never expires"
    days = (expires - datetime.now(UTC)) // timedelta(days=1)
    return f"expires {format_time(expires)}, in {days} days"


def _state(document: TrustDocument, current: TrustDocument) -> str:
    """Whose signatures a proposal lacks, in words."""
    from security.admission.trust_chain import shortfall  # noqa: PLC0415

    whose = f"the root of version {current.version}"
    roots = ((document.root, "its own root"), (current.root, whose))
    lacks = [
        missing for root, name in roots if (missing := shortfall(document, root, name))
    ]
    return f"not yet valid: {'; '.join(lacks)}" if lacks else "has all signatures"


def _check_counts(signed: TrustDocument, current: TrustDocument, hint: str) -> None:
    """Say now of a signature what every reader would say later.

    Raises:
        KeyFileError: it counts for neither version's root.
    """
    from security.admission.trust_chain import signers_of  # noqa: PLC0415

    if hint in signers_of(signed, signed.root) | signers_of(signed, current.root):
        return
    roots = [item.root.root for item in (signed, current)]
    if any(root is not None and hint in root.keys for root in roots):
        raise KeyFileError(
            f"the signature by {hint} does not verify: a key service signs a pre-hash "
            "with ML-DSA-65, which `trust propose --prehash` is for"
        )
    raise KeyFileError(
        f"{hint} is a root key of neither version {current.version} nor version "
        f"{signed.version}"
    )


def _with_root_keys(trust: TrustRoot, args: argparse.Namespace) -> TrustRoot:
    root, prehash = trust.root, set(trust.prehash)
    keys: dict[str, PublicKey] = {} if root is None else dict(root.keys)
    for given in args.drop:
        dropped = _find(given, keys)
        prehash.discard(dropped)
        del keys[dropped]
    for file in args.root_key:
        public = read_public(file)
        keys[key_hint(public)] = public
        if args.prehash and algorithm_of(public) == ML_DSA_65:
            prehash.add(key_hint(public))
    if not keys:
        raise KeyFileError("a signed trust root needs root keys: give --root-key")
    threshold = args.threshold
    if threshold is None:
        threshold = 1 if root is None else root.threshold
    return replace(trust, root=RootKeys(keys, threshold), prehash=frozenset(prehash))


def _find(given: str, keys: Mapping[str, PublicKey]) -> str:
    """The root key that a file, a hint, or the beginning of one names."""
    if Path(given).is_file():
        given = key_hint(read_public(Path(given)))
    if len(given) < MIN_HINT_CHARACTERS:
        raise KeyFileError(f"{given!r}: give {MIN_HINT_CHARACTERS} characters or more")
    found = [hint for hint in keys if hint.startswith(given.lower())]
    if len(found) != 1:
        raise KeyFileError(f"{given!r} names {len(found)} root keys, not one")
    return found[0]


def _expiry(days: int) -> datetime:
    if not 1 <= days <= MAX_LIFETIME_DAYS:
        raise KeyFileError(f"--expires-days is not 1 to {MAX_LIFETIME_DAYS}")
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def _signer(args: argparse.Namespace) -> Signer:
    from security.admission.signers import load_signer  # noqa: PLC0415

    if is_uri(args.key):
        if args.public is None:
            raise KeyFileError("a key named by URI needs --public")
        public = read_public(args.public)
        return load_signer(
            args.key,
            public_key=lambda: public,
            passphrase=args.passphrase_file,
            algorithm=algorithm_of(public),
        )
    private = read_private(Path(args.key), passphrase=args.passphrase_file)
    if not isinstance(private, PrivateKey):
        raise KeyFileError(f"{args.key}: neither an ECDSA P-256 nor an ML-DSA-65 key")
    algorithm_of(private.public_key())
    return KeySigner(private)


def _published(args: argparse.Namespace, version: int) -> Iterator[TrustDocument]:
    """The published version that is here, if it is there too, and all that follow."""
    source: str = args.source
    if "://" in source:
        https_url(source, "the source of versions", or_here=True)
        yield from _fetched(source, version, args.ca)
    elif Path(source).is_dir():
        yield from _stored(Path(source), version)
    else:
        yield trust_store.read_document(Path(source))


def _stored(folder: Path, version: int) -> Iterator[TrustDocument]:
    for number in count(max(version, 1)):
        file = folder / trust_store.version_name(number)
        if file.exists():
            yield trust_store.read_document(file)
        elif number > version:
            return


def _fetched(
    url: str, version: int, authorities: Path | None
) -> Iterator[TrustDocument]:
    from security.admission.trust_chain import (  # noqa: PLC0415
        MAX_DOCUMENT_BYTES,
        parse,
    )
    from security.bounded_fetch import StatusError, fetch, trusting  # noqa: PLC0415

    context = trusting(authorities)
    for number in count(max(version, 1)):
        full = f"{url.rstrip('/')}/{trust_store.version_name(number)}"
        try:
            data = fetch(
                full,
                context=context,
                max_bytes=MAX_DOCUMENT_BYTES,
                timeout_s=FETCH_TIMEOUT_S,
            )
        except StatusError as error:
            if error.status not in _ABSENT:
                raise
            if number > version:
                return
            continue
        yield parse(data, full)
