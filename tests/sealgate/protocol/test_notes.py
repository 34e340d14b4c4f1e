"""Signed notes and checkpoints, against the examples of the specifications."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import NoteError
from sealgate.protocol.notes import (
    Checkpoint,
    Signer,
    Verifier,
    open_checkpoint,
    parse_signature_lines,
    split_note,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
ML_DSA_KEY = MLDSA65PrivateKey.from_seed_bytes(bytes([7]) * 32)
SIGNER = Signer("sealgate.test/audit", KEY)
BOTH = Signer("sealgate.test/audit", KEY, ml_dsa_key=ML_DSA_KEY)
CHECKPOINT = Checkpoint("sealgate.test/audit", 3, bytes(32))

GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKv"
    "qfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_the_published_note_verifies() -> None:
    """The example of golang.org/x/mod/sumdb/note: its text is no checkpoint, its
    signature is right."""
    verifier = Verifier.parse(GO_KEY)
    assert str(verifier) == GO_KEY
    with pytest.raises(NoteError, match="origin, size and root"):
        open_checkpoint(GO_NOTE, [verifier])
    changed = GO_NOTE.replace(b"problem is", b"problem Is")
    with pytest.raises(NoteError, match="signature does not verify"):
        open_checkpoint(changed, [verifier])


def test_a_checkpoint_as_the_specification_shows_it() -> None:
    root = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    checkpoint = Checkpoint("example.com/behind-the-sofa", 20852163, root)
    assert checkpoint.text == (
        b"example.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )
    note = SIGNER.sign(checkpoint)
    assert open_checkpoint(note, [SIGNER.verifier]) == checkpoint
    # A witness's signature beside ours is passed over, a false one of ours is not.
    witness = note.split(b"\n\n")[1].replace(b"sealgate.test/audit", b"witness")
    assert open_checkpoint(note + witness, [SIGNER.verifier]) == checkpoint
    false = SIGNER.sign(Checkpoint("x", 1, root)).split(b"\n\n")[1]
    with pytest.raises(NoteError, match="does not verify"):
        open_checkpoint(note + false, [SIGNER.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "origin\n01\n" + "A" * 43 + "=\n",
        "origin\n-1\n" + "A" * 43 + "=\n",
        "origin\n1\nAAAA\n",
        "origin\n1\n",
        "\n1\n" + "A" * 43 + "=\n",
        "origin\n1\n" + "A" * 43 + "=\n\nextension\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint(text: str) -> None:
    data = base64.b64encode(SIGNER.verifier.key_id + KEY.sign(text.encode())).decode()
    note = f"{text}\n— {SIGNER.name} {data}\n".encode()
    with pytest.raises(NoteError, match="not a checkpoint"):
        open_checkpoint(note, [SIGNER.verifier])


@settings(deadline=None)
@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda t: t.encode()))
def test_nothing_in_a_note_breaks_its_reader(data: bytes) -> None:
    with pytest.raises(NoteError):
        open_checkpoint(data, [SIGNER.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+",
        "a b+1+AQ==",
        GO_KEY[:-4],
        GO_KEY.replace("+c", "+d"),
    ],
)
def test_what_is_no_verifier_key(text: str) -> None:
    with pytest.raises(NoteError, match=r"verifier key|name for a key"):
        Verifier.parse(text)


def test_a_signer_hides_its_key() -> None:
    assert "PRIVATE" not in repr(SIGNER)
    assert repr(SIGNER) == f"<Signer {SIGNER.verifier}>"


# The examples of C2SP signed-note.

C2SP_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYj"
    "OBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
C2SP_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"


def test_the_note_that_the_specification_shows() -> None:
    verifier = Verifier.parse(C2SP_KEY)
    text, [line] = split_note(C2SP_NOTE)
    assert text == b"This is an example message.\n"
    assert (line.name, line.key_id) == (verifier.name, verifier.key_id)
    verifier.check(text, line.signature)
    assert text + b"\n" + str(line).encode() == C2SP_NOTE


# Two kinds of key.


def test_a_tool_that_knows_ed25519_alone_passes_over_the_other_line() -> None:
    note = BOTH.sign(CHECKPOINT)
    lines = split_note(note)[1]
    assert [len(line.signature) for line in lines] == [64, 3309]
    assert open_checkpoint(note, [SIGNER.verifier]) == CHECKPOINT
    assert note.startswith(SIGNER.sign(CHECKPOINT))


def test_both_are_checked_where_both_are_asked_for() -> None:
    note = BOTH.sign(CHECKPOINT)
    verifiers = [Verifier.parse(str(verifier)) for verifier in BOTH.verifiers]
    assert [verifier.key_id for verifier in verifiers] == [
        verifier.key_id for verifier in BOTH.verifiers
    ]
    assert open_checkpoint(note, verifiers, every=True) == CHECKPOINT
    for stripped in split_note(note)[1]:
        less = note.replace(str(stripped).encode(), b"")
        assert open_checkpoint(less, verifiers) == CHECKPOINT
        with pytest.raises(NoteError, match="did not sign the checkpoint, and it must"):
            open_checkpoint(less, verifiers, every=True)


def test_one_kind_under_the_others_id() -> None:
    text, (classical, ml_dsa) = split_note(BOTH.sign(CHECKPOINT))
    first, second = BOTH.verifiers
    for verifier, line in ((first, ml_dsa), (second, classical)):
        note = text + b"\n" + str(verifier.line(line.signature)).encode()
        with pytest.raises(NoteError, match="does not verify"):
            open_checkpoint(note, BOTH.verifiers)


def test_a_key_of_one_kind_named_as_the_other() -> None:
    for verifier in BOTH.verifiers:
        name, key_id, encoded = str(verifier).split("+", 2)
        raw = base64.b64decode(encoded)
        for kind in (b"\x01", b"\x02", b"\x04", b"\xff", b"\xffsealgate.dev/ml-dsa-6"):
            text = f"{name}+{key_id}+{base64.b64encode(kind + raw[1:]).decode()}"
            if text != str(verifier):
                with pytest.raises(NoteError, match="not a verifier key"):
                    Verifier.parse(text)


@pytest.mark.parametrize(
    "line",
    [
        "— a name AAAAAAAA",
        "— a\N{NO-BREAK SPACE}name AAAAAAAA",
        "— a+name AAAAAAAA",
        "—  AAAAAAAA",
        "— name AAAAAA==",
        "— name AAAA AAAA",
        "- name AAAAAAAA",
        "— name AAAAAAAA ",
        "— name !",
    ],
)
def test_what_is_no_signature_line(line: str) -> None:
    with pytest.raises(NoteError, match="not a signature line"):
        parse_signature_lines(f"{line}\n".encode())
    with pytest.raises(NoteError, match="not a signature line"):
        open_checkpoint(SIGNER.sign(CHECKPOINT) + f"{line}\n".encode(), BOTH.verifiers)


def test_no_more_lines_than_a_reader_looks_at() -> None:
    note = SIGNER.sign(CHECKPOINT)
    line = "— name AAAAAAAA\n".encode()
    assert open_checkpoint(note + 63 * line, [SIGNER.verifier]) == CHECKPOINT
    with pytest.raises(NoteError, match="no signatures"):
        open_checkpoint(note + 64 * line, [SIGNER.verifier])
    with pytest.raises(NoteError, match="too long"):
        parse_signature_lines(line * 5000)
