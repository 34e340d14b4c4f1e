"""Open Inference Protocol v2 tensors as JSON objects, to and from numpy.

Callers decode and encode the JSON text; these functions work on the decoded objects,
which may come from a hostile peer but whose total size the caller has bounded. Long
arrays of values may still be text (`sealgate.protocol.long_arrays`).
Specification: kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import math
from array import array as make_array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError
from sealgate.protocol.datatypes import (
    BFLOAT16,
    BYTES,
    DATATYPES,
    check_count,
    narrow,
    numbers,
    strings,
)
from sealgate.protocol.long_arrays import LongArray

__all__ = [
    "DATATYPES",
    "Decoder",
    "TensorHead",
    "TensorSpec",
    "datatype_of",
    "decode_response",
    "decode_values",
    "encode_request",
    "encode_tensor",
    "nullable_values",
    "read_head",
    "request_heads",
]

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

# Parsed JSON values that each kind of tensor (numpy's letters) takes.
_ACCEPTED: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "V": frozenset({int, float}),
    "O": frozenset({str}),
}
MAX_DIMENSIONS = 16
# Up to so many numbers are checked and converted faster without numpy.
_FEW = 64
_TYPECODES = {np.dtype(np.float32): "f", np.dtype(np.float64): "d"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's v2 signature.

    Attributes:
        name: as the ONNX graph has it.
        datatype: a key of `DATATYPES`.
        shape: dimensions; -1 matches any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return _signature(self.datatype, self.shape)

    def accepts(self, datatype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this datatype and shape fits.

        >>> TensorSpec("x", "FP32", (-1, 30)).accepts("FP32", (4, 30))
        True
        """
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        # Not all() of a generator: that takes longer than the rest of this.
        pairs = zip(self.shape, shape)
        return not [1 for want, got in pairs if want not in (-1, got)]


class TensorHead(NamedTuple):
    """What a tensor object states before its values.

    Attributes:
        where: role and name, for error texts.
        dtype: numpy's, in this machine's byte order.
        shape: sizes, within bounds each; their product is not.
        nullable: null may stand for a number that JSON has no word for: NaN, here.
    """

    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nullable: bool = False

    @property
    def values(self) -> int:
        """How many values the shape stands for."""
        return math.prod(self.shape)

    def reshape(self, flat: Array) -> Array:
        """Give values their shape.

        Raises:
            TensorError: no values, but sizes whose product overflows.
        """
        try:
            return flat.reshape(self.shape)
        except ValueError:
            raise TensorError(f"{self.where}: the shape is too large") from None


# Values of one tensor object, given what it states before them.
Decoder = Callable[[Any, TensorHead], Array]


def request_heads(
    request: Any, specs: Sequence[TensorSpec], *, max_rows: int
) -> dict[str, tuple[dict[str, Any], TensorHead]]:
    """What a v2 inference request states of its inputs, before their values are read.

    Args:
        request: the decoded JSON body.
        specs: what the model takes; each must be given exactly once.
        max_rows: largest first dimension of any input.

    Returns:
        The objects and what they state by name, in the request's order.

    Raises:
        TensorError: names the tensor, what was expected and what came.
    """
    if not isinstance(request, dict):
        raise TensorError("request: expected a JSON object")
    tensors = request.get("inputs")
    if not isinstance(tensors, list):
        raise TensorError('request: expected an array "inputs"')
    known = {spec.name: spec for spec in specs}
    heads: dict[str, tuple[dict[str, Any], TensorHead]] = {}
    for tensor in tensors:
        spec = known.get(_name(tensor))
        if spec is None:
            names = ", ".join(f'"{name}"' for name in known)
            raise TensorError(
                f'input "{_shorten(_name(tensor))}": unknown, expected {names}'
            )
        if spec.name in heads:
            raise TensorError(f'input "{spec.name}": given twice')
        heads[spec.name] = tensor, _check_spec(tensor, spec, max_rows)
    for name, spec in known.items():
        if name not in heads:
            raise TensorError(f'input "{name}": missing, expected {spec}')
    return heads


