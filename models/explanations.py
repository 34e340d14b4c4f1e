"""How a model's answers are explained: the member ``explanations`` of its manifest.

Whether they may be at all is its output policy's to say (`models.output_policy`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import ManifestError
from sealgate.protocol.tensors import TensorSpec

__all__ = ["DEFAULT", "QUANTITIES", "Explanations"]

# What explanations add up to: log-odds of the explained class, or the output itself.
QUANTITIES = ("log_odds", "score")
MAX_REFERENCES = 32
_WHERE = "manifest.explanations"


@dataclass(frozen=True)
class Explanations:
    """What a row is compared with, and what of an answer is explained.

    Attributes:
        references: public rows that a row is compared with, the values of all inputs
            side by side; none for the middle of each public range.
        output: name of the output that is explained; None finds the only one.
        quantity: of `QUANTITIES`; None for log-odds where the output is probabilities.
        contributions: name of an output of what each column adds to the log-odds of the
            second of two classes, for models that are sums over their columns.
    """

    references: tuple[tuple[float, ...], ...] = ()
    output: str | None = None
    quantity: str | None = None
    contributions: str | None = None

    def to_object(self) -> dict[str, Any]:
        """As JSON values, of what differs from the defaults; `from_object` reads it."""
        rows = [list(row) for row in self.references]
        value = {
            "references": rows,
            "output": self.output,
            "quantity": self.quantity,
            "contributions": self.contributions,
        }
        return {key: item for key, item in value.items() if item}

    @classmethod
    def from_object(
        cls, value: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Explanations:
        """Read one, for a model that takes and gives these.

        Raises:
            ManifestError: an unknown member, or one that does not fit the model.
        """
        known = {"references", "output", "quantity", "contributions"}
        if not isinstance(value, Mapping) or value.keys() - known:
            raise ManifestError(f"{_WHERE}: expected {', '.join(sorted(known))}")
        output, quantity = value.get("output"), value.get("quantity")
        if output is not None and output not in [spec.name for spec in outputs]:
            raise ManifestError(f"{_WHERE}.output: not one of the outputs")
        if quantity is not None and quantity not in QUANTITIES:
            raise ManifestError(f"{_WHERE}.quantity: one of {', '.join(QUANTITIES)}")
        references = _rows(value.get("references", []), inputs)
        parts = value.get("contributions")
        if parts is not None:
            _check_contributions(parts, inputs, outputs)
        return cls(references, output, quantity, parts)


DEFAULT = Explanations()


def _check_contributions(
    name: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Refuse what is not an output of a float per row and column."""
    where = f"{_WHERE}.contributions"
    found = [spec for spec in outputs if spec.name == name]
    if not found:
        raise ManifestError(f"{where}: not one of the outputs")
    shapes = [spec.shape for spec in inputs]
    columns = sum(shape[1] for shape in shapes if len(shape) == 2)
    if any(len(shape) != 2 for shape in shapes) or found[0].shape != (-1, columns):
        raise ManifestError(f"{where}: not a number for each row and column")
    if found[0].datatype not in ("FP32", "FP64"):
        raise ManifestError(f"{where}: not of floats")


def _rows(value: Any, inputs: Sequence[TensorSpec]) -> tuple[tuple[float, ...], ...]:
    where = f"{_WHERE}.references"
    if not isinstance(value, list) or len(value) > MAX_REFERENCES:
        raise ManifestError(f"{where}: expected up to {MAX_REFERENCES} rows")
    widths = [math.prod(spec.shape[1:]) for spec in inputs]
    width = sum(widths) if min(widths) > 0 else 0
    for row in value:
        if not isinstance(row, list) or len(row) != width:
            raise ManifestError(f"{where}: expected {width} numbers in each row")
        # By comparison: math.isfinite() fails on an integer beyond a double.
        if not all(
            type(item) in (int, float) and abs(item) <= sys.float_info.max
            for item in row
        ):
            raise ManifestError(f"{where}: expected numbers")
    return tuple(tuple(map(float, row)) for row in value)
