"""security.sealing.keyring: which key opens a request, and what is published."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.errors import UnknownKeyError
from sealgate.protocol import keyconfig, ohttp
from sealgate.protocol.ohttp import RequestHeader
from security.errors import KeyFileError
from security.key_files import write_private, write_secret
from security.sealing.keyring import generate_key, load_keyring

X25519, XWING = 0x0020, 0x647A
SHA256, AES128, CHACHA = 0x0001, 0x0001, 0x0003


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for key_id in (1, 7):
        generate_key(tmp_path / "hpke", key_id)
    return tmp_path / "hpke"


def test_only_the_newest_key_is_offered(folder: Path) -> None:
    ring = load_keyring(folder)
    assert [c.key_id for c in keyconfig.decode_list(ring.document)] == [7]
    assert ring.ids == (1, 7)


def test_one_key_of_each_kem_is_offered_the_hybrid_first(folder: Path) -> None:
    generate_key(folder, 9, kem_id=XWING, created_at=1.0)
    generate_key(folder, 3, kem_id=XWING, created_at=2.0)
    configs = keyconfig.decode_list(load_keyring(folder).document)
    assert [(c.key_id, c.kem_id) for c in configs] == [(3, XWING), (7, X25519)]


def test_an_id_counts_less_than_the_creation_time(tmp_path: Path) -> None:
    for key_id, created_at in ((255, 1e9), (0, 1e9 + 86400)):
        generate_key(tmp_path, key_id, created_at=created_at)
    (config,) = keyconfig.decode_list(load_keyring(tmp_path).document)
    assert config.key_id == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"255-20010909T014640Z.pem", "0-20010910T014640Z.pem"}


def test_refuses_an_id_twice(folder: Path) -> None:
    with pytest.raises(KeyFileError, match="never overwritten"):
        generate_key(folder, 7)
    other = generate_key(folder, 8, created_at=1e9)
    other.rename(folder / other.name.replace("8-", "7-"))
    with pytest.raises(KeyFileError, match="two keys have the same id"):
        load_keyring(folder)
    with pytest.raises(KeyFileError, match="key 7 exists"):
        generate_key(folder, 7, created_at=5.0)


@pytest.mark.parametrize("kem", [X25519, XWING])
def test_an_encrypted_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kem: int
) -> None:
    folder = tmp_path / "hpke"
    path = generate_key(folder, 1, kem_id=kem, created_at=1e9, passphrase=b"secret")
    assert path.read_bytes().count(b"BEGIN ENCRYPTED PRIVATE KEY") == 1 + (kem == XWING)
    monkeypatch.delenv("SEALGATE_KEY_PASSPHRASE_FILE", raising=False)
    with pytest.raises(KeyFileError, match="is encrypted; name its passphrase"):
        load_keyring(folder)
    given = tmp_path / "passphrase"
    monkeypatch.setenv("SEALGATE_KEY_PASSPHRASE_FILE", str(given))
    write_secret(given, b"another")
    with pytest.raises(KeyFileError, match="another passphrase"):
        load_keyring(folder)
    given.write_bytes(b"secret\n")
    assert load_keyring(folder).ids == (1,)


def test_refuses_half_a_hybrid_key(tmp_path: Path) -> None:
    path = generate_key(tmp_path, 1, kem_id=XWING, created_at=1e9)
    lattice, curve = path.read_bytes().split(b"-----END PRIVATE KEY-----\n")[:2]
    end = b"-----END PRIVATE KEY-----\n"
    for content in (lattice + end, curve + end + lattice + end, b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(KeyFileError, match="not an X25519 or X-Wing key"):
            load_keyring(tmp_path)


def test_a_request_to_any_key_opens(folder: Path) -> None:
    ring = load_keyring(folder)
    for config in keyconfig.decode_list(ring.document):
        sealed, _ = ohttp.seal_request(config, b"hello")
        key = ring.find(ohttp.parse_header(sealed))
        assert bytes(ohttp.open_request(sealed, key)[0]) == b"hello"


@pytest.mark.parametrize("aead", [AES128, CHACHA])
def test_both_aeads_are_found(folder: Path, aead: int) -> None:
    ring = load_keyring(folder)
    assert ring.find(RequestHeader(1, X25519, SHA256, aead)) is not None


@pytest.mark.parametrize(
    "header",
    [
        RequestHeader(2, X25519, SHA256, AES128),
        RequestHeader(1, 0x0010, SHA256, AES128),
        RequestHeader(1, X25519, 0x0003, AES128),
        RequestHeader(1, X25519, SHA256, 0x0002),
        RequestHeader(1, X25519, SHA256, 0xFFFF),
    ],
)
def test_refuses_another_key_or_suite(folder: Path, header: RequestHeader) -> None:
    with pytest.raises(UnknownKeyError):
        load_keyring(folder).find(header)


def test_a_removed_key_is_gone(folder: Path) -> None:
    (folder / "1.pem").unlink()
    with pytest.raises(UnknownKeyError):
        load_keyring(folder).find(RequestHeader(1, X25519, SHA256, AES128))


def test_the_repr_shows_ids_only(folder: Path) -> None:
    assert repr(load_keyring(folder)) == "<KeyRing ids=[1, 7]>"


@pytest.mark.parametrize(
    "name",
    [
        "key.pem",
        "01.pem",
        "1",
        "1.key",
        "-1.pem",
        "\u0661.pem",
        ".1.pem.ab",
        "1.pem.bak",
        "1-20261121.pem",
        "1-20261121T030000Z",
        "ring.json",
    ],
)
def test_refuses_another_name(folder: Path, name: str) -> None:
    (folder / "1.pem").rename(folder / name)
    with pytest.raises(KeyFileError, match=r"expected a file name like 1\.pem"):
        load_keyring(folder)


def test_refuses_an_id_beyond_a_byte(folder: Path) -> None:
    (folder / "1.pem").rename(folder / "256.pem")
    with pytest.raises(KeyFileError, match="a key id is 0 to 255"):
        load_keyring(folder)
    with pytest.raises(KeyFileError, match="a key id is 0 to 255"):
        generate_key(folder, 256)


def test_refuses_a_key_of_another_kind(folder: Path) -> None:
    write_private(folder / "2.pem", Ed25519PrivateKey.generate())
    with pytest.raises(KeyFileError, match=r"2\.pem: not an X25519 or X-Wing key"):
        load_keyring(folder)


def test_refuses_a_key_that_others_can_read(folder: Path) -> None:
    (folder / "1.pem").chmod(0o644)
    with pytest.raises(KeyFileError, match="permissions 0644 let others in"):
        load_keyring(folder)


def test_refuses_no_folder_no_key_and_too_many(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        load_keyring(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyFileError, match="expected 1 to 16 keys"):
        load_keyring(tmp_path / "empty")
    for key_id in range(100, 115):
        generate_key(folder, key_id)
    with pytest.raises(KeyFileError, match="expected 1 to 16 keys"):
        load_keyring(folder)


def test_refuses_a_time_that_is_none(folder: Path) -> None:
    (folder / "1.pem").rename(folder / "1-20261341T030000Z.pem")
    with pytest.raises(KeyFileError, match="no creation time"):
        load_keyring(folder)


def test_a_key_is_never_replaced(folder: Path) -> None:
    with pytest.raises(KeyFileError, match="never overwritten"):
        generate_key(folder, 1)
