"""Files that claim to hold a key sealed to a TPM: what is refused before one is asked.

tests/interop/tpm has a TPM seal and unseal.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import read_bundle
from sealgate.protocol.hpke import PrivateKey
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.model_keys import key_source
from security.admission.tpm_source import TPM_KEY_SCHEMA
from security.errors import KeyFileError
from security.hpke_keys import encode_hpke_key
from tests.conftest import Command
from tests.support.bundles import Keys, policy

CLEAR = encode_hpke_key(PrivateKey.generate()).decode()
BLOB = base64.b64encode(b"made by a TPM").decode()
VALUE = {
    "schema": TPM_KEY_SCHEMA,
    "pcrs": [7, 15],
    "public": BLOB,
    "private": BLOB,
    "key": encode_hpke_key(PrivateKey.generate(), passphrase=b"sealed").decode(),
}


@pytest.fixture
def admission(bundle_folder: Path, keys: Keys) -> Admission:
    bundle = read_bundle(bundle_folder)
    return verify_with(bundle, policy(), keys.trust, now=datetime.now(UTC))


@pytest.fixture(autouse=True)
def no_tpm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no command tpm2, whatever this machine has."""
    monkeypatch.setenv("PATH", str(tmp_path))


FAULTS = {
    "no JSON": (b"x", "malformed|not JSON|Expecting"),
    "too long": (b" " * (33 << 10), "bytes"),
    "another schema": ({"schema": "https://sealgate.dev/x/v1"}, "expected schema"),
    "later": ({"schema": f"{TPM_KEY_SCHEMA}0"}, "version 10 .* newer release"),
    "a member too many": ({"more": 1}, "not a key that was sealed"),
    "no registers": ({"pcrs": []}, "registers or key"),
    "registers out of order": ({"pcrs": [15, 7]}, "registers or key"),
    "a register twice": ({"pcrs": [7, 7]}, "registers or key"),
    "a register beyond the last": ({"pcrs": [24]}, "registers or key"),
    "a register of truth": ({"pcrs": [True]}, "registers or key"),
    "registers as text": ({"pcrs": "15"}, "registers or key"),
    "no key": ({"key": None}, "registers or key"),
    "a key in the clear": ({"key": CLEAR}, "not encrypted: no TPM keeps it"),
    "an empty blob": ({"public": ""}, "what the TPM made"),
    "a blob that is no base64": ({"private": "%"}, "what the TPM made"),
    "a blob that is no text": ({"private": 1}, "what the TPM made"),
    "a blob without end": ({"private": "A" * 2048}, "what the TPM made"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_files_that_are_no_sealed_key(
    change: dict[str, object] | bytes,
    message: str,
    admission: Admission,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.tpm"
    data = change if isinstance(change, bytes) else json.dumps(VALUE | change).encode()
    path.write_bytes(data)
    with pytest.raises(KeyFileError, match=f"^tpm: {path}: .*({message})"):
        key_source(f"tpm:{path}").key(admission)


def test_without_a_tpm(admission: Admission, tmp_path: Path) -> None:
    path = tmp_path / "model.tpm"
    with pytest.raises(KeyFileError, match="no such file"):
        key_source(f"tpm:{path}").key(admission)
    path.write_text(json.dumps(VALUE))
    with pytest.raises(KeyFileError, match="tpm2-tools is not installed"):
        key_source(f"tpm:{path}").key(admission)


def test_a_source_without_a_file() -> None:
    with pytest.raises(KeyFileError, match="absolute path"):
        key_source("tpm:keys/model.tpm")


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", __file__),
        ("create-key",),
        ("seal-key", "--out", "/nowhere/model.tpm"),
    ],
)
def test_commands_without_a_tpm(
    security: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert security("keygen").returncode == 0
    result = security("tpm", *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "TPM: tpm2-tools is not installed" in line


def test_commands_that_are_refused_before_a_tpm_is_asked(
    security: Command, tmp_path: Path
) -> None:
    for pcr in ("16", "24"):
        result = security("tpm", "measure", "--pcr", pcr, "x")
        assert (result.returncode, "invalid choice" in result.stderr) == (2, True)
    result = security("tpm", "measure", str(tmp_path / "none"))
    assert (result.returncode, "No such file" in result.stderr) == (2, True)
    (tmp_path / "key.tpm").touch()
    result = security("tpm", "seal-key", "--out", str(tmp_path / "key.tpm"))
    assert (result.returncode, "never overwritten" in result.stderr) == (2, True)
    result = security("tpm", "policy")
    assert (result.returncode, "attestation.pem" in result.stderr) == (2, True)
    for pcrs, message in (("99", "numbers from 0 to 23"), ("15,23", "can be reset")):
        out = str(tmp_path / "out")
        result = security("tpm", "seal-key", "--pcrs", pcrs, "--out", out)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
