"""`init --model`: what an imported model's columns are, for `import` and `assess`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.data.columns import Table, numbers
from models.errors import BundleError
from models.files import read_regular
from models.manifest import Tensor
from security.assessment.imported import describe, inspected
from security.config_reader import TODO
from security.errors import AssessmentError
from security.training.draft import quoted, range_of

__all__ = ["draft_model"]

MAX_MODEL_BYTES = 512 << 20  # what the structural inspection takes

_USUAL_LABELS = ("label", "target", "class", "y")
_RANGE = "that requests may hold. It is published: not from private rows"
_MISSING = frozenset({""})


def draft_model(
    path: Path, table: Table | None, label: str | None, *, public: bool
) -> str:
    """A data configuration for a model's file, as text.

    Args:
        path: of the file, hostile.
        table: rows that it never saw, or None.
        label: their column with the class; None for one with a usual name.
        public: whether ranges may come from the rows.

    Raises:
        AssessmentError: unreadable, or it has no input that a table could be.
        HostileModel: the inspection found an error.
    """
    try:
        model = read_regular(path, max_bytes=MAX_MODEL_BYTES)
    except BundleError as error:
        raise AssessmentError(str(error)) from None
    model, _ = inspected(model, path.parent)
    manifest = describe(model, name="draft", version="1.0.0")
    names = None if table is None else list(table.arrays)
    if names is not None:
        label = _label(names, label, table.where if table else "")
        names.remove(label)
    return "\n".join(
        [
            f"# What {path.name} takes, as the command `init` proposes it, for",
            "#",
            "#   import FILE.onnx --columns THIS.toml …",
            "#   assess BUNDLE --data FILE --data-config THIS.toml",
            "#",
            *(f"# input   {_shown(item)}" for item in manifest.inputs),
            *(f"# output  {_shown(item)}" for item in manifest.outputs),
            "",
            *_lines(manifest.inputs, names, label, table if public else None),
            "",
        ]
    )


def _label(names: list[str], label: str | None, where: str) -> str:
    for name in _USUAL_LABELS if label is None else (label,):
        if name in names:
            return name
    raise AssessmentError(
        f"{where}: no column {label or ' or '.join(_USUAL_LABELS)} with the class; "
        f"--label names one of {', '.join(names)}"
    )


def _shown(tensor: Tensor) -> str:
    spec = tensor.spec
    return f"{spec.name}: {spec.datatype} {list(spec.shape)}"


def _lines(
    inputs: tuple[Tensor, ...],
    names: list[str] | None,
    label: str | None,
    table: Table | None,
) -> Iterator[str]:
    shape = inputs[0].spec.shape
    if label is not None:
        yield "# The column with the class."
        yield f"label = {quoted(label)}"
    yield "# Its classes, in the order of its scores, if the file does not name them:"
    yield '# classes = ["no", "yes"]'
    yield '# Groups to compare, and the class that people want: sensitive = ["COLUMN"],'
    yield '# positive = "yes"'
    if len(inputs) > 1 or len(shape) != 2:
        yield "# The range of every number that it takes."
        yield f"low = {quoted(f'{TODO}the least {_RANGE}')}"
        yield f"high = {quoted(f'{TODO}the most {_RANGE}')}"
        return
    width = shape[1]
    if names is None:
        names = [f"column {place + 1}" for place in range(max(1, width))]
    elif 0 < width != len(names):
        yield f"# It takes {width} columns; the file has {len(names)} beside the class."
        why = "the columns that it does not take; remove their entries below"
        yield f"drop = [{quoted(f'{TODO}{why}')}]"
    yield ""
    yield "# Its columns in its own order, which nothing here can know: check it. Files"
    yield "# are read by these names."
    for name in names:
        yield "[[columns]]"
        yield f"name = {quoted(name)}"
        yield from _ends(name, table)


def _ends(name: str, table: Table | None) -> Iterator[str]:
    if table is not None:
        values = numbers(table, name, missing=_MISSING)
        present = values[~np.isnan(values)]
        low, high = range_of(present.tolist())
        yield f"low = {low}"
        yield f"high = {high}"
        return
    for end, word in (("low", "the least"), ("high", "the most")):
        yield f"{end} = {quoted(f'{TODO}{word} {_RANGE}')}"
