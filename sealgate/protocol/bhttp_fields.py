"""What may stand in the control data and the fields of Binary HTTP, and how much."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sealgate.errors import BinaryHttpError

__all__ = [
    "BhttpLimits",
    "FieldBudget",
    "are_fields",
    "check_control",
    "check_padding",
]

# Field names are lower-case tokens (RFC 9110, section 5.6.2; RFC 9292, section 3.6).
_NAME = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+")
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
# Visible characters, spaces and tabs, obs-text; no control characters (RFC 9110, 5.5).
_VALUE = re.compile(
    rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?"
)
_TARGET = re.compile(rb"[\x21-\x7e]*")
# The characters of names, values and control data: what is left of a text that these
# are deleted from is in none of them.
_NAME_BYTES = bytes(c for c in range(256) if _NAME.fullmatch(bytes([c])))
_VALUE_BYTES = b"\t " + bytes(c for c in range(256) if _VALUE.fullmatch(bytes([c])))


@dataclass(frozen=True)
class BhttpLimits:
    """Bounds on one message.

    Chunks are counted because each costs far more than its bytes: a message of one-byte
    chunks would take a hundred times its size in memory.
    """

    max_headers: int = 64
    max_header_bytes: int = 16 << 10
    max_control_bytes: int = 8 << 10
    max_body_bytes: int = 64 << 20
    max_chunks: int = 16 << 10

    @property
    def max_section_bytes(self) -> int:
        """Of a field section of known length, the lengths in it included."""
        return self.max_header_bytes + 8 * self.max_headers


class FieldBudget:
    """Counts the fields of one message down, and checks each."""

    def __init__(self, limits: BhttpLimits) -> None:
        self._fields_left = limits.max_headers
        self._bytes_left = limits.max_header_bytes

    def spend(self, size: int, *, fields: int = 0) -> None:
        """Account for the bytes of a name or a value, before they are taken.

        Raises:
            BinaryHttpError: more than the limits allow.
        """
        self._fields_left -= fields
        self._bytes_left -= size
        if self._fields_left < 0 or self._bytes_left < 0:
            raise BinaryHttpError("too many or too long header fields")

    def check(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        """A field whose name and value are what RFC 9110 allows.

        Raises:
            BinaryHttpError: they are not.
        """
        if not _NAME.fullmatch(name) or (value and not _VALUE.fullmatch(value)):
            raise BinaryHttpError("malformed header field")
        return name, value


def are_fields(names: list[bytes], values: list[bytes]) -> bool:
    """Whether `FieldBudget.check` would pass each name with its value."""
    return (
        all(names)
        and not b"".join(names).translate(None, _NAME_BYTES)
        and not b"".join(values).translate(None, _VALUE_BYTES)
        and [value.strip(b"\t ") for value in values] == values
    )


def check_control(texts: list[bytes]) -> tuple[bytes, bytes, bytes, bytes]:
    """A request's control data: method, scheme, authority, path (section 3.4).

    Raises:
        BinaryHttpError: not what a request line could say.
    """
    method, scheme, authority, path = texts
    # A character that is in none of them is in no part of what they are joined to.
    if (
        not _TARGET.fullmatch(b"".join(texts))
        or not _TOKEN.fullmatch(method)
        or not path.startswith((b"/", b"*"))
    ):
        raise BinaryHttpError("malformed control data")
    return method, scheme, authority, path


def check_padding(padding: memoryview) -> None:
    """Check what follows a message (section 3.8).

    Raises:
        BinaryHttpError: it is not all zeros.
    """
    # Compared as bytes: there may be a megabyte of it.
    if padding and bytes(padding) != bytes(len(padding)):
        raise BinaryHttpError("padding is not zero")
