"""What a session takes and gives, against the signed manifest; and values in and out.

onnxruntime knows more than tensors, and numpy less than v2's datatypes. Requests and
answers have tensors only: sequences of maps become rows and columns, sequences of
tensors are stacked. BF16 goes in and out as the integers that it is stored in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from models.manifest import Manifest, Tensor
from models.sessions import MAPS, SEQUENCE, TYPES, NodeArg, Session, shape_of
from sealgate.protocol.datatypes import BFLOAT16, DATATYPES
from sealgate.protocol.tensors import Array
from security.errors import AdmissionRefused, InferenceFailedError

__all__ = ["ShapeError", "Signature"]

_ONNX_BFLOAT16 = 16  # onnx.proto, TensorProto.DataType
_MAX_FITTING = 1024

Presented = Callable[[Any], Array]


class ShapeError(InferenceFailedError):
    """An output has another shape than the signed manifest says."""


class Signature:
    """How one session's values become arrays."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        """Compare a session with its manifest: check 17.

        Raises:
            AdmissionRefused: it takes or gives other tensors.
        """
        self._session = session
        _check(session.get_inputs(), manifest.inputs, shapes=True)
        # What comes is held to the manifest; what is declared, exporters guess.
        _check(session.get_outputs(), manifest.outputs, shapes=False)
        types = {node.name: node.type for node in session.get_outputs()}
        self._present = {
            tensor.spec.name: _presenter(tensor, types[tensor.spec.name])
            for tensor in manifest.outputs
            if tensor.form != "tensor"
        }
        self._has_bf16 = manifest.has_bf16
        self._shapes = {t.spec.name: t.spec.shape for t in manifest.outputs}
        # Shapes that were seen to fit: looking one up takes less than comparing it.
        self._fitting: set[tuple[str, tuple[int, ...]]] = set()

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions,
    ) -> list[Array]:
        """Run once, in the calling thread.

        Raises:
            InferenceFailedError: onnxruntime raised, or gave what is no tensor; what it
                said stays here, since it may quote the input.
            ShapeError: an output has another shape than the manifest says.
        """
        try:
            if self._has_bf16:
                values = self._run_bf16(inputs, outputs, options)
            else:
                values = self._session.run(
                    list(outputs), dict(inputs), run_options=options
                )
        except Exception:  # noqa: BLE001  (onnxruntime's errors share no base class)
            raise InferenceFailedError("onnxruntime failed") from None
        return [self._presented(name, value) for name, value in zip(outputs, values)]

    def _presented(self, name: str, value: Any) -> Array:
        present = self._present.get(name)
        array: Array = value if present is None else present(value)
        if (name, array.shape) in self._fitting:
            return array
        array = _shaped(name, array, self._shapes[name])
        if len(self._fitting) < _MAX_FITTING:
            self._fitting.add((name, array.shape))
        return array

    def _run_bf16(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions,
    ) -> list[Any]:
        feed = {name: _to_value(array) for name, array in inputs.items()}
        values = self._session.run_with_ort_values(
            list(outputs), feed, run_options=options
        )
        return [_from_value(value) for value in values]


def _shaped(name: str, array: Array, expected: tuple[int, ...]) -> Array:
    """An output in the shape that the manifest says.

    Of no rows onnxruntime's operators give empty arrays of several shapes: of those
    only the manifest's is given.

    Raises:
        ShapeError: it has values, in another shape.
    """
    actual = array.shape
    same_rank = len(actual) == len(expected)
    if same_rank and all(e in (-1, a) for a, e in zip(actual, expected)):
        return array
    if not array.size and expected[:1] == (-1,) and -1 not in expected[1:]:
        return array.reshape(0, *expected[1:])
    raise ShapeError(
        f"output {name!r} has shape {list(actual)}, the manifest says {list(expected)}"
    )


def _check(
    nodes: Sequence[NodeArg], tensors: Sequence[Tensor], *, shapes: bool
) -> None:
    actual = {node.name: node for node in nodes}
    if actual.keys() != {tensor.spec.name for tensor in tensors}:
        raise AdmissionRefused(17, "the model's tensors are not the manifest's")
    for tensor in tensors:
        node = actual[tensor.spec.name]
        if not _agrees(tensor, node, shapes=shapes):
            raise AdmissionRefused(
                17,
                f"tensor {tensor.spec.name!r} is {node.type}{list(shape_of(node))}, "
                f"not {tensor.spec}",
            )


def _agrees(tensor: Tensor, node: NodeArg, *, shapes: bool) -> bool:
    wanted = tensor.spec.datatype
    if tensor.form == "maps":
        maps = MAPS.fullmatch(node.type)
        return (
            maps is not None
            and TYPES.get(maps[2]) == wanted
            and _keys(tensor, maps[1]) != ()
        )
    if tensor.form == "sequence":
        sequence = SEQUENCE.fullmatch(node.type)
        return sequence is not None and TYPES.get(sequence[1]) == wanted
    same = not shapes or shape_of(node) == tensor.spec.shape
    return TYPES.get(node.type) == wanted and same


def _keys(tensor: Tensor, kind: str) -> tuple[int, ...] | tuple[str, ...]:
    """The maps' keys in the order of columns; none if they cannot be those."""
    if kind == "string":
        return tensor.labels
    try:
        return tuple(int(label) for label in tensor.labels)
    except ValueError:
        return ()


def _presenter(tensor: Tensor, ort_type: str) -> Presented:
    dtype = DATATYPES[tensor.spec.datatype]
    if tensor.form == "sequence":
        rank = len(tensor.spec.shape)
        return lambda value: _stacked(value, dtype, rank)
    maps = MAPS.fullmatch(ort_type)
    keys = () if maps is None else _keys(tensor, maps[1])
    return lambda value: _tabulated(value, keys, dtype)


def _tabulated(
    rows: Sequence[Mapping[Any, Any]], keys: Sequence[Any], dtype: np.dtype[Any]
) -> Array:
    if any(len(row) != len(keys) for row in rows):
        raise InferenceFailedError("a map has other keys than the manifest says")
    try:
        table = [[row[key] for key in keys] for row in rows]
    except KeyError:
        raise InferenceFailedError("a map lacks a key of the manifest") from None
    return np.array(table, dtype=dtype).reshape(len(rows), len(keys))


def _stacked(items: Sequence[Array], dtype: np.dtype[Any], rank: int) -> Array:
    shapes = {np.shape(item) for item in items}
    if not items:
        return np.empty((0,) * rank, dtype=dtype)
    if len(shapes) > 1 or len(np.shape(items[0])) != rank - 1:
        raise InferenceFailedError("the tensors of a sequence are not of one shape")
    return np.stack([np.asarray(item, dtype=dtype) for item in items])


def _to_value(array: Array) -> ort.OrtValue:
    if array.dtype != BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    bits = np.ascontiguousarray(array).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)


def _from_value(value: ort.OrtValue) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    # numpy has no such type, so onnxruntime gives no array, but the address of one.
    size = value.tensor_size_in_bytes()
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, dtype=BFLOAT16).reshape(value.shape())
