"""The public log of what a deployment offers, as a client reads it: steps without I/O.

It is read in the open and without a token, once whole and from then on what is new.
Nothing is believed of it but what its signed checkpoint, its witnesses and what was
seen before bear out (`sealgate.protocol.offers.View`).
"""

from __future__ import annotations

from typing import Any

from sealgate.errors import NotOfferedError, OfferError, TransportError
from sealgate.exchange import Answer
from sealgate.log_trust import log_trust
from sealgate.options import Options
from sealgate.protocol.merkle import leaf_hash
from sealgate.protocol.notes import MAX_NOTE_BYTES
from sealgate.protocol.offers import (
    MAX_ENTRIES_BYTES,
    MAX_TILE_BYTES,
    OFFERS_PATH,
    Tile,
    View,
    entries_of,
    offer_of,
)
from sealgate.steps import Fetch, Steps

__all__ = ["OfferedLog"]


class OfferedLog:
    """One server's log of offers."""

    def __init__(self, url: str, options: Options) -> None:
        """Nothing is asked yet.

        Args:
            url: of the server.
            options: ``require_offered``, and the keys of the log and its witnesses.

        Raises:
            ProfileError: it is required, and no key of a log is named.
        """
        self._url = url + OFFERS_PATH
        self._options = options
        self.required = options.require_offered
        self._view = View(log_trust(options)) if self.required else None

    def check(self, leaf: bytes, what: str) -> Steps[None]:
        """Refuse what is not in the log, where that is required.

        Args:
            leaf: of what is offered.
            what: it is, for people.

        Raises:
            NotOfferedError: it is not there, or the log does not verify.
            TransportError: the log cannot be fetched.
        """
        view = self._view
        if view is None or leaf in view:
            return
        try:
            yield from self._follow(view)
        except OfferError as error:
            raise NotOfferedError(str(error)) from None
        if leaf not in view:
            raise NotOfferedError(f"{what} is not in the public log of offers")

    def entries(self) -> Steps[list[dict[str, Any]]]:
        """All that the log says, in its order, verified.

        Raises:
            ProfileError: no key of a log is named.
            NotOfferedError: the log does not verify.
            TransportError: it cannot be fetched.
        """
        view = self._view or View(log_trust(self._options))
        try:
            yield from self._follow(view)
            leaves: list[bytes] = []
            for tile in Tile.covering(-1, 0, len(view.hashes)):
                leaves += entries_of(
                    (yield from self._fetch(tile.path, MAX_ENTRIES_BYTES))
                )
            if [*map(leaf_hash, leaves)] != view.hashes:
                raise OfferError("the entries are not those that were signed")
            return [*map(offer_of, leaves)]
        except OfferError as error:
            raise NotOfferedError(str(error)) from None

    def _follow(self, view: View) -> Steps[None]:
        note = yield from self._fetch("checkpoint", MAX_NOTE_BYTES)
        tiles = bytearray()
        for tile in view.wanted(note):
            tiles += yield from self._fetch(tile.path, MAX_TILE_BYTES)
        view.follow(note, bytes(tiles))

    def _fetch(self, path: str, max_bytes: int) -> Steps[bytes]:
        answer: Answer = yield Fetch("GET", self._url + path, max_bytes)
        if answer.status != 200:
            raise TransportError(f"the server has no log of offers ({answer.status})")
        return answer.body
