r"""Cosignatures of checkpoints (C2SP tlog-cosignature).

A cosigner, as a witness is one, says that at a time the checkpoint was the largest that
it saw of its log, and consistent with all that it saw before. Two kinds of key say so:

- ML-DSA-44, type 0x06: which the specification recommends. It signs a structure with
  the cosigner's name, the time, and the log's origin, size and root;
- Ed25519, type 0x04: it signs ``cosignature/v1\n``, ``time T\n``, and the note's text,
  and does not bind the cosigner's name.

Either is one more signature line of the note, whose first eight bytes are the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA44PrivateKey,
    MLDSA44PublicKey,
)

from sealgate.errors import NoteError
from sealgate.protocol.notes import (
    NoteKey,
    SignatureLine,
    Verifier,
    parse_checkpoint,
    parse_vkey,
    split_note,
    verify_signatures,
)

__all__ = [
    "MAX_TIME_S",
    "Cosignature",
    "CosignatureVerifier",
    "Cosigner",
    "parse_note_key",
    "verify_cosignatures",
    "witness_times",
]

MAX_TIME_S = (1 << 63) - 1

_ED25519 = b"\x04"
_ML_DSA_44 = b"\x06"
_TIME_BYTES = 8
_MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Cosignature:
    """A cosignature that verified.

    Attributes:
        verifier: under which key.
        time_s: when it was made by the cosigner's clock, seconds since 1970.
    """

    verifier: CosignatureVerifier
    time_s: int


class CosignatureVerifier(NoteKey):
    """The public key of a cosigner."""

    def __init__(self, name: str, key: Ed25519PublicKey | MLDSA44PublicKey) -> None:
        """Make one.

        Raises:
            NoteError: not a name that a cosigner may have.
        """
        kind = _ED25519 if isinstance(key, Ed25519PublicKey) else _ML_DSA_44
        super().__init__(name, kind + key.public_bytes_raw())
        _short(name, "a cosigner's name")
        self._key = key

    @classmethod
    def parse(cls, text: str) -> CosignatureVerifier:
        """Read a ``vkey``.

        Raises:
            NoteError: not one, or not of a cosigner's key.
        """
        name, key_id, encoded = parse_vkey(text)
        key: Ed25519PublicKey | MLDSA44PublicKey
        try:
            if encoded[:1] == _ML_DSA_44:
                key = MLDSA44PublicKey.from_public_bytes(encoded[1:])
            else:
                key = Ed25519PublicKey.from_public_bytes(encoded[1:])
        except ValueError:
            raise NoteError("not a cosigner's verifier key: name+id+key") from None
        verifier = cls(name, key)
        if (verifier.key_id, verifier.encoded) != (key_id, encoded):
            raise NoteError("not a cosigner's verifier key: its id is another")
        return verifier

    def time(self, signature: bytes) -> int:
        """When a signature says that it was made, seconds since 1970.

        Raises:
            NoteError: it says no time.
        """
        time_s = int.from_bytes(signature[:_TIME_BYTES])
        # Zero is for what says nothing of time: cosignatures of subtrees.
        if not 0 < time_s <= MAX_TIME_S:
            raise NoteError("a cosignature without a time")
        return time_s

    def message(self, text: bytes, time_s: int) -> bytes:
        """What is signed.

        Args:
            text: the note's.
            time_s: of the cosignature.

        Raises:
            NoteError: the text is no checkpoint that such a key can sign.
        """
        if isinstance(self._key, Ed25519PublicKey):
            return b"cosignature/v1\ntime %d\n%b" % (time_s, text)
        checkpoint = parse_checkpoint(text)
        return b"".join(
            (
                b"subtree/v1\n\0",
                _short(self.name, "a cosigner's name"),
                time_s.to_bytes(8),
                _short(checkpoint.origin, "an origin"),
                (0).to_bytes(8),
                checkpoint.size.to_bytes(8),
                checkpoint.root,
            )
        )

    def check(self, text: bytes, signature: bytes) -> None:
        """Check a cosignature over a checkpoint's text.

        Raises:
            NoteError: it is not this key's, or says no time.
        """
        message = self.message(text, self.time(signature))
        try:
            self._key.verify(signature[_TIME_BYTES:], message)
        except InvalidSignature:
            raise NoteError("the cosignature does not verify") from None


class Cosigner:
    """Cosigns checkpoints under a key's name."""

    def __init__(self, name: str, key: Ed25519PrivateKey | MLDSA44PrivateKey) -> None:
        """Make one.

        Raises:
            NoteError: not a name that a cosigner may have.
        """
        self.verifier = CosignatureVerifier(name, key.public_key())
        self._key = key

    def __repr__(self) -> str:
        return f"<Cosigner {self.verifier}>"

    def cosign(self, text: bytes, *, time_s: int) -> SignatureLine:
        """Cosign a checkpoint. The caller has verified what a cosigner says by it.

        Args:
            text: the checkpoint's note without its signatures.
            time_s: now, seconds since 1970.

        Raises:
            NoteError: not a checkpoint, or not a time.
        """
        parse_checkpoint(text)
        if not 0 < time_s <= MAX_TIME_S:
            raise NoteError("not a time for a cosignature")
        signature = self._key.sign(self.verifier.message(text, time_s))
        return self.verifier.line(time_s.to_bytes(_TIME_BYTES) + signature)


def verify_cosignatures(
    note: bytes, verifiers: Iterable[CosignatureVerifier]
) -> list[Cosignature]:
    """The cosignatures of known cosigners that a note bears, the oldest time of each.

    Whether they are enough, and who the log is, is the caller's to check: see
    `notes.open_checkpoint`. Lines of unknown keys are passed over.

    Raises:
        NoteError: not a checkpoint, or a known cosigner's line that does not verify.
    """
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    text, lines = split_note(note)
    verify_signatures(text, lines, known.values())
    times: dict[CosignatureVerifier, int] = {}
    for line in lines:
        verifier = known.get((line.name, line.key_id))
        if verifier is not None:
            time_s = verifier.time(line.signature)
            times[verifier] = min(time_s, times.get(verifier, time_s))
    parse_checkpoint(text)
    return [Cosignature(verifier, time_s) for verifier, time_s in times.items()]


def witness_times(
    note: bytes, verifiers: Iterable[CosignatureVerifier]
) -> dict[str, int]:
    """Since when each known witness has a checkpoint, Unix seconds by its name.

    A witness with several keys is one witness.

    Raises:
        NoteError: as `verify_cosignatures`.
    """
    times: dict[str, int] = {}
    for each in verify_cosignatures(note, verifiers):
        name = each.verifier.name
        times[name] = min(each.time_s, times.get(name, each.time_s))
    return times


def parse_note_key(text: str) -> NoteKey:
    """Read a ``vkey`` of any kind that signs checkpoints.

    Logs may sign with a cosigner's kind of key; tlog-checkpoint recommends ML-DSA-44.

    Raises:
        NoteError: not one.
    """
    if parse_vkey(text)[2][:1] in (_ED25519, _ML_DSA_44):
        return CosignatureVerifier.parse(text)
    return Verifier.parse(text)


def _short(text: str, what: str) -> bytes:
    """A text with its length before it (RFC 8446, 3.4: opaque<1..2^8-1>)."""
    data = text.encode()
    if not 1 <= len(data) <= _MAX_NAME_BYTES:
        raise NoteError(f"{what} of more than {_MAX_NAME_BYTES} bytes")
    return len(data).to_bytes() + data
