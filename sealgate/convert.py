"""What callers have, arrays, lists and data frames, into what a model takes.

Data frames are recognised by what they can do, so pandas is used where a caller has it
and is never imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.cells import read_cells, texts_of
from sealgate.errors import TensorError
from sealgate.protocol import datatypes, tensors
from sealgate.protocol.datatypes import BFLOAT16, BYTES

__all__ = ["columns_of", "is_frame", "to_arrays"]

Array = npt.NDArray[Any]
Row = Callable[[int], str]


def to_arrays(
    inputs: Any, metadata: Mapping[str, Any], *, row: Row = "row {}".format
) -> dict[str, Array]:
    """The arrays to send, by tensor name, in the model's dtypes.

    Args:
        inputs: arrays or data frames by tensor name; or one data frame, whose columns
            are taken by name.
        metadata: the model's v2 metadata.
        row: what a row of a data frame is called in errors.

    Raises:
        TensorError: a value would change beyond float rounding, a column is missing or
            has no value where the model needs one, or rows are not of one length.
    """
    known: dict[str, Mapping[str, Any]] = {t["name"]: t for t in metadata["inputs"]}
    if is_frame(inputs):
        return {name: _from_frame(inputs, t, row) for name, t in known.items()}
    if not isinstance(inputs, Mapping):
        raise TensorError("inputs: expected a mapping by name, or a data frame")
    arrays: dict[str, Array] = {}
    for name, value in inputs.items():
        tensor = known.get(name, {"name": name})
        if is_frame(value):
            arrays[name] = _from_frame(value, tensor, row)
        else:
            arrays[name] = _cast(name, _array(name, value), tensor.get("datatype"))
    return arrays


def is_frame(value: Any) -> bool:
    """Whether this is a pandas or polars data frame, or behaves like one."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def columns_of(tensor: Mapping[str, Any]) -> list[str]:
    """The names of a tabular input's columns, in the model's order."""
    parameters = tensor.get("parameters", {})
    return [column["name"] for column in parameters.get("columns", [])]


def _from_frame(frame: Any, tensor: Mapping[str, Any], row: Row) -> Array:
    """One tensor out of a frame: its columns, the column of its own name, or all."""
    name = tensor["name"]
    columns = tensor.get("parameters", {}).get("columns", [])
    shape = tensor.get("shape", [-1])
    if columns:
        return np.stack([_column(frame, c, tensor, row) for c in columns], axis=1)
    if name in frame.columns:
        column = _column(frame, {"name": name}, tensor, row)
        return column.reshape(-1, *[1] * (len(shape) - 1)) if shape else column
    plain = np.asarray(frame.to_numpy())
    if plain.dtype.kind in "biuf":
        rows = _cast(name, plain, tensor.get("datatype"))
    else:
        every = [{"name": column} for column in frame.columns]
        rows = np.stack([_column(frame, c, tensor, row) for c in every], axis=1)
    return _shaped(rows, shape)


def _shaped(rows: Array, shape: Sequence[int]) -> Array:
    """A row of numbers as the picture, say, that the model takes for it."""
    fits = all(size > 0 for size in shape[1:]) and shape[:1] == [-1]
    if fits and rows.shape[1:] == (math.prod(shape[1:]),):
        return rows.reshape(-1, *shape[1:])
    return rows


def _column(
    frame: Any, column: Mapping[str, Any], tensor: Mapping[str, Any], row: Row
) -> Array:
    # Column by column: a frame's own conversion takes one dtype for all of them.
    name, datatype = column["name"], tensor.get("datatype")
    if list(frame.columns).count(name) != 1:
        found = "given twice" if name in frame.columns else "missing"
        raise TensorError(f'input "{tensor["name"]}": column "{name}" is {found}')
    where = f'input "{tensor["name"]}", column "{name}"'
    values, categories = np.asarray(frame[name].to_numpy()), column.get("categories")
    if values.dtype.kind in "mM":
        raise TensorError(f"{where}: points in time cannot be sent; send numbers")
    if datatype is not None and (categories or _needs_reading(values, datatype)):
        cells = texts_of(values.tolist(), where)
        values = read_cells(
            cells, datatype, categories=categories or (), where=where, row=row
        )
    return _cast(f'{tensor["name"]}", column "{name}', values, datatype, row)


def _needs_reading(values: Array, datatype: str) -> bool:
    """Whether cells are to be read one by one: objects, and fractions for integers.

    That is how pandas gives whole numbers of which one is missing.
    """
    kind = tensors.DATATYPES.get(datatype, BYTES).kind
    return values.dtype.kind not in "biuf" or (
        values.dtype.kind == "f" and kind in "iu"
    )


def _array(name: str, value: npt.ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except ValueError:
        raise TensorError(f'input "{name}": rows are not of one length') from None


def _cast(
    name: str, array: Array, datatype: str | None, row: Row | None = None
) -> Array:
    """Cast to the model's dtype, refusing to change a value beyond float rounding."""
    dtype = tensors.DATATYPES.get(datatype or "")
    if dtype == BYTES:
        return datatypes.strings(array, f'input "{name}"')
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == BFLOAT16:
        return _cast_bf16(name, array, row)
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if not integers and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TensorError(f'input "{name}": {array.dtype} cannot be sent as {datatype}')
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    _check_same(name, converted, array, f"out of range for {datatype}", row)
    return converted


def _cast_bf16(name: str, array: Array, row: Row | None) -> Array:
    wide = _cast(name, array, "FP32", row)
    narrowed = datatypes.narrow(wide)
    numbers = datatypes.numbers(narrowed)
    _check_same(name, numbers, wide, "out of range for BF16", row)
    return narrowed


def _check_same(
    name: str, converted: Array, array: Array, what: str, row: Row | None
) -> None:
    """Refuse what casting has changed beyond rounding; names the row of a column."""
    if converted.dtype.kind == "f":
        changed = np.isinf(converted) != np.isinf(array)
    else:
        changed = converted != array
    if np.any(changed):
        place = "" if row is None else f", {row(int(np.argmax(changed)))}"
        raise TensorError(f'input "{name}"{place}: a value is {what}')
