r"""A receipt: proof that the record of one request is in a deployment's audit log.

It leads from the record to a signed and witnessed checkpoint, without the other records
and without anybody's help, and so is checked offline and years later:

1. the record is a leaf of its writer's tree (a writer is one process at one start);
2. that tree's checkpoint is a leaf of the deployment's one log;
3. the log's checkpoint is signed by the log, and cosigned by witnesses, who have seen
   the log only grow.

The document, version 1, in the presentation language of RFC 8446, section 3::

    struct {
        opaque head[24] = "sealgate.dev/receipt@v1\n";
        opaque leaf<1..2^16-1>;        /* deflated, see below */
        Hash writer_path<0..2^8-1>;    /* count, then 32 bytes each */
        uint64 place;                  /* of the writer's checkpoint in the log */
        Hash log_path<0..2^8-1>;
        opaque checkpoint<1..2^16-1>;  /* the log's: a signed note */
    } Receipt;

``leaf`` is raw DEFLATE (RFC 1951) with the preset dictionary `DICTIONARY`, of the
record's line without its member ``hash``, a line feed, and the text of the writer's
checkpoint. The paths are those of RFC 9162, section 2.1.3. The part from ``place`` on
is what a C2SP ``tlog-proof`` says: `Receipt.tlog_proof` writes it as one, for other
tools.

What a receipt tells beyond its own record: how many records its writer had before it,
how many at the checkpoint, and how many checkpoints the log. Of other records there are
hashes, each over a random request id or over another such hash.

The number that a caller gets with the answer, and fetches the receipt by, is opaque:
`NumberSealer`.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealgate.errors import JsonError, MerkleError, NoteError, ReceiptError
from sealgate.protocol import strict_json
from sealgate.protocol.cosignatures import CosignatureVerifier, witness_times
from sealgate.protocol.merkle import (
    HASH_BYTES,
    MAX_PROOF_HASHES,
    leaf_hash,
    verify_inclusion,
)
from sealgate.protocol.notes import (
    MAX_NOTE_BYTES,
    Checkpoint,
    NoteKey,
    open_checkpoint,
    parse_checkpoint,
)
from sealgate.protocol.versions import unread

__all__ = [
    "DICTIONARY",
    "MAX_RECEIPT_BYTES",
    "RECEIPT_HEADER",
    "RECEIPT_MEDIA_TYPE",
    "RECEIPT_PATH",
    "LogTrust",
    "NumberSealer",
    "Proven",
    "Receipt",
    "open_cosigned",
    "verify_receipt",
]

RECEIPT_HEADER = b"sealgate-receipt"
RECEIPT_PATH = "/v2/receipts/"
RECEIPT_MEDIA_TYPE = "application/vnd.sealgate.receipt"
MAX_RECEIPT_BYTES = 2 * MAX_NOTE_BYTES

# Part of version 1: another one takes another head.
DICTIONARY = (
    b'\n9876543210fedcba/audit/1795276800000000000-\nafter {"action":"explain",'
    b'"client":null,"count":1,"latency_us":,"model":null,"model_sha256":null,"outcome":"refuse",'
    b'"reason":null,"request_bytes":,"request_id":null,"response_bytes":,"rows":null,'
    b'"sealed":false,"status":404,"subject":null,"time_us":179,"token":null,"seq":,'
    b'"prev":""}{"action":"infer","client":"","count":1,"latency_us":,"model":"",'
    b'"model_sha256":"","outcome":"allow","reason":null,"request_bytes":,"request_id":'
    b'"","response_bytes":,"rows":1,"sealed":true,"status":200,"subject":"","time_us":'
    b'179,"token":"","seq":,"prev":""}\n'
)
_NAME = "sealgate.dev/receipt@v1"
_HEAD = _NAME.encode() + b"\n"
_PROOF_HEAD = b"c2sp.org/tlog-proof@v1\n"
_MAX_RECORD_BYTES = 16 << 10
_MAX_LEAF_BYTES = _MAX_RECORD_BYTES + (4 << 10)
_MAX_NUMBER_CHARACTERS = 256
_MAX_WITNESSES = 64


@dataclass(frozen=True)
class LogTrust:
    """Which log a reader believes, and who must have watched it.

    Attributes:
        log: the log's keys, all of one name, which is its origin. Each of them must
            have signed: whoever names an ML-DSA key beside the other wants both.
        witnesses: keys of cosignatures. A witness may have several, of one name, and
            counts once.
        required: how many of the witnesses must have cosigned.
    """

    log: tuple[NoteKey, ...]
    witnesses: tuple[CosignatureVerifier, ...] = ()
    required: int = 0

    def __post_init__(self) -> None:
        """Refuse what could never be met, or would be met by less than it says.

        Raises:
            NoteError: no key of the log, or of two logs; a key that is there twice;
                more witnesses required than there are.
        """
        if len({key.name for key in self.log}) != 1:
            raise NoteError("a log is known by one or more keys of one name")
        for name in ("log", "witnesses"):
            keys = getattr(self, name)
            if len({key.encoded for key in keys}) != len(keys):
                raise NoteError(f"{name}: a key that is there twice")
        names = {key.name for key in self.witnesses}
        if not 0 <= self.required <= len(names) <= _MAX_WITNESSES:
            raise NoteError(f"{self.required} witnesses are required of {len(names)}")

    @property
    def origin(self) -> str:
        """The log's origin."""
        return self.log[0].name


