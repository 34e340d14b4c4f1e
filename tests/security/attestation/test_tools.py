"""Whose turn it is at the TPM, and what commands get; no TPM is asked.

tests/interop/tpm has one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.attestation import tools
from security.attestation.quotes import measure, unmeasured
from security.attestation.tools import opened
from security.errors import TpmError
from tests.support.patience import in_time, once


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command tpm2 that notes what it was asked, and a place for files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    path = folder / "tpm2"
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return log


def lock(tmp_path: Path) -> Path:
    with opened():
        pass
    (path,) = tmp_path.glob("sealgate-tpm-*")
    return path


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has taken the lock, and does not give it back."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(lock(tmp_path))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_a_lock_that_is_never_given_back(
    holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_LOCK_TIMEOUT_S", 0.1)

    def scene() -> None:
        began = time.monotonic()
        with pytest.raises(TpmError, match="others hold its lock"), opened():
            pass
        in_time(began, 5)

    once(scene)


def test_a_lock_that_is_given_back(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    with opened() as tpm:
        assert tpm.folder.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_lock_of_another_user(tmp_path: Path) -> None:
    os.chown(lock(tmp_path), 65534, 65534)
    with pytest.raises(TpmError, match=r"another user's|Permission denied"), opened():
        pass


def test_no_place_for_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no-such"))
    with pytest.raises(TpmError, match="No such file"), opened():
        pass


def test_a_disk_that_is_full() -> None:
    with pytest.raises(TpmError, match="No space left"), opened():
        Path("/dev/full").write_bytes(b"x")


def test_nothing_is_measured_unless_all_of_it_can_be_read(
    program: Path, tmp_path: Path
) -> None:
    (first := tmp_path / "first").write_bytes(b"1")
    with pytest.raises(TpmError, match=r"second: No such file"):
        measure(15, [first, tmp_path / "second"])
    assert not program.exists()
    (tmp_path / "second").write_bytes(b"2")
    digests = measure(15, [first, tmp_path / "second"])
    asked = program.read_text().splitlines()
    assert [line for line in asked if line.startswith("pcrextend")] == [
        f"pcrextend 15:sha256={digest}" for digest in digests
    ]


def test_registers_that_say_nothing() -> None:
    assert unmeasured({7: b"\1" * 32, 15: bytes(32), 17: b"\xff" * 32}) == [15, 17]
