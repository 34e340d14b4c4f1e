"""Whether a stored tensor holds what its shape declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from security.inspection.engine import MAX_ELEMENT_TYPE

__all__ = ["STORES", "holds"]

_TENSOR = onnx.TensorProto
# Values stored outside raw_data: field by element type. Those that ONNX added after the
# pinned onnxruntime are unknown.
STORES: Mapping[int, str] = {
    kind: onnx.helper.tensor_dtype_to_field(kind)
    for kind in range(1, MAX_ELEMENT_TYPE + 1)
}
_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


def holds(tensor: Any, elements: int) -> bool:
    """Whether a tensor stores exactly as much as its shape declares, in one place."""
    filled = [name for name in _FIELDS if len(getattr(tensor, name))]
    store = STORES[tensor.data_type]
    if tensor.HasField("segment"):
        return False
    if tensor.HasField("raw_data"):
        return (
            not filled
            and tensor.data_type != _TENSOR.STRING
            and len(tensor.raw_data) == _raw_bytes(tensor.data_type, elements)
        )
    if any(name != store for name in filled):
        return False
    return len(getattr(tensor, store)) == _stored(tensor.data_type, elements)


def _raw_bytes(kind: int, elements: int) -> int:
    bits = _packed_bits(kind)
    if bits:
        return -(-elements * bits // 8)
    size: int = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize
    return elements * size


def _stored(kind: int, elements: int) -> int:
    bits = _packed_bits(kind)
    if bits:
        return -(-elements * bits // 8)
    return elements * (2 if kind in (_TENSOR.COMPLEX64, _TENSOR.COMPLEX128) else 1)


def _packed_bits(kind: int) -> int:
    """Bits per element of the types that share bytes, 0 for all others."""
    name = _TENSOR.DataType.Name(kind)
    if name in ("INT4", "UINT4") or name.startswith("FLOAT4"):
        return 4
    return 2 if name in ("INT2", "UINT2") else 0
