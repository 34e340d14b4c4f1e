"""Merkle trees over a log's entries, and their proofs (RFC 6962 and RFC 9162, 2.1).

`Tree` knows its root after each leaf that is added, and keeps no more than the roots of
its complete subtrees. Proofs need the other hashes, too: whoever makes some stores the
hash of every complete subtree, in the order in which they become complete, and hands in
a callable that reads them by their indices in that order. It is the order of Go's
``sumdb/tlog`` (Crosby and Wallach, Efficient Data Structures for Tamper-Evident
Logging, 3.3)::

    leaf             0   1       2   3           4
    stored hashes    0   1 2     3   4 5 6       7
                           │           │ └ of leaves 0 to 3
                           │           └ of leaves 2 and 3
                           └ of leaves 0 and 1
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence

from sealgate.errors import MerkleError

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "MAX_PROOF_HASHES",
    "Read",
    "Tree",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "stored_hash_count",
    "stored_hash_index",
    "stored_hashes",
    "tree_root",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
# Sizes stay below 2**63, so no path is longer.
MAX_PROOF_HASHES = 63

# Stored hashes by their indices, in the order of the indices, which ascend.
Read = Callable[[Sequence[int]], Sequence[bytes]]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf (RFC 9162, 2.1.1), 32 bytes.

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above two others (RFC 9162, 2.1.1), 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that leaves are added to; knows its root after each of them.

    >>> Tree().root().hex()[:16]
    'e3b0c44298fc1c14'
    """

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    @classmethod
    def restore(cls, size: int, read: Read) -> Tree:
        """The tree over the first leaves whose hashes were stored.

        Raises:
            MerkleError: not as many hashes were read as were asked for.
        """
        tree = cls()
        tree.size = size
        tree._subtrees = _read(_complete(0, size), read)
        return tree

    def add(self, leaf: bytes) -> list[bytes]:
        """Add a leaf.

        Args:
            leaf: its hash, `leaf_hash` of its content.

        Returns:
            The hashes to store: the leaf's, and that of each subtree it completes.
        """
        node, bit = leaf, 1
        stored = [node]
        while self.size & bit:
            node = node_hash(self._subtrees.pop(), node)
            stored.append(node)
            bit <<= 1
        self._subtrees.append(node)
        self.size += 1
        return stored

    def root(self) -> bytes:
        """The tree's root hash; that of nothing for an empty tree."""
        return _fold(self._subtrees)


def stored_hash_index(level: int, number: int) -> int:
    """Where the hash of a complete subtree is stored.

    Args:
        level: its height; a leaf's is 0.
        number: how many subtrees of this height stand to the left of it.

    >>> stored_hash_index(0, 4), stored_hash_index(2, 0)
    (7, 6)
    """
    # Of the leaves left of the subtree's last one, each completed one subtree, every
    # second one more, and so on.
    last = ((number + 1) << level) - 1
    return 2 * last - last.bit_count() + level


def stored_hash_count(size: int) -> int:
    """How many hashes are stored for so many leaves.

    >>> [stored_hash_count(size) for size in range(6)]
    [0, 1, 3, 4, 7, 8]
    """
    return 2 * size - size.bit_count()


def stored_hashes(index: int, leaf: bytes, read: Read) -> list[bytes]:
    """The hashes to store for a leaf; the first belongs at the leaf's own index.

    Args:
        index: how many leaves came before it.
        leaf: its hash.
        read: what was stored for them.

    Raises:
        MerkleError: not as many hashes were read as were asked for.
    """
    return Tree.restore(index, read).add(leaf)


def tree_root(size: int, read: Read) -> bytes:
    """The root hash over the first leaves, from what was stored.

    Raises:
        MerkleError: not as many hashes were read as were asked for.
    """
    return Tree.restore(size, read).root()


def inclusion_proof(index: int, size: int, read: Read) -> list[bytes]:
    """The path that proves a leaf to be in a tree (RFC 9162, 2.1.3.1).

    Args:
        index: which leaf, counted from 0.
        size: of the tree; the log may have grown since.
        read: the stored hashes; asked once.

    Raises:
        MerkleError: the tree has no such leaf, or hashes are missing.
    """
    if not 0 <= index < size:
        raise MerkleError(f"no leaf {index} in a tree of {size}")
    siblings, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            siblings.append((middle, high))
            high = middle
        else:
            siblings.append((low, middle))
            low = middle
    return _roots(siblings[::-1], read)


def consistency_proof(old: int, new: int, read: Read) -> list[bytes]:
    """The path that proves a tree to begin with an older one (RFC 9162, 2.1.4.1).

    It is empty where nothing needs proof: from no leaf, or to the same size.

    Args:
        old: size of the older tree.
        new: size of the other one; the log may have grown since.
        read: the stored hashes; asked once.

    Raises:
        MerkleError: the older one is the larger, or hashes are missing.
    """
    if not 0 <= old <= new:
        raise MerkleError(f"a tree of {new} does not begin with one of {old}")
    if old in (0, new):
        return []
    nodes, low, high = [], 0, new
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            nodes.append((middle, high))
            high = middle
        else:
            nodes.append((low, middle))
            low = middle
    if low:
        nodes.append((low, high))
    return _roots(nodes[::-1], read)


