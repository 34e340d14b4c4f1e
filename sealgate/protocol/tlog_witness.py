"""What a log sends to a witness (C2SP tlog-witness, add-checkpoint).

::

    old 20852014
    PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
    …

    example.com/behind-the-sofa
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4U…

The size of the witness's latest checkpoint, a proof that the new one is consistent with
it, an empty line, and the new one, signed by its log. The answer is the witness's
signature lines, or a status: `SIZE_MEDIA_TYPE` says what 409 answers with.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sealgate.errors import NoteError
from sealgate.protocol.merkle import HASH_BYTES, MAX_PROOF_HASHES
from sealgate.protocol.notes import MAX_NOTE_BYTES

__all__ = [
    "MAX_REQUEST_BYTES",
    "SIZE_MEDIA_TYPE",
    "AddCheckpoint",
    "checkpoint_path",
    "parse_size",
]

# Of a 409: the size of the latest checkpoint in decimal, and a line feed.
SIZE_MEDIA_TYPE = "text/x.tlog.size"
# The old size, the proof, the empty line, the note.
MAX_REQUEST_BYTES = 64 + 45 * MAX_PROOF_HASHES + MAX_NOTE_BYTES

_OLD = re.compile(rb"old (?P<size>0|[1-9][0-9]{0,17})")
_HASH = re.compile(rb"[A-Za-z0-9+/]{43}=")
_SIZE = re.compile(rb"(?P<size>0|[1-9][0-9]{0,17})\n")


@dataclass(frozen=True)
class AddCheckpoint:
    """The body of ``POST /add-checkpoint``.

    Attributes:
        old_size: of the latest checkpoint that the witness cosigned; 0 for none.
        proof: hashes of 32 bytes that prove consistency with it.
        note: the signed checkpoint.
    """

    old_size: int
    proof: Sequence[bytes]
    note: bytes

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Read a body.

        Raises:
            NoteError: too long, or not one. Whether the note is one is not looked at.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise NoteError("a request that is too long")
        head, blank, note = body.partition(b"\n\n")
        old, *lines = head.split(b"\n", MAX_PROOF_HASHES + 1)
        match = _OLD.fullmatch(old)
        if match is None or not blank:
            raise NoteError("not an old size, a proof, an empty line and a checkpoint")
        if len(lines) > MAX_PROOF_HASHES or not all(map(_HASH.fullmatch, lines)):
            raise NoteError(f"not a proof of up to {MAX_PROOF_HASHES} hashes in base64")
        proof = tuple(base64.b64decode(line) for line in lines)
        return cls(int(match["size"]), proof, note)

    def encode(self) -> bytes:
        """The body.

        Raises:
            NoteError: the proof is none.
        """
        if len(self.proof) > MAX_PROOF_HASHES or any(
            len(node) != HASH_BYTES for node in self.proof
        ):
            raise NoteError(f"not a proof of up to {MAX_PROOF_HASHES} hashes")
        lines = [b"old %d" % self.old_size, *map(base64.b64encode, self.proof), b""]
        return b"\n".join(lines) + b"\n" + self.note


def parse_size(body: bytes) -> int:
    """The size that a witness has, of the body of a 409.

    Raises:
        NoteError: not a size.
    """
    match = _SIZE.fullmatch(body)
    if match is None:
        raise NoteError("not the size of a tree")
    return int(match["size"])


def checkpoint_path(origin: str) -> str:
    """Where a witness offers its latest checkpoint of a log, below its prefix.

    >>> checkpoint_path("example.com/behind-the-sofa")[-15:]
    '4fe4/checkpoint'
    """
    return f"{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint"
