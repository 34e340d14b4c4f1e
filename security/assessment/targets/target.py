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

from models.data.held_out import Holdout
from models.sessions import TYPES, make_session
from sealgate.protocol.datatypes import DATATYPES
from security.assessment.targets.answers import Answers, Reading, read_answers
from security.assessment.targets.decision import Stated, settle
from security.assessment.targets.declared import declared_outputs
from security.assessment.targets.texts import Texts
from security.errors import AssessmentError

__all__ = [
    "BATCH_ROWS",
    "InputSpec",
    "OnnxTarget",
    "Target",
    "arranged",
    "dtype_of",
    "fit_rows",
    "input_of",
    "side_by_side",
]

BATCH_ROWS = 4096

Rows = NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """The input, or several side by side.

    Attributes:
        name: of the tensor; of several all names.
        dtype: numpy's name of its element type; "str" of texts.
        shape: without the first axis; None is a size that may vary. Of several as many
            columns as they have together.
        batch: the first axis where it is fixed, otherwise None.
        parts: the inputs where there are several, or one of texts; otherwise none.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    batch: int | None = None
    parts: tuple[InputSpec, ...] = ()

    @property
    def width(self) -> int:
        """Columns, where no size is open."""
        return int(np.prod([size or 0 for size in self.shape], dtype=np.int64))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of several inputs: theirs, or with a place behind."""
        return tuple(
            part.name if part.width == 1 else f"{part.name}[{place}]"
            for part in self.parts
            for place in range(part.width)
        )

    def types(self, width: int) -> NDArray[np.str_]:
        """The element type of each of the columns ``(width,)``."""
        if not self.parts:
            return np.full(width, self.dtype)
        return np.repeat(
            [part.dtype for part in self.parts], [part.width for part in self.parts]
        )

    def feeds(
        self, rows: Rows, shape: tuple[int, ...], texts: Texts
    ) -> dict[str, NDArray[Any]]:
        """Rows ``(n, d)`` as the model takes them, by input."""
        if not self.parts:
            return {self.name: rows.reshape(len(rows), *shape)}
        found, first = {}, 0
        for part in self.parts:
            own = rows[:, first : first + part.width]
            first += part.width
            sizes = [size or 0 for size in part.shape]
            made = texts.of(own) if part.dtype == "str" else own.astype(part.dtype)
            found[part.name] = made.reshape(len(rows), *sizes)
        return found


