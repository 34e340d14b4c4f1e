"""A TPM 2.0 in software, started for a test and stopped by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class SoftTpm:
    """A running swtpm.

    Attributes:
        tcti: what TPM2TOOLS_TCTI must be for it.
        state: folder of its seeds and keys.
        environ: for commands that use it.
    """

    tcti: str
    state: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"TPM2TOOLS_TCTI": self.tcti}

    def run(self, *arguments: str, cwd: Path | None = None) -> bytes:
        """A command of tpm2-tools, by hand."""
        environ = {**os.environ, **self.environ}
        command = ["tpm2", *arguments]
        output = subprocess.run(
            command, cwd=cwd, env=environ, capture_output=True, check=True, timeout=30
        ).stdout
        forget = ["tpm2", "flushcontext", "-t"]
        subprocess.run(forget, env=environ, check=True, timeout=30)
        return output

    def extend(self, pcr: int, digest: bytes) -> None:
        """Measure something into a register."""
        self.run("pcrextend", f"{pcr}:sha256={digest.hex()}")


@contextmanager
def soft_tpm(state: Path) -> Iterator[SoftTpm]:
    """A TPM whose registers are zero; its seeds are those in the folder, if any."""
    for program in ("swtpm", "tpm2"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:  # a socket's path is short
        path = Path(name) / "tpm"
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"),
                *("--server", f"type=unixio,path={path}"),
                *("--ctrl", f"type=unixio,path={path}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        tpm = SoftTpm(f"swtpm:path={path}", state)
        try:
            _await(tpm)
            yield tpm
        finally:
            process.terminate()
            process.wait(timeout=20)


def _await(tpm: SoftTpm) -> None:
    for attempt in range(100):
        try:
            tpm.run("getcap", "properties-fixed")
        except subprocess.CalledProcessError:
            if attempt == 99:
                raise
            time.sleep(0.05)
        else:
            return
