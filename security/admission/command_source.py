"""A program that fetches a model key: how a KMS or Vault is reached without our client.

``exec:/usr/local/bin/fetch-model-key --region eu`` runs that program, without a shell,
and takes the key in PEM from its standard output. The program learns from its
environment for which admitted model it is asked, and may refuse by its exit code.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.protocol.hpke import KemPrivateKey
from security.admission.gate import Admission
from security.errors import KeyFileError
from security.hpke_keys import parse_hpke_key
from security.key_files import MAX_KEY_BYTES

__all__ = ["TIMEOUT_S", "CommandSource"]

TIMEOUT_S = 30.0
_PATH = "/usr/local/bin:/usr/bin:/bin"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class CommandSource:
    """A `KeySource`: a program that writes the key.

    Attributes:
        arguments: the program's absolute path, and its arguments. They are on the
            process list, so no place for secrets.
        timeout_s: until it is killed, with what it started.
    """

    arguments: tuple[str, ...] = field(repr=False)
    timeout_s: float = TIMEOUT_S

    @classmethod
    def parse(cls, text: str) -> CommandSource:
        """The source behind ``exec:``.

        Args:
            text: an absolute path and arguments, quoted as for a POSIX shell; nothing
                is expanded.

        Raises:
            KeyFileError: no absolute path, or quotes that do not end.
        """
        try:
            arguments = tuple(shlex.split(text))
        except ValueError as error:
            raise KeyFileError(f"exec: {error}") from None
        if not arguments or not arguments[0].startswith("/"):
            raise KeyFileError("exec: name a program by its absolute path")
        return cls(arguments)

    def key(self, admission: Admission) -> KemPrivateKey:
        """Run the program, and read the key that it writes.

        1. nobody but root and this user can change the program;
        2. it ends in time, with exit code 0, after at most 16 KiB;
        3. what it wrote is a key.

        Raises:
            KeyFileError: one of the three. What the program wrote is never shown: its
                standard error is not even read.
        """
        program = self.arguments[0]
        _check_program(Path(program))
        data = _output(self.arguments, _environment(admission), self.timeout_s)
        return parse_hpke_key(data, f"exec: {program}: its output")


def _check_program(path: Path) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise KeyFileError(f"exec: {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK):
        raise KeyFileError(f"exec: {path}: not a program that this user may run")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        raise KeyFileError(f"exec: {path}: others can change this program")


def _environment(admission: Admission) -> dict[str, str]:
    """All that the program gets of ours: no token, no passphrase, no proxy's password.

    What else it needs, ``exec:/usr/bin/env NAME=value /path/program`` gives it.
    """
    subject = admission.bundle.subject
    return {
        "PATH": _PATH,
        "HOME": os.path.expanduser("~"),
        "LC_ALL": "C",
        "SEALGATE_MODEL": f"{subject.name}:{subject.version}",
        "SEALGATE_MODEL_ROOT_SHA256": subject.root_sha256,
        "SEALGATE_VERDICT_SHA256": admission.verdict_sha256,
        "SEALGATE_MODEL_KEY_HINTS": " ".join(admission.bundle.sealed_to),
    }


def _output(
    arguments: tuple[str, ...], environment: dict[str, str], timeout_s: float
) -> bytes:
    program, deadline = arguments[0], time.monotonic() + timeout_s
    try:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,  # so that what it started can be killed with it
        )
    except (OSError, ValueError) as error:
        raise KeyFileError(f"exec: {program}: {error}") from None
    with child:
        try:
            data = _read(child, deadline)
            code = child.wait(max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            # Not waited for yet, so the number of its group is still its own.
            os.killpg(child.pid, signal.SIGKILL)
            if not isinstance(error, TimeoutError | subprocess.TimeoutExpired):
                raise
            raise KeyFileError(
                f"exec: {program}: no key after {timeout_s:g} s"
            ) from None
    if code:
        raise KeyFileError(f"exec: {program}: exit code {code}; run it by hand to see")
    return data


def _read(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """All that a program writes, within bounds of time and size."""
    data, stdout = b"", child.stdout
    with selectors.DefaultSelector() as selector:
        if stdout is None:
            return data
        selector.register(stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(stdout.fileno(), MAX_KEY_BYTES + 1)
            if not piece:
                return data
            data += piece
            if len(data) > MAX_KEY_BYTES:
                raise KeyFileError(
                    f"exec: its output has more than {MAX_KEY_BYTES} bytes"
                )
    raise TimeoutError