class Target(Protocol):
    """What every check works with.

    Attributes:
        name: for people; no path.
        kind: "onnx", "bundle" or "remote".
        sha256: of the ONNX file, or None.
        spec: the input.
        shape: of one row, once `fit_rows` has seen the data.
        reading: how answers are read, once `calibrate` has seen some.
        texts: that rows hold the places of.
    """

    name: str
    kind: str
    sha256: str | None
    spec: InputSpec
    shape: tuple[int, ...]
    reading: Reading
    texts: Texts

    @property
    def queries(self) -> int:
        """Rows asked so far."""
        ...

    def calibrate(self, rows: Rows, stated: Stated) -> Answers:
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
            AssessmentError: it has an input that is neither numbers nor texts.
            SessionError: onnxruntime refuses it.
        """
        self.sha256: str | None = hashlib.sha256(self.model).hexdigest()
        self._asked = 0
        self.shape: tuple[int, ...] = ()
        self.texts = Texts()
        self._session = make_session(self.model)
        self.spec = _input_spec(self._session.get_inputs())
        self.output_names = tuple(item.name for item in self._session.get_outputs())
        self._wanted: list[str] | None = None

    def calibrate(self, rows: Rows, stated: Stated) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: the model cannot run the rows, or is no classifier.
        """
        outputs = self.outputs(rows)
        self.reading = settle(outputs, stated, declared_outputs(self.model))
        names = {self.reading.output, self.reading.label_output} - {None}
        self._wanted = [name for name in self.output_names if name in names]
        return read_answers(outputs, self.reading, len(rows))

    def ask(self, rows: Rows) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: the model cannot run the rows.
        """
        return read_answers(self.outputs(rows), self.reading, len(rows))

    def values(self, rows: Rows, name: str) -> NDArray[Any]:
        """One output about rows ``(n, d)``, as it comes.

        Raises:
            AssessmentError: the model cannot run the rows.
        """
        return np.asarray(self.outputs(rows, [name])[name])

    @property
    def queries(self) -> int:
        """Rows asked so far."""
        return self._asked

    def close(self) -> None:
        """Nothing is open."""

    def outputs(self, rows: Rows, wanted: list[str] | None = None) -> dict[str, Any]:
        """What onnxruntime gives about rows ``(n, d)``, by output, as it comes.

        Raises:
            AssessmentError: the model cannot run the rows.
        """
        self._asked += len(rows)
        size = self.spec.batch or BATCH_ROWS
        names = wanted or self._wanted or list(self.output_names)
        parts = [
            self._run(rows[start : start + size], names)
            for start in range(0, len(rows), size)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _run(self, rows: Rows, names: list[str]) -> dict[str, Any]:
        missing = (self.spec.batch or len(rows)) - len(rows)
        filled = rows
        if missing:
            filled = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        feeds = self.spec.feeds(filled, self.shape, self.texts)
        try:
            values = self._session.run(names, feeds)
        except Exception as error:  # noqa: BLE001  (its exceptions share no other base)
            raise AssessmentError(
                f"onnxruntime cannot run the model: {_first_line(error)}"
            ) from None
        return {name: _head(value, len(rows)) for name, value in zip(names, values)}


def arranged(holdout: Holdout, spec: InputSpec, names: Sequence[str]) -> Holdout:
    """Rows with the model's columns in its order, and of its kinds.

    Args:
        holdout: the rows.
        spec: of the input, or inputs: their columns are found by name.
        names: of the columns, where a manifest or an endpoint says; or none.

    Raises:
        AssessmentError: texts for numbers, or numbers for texts.
        DatasetError: other columns than the model's.
    """
    one = len(spec.columns) == 1 and len(holdout.columns) == 1
    holdout = holdout.arranged(names or ([] if one else spec.columns))
    known = holdout.columns or spec.columns
    for name, kind in zip(known, spec.types(len(known))):
        if (kind == "str") != (name in holdout.texts):
            what = "texts" if kind == "str" else "numbers"
            raise AssessmentError(
                f"{holdout.name}: column {name!r} is not {what}, which the model takes "
                "there; `text` in the data configuration names the columns of texts"
            )
    return holdout


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
    found = []
    for item in inputs:
        kind = TYPES.get(item.type, "")
        dtype = "str" if kind == "BYTES" else dtype_of(kind)
        if dtype is None:
            raise AssessmentError(
                f"input {item.name[:40]!r} is a {item.type}, no numbers and no texts"
            )
        sizes = [size if isinstance(size, int) else None for size in item.shape]
        found.append(input_of(item.name, dtype, sizes))
    return side_by_side(found)


def input_of(name: str, dtype: str, sizes: Sequence[int | None]) -> InputSpec:
    """One input, with its axis for rows first.

    Raises:
        AssessmentError: it has none.
    """
    if not sizes:
        raise AssessmentError(f"input {name[:40]!r} has no axis for rows")
    return InputSpec(name, dtype, tuple(sizes[1:]), sizes[0])


def side_by_side(parts: Sequence[InputSpec]) -> InputSpec:
    """One input of numbers as it is; several, or texts, as columns of one table.

    Raises:
        AssessmentError: one of several has an axis of open length, or they have fixed
            batches of different sizes.
    """
    if len(parts) == 1 and parts[0].dtype != "str":
        return parts[0]
    for part in parts:
        if None in part.shape:
            raise AssessmentError(
                f"input {part.name[:40]!r} has an axis of open length: how many "
                "columns it has cannot be known"
            )
    batches = {part.batch for part in parts}
    if len(batches) != 1:
        raise AssessmentError("the inputs have batches of different sizes")
    kinds = {part.dtype for part in parts}
    dtype = kinds.pop() if len(kinds) == 1 and "str" not in kinds else "float64"
    names = ",".join(part.name for part in parts)
    width = sum(part.width for part in parts)
    return InputSpec(names, dtype, (width,), batches.pop(), tuple(parts))


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
