"""Bytecode beside the sources of a Bento in an image: how it is made.

A process that may not write to its file system compiles every module at every start, so
an image brings bytecode along. It runs in place of the sources, which are what was
reviewed, so from outside it must be what the sources give, byte for byte. Hence
marshal's version 2: what later versions write depends on which objects the compiling
process has besides.

The build of an image (deploy/container/Dockerfile) runs this file by itself.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from pathlib import Path

__all__ = ["bytecode", "cached_name"]

# PEP 552: by hash, and not compared with the source when it is loaded.
_FLAGS = (1).to_bytes(4, "little")


def cached_name(name: str) -> str:
    """Where Python looks for the bytecode of a module's file.

    >>> cached_name("a/b.py").startswith("a/__pycache__/b.cpython-3")
    True
    """
    return importlib.util.cache_from_source(name)


def bytecode(source: bytes, path: str) -> bytes:
    """The code file of a source: the same bytes from the same version of Python.

    Args:
        source: of a module.
        path: where it lies when it runs; tracebacks show it.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it cannot be compiled.
    """
    code = compile(source, path, "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + _FLAGS + importlib.util.source_hash(source)
    return header + marshal.dumps(code, 2)


def _main(folder: str, runs_in: str) -> None:
    """Write the code files of all modules under a folder."""
    for path in sorted(Path(folder).rglob("*.py")):
        where = os.path.join(runs_in, path.relative_to(folder))
        target = Path(cached_name(str(path)))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(bytecode(path.read_bytes(), where))


if __name__ == "__main__":
    _main(*sys.argv[1:])