def open_cosigned(note: bytes, trust: LogTrust) -> tuple[Checkpoint, dict[str, int]]:
    """Verify a log's checkpoint, and that enough witnesses cosigned it.

    1. each of the log's keys signed;
    2. it is this log's: its origin is the keys' name;
    3. as many witnesses as are required cosigned; of a known one that does not verify
       nothing is believed.

    Returns:
        The checkpoint, and since when each witness has it, Unix seconds by name.

    Raises:
        NoteError: says which.
    """
    checkpoint = open_checkpoint(note, trust.log, every=True)
    if checkpoint.origin != trust.origin:
        raise NoteError(f"a checkpoint of another log: {checkpoint.origin}")
    found = witness_times(note, trust.witnesses)
    if len(found) < trust.required:
        raise NoteError(
            f"{len(found)} of {trust.required} required witnesses cosigned the "
            "checkpoint"
        )
    return checkpoint, found


@dataclass(frozen=True)
class Receipt:
    """What a receipt says; nothing of it is verified.

    Attributes:
        record: the record's line without its member ``hash``, as it was hashed.
        writer_checkpoint: the text of the writer's checkpoint.
        writer_path: inclusion of the record in that.
        place: index of the writer's checkpoint in the log.
        log_path: its inclusion there.
        checkpoint: the log's, a signed note with its cosignatures.
    """

    record: bytes
    writer_checkpoint: bytes
    writer_path: tuple[bytes, ...]
    place: int
    log_path: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The document.

        Raises:
            ReceiptError: a part is longer than one may be.
        """
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, DICTIONARY)
        packed = packer.compress(self.record + b"\n" + self.writer_checkpoint)
        return b"".join(
            (
                _HEAD,
                _vector(packed + packer.flush()),
                _hashes(self.writer_path),
                struct.pack(">Q", self.place),
                _hashes(self.log_path),
                _vector(self.checkpoint),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """Read a document, possibly hostile.

        Raises:
            ReceiptError: it is not one of version 1, whole and no more.
        """
        if len(data) > MAX_RECEIPT_BYTES or not data.startswith(_HEAD):
            head = data[:64].partition(b"\n")[0].decode(errors="replace")
            raise ReceiptError(f"not a receipt of version 1: {unread(head, _NAME)}")
        reader = _Reader(data, len(_HEAD))
        leaf = _inflate(reader.vector())
        writer_path = reader.hashes()
        (place,) = struct.unpack(">Q", reader.take(8))
        log_path = reader.hashes()
        checkpoint = reader.vector()
        record, blank, text = leaf.partition(b"\n")
        if reader.rest or not blank or len(record) > _MAX_RECORD_BYTES:
            raise ReceiptError("not a receipt: its parts are not what they must be")
        return cls(record, text, writer_path, place, log_path, checkpoint)

    def tlog_proof(self) -> bytes:
        """Steps 2 and 3 as a C2SP tlog-proof; the leaf is the writer's checkpoint."""
        lines = [_PROOF_HEAD, b"index %d\n" % self.place]
        lines += [base64.b64encode(node) + b"\n" for node in self.log_path]
        return b"".join((*lines, b"\n", self.checkpoint))


