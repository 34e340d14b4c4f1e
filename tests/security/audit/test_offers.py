"""The public log of offers: appended once, read in tiles, and refused when it lies."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BundleError
from sealgate.errors import OfferError
from sealgate.protocol.cosignatures import Cosigner
from sealgate.protocol.merkle import Tree, leaf_hash
from sealgate.protocol.notes import Checkpoint, Signer, split_note
from sealgate.protocol.offers import (
    MAX_SIZE,
    Tile,
    View,
    bundle_of,
    entries_of,
    key_leaf,
    offer_of,
    offers_trust,
    release_leaf,
    verdict_leaf,
)
from sealgate.protocol.receipts import LogTrust
from security.admission.contents import LOCK_FILE, lock_sha256
from security.audit.journal import generate_checkpoint_key, load_signer
from security.audit.offers import Offers, load_offers
from security.errors import AuditError
from security.key_files import write_secret
from security.settings.audit import AuditSettings, WitnessAddress, WitnessSettings

NAME = "models.example/audit"
NOW = 1_795_276_800
LEAVES = [key_leaf(b"%d" % at) for at in range(700)]


def settings_in(folder: Path) -> AuditSettings:
    generate_checkpoint_key(folder / "checkpoint.pem")
    write_secret(folder / "audit.key", b"k" * 32)
    return AuditSettings(
        directory=folder / "audit",
        name=NAME,
        pseudonym_key=folder / "audit.key",
        checkpoint_key=folder / "checkpoint.pem",
        offers=True,
    )


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return settings_in(tmp_path)


@pytest.fixture
def offers(settings: AuditSettings) -> Offers:
    found = load_offers(settings)
    assert found is not None
    return found


def trust_in(settings: AuditSettings) -> LogTrust:
    return LogTrust(load_signer(settings).verifiers)


def followed(view: View, offers: Offers, note: bytes | None = None) -> View:
    note = offers.note() if note is None else note
    view.follow(note, b"".join(map(offers.tile, view.wanted(note))))
    return view


def test_leaves() -> None:
    assert key_leaf(b"x") == (
        b'{"kind":"key-configuration","sha256":"%b"}'
        % hashlib.sha256(b"x").hexdigest().encode()
    )
    assert offer_of(release_leaf("1.2", None)) == {
        "kind": "release",
        "lock": None,
        "version": "1.2",
    }
    salted = hmac.digest(b"s" * 32, bytes(32), "sha256").hex()
    assert offer_of(verdict_leaf("00" * 32, b"s" * 32))["sha256"] == salted
    for text in (b"", b"[]", b"{}", b'{"kind":1}', b"x" * 2000):
        with pytest.raises(OfferError):
            offer_of(text)


def test_a_verdict_says_nothing_without_its_salt(offers: Offers) -> None:
    """Not even that two deployments admitted the same."""
    verdict = "ab" * 32
    leaf, salt = offers.verdict(verdict), offers.salt(verdict)
    assert leaf == verdict_leaf(verdict, salt)
    assert len({salt, offers.salt("cd" * 32), bytes(32)}) == 3
    assert verdict.encode() not in leaf
    assert leaf != verdict_leaf(verdict, b"")


def test_what_is_there_is_not_added_again(
    settings: AuditSettings, offers: Offers
) -> None:
    assert offers.offer(LEAVES[:2]) == range(2)
    assert offers.offer([LEAVES[1], LEAVES[2], LEAVES[2]]) == range(2, 3)
    # Another process, which has not read it.
    other = Offers(settings)
    assert len(other.offer(LEAVES[:3])) == 0
    assert other.offer([LEAVES[3]]) == range(3, 4)
    assert len(offers.offer([LEAVES[3]])) == 0
    assert offers.log.size == 4
    assert load_offers(replace(settings, offers=False)) is None
    with pytest.raises(AuditError, match="too long"):
        offers.offer([b"x" * 2000])


def _offer(settings: AuditSettings, barrier: object, leaves: list[bytes]) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for leaf in leaves:
        Offers(settings).offer([leaf])


def test_many_processes_at_once(settings: AuditSettings, offers: Offers) -> None:
    """Each once, whoever is first, and one log."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    leaves = LEAVES[:12]
    workers = [
        context.Process(target=_offer, args=(settings, barrier, leaves[at:] + leaves))
        for at in range(0, 12, 3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert sorted(offers.log.leaves()) == sorted(leaves)
    view = followed(View(trust_in(settings)), offers)
    assert all(leaf in view for leaf in leaves)


def test_a_reader_follows(settings: AuditSettings, offers: Offers) -> None:
    """Over the borders of tiles, and no more than what is new."""
    view, size = View(trust_in(settings)), 0
    for upto in (1, 2, 255, 256, 257, 600, 700):
        offers.offer(LEAVES[:upto])
        note = offers.note()
        wanted = view.wanted(note)
        assert len(wanted) == -(-upto // 256) - size // 256
        followed(view, offers)
        assert [*map(leaf_hash, LEAVES[:upto])] == view.hashes
        assert LEAVES[upto - 1] in view
        assert LEAVES[upto % 700] not in view or upto == 700
        size = upto
    assert view.wanted(offers.note()) == []
    followed(view, offers)  # nothing new


def test_tiles_are_those_of_the_specification(offers: Offers) -> None:
    """C2SP tlog-tiles: a level 1 hash is over a full tile below."""
    offers.offer(LEAVES)
    full = offers.tile(Tile(0, 1))
    tree = Tree()
    for at in range(0, len(full), 32):
        tree.add(full[at : at + 32])
    assert offers.tile(Tile(1, 0, 2))[32:] == tree.root()
    assert entries_of(offers.tile(Tile(-1, 2, 700 - 512))) == LEAVES[512:]
    for tile in (Tile(0, 2), Tile(1, 0), Tile(1, 0, 3), Tile(0, 3, 1), Tile(2, 0, 1)):
        with pytest.raises(OfferError, match="no such tile"):
            offers.tile(tile)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(63, 999), "tile/63/999"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(-1, 1234067, 255), "tile/entries/x001/x234/067.p/255"),
    ],
)
def test_paths(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/0",
        "tile/0/x000/000",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000/",
        "tile/0/../000",
        "tile/data/000",
        "tile/0/" + "x999/" * 5 + "999",
        "tile/0/\u0660\u0660\u0660",
    ],
)
def test_paths_of_nothing(path: str) -> None:
    with pytest.raises(OfferError, match="no tile's path"):
        Tile.parse(path)


