"""Who must have cosigned the log's checkpoint, and whether enough of them did.

A witness is known by its name and its keys, ``vkey`` s of C2SP tlog-cosignature. It may
have several keys, and counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sealgate.errors import NoteError
from sealgate.protocol.cosignatures import CosignatureVerifier, witness_times
from security.errors import AuditError
from security.settings.audit import WitnessAddress, WitnessSettings

__all__ = ["Quorum", "load_quorum", "make_quorum", "read_witnesses"]

MAX_FILE_BYTES = 256 << 10
MAX_WITNESSES = 64


@dataclass(frozen=True)
class Quorum:
    """So many of these witnesses.

    Attributes:
        keys: of all of them.
        required: how many must have cosigned, at least 1.
    """

    keys: tuple[CosignatureVerifier, ...]
    required: int

    @property
    def names(self) -> frozenset[str]:
        """Of the witnesses."""
        return frozenset(key.name for key in self.keys)

    def times(self, note: bytes) -> dict[str, int]:
        """Who of them cosigned a note, and since when.

        Args:
            note: whose own signature the caller has verified.

        Raises:
            AuditError: a known witness's line does not verify.
        """
        try:
            return witness_times(note, self.keys)
        except NoteError as error:
            raise AuditError(f"a cosignature: {error}") from None

    def witnessed_at(self, note: bytes) -> int | None:
        """Since when enough of them have cosigned a note; None if they have not.

        Raises:
            AuditError: as `times`.
        """
        times = sorted(self.times(note).values(), reverse=True)
        return times[self.required - 1] if len(times) >= self.required else None


def make_quorum(vkeys: Iterable[str], required: int) -> Quorum:
    """Witnesses by their verifier keys.

    Raises:
        AuditError: one is no cosigner's key, two are the same one, or there are fewer
            witnesses than are required.
    """
    keys: list[CosignatureVerifier] = []
    for vkey in vkeys:
        try:
            keys.append(CosignatureVerifier.parse(vkey))
        except NoteError as error:
            raise AuditError(f"witnesses: {vkey[:80]!r}: {error}") from None
    if len(keys) > MAX_WITNESSES:
        raise AuditError(f"witnesses: more than {MAX_WITNESSES}")
    if len({key.encoded for key in keys}) != len(keys):
        raise AuditError("witnesses: the same key twice")
    quorum = Quorum(tuple(keys), required)
    if not 1 <= required <= len(quorum.names):
        raise AuditError(f"witnesses: {required} are required, of {len(quorum.names)}")
    return quorum


def load_quorum(settings: WitnessSettings) -> Quorum | None:
    """How many of which witnesses are required; None where none are set.

    Raises:
        AuditError: a key is none, or two witnesses are one.
    """
    if not settings.witness:
        return None
    vkeys = [vkey for each in settings.witness for vkey in each.vkeys]
    quorum = make_quorum(vkeys, settings.required)
    if len(quorum.names) != len(settings.witness):
        raise AuditError("witnesses: two have the same name")
    return quorum


def read_witnesses(path: Path) -> tuple[WitnessAddress, ...]:
    """The witnesses in a file: a verifier key a line, # comments aside.

    A line may also be one of a C2SP tlog-policy, ``witness NAME VKEY [URL]``. Keys of
    one name are one witness's.

    Raises:
        AuditError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES).decode()
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise AuditError(f"{path}: not UTF-8") from None
    lines = (line.split() for line in text.split("\n"))
    found: dict[str, WitnessAddress] = {}
    for words in lines:
        if not words or words[0].startswith("#"):
            continue
        named = words[0] == "witness" and len(words) in (3, 4)
        vkey, *rest = words[2:] if named else words
        url = "".join(rest)
        name = vkey.partition("+")[0]
        before = found.get(name, WitnessAddress(url))
        found[name] = WitnessAddress(before.url or url, (*before.vkeys, vkey))
    return tuple(found.values())
