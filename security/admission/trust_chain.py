"""Signed trust roots, each vouched for by the one before.

A trust root that names root keys is signed by them. Its next version is believed if
enough of its own root keys and enough of the last version's signed it, so root keys can
be replaced, and whoever knows an old version follows to the newest one.

The rules are those for the root role in the TUF specification 1.0.33, section 5.3. By
its numbers, with the document of version N trusted:

- 5.3.3: at most `MAX_STEPS` documents of at most `MAX_DOCUMENT_BYTES` are taken;
- 5.3.4: version N+1 is signed by a threshold of the root keys of version N, and by a
  threshold of its own. A threshold counts keys, not signatures. Where root keys are of
  two algorithms it must be met by each of them: breaking one is not enough;
- 5.3.5: its version is exactly N+1;
- 5.3.6: whether it has expired does not matter yet;
- 5.3.7: it is trusted in place of N. `trust_store` writes it down (5.3.8), and goes on
  with N+2 (5.3.9);
- 5.3.10: the newest one must not have expired: else somebody may be holding back what
  came after it.

5.3.11 and 5.3.12 are about roles of TUF that are not here. What TUF leaves to its
client's storage is a rule here, since trust roots are also put in place by hand:

- a document of a version that is known already must be the same document;
- where a signed one was accepted, no unsigned one is.

Files are the same JSON as ever, the payload of a DSSE envelope. A bare file is believed
for the place it is found in, as it always was; if it names root keys, signed versions
can follow it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice

from models.report import format_time
from sealgate.errors import StatementError
from sealgate.protocol.dsse import Signer, algorithm_of
from sealgate.protocol.envelope import Envelope
from security.admission.trust import TrustRoot, parse_trust
from security.errors import KeyFileError, TrustRefused

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_STEPS",
    "PAYLOAD_TYPE",
    "TrustDocument",
    "accept",
    "check_continues",
    "check_fresh",
    "draft",
    "follow",
    "parse",
    "shortfall",
    "signers_of",
    "steps",
]

PAYLOAD_TYPE = "application/vnd.sealgate.trust+json"
# TUF's Y, of which 5.3.3 says that 2^10 may do; its W is the other.
MAX_STEPS = 1 << 10
MAX_DOCUMENT_BYTES = 512 << 10


@dataclass(frozen=True)
class TrustDocument:
    """A trust root as it was handed over.

    Attributes:
        root: what it says.
        envelope: with its signatures; None for a bare file.
        where: it came from, for messages.
    """

    root: TrustRoot
    envelope: Envelope | None = field(default=None, repr=False)
    where: str = "trust root"

    @property
    def version(self) -> int:
        """Its number; 0 for a bare file that states none."""
        return self.root.version or 0

    @property
    def payload(self) -> bytes:
        """The bytes that are signed."""
        return self.root.to_json() if self.envelope is None else self.envelope.payload

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the payload."""
        return hashlib.sha256(self.payload).hexdigest()

    def to_json(self) -> bytes:
        """The file's bytes; `parse` gives it back."""
        envelope = self.envelope
        return self.root.to_json() if envelope is None else envelope.to_json()

    def signed_by(self, signer: Signer) -> TrustDocument:
        """The same with one more signature.

        Raises:
            KeyFileError: it is a bare file.
        """
        if self.envelope is None:
            raise KeyFileError(f"{self.where}: is a bare trust root, not a proposal")
        return replace(self, envelope=self.envelope.signed_by(signer))


