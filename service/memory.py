"""Memory of large requests stays with the worker.

glibc gives what is freed at the end of its heap back to the system, and takes it again
for the next request: every page of a large tensor is then cleared by the kernel anew,
which costs as much as decrypting it. Here it keeps a bounded amount.
"""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
# The most that glibc allows; larger blocks are mapped apart, and given back at once.
_MAPPED_FROM_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of what it frees. Only glibc needs to be told.

    >>> keep_freed_memory()
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