@dataclass(frozen=True)
class Proven:
    """What a receipt that verifies proves.

    Attributes:
        fields: of the record, by the names that docs/audit.md has.
        request_id: of the request.
        model: the name that was asked for.
        model_sha256: root digest of the bundle that answered.
        time_us: microseconds since 1970, by the writer's clock.
        origin: of the log.
        size: how many checkpoints the log had when this one was signed.
        witnesses: those of the trusted ones that cosigned, by name, and when: Unix
            seconds by their clocks. By then the request was on record.
    """

    fields: Mapping[str, Any]
    request_id: str
    model: str
    model_sha256: str
    time_us: int
    origin: str
    size: int
    witnesses: Mapping[str, int]


def verify_receipt(
    data: bytes,
    trust: LogTrust,
    *,
    request_id: str | None,
    model: str | None = None,
    model_sha256: str | None = None,
) -> Proven:
    """Verify a receipt, and that it is about the request that is meant.

    1. bounded, and a receipt of version 1;
    2. the log's checkpoint is signed and cosigned as `open_cosigned` has it;
    3. the writer's checkpoint is the leaf at its place in that log;
    4. it is a writer's of this log: its origin is the log's and a writer's name;
    5. the record is the leaf of its own number in the writer's tree;
    6. the record says that one request was answered, and is about the one expected.

    Args:
        data: the document, possibly hostile.
        trust: which log, and which witnesses.
        request_id: ``X-Request-Id`` of the answer; None takes any, and then whoever
            asks compares `Proven.request_id`.
        model: the model's name; None takes any.
        model_sha256: root digest of the bundle that must have answered; None takes any.

    Raises:
        ReceiptError: says which step.
    """
    receipt = Receipt.decode(data)
    try:
        log, witnesses = open_cosigned(receipt.checkpoint, trust)
        _check_included(receipt, log)
        fields = _record_in_tree(receipt, trust.origin)
    except (MerkleError, NoteError, JsonError) as error:
        raise ReceiptError(str(error)) from None
    proven = _proven(fields, log, witnesses)
    expected = {"request_id": request_id, "model": model, "model_sha256": model_sha256}
    for name, value in expected.items():
        if value is not None and getattr(proven, name) != value:
            raise ReceiptError(f"a receipt for another request: {name} is not {value}")
    return proven


def _check_included(receipt: Receipt, log: Checkpoint) -> None:
    """Step 3."""
    try:
        verify_inclusion(
            leaf_hash(receipt.writer_checkpoint),
            receipt.log_path,
            index=receipt.place,
            size=log.size,
            root=log.root,
        )
    except MerkleError as error:
        raise ReceiptError(f"the writer's checkpoint in the log: {error}") from None


def _record_in_tree(receipt: Receipt, origin: str) -> dict[str, Any]:
    """Steps 4 and 5; returns the record."""
    writer = parse_checkpoint(receipt.writer_checkpoint)
    if writer.origin.rpartition("/")[0] != origin:
        raise ReceiptError("the leaf in the log is not a checkpoint of a writer")
    fields = strict_json.loads_object(receipt.record, max_bytes=_MAX_RECORD_BYTES)
    sequence = fields.get("seq")
    if type(sequence) is not int:
        raise ReceiptError("the record has no number")
    try:
        verify_inclusion(
            leaf_hash(receipt.record),
            receipt.writer_path,
            index=sequence,
            size=writer.size,
            root=writer.root,
        )
    except MerkleError as error:
        raise ReceiptError(f"the record in its writer's tree: {error}") from None
    return fields