def parse(data: bytes, where: str) -> TrustDocument:
    """Read a trust root, bare or in an envelope; no signature is looked at.

    Args:
        data: JSON, possibly hostile.
        where: it came from.

    Raises:
        KeyFileError: malformed; or an envelope whose payload lacks version, expiry or
            root keys, has too few root keys for its threshold, or revokes one of them.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise KeyFileError(f"{where}: over {MAX_DOCUMENT_BYTES} bytes")
    # A bare trust root has a schema, an envelope a payload; neither parser takes the
    # other's, so what this looks at decides only which error is told.
    if b'"payloadType"' not in data:
        return TrustDocument(parse_trust(data, where), None, where)
    try:
        envelope = Envelope.parse(
            data, payload_type=PAYLOAD_TYPE, max_bytes=MAX_DOCUMENT_BYTES
        )
    except StatementError as error:
        raise KeyFileError(f"{where}: {error}") from None
    root = parse_trust(envelope.payload, where)
    _check_complete(root, where)
    return TrustDocument(root, envelope, where)


def draft(root: TrustRoot, where: str = "proposal") -> TrustDocument:
    """A version that nobody has signed yet.

    Raises:
        KeyFileError: as `parse`.
    """
    return parse(Envelope(PAYLOAD_TYPE, root.to_json()).to_json(), where)


def accept(document: TrustDocument) -> TrustDocument:
    """A document that its own root keys signed (5.3.4, the second half).

    This makes it whole, not believed: anyone can sign with keys of their own.

    Raises:
        TrustRefused: too few of them did.
    """
    if document.envelope is not None:
        missing = shortfall(document, document.root, "its own root")
        if missing:
            raise TrustRefused(
                f"{document.where}: version {document.version}: {missing}"
            )
    return document


def shortfall(document: TrustDocument, trust: TrustRoot, whose: str) -> str:
    """What signatures are missing for the threshold of a root; "" if none are.

    Args:
        document: that is to be signed.
        trust: with the root keys, of each algorithm of which a threshold must have
            signed; without root keys nothing is missing.
        whose: root that is, in words.
    """
    root = trust.root
    if root is None:
        return ""
    signers = signers_of(document, trust)
    signed = Counter(algorithm_of(root.keys[hint]) for hint in signers)
    wanted = {algorithm_of(key) for key in root.keys.values()}
    return "; ".join(
        f"signed by {signed[algorithm]} {algorithm} keys of {whose}, where "
        f"{root.threshold} must"
        for algorithm in sorted(wanted)
        if signed[algorithm] < root.threshold
    )


def signers_of(document: TrustDocument, trust: TrustRoot) -> frozenset[str]:
    """Which root keys of a trust root signed a document, by hint."""
    if document.envelope is None or trust.root is None:
        return frozenset()
    return document.envelope.signers(trust.root.keys, prehash=trust.prehash)


def check_continues(known: TrustDocument, document: TrustDocument) -> TrustDocument:
    """Check that a document is the one that is known, or the next.

    Args:
        known: believed.
        document: possibly hostile.

    Returns:
        The document, believed.

    Raises:
        TrustRefused: bare where signed ones are known; older; of the same version but
            another document; versions lie between; or as 5.3.4.
    """
    where = f"{document.where}: version {document.version}"
    if document.envelope is None:
        raise TrustRefused(
            f"{document.where}: is not signed, where version {known.version} was "
            "accepted signed"
        )
    if document.version < known.version:
        raise TrustRefused(
            f"{where} is older than version {known.version}, which was accepted: a "
            "rollback"
        )
    if document.version == known.version:
        if document.digest != known.digest:
            raise TrustRefused(
                f"{where} is another than the version {known.version} that was "
                "accepted: a fork"
            )
        return accept(document)
    if document.version > known.version + 1:
        raise TrustRefused(
            f"{where} does not follow version {known.version}: the versions between "
            "are missing"
        )
    return _next(known, document)


def steps(
    known: TrustDocument, documents: Iterable[TrustDocument]
) -> Iterator[TrustDocument]:
    """Each further version, once it is believed: what to write down (5.3.8).

    Args:
        known: believed.
        documents: the next versions in order, possibly hostile.

    Raises:
        TrustRefused: as `check_continues`; or there are more than `MAX_STEPS`.
    """
    coming = iter(documents)
    for document in islice(coming, MAX_STEPS):
        newer = check_continues(known, document)
        if newer.version > known.version:
            yield newer
        known = newer
    if next(coming, None) is not None:
        raise TrustRefused(
            f"{known.where}: more than {MAX_STEPS} versions at once; go on from "
            f"version {known.version}"
        )


def follow(
    known: TrustDocument, documents: Iterable[TrustDocument], now: datetime
) -> TrustDocument:
    """The newest trust root that some documents lead to.

    Args:
        known: believed, whatever its age.
        documents: the next versions in order, possibly hostile.
        now: the time of this update, the same for all of it (5.3.1).

    Raises:
        TrustRefused: as `steps`, or the newest has expired.
    """
    newest = known
    for newest in steps(known, documents):  # noqa: B007  (the last one is wanted)
        pass
    check_fresh(newest, now)
    return newest


def check_fresh(document: TrustDocument, now: datetime) -> None:
    """Check that a trust root has not expired (5.3.10).

    Raises:
        TrustRefused: it has.
    """
    expires = document.root.expires
    if expires is not None and expires <= now:
        raise TrustRefused(
            f"{document.where}: expired at {format_time(expires)}; a newer version may "
            "have been held back"
        )


def _next(known: TrustDocument, document: TrustDocument) -> TrustDocument:
    """5.3.4, for a document whose version is one more (5.3.5)."""
    if known.root.root is None:
        raise TrustRefused(
            f"{known.where}: names no root keys, so no version can follow it"
        )
    whose = f"the root of version {known.version}"
    missing = shortfall(document, known.root, whose)
    if missing:
        raise TrustRefused(f"{document.where}: version {document.version}: {missing}")
    return accept(document)


def _check_complete(root: TrustRoot, where: str) -> None:
    """What a signed trust root states, beside what any does."""
    if root.version is None or root.expires is None or root.root is None:
        raise KeyFileError(f"{where}: a signed one has version, expires and root")
    if root.root.keys.keys() & root.revoked.keys():
        raise KeyFileError(f"{where}: a key of root is revoked")
    counts = Counter(map(algorithm_of, root.root.keys.values()))
    for algorithm, count in counts.items():
        if count < root.root.threshold:
            raise KeyFileError(
                f"{where}: root has {count} {algorithm} keys, and a threshold of "
                f"{root.root.threshold}"
            )
