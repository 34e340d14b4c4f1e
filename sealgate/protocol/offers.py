"""The public log of what a deployment offers, and its tiles (C2SP tlog-tiles).

Whoever holds a deployment's keys could show one caller other keys than the rest, or a
verdict that nobody else ever sees. Here is a log with the origin ``NAME/offers``, where
NAME is the audit log's, that everybody can read without a token: what is not in it is
refused, and what is in it is there for everybody. Its leaves are JSON objects::

    {"kind":"key-configuration","sha256":…}   of one configuration's bytes (RFC 9458, 3)
    {"kind":"release","lock":…,"version":…}   the Bento's lock by its SHA-256, or null
    {"kind":"verdict","sha256":…}             HMAC-SHA-256 of its SHA-256, under a salt

Models may be hidden, so their verdicts stand there salted: the salt of each comes with
its passport, and without it a leaf says nothing, not even to who guesses the verdict.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from sealgate.errors import JsonError, NoteError, OfferError
from sealgate.protocol import strict_json
from sealgate.protocol.cosignatures import parse_note_key
from sealgate.protocol.merkle import HASH_BYTES, Tree, leaf_hash
from sealgate.protocol.notes import NoteKey
from sealgate.protocol.receipts import LogTrust, open_cosigned

__all__ = [
    "MAX_ENTRIES_BYTES",
    "MAX_LEAF_BYTES",
    "MAX_TILE_BYTES",
    "OFFERS_NAME",
    "OFFERS_PATH",
    "TILE_WIDTH",
    "Tile",
    "View",
    "bundle_of",
    "entries_of",
    "key_leaf",
    "offer_of",
    "offers_trust",
    "release_leaf",
    "verdict_leaf",
]

OFFERS_NAME = "offers"
OFFERS_PATH = "/.well-known/sealgate-offers/"
TILE_WIDTH = 256
MAX_TILE_BYTES = TILE_WIDTH * HASH_BYTES
MAX_LEAF_BYTES = 1 << 10
MAX_ENTRIES_BYTES = TILE_WIDTH * (2 + MAX_LEAF_BYTES)
# A client reads all of a log's hashes once: 32 MB.
MAX_SIZE = 1 << 20

_TILE = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/){0,4}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_LENGTH = struct.Struct(">H")


def key_leaf(config: bytes) -> bytes:
    """The leaf of one key configuration, by its bytes (RFC 9458, section 3)."""
    sha256 = hashlib.sha256(config).hexdigest()
    return _leaf(kind="key-configuration", sha256=sha256)


def release_leaf(version: str, lock_sha256: str | None) -> bytes:
    """The leaf of what serves: its version, and its Bento's lock, if it has one."""
    return _leaf(kind="release", lock=lock_sha256, version=version)


def verdict_leaf(verdict_sha256: str, salt: bytes) -> bytes:
    """The leaf of a verdict, by its file's hex SHA-256 and the salt that is its own."""
    salted = hmac.digest(salt, bytes.fromhex(verdict_sha256), "sha256").hex()
    return _leaf(kind="verdict", sha256=salted)


def offer_of(leaf: bytes) -> dict[str, Any]:
    """What a leaf says; one of a kind of a later release too.

    Raises:
        OfferError: not an object with a kind.
    """
    try:
        value = strict_json.loads_object(leaf, max_bytes=MAX_LEAF_BYTES)
    except JsonError as error:
        raise OfferError(f"an entry of the log: {error}") from None
    if not isinstance(value.get("kind"), str):
        raise OfferError("an entry of the log has no kind")
    return value


def offers_trust(trust: LogTrust) -> LogTrust:
    """How the log of offers is known: the audit log's keys, under its own name."""
    return replace(trust, log=tuple(map(_renamed, trust.log)))


