"""Sizes that messages are padded to, so that their length says little.

Buckets are those of Padmé (Nikitin et al., PETS 2019, section 4): a length keeps only
its first bits, so that one of up to n bytes shows about log log n bits of itself, for
at most 12% more bytes. Below a minimum all messages are alike. The padding is zeros
behind a whole Binary HTTP message (RFC 9292, section 3.8).
"""

from __future__ import annotations

__all__ = ["MIN_PADDED_BYTES", "pad", "padded_size"]

MIN_PADDED_BYTES = 1 << 10


def padded_size(size: int, *, minimum: int = MIN_PADDED_BYTES) -> int:
    """The size of the bucket that a message of ``size`` bytes belongs in.

    >>> [padded_size(n) for n in (0, 1024, 1025, 1089, 10_000_000)]
    [1024, 1024, 1088, 1152, 10223616]
    """
    if size <= minimum:
        return minimum
    exponent = size.bit_length() - 1
    kept_bits = exponent.bit_length()
    mask = (1 << (exponent - kept_bits)) - 1
    return (size + mask) & ~mask


def pad(message: bytes, *, minimum: int = MIN_PADDED_BYTES) -> bytes:
    """A Binary HTTP message with zeros behind it, up to its bucket's size.

    >>> len(pad(b"message"))
    1024
    """
    return message.ljust(padded_size(len(message), minimum=minimum), b"\0")
