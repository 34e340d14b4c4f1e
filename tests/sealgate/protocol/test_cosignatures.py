"""Cosignatures and the witness's request, against other implementations' bytes."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import NoteError
from sealgate.protocol.cosignatures import (
    MAX_TIME_S,
    CosignatureVerifier,
    Cosigner,
    parse_note_key,
    verify_cosignatures,
)
from sealgate.protocol.merkle import (
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from sealgate.protocol.notes import (
    Checkpoint,
    SignatureLine,
    Signer,
    Verifier,
    open_checkpoint,
    split_note,
)
from sealgate.protocol.tlog_witness import (
    MAX_REQUEST_BYTES,
    AddCheckpoint,
    checkpoint_path,
    parse_size,
)
from tests.support.servers import ROOT

GO = json.loads((ROOT / "tests" / "vectors" / "tlog" / "go.json").read_text())
GO_NOTE = GO["note"].encode()
GO_COSIGNERS = [CosignatureVerifier.parse(text) for text in GO["cosigners"]]
KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
PQ_KEY = MLDSA44PrivateKey.from_seed_bytes(bytes([7]) * 32)
COSIGNERS = [Cosigner("w.test/ed", KEY), Cosigner("w.test/pq", PQ_KEY)]
CHECKPOINT = Checkpoint("log.test/a", 3, bytes(32))
NOW = 1_795_276_800


def note_with(*lines: SignatureLine, checkpoint: Checkpoint = CHECKPOINT) -> bytes:
    signer = Signer("log.test/a", KEY)
    return signer.sign(checkpoint) + "".join(map(str, lines)).encode()


# What Go's implementations made.


def test_trees_and_proofs_of_another_implementation() -> None:
    roots = {int(size): base64.b64decode(root) for size, root in GO["roots"].items()}
    leaves = [leaf_hash(b"entry %d" % number) for number in range(300)]
    tree = Tree()
    for leaf in leaves:
        assert roots.get(tree.size, tree.root()) == tree.root()
        tree.add(leaf)
    assert tree.root() == roots[300]
    for case in GO["inclusion"]:
        index, size = case["index"], case["size"]
        proof = [base64.b64decode(node) for node in case["proof"]]
        verify_inclusion(leaves[index], proof, index=index, size=size, root=roots[size])
    tried = 0
    for case in GO["consistency"]:
        old, new = case["old"], case["new"]
        proof = [base64.b64decode(node) for node in case["proof"]]
        if old in roots:
            verify_consistency(
                proof, old=old, new=new, old_root=roots[old], new_root=roots[new]
            )
            tried += 1
    assert (len(GO["inclusion"]), tried) == (17, 21)


def test_cosignatures_of_another_implementation() -> None:
    checkpoint = open_checkpoint(GO_NOTE, [Verifier.parse(GO["log"])])
    assert (checkpoint.origin, checkpoint.size) == ("go.example/log", 13)
    found = verify_cosignatures(GO_NOTE, GO_COSIGNERS)
    assert [c.verifier.name for c in found] == [
        "witness.example/ed25519",
        "witness.example/mldsa",
    ]
    assert all(c.time_s > NOW - 10**6 for c in found)
    for verifier, text in zip(GO_COSIGNERS, GO["cosigners"], strict=True):
        assert str(verifier) == str(parse_note_key(text)) == text
    changed = GO_NOTE.replace(b"\n13\n", b"\n14\n")
    with pytest.raises(NoteError, match="the cosignature does not verify"):
        verify_cosignatures(changed, GO_COSIGNERS)


# Ours.


@pytest.mark.parametrize("cosigner", COSIGNERS, ids=["ed25519", "ml-dsa-44"])
def test_what_is_cosigned(cosigner: Cosigner) -> None:
    line = cosigner.cosign(CHECKPOINT.text, time_s=NOW)
    [found] = verify_cosignatures(note_with(line), [cosigner.verifier])
    assert (found.verifier, found.time_s) == (cosigner.verifier, NOW)
    # Another checkpoint, another time.
    for other in (
        Checkpoint("log.test/b", 3, bytes(32)),
        Checkpoint("log.test/a", 4, bytes(32)),
        Checkpoint("log.test/a", 3, bytes([1]) * 32),
    ):
        with pytest.raises(NoteError, match="does not verify"):
            verify_cosignatures(note_with(line, checkpoint=other), [cosigner.verifier])
    later = (NOW + 1).to_bytes(8) + line.signature[8:]
    with pytest.raises(NoteError, match="does not verify"):
        moved = note_with(cosigner.verifier.line(later))
        verify_cosignatures(moved, [cosigner.verifier])


@pytest.mark.parametrize("cosigner", COSIGNERS, ids=["ed25519", "ml-dsa-44"])
@pytest.mark.parametrize("time", [b"", bytes(8), b"\x80" + bytes(7), b"\xff" * 8])
def test_times_that_are_none(cosigner: Cosigner, time: bytes) -> None:
    line = cosigner.cosign(CHECKPOINT.text, time_s=NOW)
    signature = time + line.signature[8:] if time else bytes(1)
    with pytest.raises(NoteError, match="without a time"):
        verify_cosignatures(
            note_with(cosigner.verifier.line(signature)), [cosigner.verifier]
        )


@pytest.mark.parametrize("time_s", [0, -1, MAX_TIME_S + 1])
def test_times_that_nobody_cosigns_at(time_s: int) -> None:
    for cosigner in COSIGNERS:
        with pytest.raises(NoteError, match="not a time"):
            cosigner.cosign(CHECKPOINT.text, time_s=time_s)
        with pytest.raises(NoteError, match="not a checkpoint"):
            cosigner.cosign(b"anything\n", time_s=NOW)


def test_extension_lines_are_cosigned_by_ed25519_alone() -> None:
    """The specification's ML-DSA-44 message does not have them."""
    extended = CHECKPOINT.text + b"something else\n"
    ed, pq = (c.cosign(extended, time_s=NOW) for c in COSIGNERS)
    COSIGNERS[0].verifier.check(extended, ed.signature)
    COSIGNERS[1].verifier.check(CHECKPOINT.text, pq.signature)
    with pytest.raises(NoteError):
        COSIGNERS[0].verifier.check(CHECKPOINT.text, ed.signature)


