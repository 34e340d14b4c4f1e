"""The Merkle tree over a log's records (RFC 6962, section 2.1), as far as it is needed.

A log that only grows needs no more than the roots of its complete subtrees: one for
each bit that is set in its size.
"""

from __future__ import annotations

import hashlib

__all__ = ["Tree"]


class Tree:
    """A tree that leaves are added to; knows its root after each of them.

    >>> Tree().root().hex()[:16]
    'e3b0c44298fc1c14'
    """

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Add a leaf.

        Args:
            leaf: its hash, SHA-256 of a zero byte and its content.
        """
        node, bit = leaf, 1
        while self.size & bit:
            node = _join(self._subtrees.pop(), node)
            bit <<= 1
        self._subtrees.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree's root hash; that of nothing for an empty tree."""
        if not self._subtrees:
            return hashlib.sha256(b"").digest()
        node = self._subtrees[-1]
        for subtree in reversed(self._subtrees[:-1]):
            node = _join(subtree, node)
        return node


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
