"""The trust root where it is kept: what is remembered, and what is refused for it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sealgate.protocol.dsse import KeySigner
from security.admission import trust_store
from security.admission.trust import Revocation, TrustRoot
from security.admission.trust_chain import TrustDocument
from security.admission.trust_store import load_trust, read_trust
from security.errors import KeyFileError, TrustRefused
from tests.support.roots import NOW, YEAR, hint, p256, trust, version

A, B = p256("a"), p256("b")
ROLE = p256("release")
BASE = TrustRoot({"release": {hint(ROLE): ROLE.public_key()}})
FIRST, SECOND, THIRD = (version(number, [A], base=BASE) for number in (1, 2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trust.json"


def place(path: Path, document: TrustDocument) -> None:
    path.write_bytes(document.to_json())


def load(path: Path, document: TrustDocument) -> TrustRoot:
    place(path, document)
    return load_trust(path, now=NOW, remember=True)


def test_bare_files_are_believed_for_their_place(path: Path) -> None:
    for _ in range(2):
        assert load(path, TrustDocument(BASE)).keys(("release",)).keys() == {hint(ROLE)}
    assert os.listdir(path.parent) == ["trust.json"]


def test_a_bare_one_may_expire_too(path: Path) -> None:
    with pytest.raises(TrustRefused, match="expired"):
        load(path, TrustDocument(trust(1, [A], expires=NOW)))


def test_a_rollback_is_refused_after_a_restart(path: Path) -> None:
    """All that a process knew is on disk."""
    load(path, FIRST)
    load(path, SECOND)
    with pytest.raises(TrustRefused, match="a rollback"):
        load(path, FIRST)
    assert load(path, SECOND) == SECOND.root


def test_looking_remembers_nothing(path: Path) -> None:
    """Who verifies with somebody's trust root leaves no file beside it."""
    place(path, SECOND)
    load_trust(path, now=NOW)
    assert trust_store.accepted(path) is None
    place(path, FIRST)
    assert load_trust(path, now=NOW) == FIRST.root


def test_an_unsigned_one_does_not_come_back(path: Path) -> None:
    load(path, FIRST)
    with pytest.raises(TrustRefused, match="is not signed"):
        load(path, TrustDocument(BASE))


def test_a_forged_one_is_refused_whatever_is_known(path: Path) -> None:
    forged = version(2, [A], signers=[p256("evil")], base=BASE)
    with pytest.raises(TrustRefused, match="keys of its own root"):
        load(path, forged)
    load(path, FIRST)
    with pytest.raises(TrustRefused, match="keys of its own root"):
        load(path, forged)
    with pytest.raises(TrustRefused, match="keys of the root of version 1"):
        load(path, version(2, [p256("evil")], base=BASE))


def test_versions_between_are_read_from_beside_it(path: Path) -> None:
    load(path, FIRST)
    with pytest.raises(TrustRefused, match="the versions between are missing"):
        load(path, THIRD)
    place(path.with_name("2.trust.json"), SECOND)
    assert load(path, THIRD) == THIRD.root
    # From now on they are not needed.
    path.with_name("2.trust.json").unlink()
    assert load(path, THIRD) == THIRD.root


def test_a_hostile_one_between(path: Path) -> None:
    load(path, FIRST)
    place(path.with_name("2.trust.json"), version(2, [p256("evil")], base=BASE))
    with pytest.raises(TrustRefused, match="version 2: signed by 0"):
        load(path, THIRD)
    path.with_name("2.trust.json").write_bytes(b"{}")
    with pytest.raises(KeyFileError, match=r"2\.trust\.json"):
        load(path, THIRD)


def test_an_expired_one_is_shown_and_not_believed(path: Path) -> None:
    old = version(1, [A], expires=NOW - timedelta(seconds=1), base=BASE)
    with pytest.raises(TrustRefused, match="expired"):
        load(path, old)
    assert trust_store.accepted(path) is None
    assert read_trust(path).root == old.root


def test_what_is_remembered_may_expire(path: Path) -> None:
    """Its newer version is followed from it all the same."""
    place(path, FIRST)
    load_trust(path, now=NOW, remember=True)
    later = version(2, [A], expires=NOW + 3 * YEAR, base=BASE)
    place(path, later)
    assert load_trust(path, now=NOW + 2 * YEAR) == later.root


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\x00" * 100])
def test_a_damaged_memory_is_an_error(path: Path, data: bytes) -> None:
    load(path, FIRST)
    memory = path.with_name("trust.json.accepted")
    memory.write_bytes(data)
    with pytest.raises(KeyFileError, match=r"trust\.json\.accepted"):
        load_trust(path, now=NOW)


def test_a_memory_by_other_keys_is_an_error(path: Path) -> None:
    load(path, FIRST)
    forged = version(9, [A], signers=[p256("evil")], base=BASE)
    place(path.with_name("trust.json.accepted"), forged)
    with pytest.raises(TrustRefused, match=r"trust\.json\.accepted"):
        load_trust(path, now=NOW)


