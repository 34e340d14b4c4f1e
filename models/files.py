"""Files that are read within bounds and written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import BundleError

__all__ = ["new_directory", "read_regular", "write_atomic"]


def read_regular(path: Path, *, max_bytes: int, follow_links: bool = False) -> bytes:
    """Read a regular file that is no symbolic link and has no other name.

    A hard link would let a file change under a name nobody checked; a device or a pipe
    would block or never end.

    Args:
        path: the file; its last component may not be a symbolic link.
        max_bytes: refuse larger files before reading.
        follow_links: for what the operator names, not for what a bundle holds: mounted
            secrets and configuration are symbolic links in Kubernetes, and a package
            store that shares equal files makes them hard links.

    Raises:
        BundleError: missing, not regular, linked, too large, or changed while read.
    """
    if follow_links:
        path = Path(os.path.realpath(path))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise BundleError(f"{path.name}: {_reason(error)}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)  # before open(), which raises its own error for a folder
        raise BundleError(f"{path.name}: not a regular file")
    with open(descriptor, "rb") as file:
        if status.st_nlink != 1 and not follow_links:
            raise BundleError(f"{path.name}: has {status.st_nlink} hard links")
        if status.st_size > max_bytes:
            raise BundleError(
                f"{path.name}: {status.st_size} bytes, at most {max_bytes} allowed"
            )
        data = file.read(status.st_size + 1)
    if len(data) != status.st_size:
        raise BundleError(f"{path.name}: changed while it was read")
    return data


def write_atomic(
    path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644
) -> None:
    """Write a file under a temporary name, flush it, and rename it into place.

    Args:
        path: the final name; its parent is made if missing.
        data: the whole content, or its parts.
        mode: permissions from the first moment on (0o600 for secrets).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes ``path`` only if the block succeeds.

    Raises:
        BundleError: ``path`` exists already; nothing is overwritten.
    """
    if path.exists():
        raise BundleError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be opened").lower()
