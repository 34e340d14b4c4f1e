"""The public log of what a deployment offers: appended once, served in tiles.

What is a leaf, and why, is in `sealgate.protocol.offers`. Every process of a deployment
offers what it uses; under the log's lock each looks at what is there, so that nothing
is there twice. It lies beside the audit log and is signed by the same keys, under a
name of its own; the same witnesses are asked.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

from sealgate.errors import NoteError, OfferError
from sealgate.protocol.offers import (
    MAX_LEAF_BYTES,
    OFFERS_NAME,
    Tile,
    bundle_of,
    verdict_leaf,
)
from sealgate.protocol.receipts import open_cosigned
from security.audit.journal import load_signer
from security.audit.receipts import load_trust
from security.audit.tree_log import TreeLog
from security.errors import AuditError
from security.key_files import read_secret
from security.settings.audit import AuditSettings

__all__ = ["Offers", "load_offers"]

_CACHED_TILES = 64
_SALT = b"sealgate salt of a verdict v1\0"


class Offers:
    """The log of offers, for those who add to it and those who serve it.

    Attributes:
        log: where it is kept.
    """

    def __init__(self, settings: AuditSettings) -> None:
        """Nothing is read yet but keys.

        Raises:
            KeyFileError, AuditError: a key cannot be read.
        """
        own = replace(settings, name=f"{settings.name}/{OFFERS_NAME}")
        self.log = TreeLog(settings.directory, load_signer(own), name=OFFERS_NAME)
        self._trust = load_trust(own)
        self._secret = read_secret(settings.pseudonym_key)
        self._lock = threading.Lock()
        self._places: dict[bytes, int] = {}
        self._read = 0
        self._tile = lru_cache(_CACHED_TILES)(self._make)

    def salt(self, verdict_sha256: str) -> bytes:
        """A verdict's salt, for those who may see its model's passport."""
        return hmac.digest(self._secret, _SALT + verdict_sha256.encode(), "sha256")

    def verdict(self, verdict_sha256: str) -> bytes:
        """A verdict's leaf."""
        return verdict_leaf(verdict_sha256, self.salt(verdict_sha256))

    def offer(self, leaves: Iterable[bytes]) -> range:
        """Add what is not in the log yet; signed and on disk when it returns.

        Returns:
            The places of what was added.

        Raises:
            AuditError: the log cannot be written, or a leaf is too long.
        """
        wanted = list(dict.fromkeys(leaves))
        if any(len(leaf) > MAX_LEAF_BYTES for leaf in wanted):
            raise AuditError("an offer that is too long")

        def new(size: int, last: bytes | None) -> Sequence[bytes]:
            self._read_on()
            return [leaf for leaf in wanted if leaf not in self._places]

        with self._lock:
            added = self.log.extend(new)
            self._read_on()
            return added

    def note(self) -> bytes:
        """The checkpoint to show: the newest that bears what it must.

        Where no witness has signed one yet it is the newest.

        Raises:
            AuditError: the log cannot be read.
        """
        cosigned = self.log.cosigned() if self._trust.required else None
        return self.log.checkpoint() if cosigned is None else cosigned

    def covers(self, leaves: Iterable[bytes]) -> bool:
        """Whether the checkpoint to show covers all of these, and bears what it must.

        Raises:
            AuditError: the log cannot be read.
        """
        try:
            checkpoint, _ = open_cosigned(self.note(), self._trust)
        except NoteError:
            return False
        with self._lock:
            self._read_on()
            return all(
                self._places.get(leaf, checkpoint.size) < checkpoint.size
                for leaf in leaves
            )

    def tile(self, tile: Tile) -> bytes:
        """A tile, or an entry bundle.

        Raises:
            OfferError: there is none of this width.
            AuditError: the log cannot be read.
        """
        there = self.log.size >> 8 * max(tile.level, 0)
        if not 0 < tile.width <= there - tile.first:
            raise OfferError("no such tile")
        return self._tile(tile)

    def _make(self, tile: Tile) -> bytes:
        if tile.level < 0:
            return bundle_of(islice(self.log.leaves(tile.first), tile.width))
        numbers = range(tile.first, tile.first + tile.width)
        return b"".join(self.log.nodes(8 * tile.level, numbers))

    def _read_on(self) -> None:
        for leaf in self.log.leaves(self._read):
            self._places.setdefault(leaf, self._read)
            self._read += 1


def load_offers(settings: AuditSettings) -> Offers | None:
    """The log of offers, where this deployment keeps one.

    Raises:
        KeyFileError, AuditError: as `Offers`.
    """
    return Offers(settings) if settings.offers else None
