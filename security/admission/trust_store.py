"""The trust root where a deployment keeps it: read, remembered, replaced, proposed.

Beside ``trust.json``, which the operator or a command puts there, can lie:

- ``trust.json.accepted``: the newest signed version that was accepted here. With it an
  older, another or an unsigned ``trust.json`` is refused after a restart, too. The
  doors write it (`remember`), and `python -m security trust`;
- ``N.trust.json``: version N, as it is published. Where ``trust.json`` is several
  versions newer than what was accepted, those between are read from there;
- ``trust.next.json``: the next version as it is proposed, until it is signed.

Whoever can write all of these can put any trust root here, as ever. Who can only
replace ``trust.json``, or only publishes versions, cannot.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.admission.trust import TrustRoot
from security.admission.trust_chain import (
    MAX_DOCUMENT_BYTES,
    TrustDocument,
    accept,
    check_fresh,
    draft,
    parse,
    steps,
)
from security.errors import KeyFileError

__all__ = [
    "LIFETIME_DAYS",
    "accepted",
    "add_signature",
    "anchor",
    "change",
    "load_trust",
    "pin",
    "proposal",
    "proposal_file",
    "propose",
    "put",
    "read_document",
    "read_trust",
    "version_name",
]

LIFETIME_DAYS = 365

_log = logging.getLogger(__name__)


def load_trust(
    path: Path, *, now: datetime | None = None, remember: bool = False
) -> TrustRoot:
    """The trust root that a deployment believes, bare or signed.

    Args:
        path: of the file.
        now: the time that its expiry is held to; the clock's by default.
        remember: that this version was accepted here, for the next time.

    Raises:
        KeyFileError: unreadable, malformed, or a remembered one is.
        TrustRefused: as `read_trust`, or it has expired.
    """
    document = read_trust(path)
    check_fresh(document, now or datetime.now(UTC))
    if remember and document.envelope is not None:
        _try_to_remember(path, document)
    return document.root


def read_trust(path: Path) -> TrustDocument:
    """As `load_trust`, whatever its age: for who shows or replaces it.

    Raises:
        KeyFileError: unreadable, malformed, or a remembered one is.
        TrustRefused: its own root keys did not sign it, or it does not continue the
            version that was accepted here (`trust_chain.check_continues`).
    """
    document, known = accept(read_document(path)), accepted(path)
    if known is not None:
        for _ in steps(known, chain(_between(path, known, document), [document])):
            pass
    return document


def read_document(path: Path) -> TrustDocument:
    """A file, bare or signed, of which nothing is believed yet.

    Raises:
        KeyFileError: unreadable, or malformed.
    """
    where = f"trust root {path}"
    try:
        data = read_regular(path, max_bytes=MAX_DOCUMENT_BYTES, follow_links=True)
    except BundleError as error:
        raise KeyFileError(f"{where}: {error}") from None
    return parse(data, where)


def accepted(path: Path) -> TrustDocument | None:
    """The newest signed version that was accepted here, if one was.

    Raises:
        KeyFileError: what remembers it is unreadable or malformed.
    """
    memory = _memory(path)
    return accept(read_document(memory)) if os.path.lexists(memory) else None


def anchor(path: Path) -> TrustDocument:
    """What an update goes on from: the file, or what was accepted if that is refused.

    Raises:
        KeyFileError: there is neither.
    """
    known = accepted(path)
    try:
        return read_trust(path)
    except KeyFileError:
        if known is None:
            raise
        return known


def put(path: Path, document: TrustDocument) -> None:
    """Put a version that is believed in place, and remember it (5.3.8).

    In this order: if it ends in between, the file is the next of what is remembered.
    """
    write_atomic(path, document.to_json())
    _remember(path, document)


def pin(path: Path, document: TrustDocument) -> None:
    """Put a version in place because the operator says so, whatever came before."""
    with _locked(path.parent):
        _memory(path).unlink(missing_ok=True)
        write_atomic(path, document.to_json())
        write_atomic(_memory(path), document.to_json())


def version_name(version: int) -> str:
    """The file name of a version where versions are published.

    >>> version_name(4)
    '4.trust.json'
    """
    return f"{version}.trust.json"


def proposal_file(path: Path) -> Path:
    """Where the next version is proposed.

    >>> proposal_file(Path("/etc/sealgate/trust.json")).name
    'trust.next.json'
    """
    return path.with_suffix(f".next{path.suffix}")


def proposal(path: Path) -> TrustDocument | None:
    """The next version as it is proposed; None if there is none, or it is older.

    Raises:
        KeyFileError: it cannot be read, or what it follows cannot.
    """
    file = proposal_file(path)
    if not file.exists():
        return None
    found = read_document(file)
    return found if found.version == read_trust(path).version + 1 else None


def change(path: Path, edit: Callable[[TrustRoot], TrustRoot]) -> Path:
    """Change a bare trust root, or propose the next version of a signed one.

    Of several at once, each changes what the one before it left.

    Args:
        path: of the trust root in force.
        edit: from what it says, or what is proposed already, to what it shall say.

    Returns:
        The file that says so now: `path`, or `proposal_file` of it.

    Raises:
        KeyFileError: what `edit` gives is no trust root that can be read again.
    """
    with _locked(path.parent):
        document = read_trust(path)
        if document.envelope is not None:
            _propose(path, edit, datetime.now(UTC))
            return proposal_file(path)
        data = edit(document.root).to_json()
        parse(data, f"trust root {path}")
        write_atomic(path, data)
        return path


def propose(
    path: Path,
    edit: Callable[[TrustRoot], TrustRoot],
    *,
    now: datetime | None = None,
) -> TrustDocument:
    """Change the next version of a trust root, which nobody has signed then.

    A change that changes nothing leaves the signatures that were collected.

    Args:
        path: of the trust root in force.
        edit: from the version proposed so far, or else from the one in force, whose
            number and expiry are set already.
        now: of which a new proposal expires in `LIFETIME_DAYS`; the clock's by default.

    Raises:
        KeyFileError: what `edit` gives cannot be a signed trust root.
    """
    with _locked(path.parent):
        return _propose(path, edit, now or datetime.now(UTC))


def add_signature(file: Path, signed: TrustDocument) -> TrustDocument:
    """Write a proposal that was signed, beside the signatures that came meanwhile.

    Args:
        file: of the proposal.
        signed: what was read there, with a signature more.

    Raises:
        KeyFileError: it was changed while it was signed.
    """
    with _locked(file.parent):
        found, envelope = read_document(file).envelope, signed.envelope
        if found is None or envelope is None or found.payload != envelope.payload:
            raise KeyFileError(f"{file}: was changed while it was signed; look again")
        signatures = {**found.signatures, **envelope.signatures}
        merged = replace(signed, envelope=replace(envelope, signatures=signatures))
        write_atomic(file, merged.to_json())
    return merged


def _propose(
    path: Path, edit: Callable[[TrustRoot], TrustRoot], now: datetime
) -> TrustDocument:
    current, begun = read_trust(path), proposal(path)
    expires = now + timedelta(days=LIFETIME_DAYS)
    fresh = replace(
        current.root,
        version=current.version + 1,
        expires=expires.replace(microsecond=0),
    )
    document = draft(edit(fresh if begun is None else begun.root))
    if begun is not None and begun.payload == document.payload:
        return begun
    write_atomic(proposal_file(path), document.to_json())
    return document


def _between(
    path: Path, known: TrustDocument, document: TrustDocument
) -> Iterator[TrustDocument]:
    """The versions after one and before another, as far as they lie beside the file."""
    for version in range(known.version + 1, document.version):
        file = path.with_name(version_name(version))
        if not file.exists():
            return
        yield read_document(file)


def _memory(path: Path) -> Path:
    return path.with_name(f"{path.name}.accepted")


def _remember(path: Path, document: TrustDocument) -> None:
    """Remember a version, unless a newer one is: several processes do this at once."""
    with _locked(path.parent):
        known = accepted(path)
        if known is None or known.version < document.version:
            write_atomic(_memory(path), document.to_json())


def _try_to_remember(path: Path, document: TrustDocument) -> None:
    known = accepted(path)
    if known is not None and known.version == document.version:
        return
    try:
        _remember(path, document)
    except OSError as error:
        _warn(_memory(path), error.strerror or "cannot be written")


@cache
def _warn(memory: Path, why: str) -> None:
    _log.warning("%s: %s: rollbacks are not noticed after a restart", memory, why)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; a folder that is read-only can be locked all the same."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