def test_a_memory_that_leads_nowhere_is_an_error(path: Path) -> None:
    """A link whose target somebody took away is not the same as no memory."""
    place(path, FIRST)
    path.with_name("trust.json.accepted").symlink_to(path.with_name("gone"))
    with pytest.raises(KeyFileError, match=r"trust\.json\.accepted"):
        load_trust(path, now=NOW)


@contextmanager
def nobody() -> Iterator[None]:
    """As another user: root could write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_cannot_be_written_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mounted ConfigMap, for instance."""
    with TemporaryDirectory() as name:
        path = Path(name, "trust.json")
        place(path, FIRST)
        Path(name).chmod(0o555)
        with nobody():
            assert load_trust(path, now=NOW, remember=True) == FIRST.root
        assert os.listdir(name) == ["trust.json"]
    assert "Permission denied: rollbacks are not noticed" in caplog.text


def test_a_huge_file(path: Path) -> None:
    path.write_bytes(b'{"payloadType":"' + b"x" * (1 << 20))
    with pytest.raises(KeyFileError, match="1048592 bytes, at most 524288"):
        load_trust(path)


def test_many_processes_remember_the_newest(path: Path) -> None:
    documents = [version(number, [A], base=BASE) for number in range(1, 9)]
    place(path, documents[0])
    load_trust(path, now=NOW, remember=True)
    writers = [
        threading.Thread(target=trust_store.put, args=(path, document))
        for document in documents * 2
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    known = trust_store.accepted(path)
    assert known is not None
    assert known.version == 8


# Changes.


def add(root: TrustRoot) -> TrustRoot:
    return replace(root, roles={**root.roles, "monitor": {hint(B): B.public_key()}})


def test_a_bare_one_is_changed_in_place(path: Path) -> None:
    place(path, TrustDocument(BASE))
    assert trust_store.change(path, add) == path
    assert hint(B) in load_trust(path).keys(("monitor",))


def revoke(key: str) -> Callable[[TrustRoot], TrustRoot]:
    item = Revocation(key, "2026-11-21T12:00:00Z", "lost")
    return lambda root: replace(root, revoked={**root.revoked, key: item})


@pytest.mark.parametrize("document", [TrustDocument(BASE), FIRST])
def test_two_who_revoke_at_once(path: Path, document: TrustDocument) -> None:
    """None of them undoes what the other was told is done."""
    load(path, document)
    other = threading.Thread(
        target=trust_store.change, args=(path, revoke("b" * 64)), daemon=True
    )

    def slow(root: TrustRoot) -> TrustRoot:
        other.start()
        other.join(0.2)
        return revoke("a" * 64)(root)

    changed = trust_store.change(path, slow)
    other.join()
    found = trust_store.read_document(changed).root
    assert found.revoked.keys() == {"a" * 64, "b" * 64}


def test_two_who_sign_at_once(path: Path) -> None:
    load(path, FIRST)
    file = trust_store.change(path, add)
    read = trust_store.read_document(file)
    for key in (A, B):
        trust_store.add_signature(file, read.signed_by(KeySigner(key)))
    envelope = trust_store.read_document(file).envelope
    assert envelope is not None
    assert envelope.signatures.keys() == {hint(A), hint(B)}
    trust_store.change(path, revoke("a" * 64))
    with pytest.raises(KeyFileError, match="changed while it was signed"):
        trust_store.add_signature(file, read.signed_by(KeySigner(A)))


def test_a_signed_one_is_not(path: Path) -> None:
    load(path, FIRST)
    before = path.read_bytes()
    proposed = trust_store.change(path, add)
    assert proposed.name == "trust.next.json"
    assert path.read_bytes() == before
    found = trust_store.proposal(path)
    assert found is not None
    assert found.version == 2
    assert hint(B) in found.root.keys(("monitor",))
    assert json.loads(proposed.read_bytes())["signatures"] == []
    with pytest.raises(TrustRefused):
        load(path, found)


def test_changes_add_up_in_one_proposal(path: Path) -> None:
    load(path, FIRST)
    trust_store.change(path, add)
    expires = NOW + 2 * YEAR
    trust_store.change(path, lambda root: replace(root, expires=expires))
    found = trust_store.proposal(path)
    assert found is not None
    assert (found.version, found.root.expires) == (2, expires)
    assert hint(B) in found.root.keys(("monitor",))


def test_a_proposal_of_old_is_begun_anew(path: Path) -> None:
    load(path, FIRST)
    trust_store.change(path, add)
    load(path, SECOND)
    assert trust_store.proposal(path) is None
    trust_store.change(path, lambda root: root)
    found = trust_store.proposal(path)
    assert found is not None
    assert found.version == 3
    assert not found.root.keys(("monitor",))