@given(st.binary(max_size=200))
def test_bundles(data: bytes) -> None:
    try:
        leaves = entries_of(data)
    except OfferError:
        return
    assert bundle_of(leaves) == data


def test_a_log_that_is_not_what_it_was(
    settings: AuditSettings, offers: Offers, tmp_path: Path
) -> None:
    """A fork, by whoever has the key: other leaves, fewer leaves, another root."""
    view = View(trust_in(settings))
    offers.offer(LEAVES[:300])
    followed(view, offers)
    before = list(view.hashes)
    fork = Offers(replace(settings, directory=tmp_path / "fork"))
    fork.offer([LEAVES[500], *LEAVES[1:400]])
    with pytest.raises(OfferError, match=r"not what it was|another root"):
        followed(view, fork)
    swapped = Offers(replace(settings, directory=tmp_path / "swapped"))
    swapped.offer([*LEAVES[:299], LEAVES[600], *LEAVES[300:400]])
    with pytest.raises(OfferError, match="not what it was"):
        followed(view, swapped)
    shorter = Offers(replace(settings, directory=tmp_path / "shorter"))
    shorter.offer(LEAVES[:299])
    with pytest.raises(OfferError, match="shrunk"):
        followed(view, shorter)
    same = Offers(replace(settings, directory=tmp_path / "same"))
    same.offer([*LEAVES[:299], LEAVES[600]])
    with pytest.raises(OfferError, match="another root"):
        followed(view, same)
    assert view.hashes == before
    assert LEAVES[600] not in view