def decode_response(
    response: Any, *, decode: Decoder | None = None
) -> dict[str, Array]:
    """Return the outputs of a v2 inference response by name.

    Args:
        response: the decoded JSON body.
        decode: reads values that are elsewhere than in the JSON; called once for each
            output, in the response's order.

    Raises:
        TensorError: the response is malformed.
    """
    if not isinstance(response, dict) or not isinstance(response.get("outputs"), list):
        raise TensorError('response: expected an object with an array "outputs"')
    arrays: dict[str, Array] = {}
    for tensor in response["outputs"]:
        name = _name(tensor)
        if name in arrays:
            raise TensorError(f'output "{_shorten(name)}": given twice')
        head = read_head(tensor, "output")._replace(nullable=True)
        arrays[name] = (decode or decode_values)(tensor, head)
    return arrays


def encode_request(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """The JSON object of a v2 inference request.

    >>> encode_request({"x": np.array([[1, 2]], dtype=np.int64)})["inputs"]
    [{'name': 'x', 'datatype': 'INT64', 'shape': [1, 2], 'data': [1, 2]}]

    Raises:
        TensorError: a dtype that v2 JSON cannot carry, or NaN or infinities.
    """
    return {"inputs": [encode_tensor(name, array) for name, array in inputs.items()]}


def decode_values(tensor: Any, head: TensorHead) -> Array:
    """The values of a tensor object that holds them in "data".

    Raises:
        TensorError: malformed, or values that are not of its datatype and shape.
    """
    data = tensor.get("data")
    if isinstance(data, LongArray):
        return head.reshape(_decode_long(data, head))
    values, types = _flatten(data, head.where)
    _check_values(head, len(values))
    return head.reshape(_convert_checked(values, types, head))


def _decode_long(data: LongArray, head: TensorHead) -> Array:
    """Values that are still text, never more of them at once than a portion."""
    if head.dtype == BYTES:
        check_count(head.values, head.where)
    parts = []
    for values in data.values(head.values, head.where):
        types = set(map(type, values))
        parts.append(_convert_checked(values, types, head))
    return np.concatenate(parts)


def _check_values(head: TensorHead, count: int) -> None:
    if count != head.values:
        raise TensorError(
            f"{head.where}: expected {head.values} values for shape "
            f"{list(head.shape)}, got {count}"
        )


def _convert_checked(values: list[Any], types: set[type], head: TensorHead) -> Array:
    missing = False
    if head.nullable and type(None) in types and head.dtype.kind in "fV":
        types, missing = types - {type(None)}, True
    if not types <= _ACCEPTED[head.dtype.kind]:
        raise TensorError(f"{head.where}: values are not {_NAMES[head.dtype]}")
    if not missing:
        return _convert(values, head.dtype, head.where)
    known = [0 if value is None else value for value in values]
    wide = numbers(_convert(known, head.dtype, head.where))
    result: Array = np.where([value is None for value in values], np.nan, wide)
    if head.dtype == BFLOAT16:
        return narrow(result)
    return result.astype(head.dtype)


def read_head(tensor: Any, role: str) -> TensorHead:
    """What a tensor object states before its values.

    Raises:
        TensorError: malformed, or a datatype that is not supported.
    """
    name, shape = _name(tensor), _shape(tensor, role)
    where = f'{role} "{_shorten(name)}"'
    datatype = tensor.get("datatype")
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise TensorError(f"{where}: unknown datatype")
    return TensorHead(where, dtype, shape)


def datatype_of(name: str, array: Array) -> str:
    """The v2 datatype of an array, in either byte order.

    Raises:
        TensorError: it has none.
    """
    dtype = array.dtype
    if dtype.kind in "OSU":
        return "BYTES"
    datatype = _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("="))
    if datatype is None:
        raise TensorError(f'"{name}": v2 JSON has no datatype for {array.dtype}')
    return datatype


def encode_tensor(
    name: str, array: Array, *, present: Callable[[Array], Any] | None = None
) -> dict[str, Any]:
    """A tensor object that holds its values in "data".

    Args:
        name: of the tensor.
        array: its values.
        present: makes the "data" of flat values; `nullable_values`, for example.
            Without it NaN and infinities are refused.

    Raises:
        TensorError: as `encode_request`.
    """
    datatype = datatype_of(name, array)
    if datatype == "BYTES":
        array = strings(array, f'"{name}"')
    flat = numbers(array).reshape(-1)
    data = (present or np.ndarray.tolist)(flat)
    if present is None and flat.dtype.kind == "f" and not _all_finite(flat, data):
        raise TensorError(f'"{name}": JSON carries neither NaN nor infinities')
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "data": data,
    }


