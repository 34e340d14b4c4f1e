"""Signed checkpoints (C2SP tlog-checkpoint, in a C2SP signed-note, Ed25519).

A checkpoint names a log, how many records it had, and the root of the tree over them::

    sealgate.example/audit/1795276800000000000-4711
    20852
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    after 9b8f0cf7f0e4e1d1a0d8f8f3a3d5a9f8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2

    — sealgate.example/audit Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4U…

The last line is the signature: the key's name, then base64 of its four-byte id and the
signature over the text above the blank line. One key signs for all writers, so its name
is the front of each origin (the specification says that they should be equal). The line
``after`` is an extension of ours, as the specification allows: see `checkpoints`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from security.errors import AuditError

__all__ = ["MAX_NOTE_BYTES", "Checkpoint", "Signer", "Verifier", "open_checkpoint"]

MAX_NOTE_BYTES = 64 << 10

_ED25519 = b"\x01"
_NAME = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_AFTER = re.compile(r"after [0-9a-f]{64}")
_SIGNATURE = re.compile("— (?P<name>[^ \\n]+) (?P<data>[A-Za-z0-9+/]+=*)")
_MAX_SIGNATURES = 64


@dataclass(frozen=True)
class Checkpoint:
    """What a log committed to.

    Attributes:
        origin: which log.
        size: how many records it had.
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


class Signer:
    """Signs checkpoints under a key's name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self.verifier = Verifier(name, key.public_key())
        self._key = key

    def __repr__(self) -> str:
        return f"<Signer {self.verifier}>"

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """The signed note."""
        signature = self.verifier.key_id + self._key.sign(checkpoint.text)
        line = f"\n— {self.name} {base64.b64encode(signature).decode()}\n"
        return checkpoint.text + line.encode()


class Verifier:
    """A key that signatures are checked with.

    As text it is the ``vkey`` of the signed-note tools: name, key id, key.
    """

    def __init__(self, name: str, key: Ed25519PublicKey) -> None:
        """Make one.

        Raises:
            AuditError: not a name that a key may have.
        """
        if not _NAME.fullmatch(name):
            raise AuditError(f"{name!r}: not a name for a key: no blanks, no plus sign")
        raw = key.public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self.name = name
        self.key_id = hashlib.sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[
            :4
        ]
        self._key = key
        self._encoded = base64.b64encode(_ED25519 + raw).decode()

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{self._encoded}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read a ``vkey``.

        Raises:
            AuditError: not one, or not of an Ed25519 key.
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        try:
            data = base64.b64decode(encoded, validate=True)
            key = Ed25519PublicKey.from_public_bytes(data[1:])
        except (binascii.Error, ValueError):
            raise AuditError("not a verifier key: name+id+key") from None
        verifier = cls(name, key)
        if data[:1] != _ED25519 or verifier.key_id.hex() != key_id:
            raise AuditError("not a verifier key: its id is another")
        return verifier

    def check(self, text: bytes, signature: bytes) -> None:
        """Check a signature over a text.

        Raises:
            AuditError: it is not this key's.
        """
        try:
            self._key.verify(signature, text)
        except InvalidSignature:
            raise AuditError("the signature does not verify") from None


def open_checkpoint(note: bytes, verifiers: Iterable[Verifier]) -> Checkpoint:
    """Verify a signed checkpoint.

    Steps, in the order of the signed-note specification:

    1. bounded, UTF-8, no control characters but line feeds;
    2. text and signatures lie on the two sides of the last blank line;
    3. unknown keys are passed over, a known key's signature must verify;
    4. one known key has signed; only then the text is looked at.

    Raises:
        AuditError: says which.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise AuditError("a checkpoint that is too long")
    try:
        document = note.decode()
    except UnicodeDecodeError:
        raise AuditError("not a checkpoint: not UTF-8") from None
    if re.search(r"[\x00-\x09\x0b-\x1f]", document):
        raise AuditError("not a checkpoint: control characters")
    text, blank, signatures = document.rpartition("\n\n")
    lines = signatures.removesuffix("\n").split("\n")
    if not blank or not signatures.endswith("\n") or len(lines) > _MAX_SIGNATURES:
        raise AuditError("not a checkpoint: no signatures")
    _check_signatures(f"{text}\n".encode(), lines, verifiers)
    return _parse(text)


def _check_signatures(
    text: bytes, lines: list[str], verifiers: Iterable[Verifier]
) -> None:
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    verified = 0
    for line in lines:
        match = _SIGNATURE.fullmatch(line)
        if match is None:
            raise AuditError("not a checkpoint: not a signature line")
        try:
            data = base64.b64decode(match["data"], validate=True)
        except binascii.Error:
            raise AuditError("not a checkpoint: not a signature line") from None
        verifier = known.get((match["name"], data[:4]))
        if verifier is not None:
            verifier.check(text, data[4:])
            verified += 1
    if not verified:
        raise AuditError("no trusted key signed the checkpoint")


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]):
        raise AuditError("not a checkpoint: origin, size and root are expected")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except binascii.Error:
        root = b""
    if len(root) != 32:
        raise AuditError("not a checkpoint: the root is not a SHA-256 hash")
    bound = [line.partition(" ")[2] for line in lines[3:] if _AFTER.fullmatch(line)]
    if len(bound) > 1:
        raise AuditError("not a checkpoint: it follows two others")
    return Checkpoint(lines[0], int(lines[1]), root, *bound)