def test_tiles_that_do_not_fit(settings: AuditSettings, offers: Offers) -> None:
    offers.offer(LEAVES[:10])
    note = offers.note()
    view = View(trust_in(settings))
    right = b"".join(map(offers.tile, view.wanted(note)))
    for wrong in (b"", right[:-32], right[:-1], right + bytes(32), bytes(320)):
        with pytest.raises(OfferError):
            view.follow(note, wrong)
    hidden = leaf_hash(LEAVES[20]) + right[32:]
    with pytest.raises(OfferError, match="another root"):
        view.follow(note, hidden)
    assert view.hashes == []


def test_whose_log(settings: AuditSettings, offers: Offers, tmp_path: Path) -> None:
    """The audit log's key signs it under a name of its own, and only that counts."""
    offers.offer(LEAVES[:1])
    (own,) = offers_trust(trust_in(settings)).log
    assert own.name == f"{NAME}/offers"
    (tmp_path / "o").mkdir()
    other = settings_in(tmp_path / "o")
    with pytest.raises(OfferError, match="no trusted key"):
        View(trust_in(other)).wanted(offers.note())
    # A checkpoint of the audit log is none of this one.
    signer = load_signer(settings)
    note = signer.sign(Checkpoint(NAME, 1, leaf_hash(LEAVES[0])))
    with pytest.raises(OfferError, match="no trusted key"):
        View(trust_in(settings)).wanted(note)
    endless = load_signer(replace(settings, name=f"{NAME}/offers")).sign(
        Checkpoint(f"{NAME}/offers", MAX_SIZE + 1, leaf_hash(LEAVES[0]))
    )
    with pytest.raises(OfferError, match="too long"):
        View(trust_in(settings)).wanted(endless)


def test_witnesses(settings: AuditSettings) -> None:
    """What is shown is cosigned, once something is; until then a reader refuses."""
    cosigner = Cosigner("witness.example/w", Ed25519PrivateKey.generate())
    address = WitnessAddress("https://witness.example", (str(cosigner.verifier),))
    watched = replace(settings, witnesses=WitnessSettings((address,), required=1))
    offers = Offers(watched)
    trust = LogTrust(load_signer(settings).verifiers, (cosigner.verifier,), 1)
    offers.offer(LEAVES[:2])
    assert not offers.covers(LEAVES[:1])
    with pytest.raises(OfferError, match="0 of 1 required witnesses"):
        View(trust).wanted(offers.note())
    note = offers.log.checkpoint()
    line = cosigner.cosign(split_note(note)[0], time_s=NOW)
    offers.log.put_cosigned(note + str(line).encode())
    assert offers.covers(LEAVES[:2])
    view = followed(View(trust), offers)
    offers.offer(LEAVES[:3])
    assert not offers.covers(LEAVES[:3])
    assert offers.covers(LEAVES[:2])
    assert view.wanted(offers.note()) == []
    # Unwatched, the newest is enough.
    assert Offers(settings).covers(LEAVES[:3])
    assert not Offers(settings).covers(LEAVES[:4])


def test_a_signer_of_the_name_is_no_signer_of_offers(settings: AuditSettings) -> None:
    signers = [
        load_signer(replace(settings, name=name)).verifier
        for name in (NAME, f"{NAME}/offers")
    ]
    assert len({str(verifier) for verifier in signers}) == 2
    for one, two in itertools.permutations(signers):
        note = Signer(one.name, Ed25519PrivateKey.generate()).sign(
            Checkpoint(one.name, 0, bytes(32))
        )
        with pytest.raises(OfferError):
            View(LogTrust((two,))).wanted(note)


def test_a_bento_is_known_by_its_lock(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    assert lock_sha256() is None  # this is a source tree
    assert lock_sha256(source) is None
    (tmp_path / "bento.yaml").write_text("")
    with pytest.raises(BundleError):
        lock_sha256(source)
    (source / LOCK_FILE).write_bytes(b"{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    assert lock_sha256(source) == digest
    assert offer_of(release_leaf("1", digest))["lock"] == digest


def test_leaves_are_json_of_one_form() -> None:
    for leaf in (*LEAVES[:3], release_leaf("1", "0" * 64)):
        text = json.dumps(offer_of(leaf), sort_keys=True, separators=(",", ":"))
        assert text.encode() == leaf