@dataclass(frozen=True)
class Tile:
    """A part of a log that is served by itself (C2SP tlog-tiles).

    Attributes:
        level: of the hashes: each is over 256**level leaves; -1 for the leaves.
        number: which, from 0.
        width: how many it has; 256 in a full one.
    """

    level: int
    number: int
    width: int = TILE_WIDTH

    @property
    def first(self) -> int:
        """The number of its first hash, at its level, or its first leaf's."""
        return self.number * TILE_WIDTH

    @property
    def path(self) -> str:
        """Below the log's prefix.

        >>> Tile(0, 1234067, 7).path
        'tile/0/x001/x234/067.p/7'
        """
        level = "entries" if self.level < 0 else str(self.level)
        digits = f"{self.number:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        name = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{name}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a path, from anyone.

        Raises:
            OfferError: it names no tile, or one in another way than `path` does.
        """
        match = _TILE.fullmatch(path)
        if match is None:
            raise OfferError("no tile's path")
        level = -1 if match["level"] == "entries" else int(match["level"])
        number = int(match["number"].replace("x", "").replace("/", ""))
        tile = cls(level, number, int(match["width"] or TILE_WIDTH))
        if tile.path != path or level > 63 or tile.width > TILE_WIDTH:
            raise OfferError("no tile's path")
        return tile

    @classmethod
    def covering(cls, level: int, start: int, size: int) -> Iterator[Tile]:
        """The tiles with the hashes, or leaves, from one on, of a log of a size."""
        for number in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
            yield cls(level, number, min(TILE_WIDTH, size - number * TILE_WIDTH))


class View:
    """A log of offers as far as a reader has seen it: it only ever grows.

    Attributes:
        hashes: of the leaves that were verified, in their order.
    """

    def __init__(self, trust: LogTrust) -> None:
        """Nothing is seen yet.

        Args:
            trust: of the audit log; `offers_trust` makes this log's of it.
        """
        self._trust = offers_trust(trust)
        self._tree = Tree()
        self.hashes: list[bytes] = []
        self._known: set[bytes] = set()

    def __contains__(self, leaf: bytes) -> bool:
        return leaf_hash(leaf) in self._known

    def wanted(self, note: bytes) -> list[Tile]:
        """The tiles that are to be fetched to follow a checkpoint.

        Raises:
            OfferError: it is not signed and cosigned as it must be, or is older than
                what was seen.
        """
        size = self._opened(note)[0]
        if size == len(self.hashes):
            return []
        return [*Tile.covering(0, len(self.hashes), size)]

    def follow(self, note: bytes, tiles: bytes) -> None:
        """Take a checkpoint and the tiles that it wanted, one behind the other.

        1. the checkpoint is signed, cosigned, and not older than what was seen;
        2. what was seen before is in the tiles, unchanged;
        3. the tree over all leaf hashes has the signed root.

        Raises:
            OfferError: says which; nothing is taken then.
        """
        size, root = self._opened(note)
        seen = len(self.hashes)
        start = seen - seen % TILE_WIDTH if size > seen else seen
        found = [tiles[at : at + 32] for at in range(0, len(tiles), HASH_BYTES)]
        if len(tiles) != HASH_BYTES * (size - start) or (
            found[: seen - start] != self.hashes[start:]
        ):
            raise OfferError("the log of offers is not what it was")
        tree = deepcopy(self._tree)
        for leaf in found[seen - start :]:
            tree.add(leaf)
        if tree.root() != root:
            raise OfferError("the log of offers has another root than was signed")
        self._tree = tree
        self.hashes += found[seen - start :]
        self._known.update(found)

    def _opened(self, note: bytes) -> tuple[int, bytes]:
        try:
            checkpoint, _ = open_cosigned(note, self._trust)
        except NoteError as error:
            raise OfferError(f"the log of offers: {error}") from None
        if not len(self.hashes) <= checkpoint.size <= MAX_SIZE:
            raise OfferError("the log of offers has shrunk, or is too long")
        return checkpoint.size, checkpoint.root


def entries_of(bundle: bytes) -> list[bytes]:
    """The leaves in an entry bundle: each with its length in two bytes before it.

    Raises:
        OfferError: it is cut, or a leaf is too long.
    """
    leaves, at = [], 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + _LENGTH.size])
        at += _LENGTH.size
        leaf = bundle[at : at + length]
        if at > len(bundle) or len(leaf) != length or length > MAX_LEAF_BYTES:
            raise OfferError("an entry bundle that is cut, or too long")
        leaves.append(leaf)
        at += length
    return leaves


def bundle_of(leaves: Iterable[bytes]) -> bytes:
    """The entry bundle of some leaves."""
    return b"".join(_LENGTH.pack(len(leaf)) + leaf for leaf in leaves)


def _renamed(key: NoteKey) -> NoteKey:
    name = f"{key.name}/{OFFERS_NAME}"
    key_id = hashlib.sha256(name.encode() + b"\n" + key.encoded).digest()[:4]
    encoded = base64.b64encode(key.encoded).decode()
    return parse_note_key(f"{name}+{key_id.hex()}+{encoded}")


def _leaf(**members: str | None) -> bytes:
    return strict_json.dumps(members)
