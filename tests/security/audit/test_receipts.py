"""Receipts: made from a log, and what of them and of the log is refused."""

from __future__ import annotations

import base64
import itertools
import random
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import NoteError, ReceiptError
from sealgate.protocol.cosignatures import (
    CosignatureVerifier,
    Cosigner,
    parse_note_key,
)
from sealgate.protocol.merkle import leaf_hash, verify_inclusion
from sealgate.protocol.notes import Checkpoint, Signer, Verifier, open_checkpoint
from sealgate.protocol.receipts import (
    LogTrust,
    NumberSealer,
    Receipt,
    open_cosigned,
    verify_receipt,
)
from security.audit.receipts import ReceiptMaker
from security.audit.records import encode
from security.audit.tree_log import TreeLog
from security.audit.verify import verify_log
from security.errors import AuditError
from tests.support.receipting import (
    LOG_NAME,
    MODEL,
    NOW,
    Deployment,
    answered,
    edited,
)
from tests.support.servers import ROOT, sealgate

MINE = "0123456789abcdef"
OTHERS = "fedcba9876543210"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Two writers, of which one has several files, and two witnesses."""
    made = Deployment(tmp_path_factory.mktemp("log"), witnesses=2)
    first, second = made.writer("1795276800-7"), made.writer("1795276801-8")
    start = encode({"action": "start", "outcome": "allow"})
    for writer in (first, second):
        writer.write([start])
        writer.sign_checkpoint()
    for at in range(40):
        first.write([answered(MINE if at == 30 else OTHERS if at == 31 else "")])
        if at % 7 == 0:
            first.sign_checkpoint()
    second.write([answered() for _ in range(3)])
    for writer in (first, second):
        writer.close()
    made.cosign(0, 1)
    return made


@pytest.fixture(scope="module")
def receipt(deployment: Deployment) -> bytes:
    return made(deployment, 31)


def made(deployment: Deployment, place: int, writer: str = "1795276800-7") -> bytes:
    number = deployment.numbers.seal(writer, place)
    receipt = deployment.maker.make(deployment.maker.find(number))
    assert receipt is not None
    return receipt


def check(deployment: Deployment, receipt: bytes, request_id: str = MINE) -> None:
    verify_receipt(receipt, deployment.trust, request_id=request_id)


def test_every_record_of_every_writer(deployment: Deployment) -> None:
    assert len([*deployment.folder.glob("1795276800-7.*.jsonl")]) > 2
    for writer, places in (("1795276800-7", 41), ("1795276801-8", 4)):
        for place in range(1, places):
            receipt = made(deployment, place, writer)
            proven = verify_receipt(receipt, deployment.trust, request_id=None)
            assert proven.fields["seq"] == place


def test_what_it_proves(deployment: Deployment, receipt: bytes) -> None:
    proven = verify_receipt(
        receipt, deployment.trust, request_id=MINE, model="toy", model_sha256=MODEL
    )
    assert (proven.request_id, proven.model, proven.time_us // 10**6) == (
        MINE,
        "toy",
        NOW,
    )
    assert proven.witnesses == {
        "witness0.example/w": NOW,
        "witness1.example/w": NOW + 1,
    }
    assert (proven.origin, proven.size) == (LOG_NAME, deployment.log.size)
    # Of other records nothing but hashes.
    assert OTHERS.encode() not in Receipt.decode(receipt).record


def test_the_log_is_still_one_that_verifies(deployment: Deployment) -> None:
    assert verify_log([deployment.folder], verifier=deployment.signer.verifier)


def test_others_tools_read_the_outer_proof(
    deployment: Deployment, receipt: bytes
) -> None:
    """C2SP tlog-proof, by its text alone."""
    parsed = Receipt.decode(receipt)
    head, _, note = parsed.tlog_proof().partition(b"\n\n")
    first, index, *path = head.decode().split("\n")
    assert first == "c2sp.org/tlog-proof@v1"
    log = open_checkpoint(note, [deployment.signer.verifier])
    verify_inclusion(
        leaf_hash(parsed.writer_checkpoint),
        [base64.b64decode(line) for line in path],
        index=int(index.removeprefix("index ")),
        size=log.size,
        root=log.root,
    )


def test_a_subject_s_receipt_is_not_another_request_s(
    deployment: Deployment, receipt: bytes
) -> None:
    with pytest.raises(ReceiptError, match="another request: request_id"):
        check(deployment, receipt, OTHERS)
    with pytest.raises(ReceiptError, match="another request: model is not"):
        verify_receipt(receipt, deployment.trust, request_id=MINE, model="other")
    with pytest.raises(ReceiptError, match="another request: model_sha256"):
        verify_receipt(
            receipt, deployment.trust, request_id=MINE, model_sha256="cd" * 32
        )


@pytest.mark.parametrize(
    "changes",
    [{"model_sha256": "cd" * 32}, {"request_id": OTHERS}, {"seq": 30}, {"rows": 2}],
)
def test_an_altered_record(
    deployment: Deployment, receipt: bytes, changes: dict[str, object]
) -> None:
    parsed = Receipt.decode(receipt)
    forged = replace(parsed, record=edited(parsed.record, **changes)).encode()
    with pytest.raises(ReceiptError, match="the record in its writer's tree"):
        verify_receipt(forged, deployment.trust, request_id=None)


@pytest.mark.parametrize("size", [38, 42, 1, 64])
def test_a_proof_for_another_size(
    deployment: Deployment, receipt: bytes, size: int
) -> None:
    """Whoever names another size names a checkpoint that is no leaf."""
    parsed = Receipt.decode(receipt)
    lines = parsed.writer_checkpoint.split(b"\n")
    lines[1] = b"%d" % size
    forged = replace(parsed, writer_checkpoint=b"\n".join(lines)).encode()
    with pytest.raises(ReceiptError, match="checkpoint in the log"):
        check(deployment, forged)


def test_parts_of_another_receipt(deployment: Deployment, receipt: bytes) -> None:
    mine, other = Receipt.decode(receipt), Receipt.decode(made(deployment, 32))
    for changed, what in (
        (replace(mine, writer_path=other.writer_path), "in its writer's tree"),
        (replace(mine, record=other.record), "in its writer's tree"),
        (replace(mine, place=mine.place - 1), "checkpoint in the log"),
        (replace(mine, place=2**63), "checkpoint in the log"),
        (replace(mine, log_path=mine.log_path[:-1]), "checkpoint in the log"),
        (replace(mine, log_path=(*mine.log_path, b"\0" * 32)), "in the log"),
        (replace(mine, writer_path=()), "in its writer's tree"),
    ):
        with pytest.raises(ReceiptError, match=what):
            verify_receipt(changed.encode(), deployment.trust, request_id=None)


def test_a_receipt_of_another_log(
    deployment: Deployment, receipt: bytes, tmp_path: Path
) -> None:
    other = Deployment(tmp_path, witnesses=2)
    with pytest.raises(ReceiptError, match="no trusted key signed"):
        check(other, receipt)
    # The same name, and another key; then the same key under another name.
    renamed = Deployment(tmp_path / "n", name="other.example/audit", key=deployment.key)
    with pytest.raises(ReceiptError, match="no trusted key signed"):
        check(renamed, receipt)


def test_another_log_of_the_same_key(deployment: Deployment, tmp_path: Path) -> None:
    """What one key signs beside the log does not count as the log's."""
    folder = tmp_path / "beside"
    beside = Signer(f"{LOG_NAME}/offers", deployment.key)
    log = TreeLog(folder, beside)
    log.append([Receipt.decode(made(deployment, 31)).writer_checkpoint])
    forged = replace(
        Receipt.decode(made(deployment, 31)),
        place=0,
        log_path=(),
        checkpoint=log.checkpoint(),
    ).encode()
    with pytest.raises(ReceiptError, match="no trusted key signed"):
        check(deployment, forged)
    trust = LogTrust((beside.verifier,))
    with pytest.raises(ReceiptError, match="not a checkpoint of a writer"):
        verify_receipt(forged, trust, request_id=MINE)


