"""Finished work on disk, so that a scan that was killed goes on where it stood.

A unit of work is one file, written whole or not at all. The folder is bound to its
plan: target, data, options and version. Another scan's folder is not continued.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.files import write_atomic
from security.errors import AssessmentError

__all__ = ["Outcome", "RunStore"]

_PLAN = "plan.json"
_VALUES = "values"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one unit of work gave.

    Attributes:
        values: JSON.
        arrays: by name; no names beginning with an underscore.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class RunStore:
    """The folder of one scan's finished units."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """Open or begin.

        Args:
            folder: of the units; made if missing.
            plan: what the scan does, JSON.

        Raises:
            AssessmentError: the folder holds another scan's unfinished work.
        """
        self._folder = folder
        text = json.dumps(plan, sort_keys=True, indent=1).encode()
        path = folder / _PLAN
        if path.exists():
            if path.read_bytes() != text:
                raise AssessmentError(
                    f"{folder.parent} holds an unfinished scan of another target, data "
                    "or options; finish it, or remove it, or choose another --out"
                )
        else:
            write_atomic(path, text)

    def load(self, key: str) -> Outcome | None:
        """A finished unit, or None."""
        try:
            data = self._path(key).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
            values = json.loads(arrays.pop(_VALUES).tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # missing, or damaged: the work is done again
        return Outcome(values, arrays)

    def save(self, key: str, outcome: Outcome) -> None:
        """Keep a finished unit."""
        buffer = io.BytesIO()
        values = np.frombuffer(json.dumps(outcome.values).encode(), dtype=np.uint8)
        np.savez(buffer, **{**outcome.arrays, _VALUES: values})  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        write_atomic(self._path(key), buffer.getvalue())

    def remove(self) -> None:
        """Forget everything: the scan is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        readable = "".join(c if c.isalnum() else "-" for c in key)[:60]
        return self._folder / f"{readable}-{name}.npz"
