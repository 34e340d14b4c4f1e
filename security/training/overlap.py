"""Whether two data sets share people, from marks that name nobody.

Another name and one row more make another data set for whoever compares names and
digests, but its people pay again. So the ledger keeps the smallest keyed hashes of each
data set's owners: of two sets, those below the lower of both ends are complete, and the
share they have in common is about the share of the smaller set that is in the other.
The key is the ledger's own: who has both file and names can still look for somebody.
"""

from __future__ import annotations

import heapq
import hmac
from collections.abc import Iterable

__all__ = ["LEAST", "MARKS", "share", "sketch"]

# From this share of the smaller set on, two data sets are one.
LEAST = 0.1
MARKS = 4096  # so that sets whose sizes differ by a factor of a hundred still meet
_BYTES = 8


def sketch(owners: Iterable[bytes], key: bytes) -> bytes:
    """The smallest marks of a data set's owners.

    >>> sketch([b"a", b"b", b"a"], b"k") == sketch([b"b", b"a"], b"k")
    True
    """
    marks = {hmac.digest(key, name, "sha256")[:_BYTES] for name in owners}
    return b"".join(heapq.nsmallest(MARKS, marks))


def share(first: bytes, second: bytes) -> float:
    """About the share of the smaller set's owners that both have; 0 without sketches.

    >>> one = sketch([b"a", b"b"], b"k")
    >>> share(one, sketch([b"b", b"c", b"d"], b"k")), share(one, b"")
    (0.5, 0.0)
    """
    sets = [_marks(first), _marks(second)]
    ends = [max(marks) for marks in sets if len(marks) == MARKS]
    if ends:
        sets = [{mark for mark in marks if mark <= min(ends)} for marks in sets]
    smaller = min(len(marks) for marks in sets)
    return len(sets[0] & sets[1]) / smaller if smaller else 0.0


def _marks(data: bytes) -> set[bytes]:
    return {data[at : at + _BYTES] for at in range(0, len(data), _BYTES)}
