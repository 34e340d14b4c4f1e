r"""Signed checkpoints (C2SP tlog-checkpoint, in a C2SP signed-note).

A checkpoint names a log, how many entries it had, and the root of the tree over them::

    sealgate.example/audit/1795276800000000000-4711
    20852
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    after 9b8f0cf7f0e4e1d1a0d8f8f3a3d5a9f8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2

    — sealgate.example/audit Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4U…

The last line is the signature: the key's name, then base64 of its four-byte id and the
signature over the text above the blank line. One key signs for all writers, so its name
is the front of each origin (the specification says that they should be equal). The line
``after`` is an extension of ours, as the specification allows: see `checkpoints`.

Two kinds of key sign so. Ed25519 is the specification's own, and every tool knows it.
ML-DSA-65 stands in a further line beside it; the specification has no signature type
for it and leaves the type 0xff, followed by a longer name, to such. Ours is 0xff and
``sealgate.dev/ml-dsa-65``::

    key id = SHA-256(name || "\n" || 0xff || "sealgate.dev/ml-dsa-65" || key)[:4]
    vkey   = name+hex(key id)+base64(0xff || "sealgate.dev/ml-dsa-65" || key)

where the key is its 1952 bytes of FIPS 204, and the signature is over the note's text,
not hashed before, with an empty context. A tool that does not know the key passes over
the line, as the specification has it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
)

from sealgate.errors import NoteError

__all__ = [
    "MAX_NOTE_BYTES",
    "Checkpoint",
    "NoteKey",
    "SignatureLine",
    "Signer",
    "Verifier",
    "open_checkpoint",
    "parse_checkpoint",
    "parse_signature_lines",
    "parse_vkey",
    "split_note",
    "verify_signatures",
]

MAX_NOTE_BYTES = 64 << 10

_ED25519 = b"\x01"
_ML_DSA_65 = b"\xffsealgate.dev/ml-dsa-65"
_NAME = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_AFTER = re.compile(r"after [0-9a-f]{64}")
_SIGNATURE = re.compile(r"— (?P<name>[^\s+]+) (?P<data>[A-Za-z0-9+/]+=*)")
_MAX_SIGNATURES = 64


@dataclass(frozen=True)
class Checkpoint:
    """What a log committed to.

    Attributes:
        origin: which log.
        size: how many entries it had.
        root: the tree's root hash over them, 32 bytes.
        after: what it binds of the notes before it, hexadecimal; empty in notes of
            releases that bound nothing.
    """

    origin: str
    size: int
    root: bytes
    after: str = ""

    @property
    def text(self) -> bytes:
        """The note's text, its final line feed included."""
        root = base64.b64encode(self.root).decode()
        after = f"after {self.after}\n" if self.after else ""
        return f"{self.origin}\n{self.size}\n{root}\n{after}".encode()


@dataclass(frozen=True)
class SignatureLine:
    """A line below a note's text; nobody says yet that it verifies.

    Attributes:
        name: of the key.
        key_id: of the key, 4 bytes.
        signature: what the key's kind makes of it.
    """

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        """The line, with its line feed."""
        data = base64.b64encode(self.key_id + self.signature).decode()
        return f"— {self.name} {data}\n"


class NoteKey(ABC):
    """A public key under a name, that lines of notes are checked with.

    As text it is the ``vkey`` of the signed-note tools: name, key id, key.
    """

    def __init__(self, name: str, encoded: bytes) -> None:
        """Make one.

        Args:
            name: of the key.
            encoded: the signature type, and the public key.

        Raises:
            NoteError: not a name that a key may have.
        """
        if not _NAME.fullmatch(name):
            raise NoteError(f"{name!r}: not a name for a key: no blanks, no plus sign")
        self.name = name
        self.key_id = hashlib.sha256(name.encode() + b"\n" + encoded).digest()[:4]
        self.encoded = encoded

    def __str__(self) -> str:
        encoded = base64.b64encode(self.encoded).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def line(self, signature: bytes) -> SignatureLine:
        """A signature of this key as a line."""
        return SignatureLine(self.name, self.key_id, signature)

    @abstractmethod
    def check(self, text: bytes, signature: bytes) -> None:
        """Check a signature over a note's text.

        Raises:
            NoteError: it is not this key's.
        """


