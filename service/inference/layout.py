"""The columns that are explained: all inputs' values side by side, and references.

What cannot be explained is refused here: texts, which have no middle; rows of no fixed
width; and so many values that each by itself says nothing, as in images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models import shapley
from models.manifest import Column, Manifest, Tensor
from sealgate.errors import SealgateError
from sealgate.protocol.datatypes import DATATYPES
from sealgate.protocol.tensors import Array

__all__ = ["MAX_COLUMNS", "Inputs", "Layout", "UnexplainableError", "rows_at"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Inputs = Mapping[str, Array]

MAX_COLUMNS = 256


class UnexplainableError(SealgateError):
    """Answers of this model cannot be explained; the text says why, to its callers."""


class Layout:
    """All inputs' values side by side, as the columns that are explained.

    Attributes:
        names: of the columns.
        low, high: ends of their public ranges; NaN where a column has none.
        categories: which hold the codes of categories.
        references: by input, flat ``(references, width)``.
        given: the references are the manifest's own.
        max_rows: of one run.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Lay out.

        Raises:
            UnexplainableError: an input is text, or has no fixed width; no references;
                or too many columns.
        """
        self.inputs, self.max_rows = manifest.inputs, manifest.max_rows
        self._slices: dict[str, slice] = {}
        columns: list[Column] = []
        for tensor in manifest.inputs:
            own = _columns(tensor)
            name, start = tensor.spec.name, len(columns)
            self._slices[name] = slice(start, start + len(own))
            columns += own
            if len(columns) > MAX_COLUMNS:
                raise UnexplainableError(
                    f"a row has more than {MAX_COLUMNS} values, each of which would be "
                    "explained by itself"
                )
        self.names = [column.name for column in columns]
        self.low = np.array([column.low for column in columns])
        self.high = np.array([column.high for column in columns])
        self.categories = np.array([bool(column.categories) for column in columns])
        rows = manifest.explanations.references
        self.given = bool(rows)
        self.references = self._cast(np.array(rows) if rows else self._middle())

    def _middle(self) -> Floats:
        middle = (self.low + self.high) / 2
        if np.isnan(middle).any():
            raise UnexplainableError(
                "the manifest names no reference row, nor the public range of each "
                "column that would give one"
            )
        row: Floats = np.where(self.categories, np.floor(middle), middle)
        return row[None]

    def _cast(self, rows: Floats) -> dict[str, Array]:
        """Numbers as each input's flat values ``(rows, width)``."""
        made = {}
        for tensor in self.inputs:
            dtype = DATATYPES[tensor.spec.datatype]
            part = rows[:, self._slices[tensor.spec.name]]
            whole = part if dtype.kind == "f" else np.rint(part)
            made[tensor.spec.name] = whole.astype(dtype)
        return made

    @property
    def columns(self) -> int:
        """How many there are."""
        return len(self.names)

    def shaped(self, flat: Inputs) -> dict[str, Array]:
        """Values as the session takes them."""
        return {
            tensor.spec.name: flat[tensor.spec.name].reshape(-1, *tensor.spec.shape[1:])
            for tensor in self.inputs
        }

    def flat(self, inputs: Inputs) -> dict[str, Array]:
        """Inputs as flat values, by name ``(rows, width)``."""
        return {
            tensor.spec.name: inputs[tensor.spec.name].reshape(
                len(inputs[tensor.spec.name]), -1
            )
            for tensor in self.inputs
        }

    def mixed(
        self, ours: Inputs, theirs: Inputs, masks: NDArray[np.bool_]
    ) -> dict[str, Array]:
        """As the session takes them: where the mask says so, our rows, else theirs."""
        return self.shaped(
            {
                name: np.where(masks[:, part], ours[name], theirs[name])
                for name, part in self._slices.items()
            }
        )

    def numbers(self, flat: Inputs) -> Floats:
        """All columns side by side ``(rows, columns)``."""
        parts = [flat[name].astype(np.float64) for name in self._slices]
        return np.concatenate(parts, axis=1)

    def near(self, row: Floats, samples: int) -> tuple[Floats, dict[str, Array]]:
        """Rows near one, as numbers and as the session takes them.

        Raises:
            UnexplainableError: a column has no public range.
        """
        if np.isnan(self.low).any():
            raise UnexplainableError("without public ranges nothing says what is near")
        rows = shapley.nearby(row, self.low, self.high, self.categories, samples)
        cast = self._cast(rows)
        return self.numbers(cast), self.shaped(cast)


def _columns(tensor: Tensor) -> list[Column]:
    """One for each value of a row of an input.

    Raises:
        UnexplainableError: text, or no fixed width.
    """
    spec = tensor.spec
    if DATATYPES[spec.datatype].kind not in "biuf":
        raise UnexplainableError(
            f'input "{spec.name}" is {spec.datatype}: only numbers and codes are '
            "explained"
        )
    if spec.shape[:1] != (-1,) or -1 in spec.shape[1:]:
        raise UnexplainableError(f'input "{spec.name}" has no rows of one width')
    width = math.prod(spec.shape[1:])
    if len(tensor.columns) == width:
        return list(tensor.columns)
    if width > MAX_COLUMNS:
        raise UnexplainableError(
            f'input "{spec.name}" has {width} values in a row, at most {MAX_COLUMNS} '
            "are explained"
        )
    low, high = tensor.bounds or (math.nan, math.nan)
    names = [spec.name] if width == 1 else [f"{spec.name}[{i}]" for i in range(width)]
    return [Column(name, low, high) for name in names]


def rows_at(flat: Inputs, places: Places) -> dict[str, Array]:
    """Chosen rows of every input."""
    return {name: array[places] for name, array in flat.items()}
