"""security.witness, against C2SP tlog-witness, and against who would misuse it."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA44PrivateKey,
    MLDSA65PrivateKey,
)

from sealgate.protocol.cosignatures import (
    CosignatureVerifier,
    Cosigner,
    verify_cosignatures,
)
from sealgate.protocol.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_proof,
    leaf_hash,
    tree_root,
)
from sealgate.protocol.notes import (
    MAX_NOTE_BYTES,
    Checkpoint,
    Signer,
    open_checkpoint,
    split_note,
)
from sealgate.protocol.tlog_witness import SIZE_MEDIA_TYPE, AddCheckpoint
from security.errors import WitnessError
from security.witness.rates import Rate
from security.witness.state import MAX_FORKS, State
from security.witness.witness import Refused, Witness, known_logs

NOW = 1_795_276_800.0
ORIGIN = "log.test/a"
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([fill]) * 32) for fill in range(5)]
COSIGNERS = [
    Cosigner("witness.test/w1", KEYS[0]),
    Cosigner("witness.test/w1", MLDSA44PrivateKey.from_seed_bytes(bytes(32))),
]
VERIFIERS = [cosigner.verifier for cosigner in COSIGNERS]
SIGNER = Signer(ORIGIN, KEYS[1])


class Log:
    """A log that can say everything of itself."""

    def __init__(self, count: int, *, signer: Signer = SIGNER, fork: int = -1) -> None:
        """Leaves 0 to count; from ``fork`` on they are others."""
        tree = Tree()
        self.signer = signer
        self.stored: list[bytes] = []
        for number in range(count):
            entry = b"fork %d" if 0 <= fork <= number else b"entry %d"
            self.stored += tree.add(leaf_hash(entry % number))

    def read(self, indices: Sequence[int]) -> list[bytes]:
        return [self.stored[index] for index in indices]

    def note(self, size: int, origin: str = "") -> bytes:
        root = tree_root(size, self.read)
        return self.signer.sign(Checkpoint(origin or self.signer.name, size, root))

    def request(self, old: int, new: int) -> bytes:
        proof = consistency_proof(old, new, self.read)
        return AddCheckpoint(old, proof, self.note(new)).encode()


LOG, FORK = Log(40), Log(40, fork=5)


@pytest.fixture
def state(tmp_path: Path):
    state = State(tmp_path / "state")
    yield state
    state.close()


def make(state: State, **options) -> Witness:
    options.setdefault("logs", known_logs([SIGNER.verifier]))
    options.setdefault("cosigners", COSIGNERS)
    return Witness(options.pop("cosigners"), options.pop("logs"), state, **options)


@pytest.fixture
def witness(state: State) -> Witness:
    return make(state)


def add(witness: Witness, body: bytes, now_s: float = NOW) -> bytes:
    return witness.add_checkpoint(body, now_s=now_s)


def refused(witness: Witness, body: bytes, now_s: float = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        add(witness, body, now_s)
    return caught.value


# What is cosigned.


def test_a_log_that_grows_is_cosigned(witness: Witness, state: State) -> None:
    old = 0
    for step, new in enumerate((1, 2, 2, 7, 8, 31, 40)):
        lines = add(witness, LOG.request(old, new), NOW + 100 * step)
        note = LOG.note(new) + lines
        found = verify_cosignatures(note, VERIFIERS)
        assert [(c.verifier, c.time_s) for c in found] == [
            (verifier, int(NOW) + 100 * step) for verifier in VERIFIERS
        ]
        latest = state.latest(ORIGIN)
        assert latest is not None
        assert latest.note == note
        assert open_checkpoint(latest.note, [SIGNER.verifier]).size == new
        old = new
    assert [size for size, _, _ in state.after(ORIGIN, -1, 100)] == [1, 2, 7, 8, 31, 40]
    assert [size for size, _, _ in state.after(ORIGIN, 2, 2)] == [7, 8]


def test_the_empty_tree_is_cosigned(witness: Witness, state: State) -> None:
    add(witness, LOG.request(0, 0))
    assert state.latest(ORIGIN).size == 0
    add(witness, LOG.request(0, 3), NOW + 1)
    assert refused(witness, LOG.request(0, 0)).status == 409


def test_a_log_of_any_kind_of_key(state: State) -> None:
    both = Signer(ORIGIN, KEYS[1], ml_dsa_key=MLDSA65PrivateKey.generate())
    witness = make(state, logs=known_logs(both.verifiers))
    lines = add(witness, Log(9, signer=both).request(0, 9))
    assert len(split_note(state.latest(ORIGIN).note)[1]) == 4
    assert lines.count(b"\n") == 2
    # ML-DSA-44, as tlog-checkpoint recommends for logs.
    log = Cosigner("log.test/pq", MLDSA44PrivateKey.from_seed_bytes(bytes([9]) * 32))
    text = Checkpoint("log.test/pq", 0, EMPTY_ROOT).text
    note = text + b"\n" + str(log.cosign(text, time_s=int(NOW))).encode()
    witness = make(state, logs=known_logs([log.verifier]))
    assert add(witness, AddCheckpoint(0, (), note).encode())


def test_a_log_changes_its_key(state: State) -> None:
    later = Signer(ORIGIN, KEYS[2])
    witness = make(state, logs=known_logs([SIGNER.verifier, later.verifier]))
    add(witness, LOG.request(0, 4))
    add(witness, Log(40, signer=later).request(4, 9))
    assert state.latest(ORIGIN).size == 9


def test_what_else_stands_below_a_checkpoint_is_not_kept(
    witness: Witness, state: State
) -> None:
    other = Signer("stranger.test", KEYS[3]).sign(Checkpoint(ORIGIN, 4, bytes(32)))
    line = other.split(b"\n\n")[1]
    body = LOG.request(0, 4)
    add(witness, body + line + line + body.split(b"\n\n")[2])
    names = [line.name for line in split_note(state.latest(ORIGIN).note)[1]]
    assert names == [ORIGIN, "witness.test/w1", "witness.test/w1"]


# What is refused, in the order of the checks.


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (b"old 4\n", b"old 04\n"),
        (b"old 4\n", b"old +4\n"),
        (b"old 4\n", b"old -1\n"),
        (b"old 4\n", b"old  4\n"),
        (b"old 4\n", b"old 4 \n"),
        (b"old 4\n", b"Old 4\n"),
        (b"old 4\n", b"old 4\r\n"),
        (b"old 4\n", b"old \xd9\xa4\n"),
        (b"old 4\n", b"old 9223372036854775808\n"),
        (b"old 4\n", b"old " + b"9" * 5000 + b"\n"),
        (b"old 4\n", b"\n"),
        (b"old 4\n", b""),
        (b"\n\n", b"\n"),
        (b"\n\n", b"\n!\n\n"),
        (b"\n\n", b"\n" + b"A" * 43 + b"\n\n"),
        (b"\n\n", b"\n" + b"A" * 44 + b"\n\n"),
        (b"\n\n", b"\n" + (b"A" * 43 + b"=\n") * 63 + b"\n"),
        (b"\n9\n", b"\n09\n"),
        (b"\n9\n", b"\n-9\n"),
        (b"\n9\n", b"\n9223372036854775808\n"),
        (b"\n9\n", b"\n" + b"9" * 5000 + b"\n"),
        (b"log.test/a\n", b"log.test\x00/a\n"),
        (b"log.test/a\n", b"log.test\xff/a\n"),
        ("— ".encode(), b"- "),
        ("— log.test/a".encode(), "— log test/a".encode()),
        ("— log.test/a".encode(), "— log\N{NO-BREAK SPACE}test/a".encode()),
    ],
)
def test_what_is_no_request(witness: Witness, change: bytes, by: bytes) -> None:
    add(witness, LOG.request(0, 4))
    body = LOG.request(4, 9)
    assert change in body
    assert refused(witness, body.replace(change, by, 1)).status == 400


def test_too_much(witness: Witness) -> None:
    assert refused(witness, LOG.request(0, 4) + b"x" * (128 << 10)).status == 400
    assert refused(witness, b"").status == 400


def test_a_log_that_nobody_knows(witness: Witness) -> None:
    signer = Signer("log.test/b", KEYS[1])
    assert refused(witness, Log(3, signer=signer).request(0, 3)).status == 404
    # Nor one whose checkpoint another known log's key signed.
    note = LOG.note(3, origin="log.test/b")
    assert refused(witness, AddCheckpoint(0, (), note).encode()).status == 404


def test_a_known_logs_origin_and_a_strangers_key(state: State) -> None:
    logs = known_logs([SIGNER.verifier, Signer("log.test/b", KEYS[2]).verifier])
    witness = make(state, logs=logs)
    for signer in (Signer(ORIGIN, KEYS[2]), Signer("log.test/b", KEYS[2])):
        note = Log(3, signer=signer).note(3, origin=ORIGIN)
        assert refused(witness, AddCheckpoint(0, (), note).encode()).status == 403
    assert state.latest(ORIGIN) is None


def test_a_false_signature_beside_a_good_one(witness: Witness) -> None:
    body = LOG.request(0, 4)
    false = LOG.note(5).split(b"\n\n")[1]
    assert refused(witness, body + false).status == 403
    flipped = body.replace(b"\n4\n", b"\n5\n")
    assert refused(witness, flipped).status == 403


def test_an_old_size_above_the_new_one(witness: Witness) -> None:
    add(witness, LOG.request(0, 9))
    body = AddCheckpoint(9, (), LOG.note(4)).encode()
    assert refused(witness, body).status == 400


@pytest.mark.parametrize("old", [0, 3, 5])
def test_an_old_size_that_is_not_the_latest(witness: Witness, old: int) -> None:
    add(witness, LOG.request(0, 4))
    answer = refused(witness, LOG.request(old, 9))
    assert (answer.status, answer.detail) == (409, "4\n")
    assert answer.media_type == SIZE_MEDIA_TYPE == "text/x.tlog.size"


def test_the_first_request_with_an_old_size(witness: Witness) -> None:
    answer = refused(witness, LOG.request(3, 9))
    assert (answer.status, answer.detail) == (409, "0\n")


def test_a_rollback_is_refused(witness: Witness, state: State) -> None:
    add(witness, LOG.request(0, 9))
    for old in (0, 4):
        answer = refused(witness, LOG.request(old, 4))
        assert (answer.status, answer.detail) == (409, "9\n")
    assert state.latest(ORIGIN).size == 9


def test_a_fork_is_refused_and_kept(state: State) -> None:
    told: list[str] = []
    witness = make(state, tell=told.append)
    add(witness, LOG.request(0, 9))
    add(witness, LOG.request(9, 12))
    told.clear()
    # The same size, an older one, and one that goes on from another tree.
    assert refused(witness, FORK.request(12, 12)).status == 422
    assert refused(witness, FORK.request(0, 9)).status == 409
    assert refused(witness, FORK.request(12, 20)).status == 422
    assert refused(witness, FORK.request(12, 12)).status == 422
    assert [fork.size for fork in state.forks(ORIGIN)] == [9, 12]
    for fork in state.forks(ORIGIN):
        seen = state.at(ORIGIN, fork.size)
        one, two = (
            open_checkpoint(note, [SIGNER.verifier]) for note in (fork.note, seen.note)
        )
        assert (one.origin, one.size) == (two.origin, two.size)
        assert one.root != two.root
        assert verify_cosignatures(fork.note, VERIFIERS) == []
    assert told == [
        "FORK: log.test/a signed two trees of 12",
        "FORK: log.test/a signed two trees of 9",
    ]
    assert state.latest(ORIGIN).note == LOG.note(12) + add(witness, LOG.request(12, 12))


def test_forks_that_are_kept_are_bounded(witness: Witness, state: State) -> None:
    add(witness, LOG.request(0, 1))
    for number in range(MAX_FORKS + 5):
        root = hashlib.sha256(b"%d" % number).digest()
        note = SIGNER.sign(Checkpoint(ORIGIN, 1, root))
        assert refused(witness, AddCheckpoint(1, (), note).encode()).status == 422
    assert len(state.forks(ORIGIN)) == MAX_FORKS


def test_proofs_that_prove_nothing(witness: Witness) -> None:
    note = LOG.note(9)
    lines = consistency_proof(4, 9, LOG.read)
    # Old size zero needs no proof, and may have none.
    assert refused(witness, AddCheckpoint(0, lines, note).encode()).status == 422
    add(witness, LOG.request(0, 4))
    other = consistency_proof(4, 9, FORK.read)
    for proof in ([], lines[:-1], [*lines, lines[0]], lines[::-1], other, [bytes(32)]):
        assert refused(witness, AddCheckpoint(4, proof, note).encode()).status == 422
    add(witness, LOG.request(4, 9))
    # To the same size, too.
    assert refused(witness, AddCheckpoint(9, lines, note).encode()).status == 422


def test_a_checkpoint_that_leaves_no_room(witness: Witness) -> None:
    for spare, status in ((400, 400), (5 << 10, 200)):
        text = LOG.note(4).split(b"\n\n")[0] + b"\n"
        text += b"x" * (MAX_NOTE_BYTES - spare - len(text)) + b"\n"
        key = KEYS[1].sign(text)
        line = SIGNER.verifier.line(key)
        body = AddCheckpoint(0, (), text + b"\n" + str(line).encode()).encode()
        if status == 400:
            assert "no room" in refused(witness, body).detail
        else:
            first = add(witness, body)
            again = body.replace(b"old 0", b"old 4")
            assert add(witness, again, NOW + 1) == first
            assert add(witness, again, NOW + 100) != first


def test_a_clock_before_1970(witness: Witness) -> None:
    assert refused(witness, LOG.request(0, 4), -5.0).status == 503
    add(witness, LOG.request(0, 4))


def test_an_empty_tree_with_another_root(witness: Witness) -> None:
    note = SIGNER.sign(Checkpoint(ORIGIN, 0, bytes(32)))
    assert refused(witness, AddCheckpoint(0, (), note).encode()).status == 422


def test_a_tree_of_a_huge_size(witness: Witness, state: State) -> None:
    """As large as a number may be: no work, no overflow."""
    size = 10**18 - 1
    note = SIGNER.sign(Checkpoint(ORIGIN, size, bytes(32)))
    add(witness, AddCheckpoint(0, (), note).encode())
    assert state.latest(ORIGIN).size == size
    proof = [bytes(32)] * 63
    other = SIGNER.sign(Checkpoint(ORIGIN, size, bytes([1]) * 32))
    assert refused(witness, AddCheckpoint(size, proof, other).encode()).status == 422


# Repeats, rates, clocks.


def test_a_repeat_is_answered_from_what_was_kept(state: State) -> None:
    witness = make(state, rate=Rate(burst=1, every_s=1000))
    first = add(witness, LOG.request(0, 4))
    for later in (0, 1, 59):
        assert add(witness, LOG.request(4, 4), NOW + later) == first
    answer = refused(witness, LOG.request(4, 4), NOW + 61)
    assert (answer.status, answer.retry_after_s) == (429, 939)
    again = add(witness, LOG.request(4, 4), NOW + 1001)
    assert again != first
    times = [c.time_s for c in verify_cosignatures(LOG.note(4) + again, VERIFIERS)]
    assert times == [int(NOW) + 1001] * 2


def test_a_key_that_is_new_cosigns_at_once(state: State) -> None:
    first = add(make(state, cosigners=COSIGNERS[:1]), LOG.request(0, 4))
    both = add(make(state), LOG.request(4, 4))
    assert (first.count(b"\n"), both.count(b"\n")) == (1, 2)


def test_a_log_may_have_so_much_cosigned_and_others_do_not_wait(state: State) -> None:
    other = Signer("log.test/b", KEYS[2])
    logs = known_logs([SIGNER.verifier, other.verifier])
    witness = make(state, logs=logs, rate=Rate(burst=3, every_s=10))
    for size in range(3):
        add(witness, LOG.request(size, size + 1))
    answer = refused(witness, LOG.request(3, 4))
    assert (answer.status, answer.retry_after_s) == (429, 10)
    # What is refused for another reason costs the log nothing.
    for _ in range(20):
        refused(witness, FORK.request(3, 9), NOW + 9)
    add(witness, Log(9, signer=other).request(0, 9))
    add(witness, LOG.request(3, 4), NOW + 11)
    assert refused(witness, LOG.request(4, 5), NOW + 11).status == 429
    # A clock that goes back gives nothing.
    assert refused(witness, LOG.request(4, 5), NOW + 5).status == 429


def test_no_cosignature_is_older_than_one_before_it(witness: Witness) -> None:
    add(witness, LOG.request(0, 4))
    lines = add(witness, LOG.request(4, 9), NOW - 60)
    [first, _] = verify_cosignatures(LOG.note(9) + lines, VERIFIERS)
    assert first.time_s == int(NOW)
    answer = refused(witness, LOG.request(9, 12), NOW - 61)
    assert (answer.status, answer.detail[:9]) == (503, "the clock")


# The state.


def test_what_was_seen_is_seen_after_a_restart(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    add(make(state), LOG.request(0, 9))
    state.close()
    state = State(tmp_path / "state")
    assert refused(make(state), LOG.request(0, 4)).detail == "9\n"
    assert refused(make(state), FORK.request(9, 20)).status == 422
    state.close()


def test_a_witness_that_lost_its_memory_does_not_start(tmp_path: Path) -> None:
    State(tmp_path / "state").close()
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    with pytest.raises(WitnessError, match="is gone"):
        State(tmp_path / "state")


def test_nor_goes_on_with_another_file(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    witness = make(state)
    add(witness, LOG.request(0, 9))
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    with pytest.raises(WitnessError):
        add(witness, FORK.request(0, 4))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "witness.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(WitnessError, match="not a database"):
        State(tmp_path / "state")


def test_nothing_is_cosigned_that_cannot_be_kept(tmp_path: Path) -> None:
    state = State(tmp_path / "state", max_bytes=80 << 10)
    witness = make(state, rate=Rate(burst=1000))
    size = 0
    with pytest.raises(WitnessError, match="full"):
        for size in range(1000):
            add(witness, LOG.request(size, size + 1))
    assert state.latest(ORIGIN).size == size
    assert refused(witness, LOG.request(0, 1)).detail == f"{size}\n"
    state.close()
    # Started with more room, it goes on from there.
    state = State(tmp_path / "state", max_bytes=160 << 10)
    add(make(state), LOG.request(size, size + 1))
    assert state.latest(ORIGIN).size == size + 1
    state.close()


def test_only_the_owner_reads_it(tmp_path: Path, witness: Witness) -> None:
    add(witness, LOG.request(0, 9))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_two_witnesses_of_one_state_never_cosign_a_fork(
    tmp_path: Path, witness: Witness, state: State
) -> None:
    """As two processes on one folder would be."""
    add(witness, LOG.request(0, 5))  # up to here the two are one log
    done: list[list[int]] = [[], []]
    others: set[int] = set()
    ready = threading.Barrier(2)

    def work(log: Log, sizes: list[int]) -> None:
        own = State(tmp_path / "state")
        second = make(own, rate=Rate(burst=1000))
        ready.wait(10)
        for _ in range(60):
            old = own.latest(ORIGIN).size
            try:
                add(second, log.request(old, min(old + 1, 40)))
                sizes.append(old + 1)
            except Refused as error:
                others.add(error.status)
        own.close()

    threads = [
        threading.Thread(target=work, args=pair)
        for pair in zip((LOG, FORK), done, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool(sizes) for sizes in done] in ([True, False], [False, True])
    assert others <= {409, 422}
    assert state.latest(ORIGIN).size == 40
    with sqlite3.connect(tmp_path / "state" / "witness.db") as connection:
        rows = connection.execute("SELECT size, root FROM cosigned").fetchall()
    for log in (LOG, FORK):
        if all(tree_root(size, log.read) == root for size, root in rows):
            break
    else:
        pytest.fail("what was cosigned is of two logs")


def test_origins_that_cannot_be_cosigned() -> None:
    with pytest.raises(WitnessError, match="more than 255 bytes"):
        known_logs([Signer("ä" * 200, KEYS[1]).verifier])


def test_keys_of_a_witness_are_not_shown() -> None:
    for cosigner in COSIGNERS:
        assert repr(cosigner) == f"<Cosigner {cosigner.verifier}>"
        parsed = CosignatureVerifier.parse(str(cosigner.verifier))
        assert str(parsed) == str(cosigner.verifier)
        assert base64.b64decode(str(parsed).split("+", 2)[2])[:1] in (b"\4", b"\6")
