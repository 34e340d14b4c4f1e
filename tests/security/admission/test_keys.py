"""security.admission.keys: signing keys in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa

from security.admission.keys import (
    generate_mldsa_key,
    generate_signing_key,
    load_mldsa_key,
    load_signing_key,
    mldsa_key_file,
)
from security.errors import KeyFileError
from security.key_files import write_private


def test_a_signing_key_is_written_for_its_owner_only(tmp_path: Path) -> None:
    key = generate_signing_key(tmp_path / "release.pem")
    loaded = load_signing_key(tmp_path / "release.pem")
    assert loaded.private_numbers() == key.private_numbers()
    assert (tmp_path / "release.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())],
)
def test_refuses_another_signing_key(tmp_path: Path, key: Any) -> None:
    write_private(tmp_path / "a.pem", key)
    with pytest.raises(KeyFileError, match="not an ECDSA P-256 key"):
        load_signing_key(tmp_path / "a.pem")


def test_an_ml_dsa_key_is_written_for_its_owner_only(tmp_path: Path) -> None:
    path = mldsa_key_file(tmp_path / "release.pem")
    key = generate_mldsa_key(path)
    assert load_mldsa_key(path).private_bytes_raw() == key.private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="exists already"):
        generate_mldsa_key(path)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256R1()), mldsa.MLDSA44PrivateKey.generate()]
)
def test_refuses_another_ml_dsa_key(tmp_path: Path, key: Any) -> None:
    write_private(tmp_path / "a.pem", key)
    with pytest.raises(KeyFileError, match="not an ML-DSA-65 key"):
        load_mldsa_key(tmp_path / "a.pem")