def nullable_values(flat: Array) -> list[Any]:
    """The values of a flat array, null for those that JSON has no word for.

    >>> nullable_values(np.array([1.5, np.nan, np.inf]))
    [1.5, None, None]
    """
    values: list[Any] = flat.tolist()
    if flat.dtype.kind != "f" or _all_finite(flat, values):
        return values
    return [value if math.isfinite(value) else None for value in values]


def _check_spec(tensor: dict[str, Any], spec: TensorSpec, max_rows: int) -> TensorHead:
    """An input's head, which is as `spec` says."""
    given, shape = tensor.get("datatype"), _shape(tensor, "input")
    if not isinstance(given, str) or not spec.accepts(given, shape):
        label = _shorten(given) if isinstance(given, str) else "no datatype"
        raise TensorError(
            f'input "{spec.name}": expected {spec}, got {_signature(label, shape)}'
        )
    if shape and shape[0] > max_rows:
        raise TensorError(
            f'input "{spec.name}": {shape[0]} rows, at most {max_rows} allowed'
        )
    return TensorHead(f'input "{spec.name}"', DATATYPES[spec.datatype], shape)


def _flatten(data: Any, where: str) -> tuple[list[Any], set[type]]:
    """The values of an array nested to any depth, in row-major order; their types.

    numpy's own conversion is not for hostile values: one long string among them would
    make it allocate that length for each.
    """
    if not isinstance(data, list):
        raise TensorError(f'{where}: expected an array "data"')
    values: list[Any] = data
    for _ in range(MAX_DIMENSIONS):
        types = set(map(type, values))
        if list not in types:
            return values, types
        if types != {list} or len(set(map(len, values))) != 1:
            break
        values = list(chain.from_iterable(values))
    raise TensorError(f"{where}: data is ragged or nested too deeply")


def _convert(values: list[Any], dtype: np.dtype[Any], where: str) -> Array:
    typecode = _TYPECODES.get(dtype)
    if typecode is None and dtype == BYTES:
        check_count(len(values), where)
        return strings(_objects(values), where)
    if typecode is None and dtype == BFLOAT16:
        wide = _convert(values, DATATYPES["FP32"], where)
        return _finite(narrow(wide), where)
    try:
        if typecode is not None and len(values) <= _FEW:
            few = make_array(typecode, values)
            finite = all(map(math.isfinite, few))
            result = np.frombuffer(few, dtype=dtype)
        else:
            with np.errstate(over="ignore"):
                result = np.array(values, dtype=dtype)
            finite = dtype.kind != "f" or bool(np.isfinite(result).all())
    except OverflowError:
        finite = False
    if not finite:
        raise TensorError(f"{where}: a value is out of range for {_NAMES[dtype]}")
    return result


def _finite(array: Array, where: str) -> Array:
    values = numbers(array)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise TensorError(f"{where}: a value is out of range for {_NAMES[array.dtype]}")
    return array


def _all_finite(array: Array, values: list[float]) -> bool:
    """Of an array and its values: the shorter way for few of them is Python's."""
    if len(values) <= _FEW:
        return all(map(math.isfinite, values))
    return bool(np.isfinite(array).all())


def _objects(values: list[Any]) -> Array:
    result = np.empty(len(values), dtype=BYTES)
    result[:] = values
    return result


def _name(tensor: Any) -> str:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise TensorError('a tensor is not an object with a "name"')
    return name


def _shape(tensor: Any, role: str) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS:
        for size in shape:
            if type(size) is not int or not 0 <= size < 1 << 40:
                break
        else:
            return tuple(shape)
    raise TensorError(
        f'{role} "{_shorten(_name(tensor))}": expected an array "shape" of sizes'
    )


def _signature(datatype: str, shape: Sequence[int]) -> str:
    return f"{datatype}[{','.join(map(str, shape))}]"


def _shorten(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "…"
