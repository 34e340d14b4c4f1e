"""Disks that are full, for a while."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_size_limit(size: int, pid: int = 0) -> Iterator[None]:
    """What a full disk does to a write: it ends early, then fails.

    Args:
        size: no file may grow beyond it.
        pid: of the process; this one by default.
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
