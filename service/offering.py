"""What this server uses is offered in public: keys, release, verdicts; nobody else's.

A thread looks each second at what is in use, and adds what is new to the deployment's
log of offers. Key configurations are published only when a checkpoint covers them that
bears what it must, so a client that demands it finds them there; the ones before open
requests until then, and for the overlap. For a minute, that is, since nobody may keep a
configuration beyond that; and where those of before open nothing any more, as after a
key was retired in haste, new ones are published at once.

``GET /.well-known/sealgate-offers/…`` serves the log in the open, as C2SP tlog-tiles.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sealgate.errors import OfferError, SealgateError
from sealgate.protocol import keyconfig
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.offers import OFFERS_PATH, Tile, key_leaf, release_leaf
from sealgate.version import installed_version
from security.admission.contents import lock_sha256
from security.admission.gate import Admission
from security.audit.offers import Offers
from security.sealing.keyring import KeyRing
from service.descriptions import passport
from service.problems import Problem, expect_method

__all__ = ["OFFERS_PREFIX", "Offering"]

OFFERS_PREFIX = OFFERS_PATH.encode()
_EVERY_S = 1.0
# A checkpoint, and witnesses, take seconds; so long may keys that were replaced stay.
_HELD_S = 60.0
# Strangers ask for the checkpoint: it is read so often at most.
_FRESH_S = 0.5
# At the end, what is being added may take so long.
_END_S = 2.0
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_BYTES = (b"content-type", b"application/octet-stream")
_BRIEFLY = (b"cache-control", b"max-age=1")
_FOR_EVER = (b"cache-control", b"public, max-age=31536000, immutable")

_log = logging.getLogger(__name__)


class Offering:
    """Offers what a server uses, and serves the log of it."""

    def __init__(
        self,
        offers: Offers,
        *,
        ring: Callable[[], KeyRing],
        admissions: Callable[[], Iterable[Admission]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is offered yet.

        Args:
            offers: the deployment's log of them.
            ring: the keys in use; called from the thread alone.
            admissions: what admits each version in use; likewise.
            monotonic: seconds.
        """
        self._offers = offers
        self._monotonic = monotonic
        self._ring, self._admissions = ring, admissions
        self._release = release_leaf(installed_version(), lock_sha256())
        self._offered: set[bytes] = set()
        self._covered = self._seen = b""
        self._published: KeyRing | None = None
        self._held = (b"", 0.0)
        self._note = (float("-inf"), b"")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)
        # Strangers ask, and may go away: all of them have one thread, of their own.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="offers")

    def start(self) -> None:
        """Offer what is in use now, and then go on in a thread.

        Raises:
            AuditError: the log cannot be written.
        """
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def published(self, ring: KeyRing) -> KeyRing:
        """The ring whose configurations are to be published, given the one in use."""
        before = self._published
        if before is None or ring.document in (before.document, self._covered):
            self._published = ring
            return ring
        now = self._monotonic()
        if self._held[0] != ring.document:
            self._held = ring.document, now
        usable = {each.key_id for each in keyconfig.decode_list(before.document)}
        if not usable <= {*ring.ids} or now - self._held[1] > _HELD_S:
            self._published = ring
            return ring
        return before

    def passport(self, admission: Admission) -> dict[str, Any]:
        """A model's passport, with the salt by which its verdict is in the log."""
        salt = self._offers.salt(admission.verdict_sha256)
        return passport(admission) | {"offer": {"salt": salt.hex()}}

    async def answer(self, request: Request) -> Response:
        """A part of the log, for anyone.

        Raises:
            Problem: there is no such part.
            AuditError: the log cannot be read.
        """
        expect_method(request, b"GET", b"HEAD")
        path = request.path[len(OFFERS_PREFIX) :].decode("latin-1")
        apart = partial(asyncio.get_running_loop().run_in_executor, self._reader)
        if path == "checkpoint":
            note = await apart(self._newest)
            return Response(200, (_TEXT, _BRIEFLY), note)
        try:
            content = await apart(self._offers.tile, Tile.parse(path))
        except OfferError:
            raise Problem("not-found") from None
        return Response(200, (_BYTES, _FOR_EVER), content)

    def _newest(self) -> bytes:
        """The checkpoint, at most half a second old; in the thread for strangers."""
        since, note = self._note
        if self._monotonic() - since > _FRESH_S:
            note = self._offers.note()
            self._note = self._monotonic(), note
        return note

    def _run(self) -> None:
        said = ""
        while not self._stop.wait(_EVERY_S):
            try:
                self._look()
                said = ""
            except SealgateError as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("what is in use is not offered: %s", said)

    def _look(self) -> None:
        ring = self._ring()
        if self._published is None:
            self._published = ring
        document = ring.document
        keys = [key_leaf(each.encode()) for each in keyconfig.decode_list(document)]
        verdicts = {
            self._offers.verdict(admission.verdict_sha256)
            for admission in self._admissions()
        }
        leaves = {self._release, *keys, *verdicts}
        if leaves - self._offered:
            self._offers.offer(sorted(leaves - self._offered))
            self._offered |= leaves
        if document == self._covered or not self._offers.covers(keys):
            return
        # Another worker may show the checkpoint of before for a moment still.
        if document == self._seen:
            self._covered = document
        self._seen = document