def _proven(
    fields: dict[str, Any], log: Checkpoint, witnesses: Mapping[str, int]
) -> Proven:
    """Step 6, as far as it is about any request."""
    names = ("request_id", "model", "model_sha256")
    if (fields.get("outcome"), fields.get("count")) != ("allow", 1) or not all(
        isinstance(fields.get(name), str) for name in names
    ):
        raise ReceiptError("the record is not about one request that was answered")
    if type(fields.get("time_us")) is not int:
        raise ReceiptError("the record has no time")
    return Proven(
        fields=fields,
        request_id=fields["request_id"],
        model=fields["model"],
        model_sha256=fields["model_sha256"],
        time_us=fields["time_us"],
        origin=log.origin,
        size=log.size,
        witnesses=witnesses,
    )


class NumberSealer:
    """Makes receipts' numbers, and opens them again.

    A number is AES-SIV (RFC 5297) over the record's place and its writer's name, in
    base64url: whoever lacks the key learns nothing from it or from two of them, and
    makes none up. There is no nonce to keep unique, and none is needed: a place is
    sealed once. Every process of a deployment derives the same key.

    >>> sealer = NumberSealer(bytes(32))
    >>> sealer.open(sealer.seal("1795276800-7", 41))
    ('1795276800-7', 41)
    """

    def __init__(self, secret: bytes) -> None:
        """Derive the key (HKDF-SHA256).

        Args:
            secret: of the deployment, of 32 random bytes or more; it may have other
                uses.
        """
        derive = HKDF(hashes.SHA256(), 64, None, b"sealgate receipt number v1")
        self._siv = AESSIV(derive.derive(secret))

    def __repr__(self) -> str:
        return "<NumberSealer>"

    def seal(self, writer: str, sequence: int) -> str:
        """The number of a writer's record."""
        plain = sequence.to_bytes(8, "big") + writer.encode()
        sealed = self._siv.encrypt(plain, None)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, number: str) -> tuple[str, int]:
        """The writer and the record's place in its log.

        Raises:
            ReceiptError: this deployment gave no such number.
        """
        try:
            if len(number) > _MAX_NUMBER_CHARACTERS:
                raise ReceiptError("no number of ours")
            text = number.encode("ascii") + b"=" * (-len(number) % 4)
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
            plain = self._siv.decrypt(sealed, None)
            writer, sequence = plain[8:].decode(), int.from_bytes(plain[:8], "big")
        except (binascii.Error, UnicodeError, ValueError, InvalidTag):
            raise ReceiptError("no number of ours") from None
        if self.seal(writer, sequence) != number:
            raise ReceiptError("no number of ours")  # base64 has several spellings
        return writer, sequence


class _Reader:
    """Takes the parts of a document off its front."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if self.rest < size:
            raise ReceiptError("not a receipt: it is cut short")
        self._at += size
        return self._data[self._at - size : self._at]

    def vector(self) -> bytes:
        return self.take(int.from_bytes(self.take(2), "big"))

    def hashes(self) -> tuple[bytes, ...]:
        count = self.take(1)[0]
        if count > MAX_PROOF_HASHES:
            raise ReceiptError("not a receipt: a path that is too long")
        return tuple(self.take(HASH_BYTES) for _ in range(count))


def _vector(data: bytes) -> bytes:
    if not 0 < len(data) <= 0xFFFF:
        raise ReceiptError("a part that no receipt can hold")
    return struct.pack(">H", len(data)) + data


def _hashes(path: Sequence[bytes]) -> bytes:
    return bytes((len(path),)) + b"".join(path)


def _inflate(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(-15, DICTIONARY)
    try:
        leaf = unpacker.decompress(data, _MAX_LEAF_BYTES)
    except zlib.error:
        raise ReceiptError("not a receipt: its record does not unpack") from None
    if not unpacker.eof or unpacker.unused_data:
        raise ReceiptError("not a receipt: its record does not unpack")
    return leaf
