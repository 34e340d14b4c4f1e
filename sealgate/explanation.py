"""Why a model answered so: what each column of each row contributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError, TransportError
from sealgate.receipt_numbers import ReceiptNumber

__all__ = ["Explanation", "question_for", "read_explanation"]

_PREFIX = "explanation."
_METHODS = ("shapley", "local")

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model answered about some rows, and why.

    Attributes:
        outputs: the model's, by name.
        attributions: ``(rows, columns)``, in units of `quantity`. Of Shapley values the
            sum over a row is `values` less `references`; of a local model each is what
            the column's whole public range would change.
        errors: ``(rows, columns)``, standard errors; about 0 where `exact`.
        values: ``(rows,)``, the explained quantity of each row.
        references: ``(rows,)``, the same of the public reference, a mean of several.
        classes: ``(rows,)``, the class that is explained; None of a number.
        fits: ``(rows,)``, R squared of the local models; None of Shapley values.
        columns: their names.
        labels: names of the classes, if they have any.
        quantity: "log_odds" of the class, or "score": the output itself.
        method: "trees", "additive", "permutations" or "local".
        exact: no sampling error.
        evaluations: rows that this was charged to quotas as.
        receipts: the number that its receipt is fetched by, if there are receipts.
    """

    outputs: dict[str, Array] = field(repr=False)
    attributions: Array = field(repr=False)
    errors: Array = field(repr=False)
    values: Array = field(repr=False)
    references: Array = field(repr=False)
    classes: Array | None = field(repr=False)
    fits: Array | None = field(repr=False)
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    quantity: str
    method: str
    exact: bool
    evaluations: int
    receipts: tuple[ReceiptNumber, ...] = field(default=(), repr=False)

    def top(self, row: int = 0, count: int = 10) -> list[tuple[str, float, float]]:
        """Columns of one row by what they contribute, largest first.

        Returns:
            Name, attribution and its standard error.
        """
        order = np.argsort(-np.abs(self.attributions[row]), kind="stable")[:count]
        return [
            (
                self.columns[place],
                float(self.attributions[row, place]),
                float(self.errors[row, place]),
            )
            for place in order
        ]

    @property
    def arrays(self) -> dict[str, Array]:
        """The model's outputs, and the explanation, by name."""
        own = {
            "attributions": self.attributions,
            "errors": self.errors,
            "value": self.values,
            "reference": self.references,
            "class": self.classes,
            "fit": self.fits,
        }
        kept = {_PREFIX + name: a for name, a in own.items() if a is not None}
        return self.outputs | kept

    def label(self, row: int = 0) -> str:
        """What is explained of a row: a class's name or number; "" of a number."""
        if self.classes is None:
            return ""
        place = int(self.classes[row])
        return self.labels[place] if place < len(self.labels) else str(place)


def question_for(
    method: str, of: str | int | None, pairs: int | None, samples: int | None
) -> dict[str, Any]:
    """The parameters of a request.

    Raises:
        TensorError: no such method.
    """
    if method not in _METHODS:
        raise TensorError(f"method: one of {', '.join(_METHODS)}")
    asked = {"method": method, "class": of, "pairs": pairs, "samples": samples}
    return {name: value for name, value in asked.items() if value is not None}


def read_explanation(
    arrays: Mapping[str, Array], parameters: Mapping[str, Any]
) -> Explanation:
    """What a server answered.

    Raises:
        TransportError: it is no explanation.
    """
    found = {
        name.removeprefix(_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    try:
        explanation = Explanation(
            {n: a for n, a in arrays.items() if not n.startswith(_PREFIX)},
            found["attributions"],
            found["errors"],
            found["value"],
            found["reference"],
            found.get("class"),
            found.get("fit"),
            _texts(parameters["columns"]),
            _texts(parameters.get("labels", [])),
            str(parameters["quantity"]),
            str(parameters["method"]),
            bool(parameters["exact"]),
            int(parameters["evaluations"]),
            getattr(arrays, "receipts", ()),
        )
        finite = np.isfinite(explanation.attributions).all()
    except (KeyError, TypeError, ValueError):
        raise TransportError("the answer is no explanation") from None
    shape = (len(explanation.values), len(explanation.columns))
    fits = explanation.attributions.shape == explanation.errors.shape == shape
    if not (fits and finite):
        raise TransportError("the explanation has not a number for each column")
    return explanation


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    "".join(values)  # nothing but texts
    return tuple(values)