def test_a_checkpoint_under_another_origin(deployment: Deployment) -> None:
    root = leaf_hash(b"x")
    note = deployment.signer.sign(Checkpoint("models.example/other", 1, root))
    with pytest.raises(NoteError, match="another log"):
        open_cosigned(note, deployment.trusting(required=0))


def test_cosignatures_short(deployment: Deployment, receipt: bytes) -> None:
    parsed = Receipt.decode(receipt)
    lines = parsed.checkpoint.splitlines(keepends=True)
    short = replace(parsed, checkpoint=b"".join(lines[:-1])).encode()
    with pytest.raises(ReceiptError, match="1 of 2 required witnesses"):
        check(deployment, short)
    # Twice the same one, or one that nobody knows, is no second one.
    twice = replace(parsed, checkpoint=b"".join([*lines[:-1], lines[-2]])).encode()
    with pytest.raises(ReceiptError, match="1 of 2 required witnesses"):
        check(deployment, twice)
    stranger = Cosigner("stranger.example/w", Ed25519PrivateKey.generate())
    text = b"".join(lines[:3])
    line = str(stranger.cosign(text, time_s=NOW)).encode()
    strange = replace(parsed, checkpoint=b"".join([*lines[:-1], line])).encode()
    with pytest.raises(ReceiptError, match="1 of 2 required witnesses"):
        check(deployment, strange)
    one = deployment.trusting(required=1)
    assert verify_receipt(short, one, request_id=MINE).witnesses == {
        "witness0.example/w": NOW
    }