def verify_inclusion(
    leaf: bytes, proof: Sequence[bytes], *, index: int, size: int, root: bytes
) -> None:
    """Verify that a leaf is in a tree (RFC 9162, 2.1.3.2).

    Args:
        leaf: its hash.
        proof: what `inclusion_proof` made.
        index: which leaf it is, counted from 0.
        size: of the tree.
        root: of the tree.

    Raises:
        MerkleError: it is not, as far as this proof says.
    """
    _bounded(proof, leaf, root)
    if not 0 <= index < size:
        raise MerkleError(f"no leaf {index} in a tree of {size}")
    fn, sn, result = index, size - 1, leaf
    for node in proof:
        if sn == 0:
            raise MerkleError("an inclusion proof that is too long")
        if fn & 1 or fn == sn:
            result = node_hash(node, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, node)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or not hmac.compare_digest(result, root):
        raise MerkleError("the inclusion proof does not verify")


def verify_consistency(
    proof: Sequence[bytes], *, old: int, new: int, old_root: bytes, new_root: bytes
) -> None:
    """Verify that a tree begins with an older one (RFC 9162, 2.1.4.2).

    Two cases lie outside the section, and C2SP tlog-witness settles them: from the
    empty tree, and to the same size, the proof is empty.

    Args:
        proof: what `consistency_proof` made.
        old: size of the older tree.
        new: size of the other one.
        old_root: root of the older one.
        new_root: root of the other one.

    Raises:
        MerkleError: it does not, as far as this proof says.
    """
    _bounded(proof, old_root, new_root)
    if not 0 <= old <= new:
        raise MerkleError(f"a tree of {new} does not begin with one of {old}")
    if old in (0, new):
        start = EMPTY_ROOT if old == 0 else new_root
        if proof or old_root != start or (new == 0 and new_root != EMPTY_ROOT):
            raise MerkleError("the consistency proof does not verify")
        return
    found = _old_and_new(proof, old, new, old_root)
    if found != (old_root, new_root):
        raise MerkleError("the consistency proof does not verify")


def _old_and_new(
    proof: Sequence[bytes], old: int, new: int, old_root: bytes
) -> tuple[bytes, bytes]:
    """The two roots that a proof leads to: steps 2 to 6 of the section."""
    path = [*proof]
    if not path:
        raise MerkleError("a consistency proof that is too short")
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for node in path[1:]:
        if sn == 0:
            raise MerkleError("a consistency proof that is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(node, fr), node_hash(node, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, node)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise MerkleError("a consistency proof that is too short")
    return fr, sr


def _bounded(proof: Sequence[bytes], *ends: bytes) -> None:
    if len(proof) > MAX_PROOF_HASHES or any(
        len(node) != HASH_BYTES for node in (*proof, *ends)
    ):
        raise MerkleError(f"not a proof: up to {MAX_PROOF_HASHES} SHA-256 hashes")


def _split(size: int) -> int:
    """The largest power of two below a size that is 2 or more."""
    return 1 << (size - 1).bit_length() - 1


def _complete(low: int, high: int) -> Iterator[int]:
    """Stored indices of the complete subtrees that leaves low to high consist of.

    Below any node of a tree's path, ``low`` is a multiple of the subtrees' sizes.
    """
    while low < high:
        level = (high - low).bit_length() - 1
        low += 1 << level
        # `stored_hash_index` of this subtree, whose last leaf this is.
        last = low - 1
        yield 2 * last - last.bit_count() + level


def _roots(ranges: Iterable[tuple[int, int]], read: Read) -> list[bytes]:
    """The hash of the node above each range of leaves; reads once."""
    parts = [[*_complete(low, high)] for low, high in ranges]
    indices = sorted(index for part in parts for index in part)
    found = dict(zip(indices, _read(indices, read), strict=True))
    return [
        found[part[0]] if len(part) == 1 else _fold([found[index] for index in part])
        for part in parts
    ]


def _read(indices: Iterable[int], read: Read) -> list[bytes]:
    wanted = [*indices]
    found = [*read(wanted)] if wanted else []
    if len(found) != len(wanted):
        raise MerkleError(f"{len(found)} of {len(wanted)} stored hashes were read")
    return found


def _fold(subtrees: Sequence[bytes]) -> bytes:
    if not subtrees:
        return EMPTY_ROOT
    node = subtrees[-1]
    for subtree in reversed(subtrees[:-1]):
        node = node_hash(subtree, node)
    return node
