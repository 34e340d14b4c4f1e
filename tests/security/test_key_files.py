"""security.key_files: private keys that only their owner can read."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from security.errors import KeyFileError
from security.key_files import (
    PASSPHRASE_VARIABLE,
    read_passphrase,
    read_private,
    read_secret,
    write_private,
    write_secret,
)


def test_round_trip_of_a_key(tmp_path: Path) -> None:
    key, path = Ed25519PrivateKey.generate(), tmp_path / "keys" / "a.pem"
    write_private(path, key)
    read = read_private(path)
    assert isinstance(read, Ed25519PrivateKey)
    assert read.private_bytes_raw() == key.private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_refuses_what_others_can_open(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    write_secret(path, b"x" * 32)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"permissions {mode:04o} let others in"):
        read_secret(path)


def test_reads_what_only_the_owner_can(tmp_path: Path) -> None:
    write_secret(tmp_path / "a", b"secret")
    (tmp_path / "a").chmod(0o400)
    assert read_secret(tmp_path / "a") == b"secret"


def test_never_overwrites(tmp_path: Path) -> None:
    write_secret(tmp_path / "a", b"first")
    with pytest.raises(KeyFileError, match="keys are never overwritten"):
        write_secret(tmp_path / "a", b"second")
    with pytest.raises(KeyFileError, match="keys are never overwritten"):
        write_private(tmp_path / "a", Ed25519PrivateKey.generate())
    assert read_secret(tmp_path / "a") == b"first"


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no such file"):
        read_secret(tmp_path / "a")


def test_follows_a_link_as_mounted_secrets_are(tmp_path: Path) -> None:
    write_secret(tmp_path / "a", b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_secret(tmp_path / "b") == b"x"
    (tmp_path / "a").chmod(0o644)
    with pytest.raises(KeyFileError, match="0644 let others in"):
        read_secret(tmp_path / "b")


def test_refuses_a_long_file(tmp_path: Path) -> None:
    write_secret(tmp_path / "a", b"x" * 20_000)
    with pytest.raises(KeyFileError, match="at most 16384 allowed"):
        read_secret(tmp_path / "a")


def _encrypted(passphrase: bytes = b"password") -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def _public() -> bytes:
    return (
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"-----BEGIN", _public()])
def test_refuses_what_is_no_private_key(tmp_path: Path, data: bytes) -> None:
    write_secret(tmp_path / "a", data)
    with pytest.raises(KeyFileError, match="not a PKCS#8 private key"):
        read_private(tmp_path / "a")


def test_an_error_never_quotes_the_secret(tmp_path: Path) -> None:
    write_secret(tmp_path / "a", b"hunter2 hunter2")
    with pytest.raises(KeyFileError) as caught:
        read_private(tmp_path / "a")
    assert "hunter2" not in str(caught.value)


# Passphrases.


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    write_secret(tmp_path / "passphrase", b"correct horse\n")
    return tmp_path / "passphrase"


def test_round_trip_with_a_passphrase(tmp_path: Path, passphrase: Path) -> None:
    key, path = Ed25519PrivateKey.generate(), tmp_path / "a.pem"
    write_private(path, key, passphrase=read_passphrase(passphrase))
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    read = read_private(path, passphrase=passphrase)
    assert isinstance(read, Ed25519PrivateKey)
    assert read.private_bytes_raw() == key.private_bytes_raw()


def test_the_environment_names_the_passphrases_file(
    tmp_path: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret(tmp_path / "a.pem", _encrypted(b"correct horse"))
    with pytest.raises(KeyFileError, match="is encrypted; name its passphrase's file"):
        read_private(tmp_path / "a.pem")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(passphrase))
    assert isinstance(read_private(tmp_path / "a.pem"), Ed25519PrivateKey)


def test_another_passphrase(tmp_path: Path, passphrase: Path) -> None:
    write_secret(tmp_path / "a.pem", _encrypted(b"battery staple"))
    with pytest.raises(KeyFileError, match="another passphrase, or not a PKCS#8") as e:
        read_private(tmp_path / "a.pem", passphrase=passphrase)
    assert "horse" not in str(e.value)


def test_a_plain_key_needs_none(tmp_path: Path, passphrase: Path) -> None:
    write_private(tmp_path / "a.pem", Ed25519PrivateKey.generate())
    read_private(tmp_path / "a.pem", passphrase=passphrase)


@pytest.mark.parametrize("data", [b"", b"\n", b"x" * 1025])
def test_no_passphrase(tmp_path: Path, data: bytes) -> None:
    write_secret(tmp_path / "p", data)
    with pytest.raises(KeyFileError, match="1 to 1024 bytes"):
        read_passphrase(tmp_path / "p")


def test_a_passphrase_that_others_can_read(passphrase: Path) -> None:
    passphrase.chmod(0o644)
    with pytest.raises(KeyFileError, match="let others in"):
        read_passphrase(passphrase)