def test_a_cosignature_of_another_checkpoint(
    deployment: Deployment, receipt: bytes
) -> None:
    parsed = Receipt.decode(receipt)
    lines = parsed.checkpoint.splitlines(keepends=True)
    root = leaf_hash(b"x")
    older = Checkpoint(LOG_NAME, 1, root).text
    line = str(deployment.cosigners[1].cosign(older, time_s=NOW)).encode()
    forged = replace(parsed, checkpoint=b"".join([*lines[:-1], line])).encode()
    with pytest.raises(ReceiptError, match="cosignature does not verify"):
        check(deployment, forged)


def test_a_forked_log(deployment: Deployment, tmp_path: Path) -> None:
    """Whoever has the key shows one caller another log: no witness cosigns that."""
    fork = Deployment(tmp_path / "fork", key=deployment.key)
    writer = fork.writer()
    writer.write([answered() for _ in range(31)])
    writer.write([answered(MINE)])
    writer.close()
    shown = fork.receipt(writer, 31)
    assert verify_receipt(shown, fork.trust, request_id=MINE)
    with pytest.raises(ReceiptError, match="0 of 2 required witnesses"):
        check(deployment, shown)
    # Nor do cosignatures of the log that they saw fit the other one.
    taken = Receipt.decode(made(deployment, 31)).checkpoint
    parsed = Receipt.decode(shown)
    lines = [*parsed.checkpoint.splitlines(True), *taken.splitlines(True)[-2:]]
    with pytest.raises(ReceiptError, match="cosignature does not verify"):
        check(deployment, replace(parsed, checkpoint=b"".join(lines)).encode())


def test_an_ml_dsa_half_that_was_stripped(tmp_path: Path) -> None:
    both = Deployment(tmp_path, ml_dsa=True)
    writer = both.writer()
    writer.write([answered(MINE)])
    writer.close()
    receipt = both.receipt(writer, 0)
    check(both, receipt)
    parsed = Receipt.decode(receipt)
    lines = parsed.checkpoint.splitlines(keepends=True)
    for left in (lines[:-1], [*lines[:-2], lines[-1]]):
        stripped = replace(parsed, checkpoint=b"".join(left)).encode()
        with pytest.raises(ReceiptError, match="did not sign"):
            check(both, stripped)
    # Who names one key alone takes it still.
    classical = both.trusting(log=(both.signer.verifier,))
    assert verify_receipt(receipt, classical, request_id=MINE)


def test_a_record_of_no_answer(deployment: Deployment) -> None:
    """The start of a writer is on record, and is nobody's receipt."""
    number = deployment.numbers.seal("1795276800-7", 0)
    with pytest.raises(AuditError, match="not about one request"):
        deployment.maker.make(deployment.maker.find(number))


@pytest.mark.parametrize("ml_dsa", [False, True])
def test_size(tmp_path: Path, ml_dsa: bool) -> None:
    """2 KB, or 7 KB, with 65,536 records, as many checkpoints, three witnesses."""
    big = Deployment(tmp_path, witnesses=3, ml_dsa=ml_dsa)
    writer = big.writer("1795276800000000000-4194304")
    writer.write([answered(MINE)])
    writer.close()
    big.cosign(0, 1, 2)
    parsed = Receipt.decode(big.receipt(writer, 0))
    path = tuple(secrets.token_bytes(32) for _ in range(16))
    size = len(replace(parsed, writer_path=path, log_path=path).encode())
    assert size <= (7 if ml_dsa else 2) << 10


