r"""The datatypes of the Open Inference Protocol v2, and what numpy calls them.

Two of them numpy lacks. BF16 is a structure of one 16-bit integer, so that it passes
through as it is; `widen` and `narrow` make numbers of it. BYTES is an array of objects,
each a text: ONNX runs strings of UTF-8. In JSON they are strings; as bytes each
is its length, four bytes little-endian, and its UTF-8.

>>> array = np.array(["é", ""], dtype=BYTES)
>>> pack_strings(array, "x")
b'\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError

__all__ = [
    "BFLOAT16",
    "BYTES",
    "DATATYPES",
    "MAX_ELEMENTS",
    "MAX_ELEMENT_BYTES",
    "check_count",
    "narrow",
    "numbers",
    "pack_strings",
    "strings",
    "unpack_strings",
]

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
BYTES = np.dtype(np.object_)

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": BFLOAT16,
    "BYTES": BYTES,
}

# Of BYTES. An object takes some 60 bytes here, whatever its length on the wire: without
# the second bound, a body of short elements would grow tenfold.
MAX_ELEMENT_BYTES = 1 << 20
MAX_ELEMENTS = 1 << 20


def narrow(array: Array) -> Array:
    """Round numbers to BF16, half to even. What is too large becomes infinite.

    >>> numbers(narrow(np.array([1.0, 3.14159, -1e39])))
    array([1.      , 3.140625,     -inf], dtype=float32)
    """
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(array, dtype=np.float32)
    bits = wide.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    # Rounding must not carry a NaN's payload over into its sign.
    quiet = (bits >> 16) | 0x40
    result: Array = np.where(np.isnan(wide), quiet, rounded).astype(np.uint16)
    return result.view(BFLOAT16).reshape(array.shape)


def numbers(array: Array) -> Array:
    """A BF16 array as FP32, exactly; any other array as it is."""
    if array.dtype != BFLOAT16:
        return array
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint16).astype(np.uint32)
    wide: Array = (flat << 16).view(np.float32)
    return wide.reshape(array.shape)


def strings(array: Array, where: str) -> Array:
    """An array of texts: from numpy's own string types, from bytes that are UTF-8.

    Raises:
        TensorError: an element is neither, or longer than `MAX_ELEMENT_BYTES`.
    """
    flat = [_text(item, where) for item in array.reshape(-1).tolist()]
    result = np.empty(len(flat), dtype=BYTES)
    result[:] = flat
    return result.reshape(array.shape)


def pack_strings(array: Array, where: str) -> bytes:
    """The wire form of the texts in an array, row-major.

    Raises:
        TensorError: as `strings`.
    """
    parts: list[bytes] = []
    for item in array.reshape(-1).tolist():
        data = _encoded(_text(item, where), where)
        parts += (len(data).to_bytes(4, "little"), data)
    return b"".join(parts)


def unpack_strings(data: memoryview, count: int, where: str) -> Array:
    """Texts from their wire form.

    Args:
        data: exactly them.
        count: how many there must be.
        where: role and name, for error texts.

    Raises:
        TensorError: more or fewer, longer than allowed, or not UTF-8.
    """
    # Each takes four bytes at least: nothing is made for those that cannot be there.
    check_count(count, where)
    if count * 4 > len(data):
        raise TensorError(f"{where}: {len(data)} bytes cannot hold {count} elements")
    result = np.empty(count, dtype=BYTES)
    position = 0
    for index in range(count):
        start = position + 4
        size = int.from_bytes(data[position:start], "little")
        position = start + size
        if size > MAX_ELEMENT_BYTES or position > len(data):
            raise TensorError(f"{where}: element {index} is cut, or too long")
        result[index] = _decoded(data[start:position], where)
    if position != len(data):
        raise TensorError(f"{where}: bytes follow its last element")
    return result


def check_count(count: int, where: str) -> None:
    """Refuse more elements of BYTES than are allowed."""
    if count > MAX_ELEMENTS:
        raise TensorError(f"{where}: at most {MAX_ELEMENTS} elements of BYTES allowed")


def _text(item: Any, where: str) -> str:
    if isinstance(item, bytes):
        item = _decoded(item, where)
    if not isinstance(item, str):
        raise TensorError(f"{where}: values are not BYTES")
    # Most texts need no second look.
    if len(item) > MAX_ELEMENT_BYTES // 4 or not item.isascii():
        _encoded(item, where)
    return item


def _encoded(text: str, where: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise TensorError(f"{where}: an element is not UTF-8") from None
    if len(data) > MAX_ELEMENT_BYTES:
        raise TensorError(
            f"{where}: an element is longer than {MAX_ELEMENT_BYTES} bytes"
        )
    return data


def _decoded(data: bytes | memoryview, where: str) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise TensorError(f"{where}: an element is not UTF-8") from None