class Verifier(NoteKey):
    """An Ed25519 or ML-DSA-65 key that signs notes."""

    def __init__(self, name: str, key: Ed25519PublicKey | MLDSA65PublicKey) -> None:
        """Make one.

        Raises:
            NoteError: not a name that a key may have.
        """
        kind = _ED25519 if isinstance(key, Ed25519PublicKey) else _ML_DSA_65
        super().__init__(name, kind + key.public_bytes_raw())
        self._key = key

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read a ``vkey``.

        Raises:
            NoteError: not one, or of a key of another kind.
        """
        name, key_id, encoded = parse_vkey(text)
        key: Ed25519PublicKey | MLDSA65PublicKey
        try:
            if encoded.startswith(_ML_DSA_65):
                raw = encoded.removeprefix(_ML_DSA_65)
                key = MLDSA65PublicKey.from_public_bytes(raw)
            else:
                key = Ed25519PublicKey.from_public_bytes(encoded[1:])
        except ValueError:
            raise NoteError("not a verifier key: name+id+key") from None
        verifier = cls(name, key)
        if (verifier.key_id, verifier.encoded) != (key_id, encoded):
            raise NoteError("not a verifier key: its id is another")
        return verifier

    def check(self, text: bytes, signature: bytes) -> None:
        """Check a signature over a text.

        Raises:
            NoteError: it is not this key's.
        """
        try:
            self._key.verify(signature, text)
        except InvalidSignature:
            raise NoteError("the signature does not verify") from None


class Signer:
    """Signs checkpoints under a key's name.

    Attributes:
        name: the name.
        verifier: what the Ed25519 signature is checked with.
        verifiers: that, and what the ML-DSA-65 signature is checked with, if there is
            one.
    """

    def __init__(
        self,
        name: str,
        key: Ed25519PrivateKey,
        *,
        ml_dsa_key: MLDSA65PrivateKey | None = None,
    ) -> None:
        """Make one.

        Args:
            name: of the keys.
            key: signs what every tool can check.
            ml_dsa_key: signs beside it.

        Raises:
            NoteError: not a name that a key may have.
        """
        self.name = name
        self.verifier = Verifier(name, key.public_key())
        self.verifiers: tuple[Verifier, ...] = (self.verifier,)
        self._keys: tuple[Ed25519PrivateKey | MLDSA65PrivateKey, ...] = (key,)
        if ml_dsa_key is not None:
            self.verifiers += (Verifier(name, ml_dsa_key.public_key()),)
            self._keys += (ml_dsa_key,)

    def __repr__(self) -> str:
        return f"<Signer {self.verifier}>"

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """The signed note."""
        text = checkpoint.text
        lines = [
            str(verifier.line(key.sign(text)))
            for verifier, key in zip(self.verifiers, self._keys, strict=True)
        ]
        return text + b"\n" + "".join(lines).encode()


def open_checkpoint(
    note: bytes, verifiers: Iterable[NoteKey], *, every: bool = False
) -> Checkpoint:
    """Verify a signed checkpoint.

    Steps, in the order of the signed-note specification:

    1. bounded, UTF-8, no control characters but line feeds;
    2. text and signatures lie on the two sides of the last blank line;
    3. unknown keys are passed over, a known key's signature must verify;
    4. one known key has signed, or each of them; only then the text is looked at.

    Args:
        note: the text and its signatures.
        verifiers: the known keys.
        every: each of them must have signed, as where a log has keys of two kinds: else
            whoever breaks one kind strips the lines of the other.

    Raises:
        NoteError: says which.
    """
    keys = list(verifiers)
    text, lines = split_note(note)
    signed = verify_signatures(text, lines, keys)
    if not signed:
        raise NoteError("no trusted key signed the checkpoint")
    missing = [key for key in keys if key not in signed]
    if every and missing:
        raise NoteError(
            f"the key {missing[0].name}+{missing[0].key_id.hex()} did not sign the "
            "checkpoint, and it must"
        )
    return parse_checkpoint(text)


def split_note(note: bytes) -> tuple[bytes, list[SignatureLine]]:
    """A note's text and its signature lines, none of which is verified.

    Raises:
        NoteError: too long, or not a note.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError("a checkpoint that is too long")
    text, blank, signatures = _decode(note).rpartition("\n\n")
    if not blank:
        raise NoteError("not a checkpoint: no signatures")
    return f"{text}\n".encode(), _signature_lines(signatures)


