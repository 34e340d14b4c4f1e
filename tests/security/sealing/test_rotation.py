"""Keys on a schedule: what is due, what overlaps, what a running server makes of it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.errors import UnknownKeyError
from sealgate.protocol import keyconfig, ohttp
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.signedkeys import verify_keys
from security.errors import KeyFileError
from security.key_files import write_private
from security.sealing import rotation
from security.sealing.keyring import KeyRing, generate_key, load_keyring
from security.sealing.live import LiveRing
from security.sealing.publish import (
    Publication,
    generate_identity,
    load_identity,
    load_publication,
)
from security.sealing.rotation import list_keys, retire
from security.settings.sealing import SealingSettings

DAY, OVERLAP, CACHE = 86400.0, 7200.0, 3600
NOW = 1_800_000_000.0
X25519, XWING = 0x0020, 0x647A


def rotate(folder: Path, now: float) -> rotation.Rotation:
    return rotation.rotate(folder, now=now, lifetime_s=DAY, overlap_s=OVERLAP)


def states(folder: Path, now: float) -> dict[int, str]:
    keys = list_keys(folder, now=now, lifetime_s=DAY, overlap_s=OVERLAP)
    return {key.key_id: key.state for key in keys}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rotate(tmp_path / "hpke", NOW)
    return tmp_path / "hpke"


def test_the_first_rotation_makes_a_key_of_each_kem(folder: Path) -> None:
    keys = list_keys(folder, now=NOW, lifetime_s=DAY, overlap_s=OVERLAP)
    assert {(key.kem_id, key.state) for key in keys} == {
        (X25519, "current"),
        (XWING, "current"),
    }
    assert {key.until for key in keys} == {NOW + DAY}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_a_rotation_before_its_time_does_nothing(folder: Path) -> None:
    for now in (NOW, NOW + DAY - 1):
        assert rotate(folder, now) == rotation.Rotation((), ())


def test_a_schedule(folder: Path) -> None:
    assert len(rotate(folder, NOW + DAY).generated) == 2
    overlap = {1: "overlap", 2: "overlap", 3: "current", 4: "current"}
    assert states(folder, NOW + DAY) == overlap
    assert states(folder, NOW + DAY + OVERLAP - 1) == overlap
    assert set(states(folder, NOW + DAY + OVERLAP).values()) == {"over", "current"}
    # Whoever reads the folder now is not bound to the time of the next rotation.
    assert rotate(folder, NOW + DAY + OVERLAP).retired == (1, 2)
    assert set(states(folder, NOW + DAY + OVERLAP)) == {3, 4}


def test_ids_go_round(tmp_path: Path) -> None:
    folder = tmp_path / "hpke"
    generate_key(folder, 252, created_at=NOW - DAY)
    seen: list[int] = []
    for day in range(4):
        rotate(folder, NOW + day * DAY)
        seen += set(states(folder, NOW + day * DAY)) - set(seen)
        assert len(states(folder, NOW + day * DAY)) <= 4
    assert sorted(seen) == [0, 1, 2, 3, 4, 252, 253, 254, 255]


def test_generate_ignores_the_schedule_and_is_bounded(folder: Path) -> None:
    for _ in range(7):
        rotation.generate(folder, now=NOW + 60)
    with pytest.raises(KeyFileError, match="holds 16 keys; retire some first"):
        rotation.generate(folder, now=NOW + 60)
    assert load_keyring(folder)


def test_a_kem_that_is_missing_is_made_good(tmp_path: Path) -> None:
    generate_key(tmp_path / "hpke", 1, created_at=NOW)
    (path,) = rotate(tmp_path / "hpke", NOW + 60).generated
    assert path.name.startswith("2-")
    assert states(tmp_path / "hpke", NOW + 60) == {1: "current", 2: "current"}


def test_retire_at_once(folder: Path) -> None:
    rotation.generate(folder, now=NOW + 60)
    assert retire(folder, now=NOW + 60, overlap_s=OVERLAP, key_ids=[1]) == (1,)
    with pytest.raises(KeyFileError, match="there is no key 1"):
        retire(folder, now=NOW + 60, overlap_s=OVERLAP, key_ids=[1])
    with pytest.raises(KeyFileError, match="no key would be left"):
        retire(folder, now=NOW + 60, overlap_s=OVERLAP, key_ids=[2, 3, 4])
    assert set(states(folder, NOW + 60)) == {2, 3, 4}


def test_rotations_at_once_make_one(tmp_path: Path) -> None:
    folder = tmp_path / "hpke"
    threads = [threading.Thread(target=rotate, args=(folder, NOW)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(folder.iterdir())) == 2


def test_a_folder_with_something_else_is_left_alone(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    for call in (rotate, states):
        with pytest.raises(KeyFileError, match="expected a file name"):
            call(folder, NOW + DAY)
    assert len(list(folder.iterdir())) == 3


# A running server.


class Times:
    """Both clocks of a `LiveRing`."""

    def __init__(self) -> None:
        self.now = NOW + 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def live(folder: Path) -> tuple[LiveRing, Times]:
    times = Times()
    os.utime(folder, (NOW, NOW))
    ring = LiveRing(folder, overlap_s=OVERLAP, clock=times, monotonic=times)
    return ring, times


def touch(folder: Path, when: float) -> None:
    os.utime(folder, (when, when))


def test_a_new_key_is_taken_up_within_a_second(
    folder: Path, live: tuple[LiveRing, Times]
) -> None:
    ring, times = live
    before = ring.current()
    rotation.generate(folder, now=times.now)
    touch(folder, times.now)
    assert ring.current() is before
    times.now += 1
    assert ring.current().ids == (1, 2, 3, 4)
    # A request in work keeps the ring that it began with.
    assert before.ids == (1, 2)


def test_an_overlap_ends_without_anybody_deleting(
    folder: Path, live: tuple[LiveRing, Times]
) -> None:
    ring, times = live
    sealed = [
        ohttp.seal_request(config, b"hello")[0]
        for config in keyconfig.decode_list(ring.current().document)
    ]
    rotation.generate(folder, now=times.now)
    touch(folder, times.now)
    times.now += 1
    for body in sealed:
        key = ring.current().find(ohttp.parse_header(body))
        assert ohttp.open_request(body, key)[0] == b"hello"
    times.now += OVERLAP
    for body in sealed:
        with pytest.raises(UnknownKeyError):
            ring.current().find(ohttp.parse_header(body))


def test_what_cannot_be_read_leaves_the_last_ring(
    folder: Path,
    live: tuple[LiveRing, Times],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ring, times = live
    before = ring.current().document
    (folder / ".5.pem.tmp").write_text("half a key")
    touch(folder, times.now)
    for _ in range(3):
        times.now += 1
        assert ring.current().document == before
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    (folder / ".5.pem.tmp").unlink()
    folder.rename(folder.with_name("away"))
    times.now += 1
    assert ring.current().document == before
    folder.with_name("away").rename(folder)
    rotation.generate(folder, now=times.now)
    times.now += 1
    assert ring.current().ids == (1, 2, 3, 4)


def test_a_quiet_folder_is_not_read_again(
    folder: Path, live: tuple[LiveRing, Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, times = live
    monkeypatch.setattr(
        "security.sealing.live.load_keys", lambda _: pytest.fail("read")
    )
    for _ in range(5):
        times.now += 1
        assert ring.current().ids == (1, 2)


def test_a_change_within_one_stamp_of_the_clock_is_seen(
    folder: Path, live: tuple[LiveRing, Times]
) -> None:
    ring, times = live
    for count in (1, 2):
        rotation.generate(folder, now=times.now)
        touch(folder, times.now - count * 0.9)
        times.now += 1
        touch(folder, times.now - 1)
        assert len(ring.current().ids) == 2 + 2 * count
    stamp = os.stat(folder).st_mtime
    rotation.generate(folder, now=times.now)
    touch(folder, stamp)
    times.now += 1
    assert len(ring.current().ids) == 8


def test_nothing_to_start_with_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        LiveRing(tmp_path / "none", overlap_s=1)


# What is published.


def publication(times: Times, **changes: object) -> Publication:
    how = {"overlap_s": 7200, "cache_s": CACHE, "clock": times} | changes
    return Publication(**how)


def test_nothing_is_cached_beyond_the_overlap(folder: Path) -> None:
    ring = load_keyring(folder)
    assert publication(Times()).plain(ring).max_age_s == CACHE
    short = publication(Times(), overlap_s=100)
    assert short.plain(ring).max_age_s == 100
    assert short.plain(ring).content == ring.document
    assert short.signed(ring) is None


def test_signed_documents(folder: Path) -> None:
    identity, times = ec.generate_private_key(ec.SECP256R1()), Times()
    trusted = {key_hint(identity.public_key()): identity.public_key()}
    signing = publication(times, identity=identity, overlap_s=100, cache_s=100)
    ring = load_keyring(folder)
    first = signing.signed(ring)
    signed = verify_keys(first.content, trusted, now=times.now)
    assert signed.document == ring.document
    assert (signed.not_before, signed.not_after) == (times.now, times.now + 100)
    assert first.max_age_s == 100
    times.now += 59
    again = signing.signed(ring)
    assert (again.content, again.max_age_s) == (first.content, 41)
    times.now += 1
    assert signing.signed(ring).max_age_s == 100
    rotation.generate(folder, now=NOW + 60)
    other: KeyRing = load_keyring(folder)
    content = signing.signed(other).content
    assert verify_keys(content, trusted, now=times.now).document == other.document


def test_the_identity_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    settings = SealingSettings(identity=path)
    assert load_publication(settings).signed(KeyRing([])) is None
    generate_identity(path)
    assert load_publication(settings).signed(KeyRing([])) is not None
    assert load_identity(path).curve.name == "secp256r1"
    with pytest.raises(KeyFileError, match="never overwritten"):
        generate_identity(path)
    path.unlink()
    for key in (
        Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        write_private(path, key)
        with pytest.raises(KeyFileError, match="not an ECDSA P-256 key"):
            load_publication(settings)
        path.unlink()
