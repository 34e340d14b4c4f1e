"""Sealed tickets: an answer's outcome, given to its caller instead of being kept.

A ticket says which version answered when, what, how surely and to whom. Only a server
with the deployment's key can read it: a label that comes later brings it back, and
nothing has to be stored of answers whose labels never come. It is 60 bytes::

    form and length of windows 1 | day of the window's start 2 | nonce 12 | sealed 45

What is sealed, by AES-256-GCM, is the version's mark (8), the subject's pseudonym (16),
the answer (4) and the bin of its score (1); header and model name are bound to it. The
nonce is random, and is the ticket's id. Each window has a key of its own, derived from
the deployment's, so that keys change by themselves; at most 2^32 tickets of a window
keep random nonces apart (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.errors import MonitoringError
from security.monitoring.windows import Window, window_at
from security.settings.monitoring import WINDOW_LENGTHS

__all__ = ["ID_BYTES", "TICKET_CHARACTERS", "Mark", "Ticket", "Tickets", "mark_of"]

TICKET_CHARACTERS = 80
ID_BYTES = 12
_HEADER = struct.Struct(">BH")
_FORM = 0x10
_SEALED = struct.Struct(">8s16s4sB")
_DAY_S = 86_400
# Keys that are kept ready; strangers can name any window.
_KEYS = 64

# Of a version: the first bytes of a hash of its name.
Mark = bytes


@dataclass(frozen=True)
class Ticket:
    """An opened ticket.

    Attributes:
        id: 12 random bytes, nobody else's.
        window: in which it was given.
        mark: of the version that answered.
        subject: pseudonym of who asked, 16 bytes.
        answer: 4 bytes, of which `security.monitoring.answers` knows the meaning.
        bin: of the score.
    """

    id: bytes
    window: Window
    mark: Mark = field(repr=False)
    subject: bytes = field(repr=False)
    answer: bytes = field(repr=False)
    bin: int = field(repr=False)


class Tickets:
    """Seals and opens tickets with the deployment's key."""

    def __init__(self, secret: bytes) -> None:
        """Prepare.

        Args:
            secret: of the deployment, 32 random bytes.

        Raises:
            MonitoringError: it is shorter.
        """
        if len(secret) < 32:
            raise MonitoringError("the monitoring key has less than 32 bytes")
        self._secret = secret
        self._aead = functools.lru_cache(maxsize=_KEYS)(self._derive)

    def __repr__(self) -> str:
        return "<Tickets>"

    def seal(
        self,
        model: str,
        version: str,
        window: Window,
        subject: bytes,
        answers: Sequence[tuple[bytes, int]],
    ) -> list[tuple[bytes, str]]:
        """Make a ticket for each answer.

        >>> window = window_at("weekly", 1796000000)
        >>> tickets = Tickets(bytes(32))
        >>> ((made, text),) = tickets.seal("m", "1", window, bytes(16), [(b"abcd", 3)])
        >>> len(text), tickets.open("m", text).id == made
        (80, True)

        Args:
            model: that answered.
            version: of it.
            window: in which it did.
            subject: 16 bytes.
            answers: 4 bytes each, and the score's bin.

        Returns:
            Ids and tickets, base64url without padding.
        """
        form = _FORM | WINDOW_LENGTHS.index(window.length)
        header = _HEADER.pack(form, window.start // _DAY_S)
        bound, aead = header + model.encode(), self._aead(window.name)
        mark, random = mark_of(model, version), os.urandom(ID_BYTES * len(answers))
        made = []
        for at, (answer, bin_) in enumerate(answers):
            nonce = random[at * ID_BYTES : (at + 1) * ID_BYTES]
            plain = _SEALED.pack(mark, subject, answer, bin_)
            sealed = aead.encrypt(nonce, plain, bound)
            made.append((nonce, urlsafe_b64encode(header + nonce + sealed).decode()))
        return made

    def open(self, model: str, text: str) -> Ticket:
        """Read a ticket.

        Args:
            model: that it must be of.
            text: from anyone.

        Raises:
            MonitoringError: it is none of this deployment and model; which of these,
                nobody is told.
        """
        try:
            data = urlsafe_b64decode(text if len(text) == TICKET_CHARACTERS else "")
            header, nonce = data[: _HEADER.size], data[_HEADER.size :][:ID_BYTES]
            sealed, window = data[_HEADER.size + ID_BYTES :], _window(header)
            if urlsafe_b64encode(data) != text.encode():
                raise ValueError
            bound = header + model.encode()
            plain = self._aead(window.name).decrypt(nonce, sealed, bound)
            return Ticket(nonce, window, *_SEALED.unpack(plain))
        except (Base64Error, ValueError, IndexError, struct.error, InvalidTag):
            raise MonitoringError("no ticket of this server and model") from None

    def _derive(self, window: str) -> AESGCM:
        info = b"sealgate ticket v1 " + window.encode()
        kdf = HKDF(SHA256(), length=32, salt=None, info=info)
        return AESGCM(kdf.derive(self._secret))


@functools.lru_cache(maxsize=_KEYS)
def _window(header: bytes) -> Window:
    form, day = _HEADER.unpack(header)
    if form < _FORM:
        raise ValueError
    window = window_at(WINDOW_LENGTHS[form - _FORM], day * _DAY_S)
    if window.start != day * _DAY_S:
        raise ValueError
    return window


@functools.lru_cache(maxsize=1024)
def mark_of(model: str, version: str) -> Mark:
    """What tickets call a version.

    >>> len(mark_of("credit", "1.0.0"))
    8
    """
    return hashlib.sha256(f"{model}/{version}".encode()).digest()[:8]