def parse_signature_lines(data: bytes) -> list[SignatureLine]:
    """Lines without a note, as witnesses answer; one at least.

    Raises:
        NoteError: too long, or not such lines.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise NoteError("signatures that are too long")
    return _signature_lines(_decode(data))


def verify_signatures(
    text: bytes, lines: Iterable[SignatureLine], verifiers: Iterable[NoteKey]
) -> list[NoteKey]:
    """The known keys that signed a text; lines of unknown keys are passed over.

    Raises:
        NoteError: the signature of a known key does not verify.
    """
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signed: list[NoteKey] = []
    for line in lines:
        verifier = known.get((line.name, line.key_id))
        if verifier is not None:
            verifier.check(text, line.signature)
            signed.append(verifier)
    return signed


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Read a note's text as a checkpoint.

    Whoever has not verified a signature over the text has an unknown's word for it, and
    learns from it at most which keys to verify it with.

    Raises:
        NoteError: not one.
    """
    lines = _decode(text).removesuffix("\n").split("\n")
    if len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]):
        raise NoteError("not a checkpoint: origin, size and root are expected")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except ValueError:
        root = b""
    if len(root) != 32:
        raise NoteError("not a checkpoint: the root is not a SHA-256 hash")
    bound = [line.partition(" ")[2] for line in lines[3:] if _AFTER.fullmatch(line)]
    if len(bound) > 1:
        raise NoteError("not a checkpoint: it follows two others")
    return Checkpoint(lines[0], int(lines[1]), root, *bound)


def parse_vkey(text: str) -> tuple[str, bytes, bytes]:
    """A ``vkey``'s name, key id, and signature type with the public key behind it.

    Whether they belong to each other is for whoever knows the kind.

    Raises:
        NoteError: not one.
    """
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        data = b""
    if not data or not re.fullmatch("[0-9a-f]{8}", key_id):
        raise NoteError("not a verifier key: name+id+key")
    return name, bytes.fromhex(key_id), data


def _decode(note: bytes) -> str:
    try:
        document = note.decode()
    except UnicodeDecodeError:
        raise NoteError("not a checkpoint: not UTF-8") from None
    if re.search(r"[\x00-\x09\x0b-\x1f]", document):
        raise NoteError("not a checkpoint: control characters")
    return document


def _signature_lines(text: str) -> list[SignatureLine]:
    lines = text.removesuffix("\n").split("\n")
    if not text.endswith("\n") or len(lines) > _MAX_SIGNATURES:
        raise NoteError("not a checkpoint: no signatures")
    return [_signature_line(line) for line in lines]


def _signature_line(line: str) -> SignatureLine:
    match = _SIGNATURE.fullmatch(line)
    try:
        data = base64.b64decode(match["data"], validate=True) if match else b""
    except binascii.Error:
        data = b""
    # One spelling of each: the bits behind the last byte are zero (RFC 4648, 3.5).
    canonical = match is not None and base64.b64encode(data) == match["data"].encode()
    if match is None or not canonical or len(data) < 5:
        raise NoteError("not a checkpoint: not a signature line")
    return SignatureLine(match["name"], data[:4], data[4:])