def test_the_name_is_cosigned_by_ml_dsa() -> None:
    """And by Ed25519 it is not, so that two names of one key share signatures."""
    for cosigner, key in zip(COSIGNERS, (KEY, PQ_KEY), strict=True):
        other = Cosigner("w.test/other", key).verifier
        line = cosigner.cosign(CHECKPOINT.text, time_s=NOW)
        if key is PQ_KEY:
            with pytest.raises(NoteError, match="does not verify"):
                other.check(CHECKPOINT.text, line.signature)
        else:
            other.check(CHECKPOINT.text, line.signature)


def test_a_note_signature_is_no_cosignature_and_the_reverse() -> None:
    """One key in both roles: what it signs in one says nothing in the other."""
    cosigner, signer = COSIGNERS[0], Signer("w.test/ed", KEY)
    assert cosigner.verifier.key_id != signer.verifier.key_id
    line = cosigner.cosign(CHECKPOINT.text, time_s=NOW)
    with pytest.raises(NoteError, match="does not verify"):
        signer.verifier.check(CHECKPOINT.text, line.signature[8:])
    [signed] = split_note(signer.sign(CHECKPOINT))[1]
    stamped = NOW.to_bytes(8) + signed.signature
    with pytest.raises(NoteError, match="does not verify"):
        cosigner.verifier.check(CHECKPOINT.text, stamped)


def test_the_oldest_of_a_cosigners_times_counts() -> None:
    lines = [COSIGNERS[0].cosign(CHECKPOINT.text, time_s=NOW + n) for n in (5, 0, 9)]
    [found] = verify_cosignatures(note_with(*lines), [COSIGNERS[0].verifier])
    assert found.time_s == NOW


def test_strangers_are_passed_over_and_false_lines_are_not() -> None:
    line = COSIGNERS[0].cosign(CHECKPOINT.text, time_s=NOW)
    assert verify_cosignatures(note_with(line), [COSIGNERS[1].verifier]) == []
    false = SignatureLine(line.name, line.key_id, line.signature[:-1] + b"\0")
    with pytest.raises(NoteError, match="does not verify"):
        verify_cosignatures(note_with(line, false), [COSIGNERS[0].verifier])


def test_keys_of_another_kind() -> None:
    ed = Signer("w.test/ed", KEY).verifier
    for text in (str(ed), str(ed).replace("+A", "+B"), "x", "x+00000000+", ""):
        with pytest.raises(NoteError):
            CosignatureVerifier.parse(text)
    for cosigner in COSIGNERS:
        with pytest.raises(NoteError, match="not a verifier key"):
            Verifier.parse(str(cosigner.verifier))
    assert isinstance(parse_note_key(str(ed)), Verifier)
    for text in ("x+00000000+BA==", "x+00000000+Bg==", "x+00000000+/w=="):
        with pytest.raises(NoteError):
            parse_note_key(text)


@pytest.mark.parametrize(
    "name", ["", "a b", "a+b", "a\N{EM SPACE}b", "a\nb", "é" * 130]
)
def test_names_that_no_cosigner_has(name: str) -> None:
    with pytest.raises(NoteError, match=r"not a name for a key|more than 255 bytes"):
        Cosigner(name, PQ_KEY)


# The request.


def test_a_request_as_the_specification_shows_it() -> None:
    body = (
        b"old 20852014\n"
        b"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
        b"jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        b"\n"
        b"example.com/behind-the-sofa\n20852163\n"
    )
    request = AddCheckpoint.parse(body)
    assert request.old_size == 20852014
    assert [proof[:2].hex() for proof in request.proof] == ["3e54", "8eb2"]
    assert request.note == b"example.com/behind-the-sofa\n20852163\n"
    assert request.encode() == body
    assert AddCheckpoint.parse(b"old 0\n\nx").proof == ()


@given(
    st.integers(0, 10**18 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.binary(max_size=300),
)
def test_what_is_written_is_read(old: int, proof: list[bytes], note: bytes) -> None:
    request = AddCheckpoint(old, tuple(proof), note)
    assert AddCheckpoint.parse(request.encode()) == request


@given(st.binary(max_size=300))
def test_nothing_in_a_request_breaks_its_reader(data: bytes) -> None:
    for body in (data, b"old 4\n" + data, b"old 4\n" + b"A" * 43 + b"=\n" + data):
        try:
            request = AddCheckpoint.parse(body)
        except NoteError:
            continue
        assert len(request.proof) <= 63


def test_requests_are_bounded() -> None:
    with pytest.raises(NoteError, match="too long"):
        AddCheckpoint.parse(b"old 0\n\n" + b"x" * MAX_REQUEST_BYTES)
    for proof in ([bytes(32)] * 64, [bytes(31)]):
        with pytest.raises(NoteError, match="not a proof"):
            AddCheckpoint(4, proof, b"").encode()


def test_sizes_and_places() -> None:
    assert parse_size(b"20852014\n") == 20852014
    for body in (b"", b"1", b"01\n", b"-1\n", b"1\n\n", b"9" * 19 + b"\n", b"1 \n"):
        with pytest.raises(NoteError, match="not the size"):
            parse_size(body)
    assert len(checkpoint_path("x")) == 64 + len("/checkpoint")
