"""Merkle trees and their proofs, against the definitions and against published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import MerkleError
from sealgate.protocol.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    stored_hash_count,
    stored_hash_index,
    stored_hashes,
    tree_root,
    verify_consistency,
    verify_inclusion,
)


class Store(list[bytes]):
    """Stored hashes, read in ascending order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        tree = Tree()
        super().__init__(stored for leaf in leaves for stored in tree.add(leaf))

    def read(self, indices: Sequence[int]) -> list[bytes]:
        assert list(indices) == sorted(set(indices))
        return [self[index] for index in indices]


LEAVES = [leaf_hash(b"leaf %d" % number) for number in range(70)]
STORE = Store(LEAVES)


# The definitions of RFC 6962, section 2.1, as they stand there, slow.


def mth(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def test_the_tree_is_rfc_6962s() -> None:
    tree = Tree()
    for number in range(70):
        assert (tree.size, tree.root()) == (number, mth(LEAVES[:number]))
        assert tree_root(number, STORE.read) == tree.root()
        assert Tree.restore(number, STORE.read).root() == tree.root()
        tree.add(LEAVES[number])


def test_where_hashes_are_stored() -> None:
    """As Go's sumdb/tlog has them: TestStoredHashIndex's cases are all of these."""
    store = Store([])
    for number, leaf in enumerate(LEAVES):
        assert stored_hash_index(0, number) == stored_hash_count(number) == len(store)
        store += stored_hashes(number, leaf, store.read)
    assert store == STORE
    for level in range(6):
        for number in range(70 >> level):
            first = number << level
            node = mth(LEAVES[first : first + (1 << level)])
            assert store[stored_hash_index(level, number)] == node


sizes = st.integers(1, 69)


@settings(deadline=None, max_examples=200)
@given(sizes, st.data())
def test_inclusion_is_what_the_definition_says(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, STORE.read)
    assert proof == path(index, LEAVES[:size])
    root = mth(LEAVES[:size])
    verify_inclusion(LEAVES[index], proof, index=index, size=size, root=root)


@settings(deadline=None, max_examples=200)
@given(sizes, st.data())
def test_consistency_is_what_the_definition_says(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(old, new, STORE.read)
    assert proof == subproof(old, LEAVES[:new], True)
    verify_consistency(
        proof, old=old, new=new, old_root=mth(LEAVES[:old]), new_root=mth(LEAVES[:new])
    )


def mangled(proof: list[bytes]) -> list[list[bytes]]:
    """What is not the proof, as transparency-dev/merkle's tests have it."""
    result = [[*proof, bytes(32)], [*proof, EMPTY_ROOT], [bytes(32), *proof]]
    if proof:
        result += [proof[:-1], proof[1:], [*proof, proof[-1]], [proof[0], *proof]]
    for place, node in enumerate(proof):
        flipped = bytes([node[0] ^ 1]) + node[1:]
        result.append([*proof[:place], flipped, *proof[place + 1 :]])
    if len(set(proof)) > 1:
        result.append(proof[::-1])
    return result


@settings(deadline=None, max_examples=100)
@given(sizes, st.data())
def test_no_other_inclusion_proof_verifies(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, root = path(index, LEAVES[:size]), mth(LEAVES[:size])
    leaf = LEAVES[index]
    for other in mangled(proof):
        with pytest.raises(MerkleError):
            verify_inclusion(leaf, other, index=index, size=size, root=root)
    wrong = [
        {"index": (index + 1) % size if size > 1 else 1, "size": size, "root": root},
        {"index": -1, "size": size, "root": root},
        {"index": size, "size": size, "root": root},
        {"index": 1 << 70, "size": 1 << 71, "root": root},
        {"index": index, "size": size, "root": mth(LEAVES[: size + 1])},
        {"index": index, "size": 2 * size + 1, "root": root},
        {"index": index, "size": 0, "root": EMPTY_ROOT},
    ]
    for arguments in wrong:
        with pytest.raises(MerkleError):
            verify_inclusion(leaf, proof, **arguments)
    with pytest.raises(MerkleError):
        verify_inclusion(leaf_hash(b"x"), proof, index=index, size=size, root=root)


@settings(deadline=None, max_examples=100)
@given(sizes, st.data())
def test_no_other_consistency_proof_verifies(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, new))
    roots = {"old_root": mth(LEAVES[:old]), "new_root": mth(LEAVES[:new])}
    proof = consistency_proof(old, new, STORE.read)
    for other in mangled(proof):
        with pytest.raises(MerkleError):
            verify_consistency(other, old=old, new=new, **roots)
    swapped = {"old_root": roots["new_root"], "new_root": roots["old_root"]}
    forged = {**roots, "new_root": leaf_hash(b"fork")}
    for arguments in (swapped, forged):
        if arguments != roots and old > 0:
            with pytest.raises(MerkleError):
                verify_consistency(proof, old=old, new=new, **arguments)
    for sizes_ in ((-1, new), (new + 1, new), (old, old - 1)):
        with pytest.raises(MerkleError):
            verify_consistency(proof, old=sizes_[0], new=sizes_[1], **roots)


def test_the_empty_tree_has_one_root() -> None:
    root = mth(LEAVES[:5])
    verify_consistency([], old=0, new=5, old_root=EMPTY_ROOT, new_root=root)
    verify_consistency([], old=0, new=0, old_root=EMPTY_ROOT, new_root=EMPTY_ROOT)
    for old_root, new_root in ((bytes(32), root), (root, root)):
        with pytest.raises(MerkleError):
            verify_consistency([], old=0, new=5, old_root=old_root, new_root=new_root)
    with pytest.raises(MerkleError):
        verify_consistency([], old=0, new=0, old_root=EMPTY_ROOT, new_root=root)


def test_hashes_that_are_not_there() -> None:
    for make in (inclusion_proof, consistency_proof):
        with pytest.raises(MerkleError, match="stored hashes were read"):
            make(3, 7, lambda wanted: STORE.read(wanted)[1:])
    with pytest.raises(MerkleError, match="no leaf 7 in a tree of 7"):
        inclusion_proof(7, 7, STORE.read)
    with pytest.raises(MerkleError, match="does not begin with"):
        consistency_proof(8, 7, STORE.read)
