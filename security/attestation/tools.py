"""A TPM 2.0, used by the commands of tpm2-tools.

The commands, not a library: tpm2-pytss has to be compiled against the TSS, which the
locked environment would carry for everyone, and a TPM is asked once a minute at most.

Which TPM it is says ``TPM2TOOLS_TCTI``, the variable of tpm2-tools itself; without it
the kernel's resource manager is asked, never a TPM that only happens to listen.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from security.errors import TpmError

__all__ = ["TCTI_VARIABLE", "Tpm", "opened"]

TCTI_VARIABLE = "TPM2TOOLS_TCTI"
_DEFAULT_TCTI = "device:/dev/tpmrm0"
_PROGRAM = "tpm2"
# A slow TPM makes a key in some seconds; whoever waits longer waits for ever.
_TIMEOUT_S = 30.0
# Others before us take a second or so each; this is for ever, too.
_LOCK_TIMEOUT_S = 60.0
_LOCK_AGAIN_S = 0.02
_MAX_MESSAGE_CHARACTERS = 200


class Tpm:
    """Commands to one TPM, while no other process of this user gives it any.

    Attributes:
        folder: where commands leave their files; empty at first, gone afterwards.
    """

    def __init__(self, folder: Path, tcti: str, program: str) -> None:
        self.folder = folder
        self._program = program
        # tpm2-tools loads libraries by what the environment says: it gets nothing else.
        path = os.environ.get("PATH", os.defpath)
        self._environ = {"PATH": path, "LC_ALL": "C", TCTI_VARIABLE: tcti}

    def run(self, *arguments: str | Path, given: bytes = b"") -> bytes:
        """Run a command, and have the TPM forget what it loaded for it.

        Args:
            arguments: of `tpm2`, the subcommand first; never a secret, since every
                process of the machine can read them.
            given: on its standard input.

        Returns:
            Its standard output.

        Raises:
            TpmError: it failed, or took too long.
        """
        # Without a resource manager three objects fill a TPM.
        forget = ("flushcontext", "-t")
        try:
            output = self._call(*arguments, given=given)
        except TpmError:
            with suppress(TpmError):
                self._call(*forget)
            raise
        self._call(*forget)
        return output

    def _call(self, *arguments: str | Path, given: bytes = b"") -> bytes:
        try:
            result = subprocess.run(
                [self._program, *map(str, arguments)],
                cwd=self.folder,
                env=self._environ,
                input=given,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TpmError(f"TPM: {arguments[0]} took too long") from None
        except OSError as error:
            raise TpmError(f"TPM: {self._program}: {error.strerror}") from None
        if result.returncode != 0:
            raise TpmError(f"TPM: {arguments[0]}: {_reason(result.stderr)}")
        return result.stdout


@contextmanager
def opened() -> Iterator[Tpm]:
    """The TPM that the environment names, for one process at a time.

    Raises:
        TpmError: tpm2-tools is not installed, the TPM's lock cannot be had, or there is
            no place for files.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise TpmError("TPM: tpm2-tools is not installed: there is no command tpm2")
    tcti = os.environ.get(TCTI_VARIABLE) or _DEFAULT_TCTI
    try:
        with _locked(tcti), tempfile.TemporaryDirectory(prefix="sealgate-tpm-") as name:
            yield Tpm(Path(name), tcti, program)
    except OSError as error:
        raise TpmError(f"TPM: files for tpm2-tools: {error}") from None


@contextmanager
def _locked(tcti: str) -> Iterator[None]:
    """Workers of one user take turns; a TPM itself only says that it is busy."""
    which = hashlib.sha256(tcti.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"sealgate-tpm-{os.getuid()}-{which}"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(path, flags, 0o600)
    except OSError as error:
        raise TpmError(f"TPM: its lock {path}: {error.strerror}") from None
    try:
        _take(lock, path)
        yield
    finally:
        os.close(lock)


def _take(lock: int, path: Path) -> None:
    """Wait for a lock that nobody but this user can hold on to."""
    if os.fstat(lock).st_uid != os.getuid():
        raise TpmError(f"TPM: its lock {path} is another user's")
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TpmError(f"TPM: others hold its lock {path}") from None
            time.sleep(_LOCK_AGAIN_S)
        else:
            return


def _reason(stderr: bytes) -> str:
    """The last error that a command printed, in one line."""
    lines = [
        line.removeprefix("ERROR: ")
        for line in stderr.decode("ascii", "replace").splitlines()
        if line.startswith("ERROR: ")
    ]
    # The last line only repeats which command failed.
    text = (lines[-2:] or ["no reason given"])[0]
    return "".join(c for c in text if c.isprintable())[:_MAX_MESSAGE_CHARACTERS]
