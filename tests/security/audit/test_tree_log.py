"""security.audit.tree_log: one log, many processes, and nothing signed is unsaid."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.merkle import (
    EMPTY_ROOT,
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from sealgate.protocol.notes import Checkpoint, Signer, open_checkpoint
from security.audit import tree_log
from security.audit.tree_log import MAX_LEAF_BYTES, TreeLog
from security.errors import AuditError
from tests.support.disks import file_size_limit

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
SIGNER = Signer("sealgate.test/audit", KEY)
FORK = multiprocessing.get_context("fork")


def root_of(leaves: list[bytes]) -> bytes:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf_hash(leaf))
    return tree.root()


def opened(log: TreeLog) -> Checkpoint:
    return open_checkpoint(log.checkpoint(), SIGNER.verifiers)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_empty_log_is_signed(tmp_path: Path) -> None:
    log = TreeLog(tmp_path / "new", SIGNER)
    assert log.size == 0
    assert opened(log) == Checkpoint(SIGNER.name, 0, EMPTY_ROOT)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_leaves_are_proven(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    leaves: list[bytes] = []
    roots = [EMPTY_ROOT]
    for number in range(1, 20):
        new = [b"leaf %d.%d" % (number, part) for part in range(number % 3)]
        added = log.append(new)
        assert added == range(len(leaves), len(leaves) + len(new))
        for leaf in new:
            leaves.append(leaf)
            roots.append(root_of(leaves))
        assert opened(log) == Checkpoint(SIGNER.name, len(leaves), roots[-1])
    assert list(log.leaves()) == leaves
    assert list(log.leaves(17)) == leaves[17:]
    other = TreeLog(tmp_path, SIGNER)
    for size in range(1, len(leaves) + 1):
        assert other.root(size) == roots[size]
        for index in range(size):
            verify_inclusion(
                leaf_hash(other.leaf(index)),
                other.inclusion(index, size),
                index=index,
                size=size,
                root=roots[size],
            )
        verify_consistency(
            other.consistency(size, len(leaves)),
            old=size,
            old_root=roots[size],
            new=len(leaves),
            new_root=roots[-1],
        )


def test_what_is_not_there(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"", b"x" * MAX_LEAF_BYTES])
    assert log.leaf(0) == b""
    for wrong in (-1, 2):
        with pytest.raises(AuditError, match="no leaf"):
            log.leaf(wrong)
        with pytest.raises(AuditError, match="no leaf"):
            log.inclusion(wrong, 2)
    with pytest.raises(AuditError, match="has no 3 leaves"):
        log.consistency(1, 3)
    with pytest.raises(AuditError, match="does not begin with"):
        log.consistency(2, 1)
    with pytest.raises(AuditError, match="more than 65536 bytes"):
        log.append([b"x", b"x" * (MAX_LEAF_BYTES + 1)])
    assert log.size == 2


def test_both_keys_sign(tmp_path: Path) -> None:
    """The specification has no line of ours beside the three of a checkpoint."""
    both = Signer(SIGNER.name, KEY, ml_dsa_key=MLDSA65PrivateKey.generate())
    TreeLog(tmp_path, SIGNER).append([b"before there was a second key"])
    log = TreeLog(tmp_path, both)
    log.append([b"leaf"])
    note = log.checkpoint()
    assert open_checkpoint(note, both.verifiers, every=True).size == 2
    assert len(note.split(b"\n\n")[0].split(b"\n")) == 3
    assert len(note.split(b"\n\n")[1].splitlines()) == 2


def _append(folder: Path, name: int, count: int) -> None:
    log = TreeLog(folder, SIGNER)
    for number in range(count):
        log.append([b"%d: %d" % (name, number)])


def test_processes_append_at_once(tmp_path: Path) -> None:
    workers = [
        FORK.Process(target=_append, args=(tmp_path, name, 25)) for name in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    log = TreeLog(tmp_path, SIGNER)
    leaves = list(log.leaves())
    assert sorted(leaves) == sorted(
        b"%d: %d" % (name, number) for name in range(4) for number in range(25)
    )
    for name in range(4):
        own = [leaf for leaf in leaves if leaf.startswith(b"%d:" % name)]
        assert own == [b"%d: %d" % (name, number) for number in range(25)]
    assert opened(log).root == root_of(leaves)


STEPS = ("leaves", "ends", "hashes", "checkpoint")


def _die_at(folder: Path, step: int, half: bool) -> None:
    """Append, but end as by kill -9 before or in the middle of a step."""
    done = 0
    write, put = tree_log._write_at, TreeLog._put

    def dying_write(descriptor: int, data: bytes, place: int) -> None:
        nonlocal done
        if done == step:
            write(descriptor, bytes(data[: len(data) // 2 if half else 0]), place)
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        write(descriptor, data, place)

    def dying_put(log: TreeLog, kind: str, note: bytes) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        put(log, kind, note)

    tree_log._write_at = dying_write
    TreeLog._put = dying_put  # type: ignore[method-assign]
    TreeLog(folder, SIGNER).append([b"never acknowledged", b"nor this"])


@pytest.mark.parametrize("half", [False, True], ids=["before", "torn"])
@pytest.mark.parametrize("step", range(4), ids=STEPS)
def test_a_crash_leaves_the_log_as_it_was(
    tmp_path: Path, step: int, half: bool
) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one", b"two", b"three"])
    before = log.checkpoint()
    worker = FORK.Process(target=_die_at, args=(tmp_path, step, half))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert log.checkpoint() == before
    assert list(log.leaves()) == [b"one", b"two", b"three"]
    log.append([b"four"])
    assert list(TreeLog(tmp_path, SIGNER).leaves()) == [
        b"one",
        b"two",
        b"three",
        b"four",
    ]
    assert opened(log).root == root_of(list(log.leaves()))


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one"])
    before = log.checkpoint()
    with file_size_limit(100), pytest.raises(AuditError, match="File too large"):
        log.append([b"x" * 200])
    with file_size_limit(20), pytest.raises(AuditError, match="File too large"):
        log.append([b"two", b"three"])
    assert log.checkpoint() == before
    log.append([b"two"])
    assert list(log.leaves()) == [b"one", b"two"]


# What somebody does to the files: nothing of it is signed.


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("leaves", "leaves that were signed are missing"),
        ("ends", "leaves that were signed are missing"),
        ("hashes", "missing"),
        ("checkpoint", "is missing, and there are leaves"),
    ],
)
def test_a_file_that_is_gone(tmp_path: Path, kind: str, message: str) -> None:
    TreeLog(tmp_path, SIGNER).append([b"one", b"two"])
    (tmp_path / f"log.{kind}").unlink()
    log = TreeLog(tmp_path, SIGNER)
    with pytest.raises(AuditError, match=message):
        log.append([b"three"])


def test_ends_beyond_any_file(tmp_path: Path) -> None:
    """Damaged, they lead to no place that a file could have."""
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one", b"two"])
    ends = ((1 << 63) + 5).to_bytes(8) + ((1 << 63) + 8).to_bytes(8)
    (tmp_path / "log.ends").write_bytes(ends)
    for use in (lambda: log.append([b"three"]), lambda: log.leaf(1)):
        with pytest.raises(AuditError, match="log"):
            use()


def test_a_tree_of_other_hashes_is_not_signed(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one", b"two", b"three"])
    path = tmp_path / "log.hashes"
    content = bytearray(path.read_bytes())
    content[64] ^= 1
    path.write_bytes(content)
    with pytest.raises(AuditError, match="its hashes are not what was signed"):
        TreeLog(tmp_path, SIGNER).append([b"four"])


def test_the_checkpoint_of_another_log(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one"])
    path = tmp_path / "log.checkpoint"
    for note, message in (
        (SIGNER.sign(Checkpoint("sealgate.test/other", 1, root_of([b"one"]))), "of an"),
        (SIGNER.sign(Checkpoint(SIGNER.name, 1, bytes(32), "0" * 64)), "of another"),
        (
            Signer(SIGNER.name, Ed25519PrivateKey.generate()).sign(
                Checkpoint(SIGNER.name, 0, EMPTY_ROOT)
            ),
            "no trusted key",
        ),
        (b"x" * 70_000, "longer than a note"),
    ):
        path.write_bytes(note)
        with pytest.raises(AuditError, match=message):
            log.append([b"two"])


def test_the_newest_cosigned_note_is_kept(tmp_path: Path) -> None:
    log = TreeLog(tmp_path, SIGNER)
    log.append([b"one"])
    witness = "— witness.test AAAAAAAA\n".encode()
    first = log.checkpoint() + witness
    log.put_cosigned(first)
    assert log.checkpoint() == log.cosigned() == first
    log.append([b"two"])
    assert log.checkpoint() != first
    second = log.checkpoint() + witness
    log.put_cosigned(second)
    log.put_cosigned(first)
    assert log.cosigned() == log.checkpoint() == second
    for note, message in (
        (SIGNER.sign(Checkpoint(SIGNER.name, 3, bytes(32))), "was never signed"),
        (SIGNER.sign(Checkpoint(SIGNER.name, 2, bytes(32))), "of another tree"),
    ):
        with pytest.raises(AuditError, match=message):
            log.put_cosigned(note + witness)


def test_two_logs_in_one_folder(tmp_path: Path) -> None:
    first = TreeLog(tmp_path, SIGNER)
    second = TreeLog(tmp_path, Signer("sealgate.test/audit/offers", KEY), name="offers")
    first.append([b"a"])
    second.append([b"b", b"c"])
    assert (list(first.leaves()), list(second.leaves())) == ([b"a"], [b"b", b"c"])
    assert second.checkpoint().startswith(b"sealgate.test/audit/offers\n2\n")