def test_before_the_checkpoint(tmp_path: Path) -> None:
    early = Deployment(tmp_path, witnesses=1)
    writer = early.writer()
    writer.write([answered() for _ in range(2)])
    writer.sign_checkpoint()
    writer.write([answered(MINE)])
    found = early.maker.find(early.numbers.seal(writer.writer, 2))
    assert early.maker.make(found) is None  # no witness
    early.cosign(0)
    assert early.maker.make(found) is None  # no checkpoint of the writer
    writer.sign_checkpoint()
    assert early.maker.make(found) is None  # cosigned is the one before
    early.cosign(0)
    receipt = early.maker.make(found)
    assert receipt is not None
    check(early, receipt)
    writer.close()


def test_numbers_that_nobody_gave(deployment: Deployment) -> None:
    number = deployment.numbers.seal("1795276800-7", 31)
    assert deployment.maker.find(number).record.sequence == 31
    wrong = [
        "",
        "A",
        number[:-1],
        number + "A",
        number[::-1],
        ("B" if number[0] == "A" else "A") + number[1:],
        number + "=" * 4,
        number.replace("-", "+").replace("_", "/") + "+/",
        "ü" * 40,
        "A" * 100_000,
        NumberSealer(b"t" * 32).seal("1795276800-7", 31),
        deployment.numbers.seal("1795276800-7", 41),
        deployment.numbers.seal("1795276800-9", 0),
        deployment.numbers.seal("../1795276800-7", 0),
        deployment.numbers.seal("*", 0),
    ]
    for text in wrong:
        with pytest.raises(ReceiptError):
            deployment.maker.find(text)


def test_numbers_say_nothing(deployment: Deployment) -> None:
    """Neighbours look as little alike as any two, and all are of one length."""
    seal = deployment.numbers.seal
    near = [base64.urlsafe_b64decode(seal("1-1", at) + "==") for at in range(256)]
    assert len({len(number) for number in near}) == 1
    assert len({number[:8] for number in near}) == len(near)
    bits = [
        (int.from_bytes(a) ^ int.from_bytes(b)).bit_count() / (8 * len(a))
        for a, b in itertools.pairwise(near)
    ]
    assert 0.45 < sum(bits) / len(bits) < 0.55
    assert "s" not in repr(deployment.numbers).removeprefix("<NumberSealer")


def test_a_log_that_was_changed_gives_none(tmp_path: Path) -> None:
    changed = Deployment(tmp_path)
    writer = changed.writer()
    writer.write([answered() for _ in range(4)])
    writer.close()
    path = tmp_path / "1795276800-7.hashes"
    content = bytearray(path.read_bytes())
    content[3 * 32] ^= 1  # a leaf's sibling
    path.write_bytes(content)
    found = changed.maker.find(changed.numbers.seal(writer.writer, 3))
    with pytest.raises(AuditError, match="no receipt can be made"):
        changed.maker.make(found)
    path.write_bytes(content[: 2 * 32])
    with pytest.raises(AuditError, match="missing"):
        changed.maker.make(found)
    path.unlink()
    with pytest.raises(AuditError, match="No such file"):
        changed.maker.make(found)


def test_searching_from_the_end(tmp_path: Path) -> None:
    """Over the borders of blocks, and only where leaves begin."""
    log = Deployment(tmp_path).log
    leaves = [secrets.token_bytes(random.randrange(1, 50_000)) for _ in range(80)]
    for at in (3, 40, 79):
        leaves[at] = b"mine\n" + leaves[at]
    leaves[50] = b"not mine\n" + leaves[50]
    log.append(leaves)
    assert [*log.search(b"mine\n")] == [79, 40, 3]
    assert [*log.search(b"nobody\n")] == []
    assert [
        *TreeLog(tmp_path / "empty", Signer("e", Ed25519PrivateKey.generate())).search(
            b"a"
        )
    ] == []


