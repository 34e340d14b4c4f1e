"""What a record is: its fields, its line, its hash.

A line is one JSON object: the fields below, then ``seq``, ``prev`` and ``hash``. The
hash is SHA-256 over a zero byte and the object without ``hash``, in the very bytes of
the line. That is RFC 6962's leaf hash, so it is at once the link of the chain (``prev``
of the next record) and the leaf of the tree that checkpoints sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.errors import AuditError

__all__ = [
    "FIELDS",
    "MAX_RECORD_BYTES",
    "Record",
    "Scalar",
    "body",
    "chain",
    "decode",
    "encode",
    "token_hash",
]

Scalar = str | int | bool | None

# Every field of a record, with its meaning; None where it does not apply.
FIELDS: Mapping[str, str] = {
    "action": "infer, explain, metadata, ready, attestations, monitoring, receipt, "
    "metrics; "
    "start, load, unload, withdraw, restore, deployment, "
    "worker-ended, key-rotation, revocation, admission, promotion, agreement, "
    "retraining, no-retraining, batch, batch-part, batch-end",
    "client": "client_id of the token; a pseudonym where it is the subject's own; of a "
    "batch job its name",
    "count": "how many decisions this record stands for; more than 1 for refusals "
    "of strangers beyond their bound, and of callers beyond their quota",
    "latency_us": "from the request being there to its answer, microseconds",
    "model": "the name that was asked for; name:version where it is admitted or loaded",
    "model_sha256": "root digest of the bundle that answered",
    "outcome": "allow or refuse",
    "reason": "the problem's code for a refusal; null for what was allowed, but for "
    "a promotion the digest of its record, for a retraining of the monitoring report, "
    "for a batch job of what it is about, of a part, or of all that it answered",
    "request_bytes": "content of the request, after unsealing",
    "request_id": "also sent to the caller, as X-Request-Id; of a batch job the front "
    "of the digest of what it is about",
    "response_bytes": "content of the answer, before sealing",
    "rows": "rows of the input",
    "sealed": "whether the request came sealed",
    "status": "HTTP status of the answer",
    "subject": "keyed hash of the token's subject",
    "time_us": "microseconds since 1970, by the writer's clock",
    "token": "front of SHA-256 of the token's id",
}

MAX_RECORD_BYTES = 16 << 10

_EMPTY: Mapping[str, Scalar] = dict.fromkeys(FIELDS) | {"count": 1}
_HASH = b',"hash":"'
_TAIL = len(_HASH) + 64 + len(b'"}\n')


@dataclass(frozen=True)
class Record:
    """A record as it was read back.

    Attributes:
        fields: those of `FIELDS`.
        sequence: its place among its writer's records, from 0.
        previous: hash of the record before it.
        digest: its own hash, 32 bytes; recomputed, not believed.
        signed: whether a checkpoint covers it; False where none is looked at.
    """

    fields: Mapping[str, Any]
    sequence: int
    previous: str
    digest: bytes
    signed: bool = False


def encode(fields: Mapping[str, Scalar]) -> bytes:
    """A record before it has its place in a chain.

    Args:
        fields: some of `FIELDS`; the others are null.

    Raises:
        AuditError: a field that no record has, or a value that is not JSON.
    """
    import orjson  # noqa: PLC0415  (readers of a log need none)

    record = {**_EMPTY, **fields}
    if len(record) != len(_EMPTY):
        raise AuditError(f"no field {min(fields.keys() - FIELDS.keys())!r} in a record")
    try:
        return orjson.dumps(record)
    except TypeError as error:
        raise AuditError(f"not a record: {error}") from None


def chain(encoded: bytes, *, sequence: int, previous: str) -> tuple[bytes, bytes]:
    """A record's line, and its hash.

    Args:
        encoded: from `encode`.
        sequence: its place among its writer's records.
        previous: hash of the record before it, hexadecimal.
    """
    place = b',"seq":%d,"prev":"%b"}' % (sequence, previous.encode())
    hashed = encoded[:-1] + place
    digest = hashlib.sha256(b"\x00" + hashed).digest()
    return b'%b%b%b"}\n' % (hashed[:-1], _HASH, digest.hex().encode()), digest


def body(line: bytes) -> bytes:
    """A record's line without its member ``hash``: what that is over."""
    return line[:-_TAIL] + b"}"


def decode(line: bytes) -> Record:
    """Read a line back; its hash is recomputed over its very bytes.

    Raises:
        AuditError: says what is wrong: not a record, or altered.
    """
    if len(line) <= _TAIL or line[-_TAIL : -_TAIL + len(_HASH)] != _HASH:
        raise AuditError("not a record")
    hashed = body(line)
    digest = hashlib.sha256(b"\x00" + hashed).digest()
    if line[-_TAIL + len(_HASH) :] != digest.hex().encode() + b'"}\n':
        raise AuditError("altered")
    try:
        fields = strict_json.loads_object(hashed, max_bytes=MAX_RECORD_BYTES)
    except JsonError:
        raise AuditError("not a record") from None
    sequence, previous = fields.pop("seq", None), fields.pop("prev", None)
    if type(sequence) is not int or type(previous) is not str:
        raise AuditError("not a record")
    return Record(fields, sequence, previous, digest)


def token_hash(token_id: str) -> str:
    """The front of SHA-256 of a token's id, in hexadecimal.

    >>> len(token_hash("a7c1"))
    32
    """
    return hashlib.sha256(token_id.encode()).hexdigest()[:32]
