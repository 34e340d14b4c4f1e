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
from pathlib import Path
from typing import Any

import numpy as np

from models.files import write_atomic
from security.assessment.plan.checks import Outcome
from security.errors import AssessmentError

__all__ = ["RunStore"]

_PLAN = "plan.json"
_VALUES = "values"


class RunStore:
    """The folder of one scan's finished units."""

    def __init__(self, folder: Path | None, plan: Mapping[str, Any]) -> None:
        """Open or begin.

        Args:
            folder: of the units; made if missing. None keeps nothing.
            plan: what the scan does, JSON.

        Raises:
            AssessmentError: the folder holds another scan's unfinished work.
        """
        self._folder = folder
        if folder is None:
            return
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
        if self._folder is None:
            return None
        try:
            data = _path(self._folder, key).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
            values = json.loads(arrays.pop(_VALUES).tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # missing, or damaged: the work is done again
        return Outcome(values, arrays)

    def save(self, key: str, outcome: Outcome) -> None:
        """Keep a finished unit."""
        if self._folder is None:
            return
        buffer = io.BytesIO()
        values = np.frombuffer(json.dumps(outcome.values).encode(), dtype=np.uint8)
        np.savez(buffer, **{**outcome.arrays, _VALUES: values})  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        write_atomic(_path(self._folder, key), buffer.getvalue())

    def remove(self) -> None:
        """Forget everything: the scan is finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _path(folder: Path, key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    readable = "".join(c if c.isalnum() else "-" for c in key)[:60]
    return folder / f"{readable}-{name}.npz"
