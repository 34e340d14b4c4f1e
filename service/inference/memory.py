"""Memory of large requests stays with the worker.

glibc gives what is freed at the end of its heap back to the system, and takes it again
for the next request: every page of a large tensor is then cleared by the kernel anew,
which costs as much as decrypting it. Here it keeps a bounded amount.

A graph may ask for any amount of memory when it runs, whatever its file looks like: a
worker has a bound, and a run that goes beyond fails by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource

__all__ = ["bound_memory", "give_back", "keep_freed_memory"]

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


def give_back() -> None:
    """Give the system back all that was freed, after more than usual was taken.

    >>> give_back()
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def bound_memory(max_bytes: int) -> None:
    """Let this process have so much memory of its own, and no more (RLIMIT_DATA).

    Args:
        max_bytes: 0 sets no bound; a lower one that is set already stays.
    """
    if not max_bytes:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
