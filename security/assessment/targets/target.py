"""What is scanned: an ONNX file, a bundle's model, or an endpoint.

A check sees a `Target`: rows in, answers out, and where the graph converts, gradients.
Rows are flat, ``(n, d)``; the target knows the shape and the type that its input takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.sessions import TYPES, make_session
from sealgate.protocol.datatypes import DATATYPES
from security.assessment.targets.answers import Answers, Reading, read_answers, settle
from security.errors import AssessmentError

__all__ = [
    "BATCH_ROWS",
    "InputSpec",
    "OnnxTarget",
    "Target",
    "dtype_of",
    "fit_rows",
]

BATCH_ROWS = 4096

Rows = NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """The one input.

    Attributes:
        name: of the tensor.
        dtype: numpy's name of its element type.
        shape: without the first axis; None is a size that may vary.
        batch: the first axis where it is fixed, otherwise None.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    batch: int | None = None


class Target(Protocol):
    """What every check works with.

    Attributes:
        name: for people; no path.
        kind: "onnx", "bundle" or "remote".
        sha256: of the ONNX file, or None.
        spec: the input.
        shape: of one row, once `fit_rows` has seen the data.
        reading: how answers are read, once `calibrate` has seen some.
    """

    name: str
    kind: str
    sha256: str | None
    spec: InputSpec
    shape: tuple[int, ...]
    reading: Reading

    @property
    def queries(self) -> int:
        """Rows asked so far."""
        ...

    def calibrate(
        self, rows: Rows, classes: Sequence[str], known: int, output: str | None
    ) -> Answers:
        """Ask about real rows, decide how outputs are read, and read them."""
        ...

    def ask(self, rows: Rows) -> Answers:
        """Answers about rows ``(n, d)`` in the input's own type."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


@dataclass
class OnnxTarget:
    """An ONNX file that passed structural inspection, run by onnxruntime."""

    model: bytes = field(repr=False)
    name: str = "model.onnx"
    kind: str = "onnx"

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            AssessmentError: it has not one numeric input.
            SessionError: onnxruntime refuses it.
        """
        self.sha256: str | None = hashlib.sha256(self.model).hexdigest()
        self._asked = 0
        self.shape: tuple[int, ...] = ()
        self._session = make_session(self.model)
        self.spec = _input_spec(self._session.get_inputs())
        self.output_names = tuple(item.name for item in self._session.get_outputs())
        self._wanted: list[str] | None = None

    def calibrate(
        self, rows: Rows, classes: Sequence[str], known: int, output: str | None
    ) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: the model cannot run the rows, or is no classifier.
        """
        outputs = self._run_all(rows)
        self.reading = settle(outputs, classes, known, output)
        names = {self.reading.output, self.reading.label_output} - {None}
        self._wanted = [name for name in self.output_names if name in names]
        return read_answers(outputs, self.reading, len(rows))

    def ask(self, rows: Rows) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: the model cannot run the rows.
        """
        return read_answers(self._run_all(rows), self.reading, len(rows))

    def values(self, rows: Rows, name: str) -> NDArray[Any]:
        """One output about rows ``(n, d)``, as it comes.

        Raises:
            AssessmentError: the model cannot run the rows.
        """
        return np.asarray(self._run_all(rows, [name])[name])

    @property
    def queries(self) -> int:
        """Rows asked so far."""
        return self._asked

    def close(self) -> None:
        """Nothing is open."""

    def _run_all(self, rows: Rows, wanted: list[str] | None = None) -> dict[str, Any]:
        self._asked += len(rows)
        size = self.spec.batch or BATCH_ROWS
        names = wanted or self._wanted or list(self.output_names)
        parts = [
            self._run(rows[start : start + size], names)
            for start in range(0, len(rows), size)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _run(self, rows: Rows, names: list[str]) -> dict[str, Any]:
        shaped = rows.reshape(len(rows), *self.shape)
        missing = (self.spec.batch or len(rows)) - len(rows)
        if missing:
            shaped = np.concatenate([shaped, np.repeat(shaped[-1:], missing, axis=0)])
        try:
            values = self._session.run(names, {self.spec.name: shaped})
        except Exception as error:  # noqa: BLE001  (its exceptions share no other base)
            raise AssessmentError(
                f"onnxruntime cannot run the model: {_first_line(error)}"
            ) from None
        return {name: _head(value, len(rows)) for name, value in zip(names, values)}


def fit_rows(spec: InputSpec, features: Rows) -> tuple[Rows, tuple[int, ...]]:
    """Rows as the input takes them, flat, and the shape of one.

    Args:
        spec: of the input.
        features: ``(n, …)``; flat rows fit any shape with as many elements.

    Raises:
        AssessmentError: says what the data has and what the model takes.
    """
    given = features.shape[1:]
    shape = _fitting_shape(spec.shape, given)
    if shape is None:
        wanted = " x ".join("any" if n is None else str(n) for n in spec.shape) or "one"
        raise AssessmentError(
            f"the data has rows of {' x '.join(map(str, given))} values, "
            f"input {spec.name!r} takes {wanted}"
        )
    flat = features.reshape(len(features), -1)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        _check_integers(flat, dtype, spec.name)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(flat.astype(dtype)), shape


def _fitting_shape(
    wanted: tuple[int | None, ...], given: tuple[int, ...]
) -> tuple[int, ...] | None:
    if len(wanted) == len(given) and all(
        size is None or size == own for size, own in zip(wanted, given)
    ):
        return given
    elements = int(np.prod(given))
    open_axes = [axis for axis, size in enumerate(wanted) if size is None]
    fixed = int(np.prod([size for size in wanted if size is not None]))
    if not open_axes and fixed == elements:
        return tuple(size for size in wanted if size is not None)
    if len(open_axes) == 1 and fixed and elements % fixed == 0:
        return tuple(elements // fixed if size is None else size for size in wanted)
    return None


def dtype_of(datatype: str) -> str | None:
    """Numpy's name of a datatype of requests, if it is one of numbers."""
    known = DATATYPES.get(datatype)
    return None if known is None or known.kind not in "iuf" else known.name


def _check_integers(flat: Rows, dtype: np.dtype[Any], name: str) -> None:
    bounds = np.iinfo(dtype)
    if not np.isfinite(flat.astype(np.float64)).all():
        raise AssessmentError(f"input {name!r} takes whole numbers, a value is missing")
    if (flat != np.round(flat)).any():
        raise AssessmentError(
            f"input {name!r} takes whole numbers ({dtype}), the data has fractions"
        )
    if flat.min() < bounds.min or flat.max() > bounds.max:
        raise AssessmentError(
            f"input {name!r} takes {dtype}, {bounds.min} to {bounds.max}; the data has "
            f"{flat.min():g} to {flat.max():g}"
        )


def _input_spec(inputs: Sequence[Any]) -> InputSpec:
    if len(inputs) != 1:
        names = ", ".join(repr(item.name[:40]) for item in inputs[:5])
        raise AssessmentError(
            f"the model has {len(inputs)} inputs ({names}); a scan takes models of one"
        )
    (item,) = inputs
    dtype = dtype_of(TYPES.get(item.type, ""))
    if dtype is None:
        raise AssessmentError(f"input {item.name[:40]!r} is a {item.type}, no numbers")
    sizes = [size if isinstance(size, int) else None for size in item.shape]
    if not sizes:
        raise AssessmentError(f"input {item.name[:40]!r} has no axis for rows")
    return InputSpec(item.name, dtype, tuple(sizes[1:]), sizes[0])


def _head(value: Any, rows: int) -> Any:
    # Answers about the rows that only filled a fixed batch are dropped.
    return value[:rows] if isinstance(value, list) or np.ndim(value) else value


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    def join(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [item for value in values for item in value]
        return np.concatenate([np.asarray(value) for value in values])

    return {name: join([part[name] for part in parts]) for name in parts[0]}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
