"""What callers have, arrays, lists and data frames, into what a model takes.

Data frames are recognised by what they can do, so pandas is used where a caller has it
and is never imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError
from sealgate.protocol import datatypes, tensors
from sealgate.protocol.datatypes import BFLOAT16, BYTES

__all__ = ["columns_of", "is_frame", "to_arrays"]

Array = npt.NDArray[Any]


def to_arrays(inputs: Any, metadata: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays to send, by tensor name, in the model's dtypes.

    Args:
        inputs: arrays or data frames by tensor name; or one data frame, whose columns
            are taken by name.
        metadata: the model's v2 metadata.

    Raises:
        TensorError: a value would change beyond float rounding, a column is missing,
            or rows are not of one length.
    """
    known: dict[str, Mapping[str, Any]] = {t["name"]: t for t in metadata["inputs"]}
    if is_frame(inputs):
        return {name: _from_frame(inputs, tensor) for name, tensor in known.items()}
    if not isinstance(inputs, Mapping):
        raise TensorError("inputs: expected a mapping by name, or a data frame")
    arrays: dict[str, Array] = {}
    for name, value in inputs.items():
        tensor = known.get(name, {"name": name})
        if is_frame(value):
            arrays[name] = _from_frame(value, tensor)
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


def _from_frame(frame: Any, tensor: Mapping[str, Any]) -> Array:
    """One tensor out of a frame: its columns, or the column of its own name."""
    name, datatype = tensor["name"], tensor.get("datatype")
    names = columns_of(tensor)
    if names:
        columns = [_column(frame, column, name, datatype) for column in names]
        return np.stack(columns, axis=1)
    if name in frame.columns:
        column = _column(frame, name, name, datatype)
        rank = len(tensor.get("shape", [-1]))
        return column.reshape(-1, *[1] * (rank - 1)) if rank else column
    return _cast(name, np.asarray(frame.to_numpy()), datatype)


def _column(frame: Any, column: str, name: str, datatype: str | None) -> Array:
    # Column by column: a frame's own conversion takes one dtype for all of them.
    if list(frame.columns).count(column) != 1:
        found = "given twice" if column in frame.columns else "missing"
        raise TensorError(f'input "{name}": column "{column}" is {found}')
    where = f'{name}" column "{column}'
    return _cast(where, np.asarray(frame[column].to_numpy()), datatype)


def _array(name: str, value: npt.ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except ValueError:
        raise TensorError(f'input "{name}": rows are not of one length') from None


def _cast(name: str, array: Array, datatype: str | None) -> Array:
    """Cast to the model's dtype, refusing to change a value beyond float rounding."""
    dtype = tensors.DATATYPES.get(datatype or "")
    if dtype == BYTES:
        return datatypes.strings(array, f'input "{name}"')
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == BFLOAT16:
        return _cast_bf16(name, array)
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if not integers and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TensorError(f'input "{name}": {array.dtype} cannot be sent as {datatype}')
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if not _same(converted, array):
        raise TensorError(f'input "{name}": a value is out of range for {datatype}')
    return converted


def _cast_bf16(name: str, array: Array) -> Array:
    wide = _cast(name, array, "FP32")
    narrowed = datatypes.narrow(wide)
    if not _same(datatypes.numbers(narrowed), wide):
        raise TensorError(f'input "{name}": a value is out of range for BF16')
    return narrowed


def _same(converted: Array, array: Array) -> bool:
    if converted.dtype.kind == "f":
        return np.array_equal(np.isinf(converted), np.isinf(array))
    return np.array_equal(converted, array)