def test_what_is_on_record_steers_no_terminal(tmp_path: Path) -> None:
    made = Deployment(tmp_path)
    writer = made.writer()
    writer.write([answered(MINE, model="toy\x1b[2J\nrequest 0")])
    writer.close()
    (tmp_path / "r").write_bytes(made.receipt(writer, 0))
    (tmp_path / "vkey").write_text(str(made.signer.verifier))
    done = sealgate("receipt", "verify", "r", "--log-key", "vkey", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert "by toy?[2J?request 0\n" in done.stdout


class Counting(TreeLog):
    """Counts the leaves that are searched."""

    searched = 0

    def search(
        self, prefix: bytes, *, start: int = 0, size: int | None = None
    ) -> Iterator[int]:
        self.searched += (self.size if size is None else size) - start
        return super().search(prefix, start=start, size=size)


def test_a_log_is_searched_once_for_a_writer_that_ended(tmp_path: Path) -> None:
    """Who asks for old receipts again and again costs no more than for new ones."""
    made = Deployment(tmp_path)
    old, new = made.writer("1-1"), made.writer("2-2")
    old.write([answered(MINE), answered()])
    old.close()
    for _ in range(50):
        new.write([answered()])
        new.sign_checkpoint()
    log = Counting(tmp_path, made.signer)
    maker = ReceiptMaker(log, numbers=made.numbers, trust=made.trust)
    for _ in range(10):
        receipt = maker.make(maker.find(made.numbers.seal("1-1", 0)))
        assert receipt is not None
        assert verify_receipt(receipt, made.trust, request_id=MINE).size == 51
    assert log.searched == 51
    # What is added is looked at, of a writer that goes on too.
    for size in (52, 53):
        new.write([answered()])
        new.sign_checkpoint()
        receipt = maker.make(maker.find(made.numbers.seal("2-2", size - 2)))
        assert receipt is not None
        proven = verify_receipt(receipt, made.trust, request_id=None)
        assert (proven.size, proven.fields["seq"]) == (size, size - 2)
    assert log.searched == 51 + 52 + 1


def test_searching_a_part(tmp_path: Path) -> None:
    log = Deployment(tmp_path).log
    log.append([b"mine %d" % number for number in range(9)])
    assert [*log.search(b"mine", start=3, size=6)] == [5, 4, 3]
    assert [*log.search(b"mine", start=9)] == []
    with pytest.raises(AuditError, match="has no 10 leaves"):
        [*log.search(b"mine", size=10)]


def test_trust_that_means_nothing(deployment: Deployment) -> None:
    (key,) = deployment.trust.log
    one, two = deployment.trust.witnesses
    other = Verifier("other.example/audit", deployment.key.public_key())
    for log, witnesses, required in (
        ((), (), 0),
        ((key, other), (), 0),
        ((key, key), (), 0),
        ((key,), (one, two), 3),
        ((key,), (one, one), 1),
        ((key,), (one, two), -1),
    ):
        with pytest.raises(NoteError):
            LogTrust(log, witnesses, required)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(1, 255), cut=st.booleans())
def test_any_byte_that_is_another(
    deployment: Deployment, receipt: bytes, at: int, value: int, cut: bool
) -> None:
    """Nothing that was changed or cut verifies, and nothing but our error comes out."""
    at %= len(receipt)
    changed = bytearray(receipt)
    changed[at] ^= value
    data = bytes(receipt[:at] if cut else changed)
    try:
        proven = verify_receipt(data, deployment.trust, request_id=MINE)
    except ReceiptError:
        return
    # Deflate has more than one way to say the same.
    assert Receipt.decode(data) == Receipt.decode(receipt)
    assert proven.fields["seq"] == 31


def test_what_unpacks_to_too_much() -> None:
    bomb = Receipt(b"{" + b" " * 60_000, b"x\n", (), 0, (), b"x").encode()
    assert len(bomb) < 1000
    with pytest.raises(ReceiptError, match="unpack"):
        Receipt.decode(bomb)
    with pytest.raises(ReceiptError, match="no receipt can hold"):
        Receipt(b"{}", b"x\n", (), 0, (), b"x" * (1 << 16)).encode()
    with pytest.raises(ReceiptError, match="version 1"):
        Receipt.decode(bomb.replace(b"receipt@v1", b"receipt@v2"))
    with pytest.raises(ReceiptError, match="not what they must be"):
        Receipt.decode(Receipt(b"{}", b"x\n", (), 0, (), b"x").encode() + b"x")


def test_version_1_stays_readable() -> None:
    """A receipt of the first release that gave any: kept, never made again."""
    folder = ROOT / "tests" / "fixtures" / "receipts"
    log, witnesses = (
        (folder / name).read_text().split() for name in ("log.vkeys", "witnesses.vkeys")
    )
    trust = LogTrust(
        tuple(map(parse_note_key, log)),
        tuple(map(CosignatureVerifier.parse, witnesses)),
        required=2,
    )
    proven = verify_receipt(
        (folder / "v1.receipt").read_bytes(), trust, request_id=MINE, model_sha256=MODEL
    )
    assert (proven.fields["seq"], proven.size) == (9, 7)
