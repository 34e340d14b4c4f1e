"""A program that fetches a model key: how a KMS or Vault is reached without our client.

``exec:REGION=eu /usr/local/bin/fetch-model-key --key 1`` runs that program, without a
shell, and takes the key in PEM from its standard output. The program learns from its
environment for which admitted model it is asked, and may refuse by its exit code.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
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
_ASSIGNMENT = re.compile(r"(?!ADMITTED_)([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class CommandSource:
    """A `KeySource`: a program that writes the key.

    Attributes:
        arguments: the program's absolute path, and its arguments. They are on the
            process list, so no place for secrets.
        variables: of its environment, beside what it is told.
        timeout_s: until it is killed, with what it started.
    """

    arguments: tuple[str, ...] = field(repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = TIMEOUT_S

    @classmethod
    def parse(cls, text: str) -> CommandSource:
        """The source behind ``exec:``.

        Args:
            text: assignments, an absolute path and arguments, quoted as for a POSIX
                shell; nothing is expanded.

        Raises:
            KeyFileError: no absolute path, or quotes that do not end.

        >>> CommandSource.parse("A=1 /bin/fetch --key 'a b'").arguments
        ('/bin/fetch', '--key', 'a b')
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise KeyFileError(f"exec: {error}") from None
        variables: dict[str, str] = {}
        while words and (assignment := _ASSIGNMENT.fullmatch(words[0])):
            variables[assignment[1]] = assignment[2]
            del words[0]
        if not words or not words[0].startswith("/"):
            raise KeyFileError("exec: name a program by its absolute path")
        return cls(tuple(words), variables)

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
        environment = {**_environment(admission), **self.variables}
        data = _output(self.arguments, environment, self.timeout_s)
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

    Else what the settings assign, as in ``exec:NAME=value /path/program``.
    """
    subject = admission.bundle.subject
    return {
        "PATH": _PATH,
        "HOME": os.path.expanduser("~"),
        "LC_ALL": "C",
        "ADMITTED_MODEL": f"{subject.name}:{subject.version}",
        "ADMITTED_ROOT_SHA256": subject.root_sha256,
        "ADMITTED_VERDICT_SHA256": admission.verdict_sha256,
        "ADMITTED_KEY_HINTS": " ".join(admission.bundle.sealed_to),
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
    try:
        data = _read(child, deadline)
        code = child.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise KeyFileError(f"exec: {program}: no key after {timeout_s:g} s") from None
    finally:
        _end(child)
    if code:
        raise KeyFileError(f"exec: {program}: exit code {code}; run it by hand to see")
    return data


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill it and what it started, if it has not ended by itself."""
    if child.stdout is not None:
        child.stdout.close()
    if child.returncode is not None:
        return
    # Not waited for yet, so the number of its group is still its own.
    with contextlib.suppress(OSError):  # of another user by now: it is left alone
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


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
