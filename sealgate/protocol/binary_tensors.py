"""Open Inference Protocol v2 tensors as bytes behind the JSON: Triton's extension.

A message is a JSON head, whose length ``Inference-Header-Content-Length`` states, and
behind it the values of each tensor with a parameter ``binary_data_size``, in the order
of the JSON, row-major and little-endian. Tensors with ``data`` may stand between them.
Specification: triton-inference-server/server, docs/protocol/extension_binary_data.md.

Nothing is copied that need not be: arrays are views into the message, unless their
bytes lie where this machine cannot use them as they are. NaN and infinities pass;
only JSON has no word for them, and an answer has null in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sealgate.errors import TensorError
from sealgate.protocol import tensors
from sealgate.protocol.datatypes import BYTES, pack_strings, unpack_strings
from sealgate.protocol.tensors import Array, TensorHead

__all__ = [
    "EXTENSION",
    "HEADER_LENGTH",
    "Parts",
    "decode_inputs",
    "decode_response",
    "encode_request",
    "encode_response",
    "requested_outputs",
    "split",
]

EXTENSION = "binary_tensor_data"
HEADER_LENGTH = b"inference-header-content-length"

_SIZE = "binary_data_size"
# Parameters that would change what an output means; nothing here honours them.
_REFUSED = ("classification", "shared_memory_region")

Buffer = bytes | bytearray | memoryview
Parts = list[memoryview]


def split(body: Buffer, lengths: Sequence[bytes]) -> tuple[memoryview, memoryview]:
    """Take the JSON head and the tail of a message apart.

    Args:
        body: the content.
        lengths: every value of its ``Inference-Header-Content-Length`` field. Without
            one, all of the message is JSON.

    Raises:
        TensorError: more than one length, not a length, or beyond the message.

    >>> [bytes(part) for part in split(b'{}1234', [b"2"])]
    [b'{}', b'1234']
    """
    view = memoryview(body)
    if not lengths:
        return view, view[len(view) :]
    text = lengths[0]
    if len(lengths) > 1 or not text.isdigit() or len(text) > 12:
        raise TensorError("Inference-Header-Content-Length: expected one length")
    if int(text) > len(view):
        raise TensorError(
            f"Inference-Header-Content-Length: {int(text)} bytes of JSON in a body of "
            f"{len(view)}"
        )
    return view[: int(text)], view[int(text) :]


def decode_inputs(
    heads: Mapping[str, tuple[Any, TensorHead]], tail: memoryview
) -> dict[str, Array]:
    """The values of inputs whose heads `tensors.request_heads` has read, in its order.

    Raises:
        TensorError: malformed, or the tail is not what the JSON says.
        JsonError: values that were still text are no JSON.
    """
    reader = _Tail(tail)
    arrays = {
        name: reader.decode(tensor, head) for name, (tensor, head) in heads.items()
    }
    reader.finish()
    return arrays


def decode_response(response: Any, tail: memoryview) -> dict[str, Array]:
    """Return the outputs of a v2 inference response by name.

    Raises:
        TensorError: the response is malformed, or the tail is not what it says.
    """
    reader = _Tail(tail)
    arrays = tensors.decode_response(response, decode=reader.decode)
    reader.finish()
    return arrays


def encode_request(inputs: Mapping[str, Array]) -> tuple[dict[str, Any], Parts]:
    r"""The JSON object of a request that has and wants all values as bytes.

    Returns:
        The object, and what to send behind its text.

    Raises:
        TensorError: a dtype that v2 cannot carry.

    >>> document, parts = encode_request({"x": np.array([1, 2], dtype=np.int16)})
    >>> document["inputs"][0]["parameters"], bytes(parts[0])
    ({'binary_data_size': 4}, b'\x01\x00\x02\x00')
    """
    parts: Parts = []
    document = {
        "parameters": {"binary_data_output": True},
        "inputs": [_encode(name, array, parts) for name, array in inputs.items()],
    }
    return document, parts


def encode_response(
    outputs: Iterable[tuple[str, Array]],
    *,
    binary: Collection[str],
    model: str,
    version: str,
    present: Callable[[Array], Any] = tensors.nullable_values,
) -> tuple[dict[str, Any], Parts]:
    """The JSON object of a response, and what to send behind its text.

    Args:
        outputs: arrays by name, in the order to send them in.
        binary: names of the outputs to send as bytes.
        model: its name.
        version: its version.
        present: makes the "data" of flat values.

    Raises:
        TensorError: a dtype that v2 cannot carry.
    """
    parts: Parts = []
    encoded = [
        _encode(name, array, parts)
        if name in binary
        else tensors.encode_tensor(name, array, present=present)
        for name, array in outputs
    ]
    document = {"model_name": model, "model_version": version, "outputs": encoded}
    return document, parts


def requested_outputs(
    request: Mapping[str, Any], known: Sequence[str]
) -> dict[str, bool]:
    """The outputs that a request asks for, in its order, and whether as bytes.

    Args:
        request: the decoded JSON head.
        known: names of the model's outputs, which are all sent if none is named.

    Raises:
        TensorError: names that are unknown, repeated or none; a parameter that is
            malformed or asks for what is not done here.
    """
    default = _flag(request, "binary_data_output", False, "request")
    wanted = request.get("outputs")
    if wanted is None:
        return dict.fromkeys(known, default)
    items = wanted if isinstance(wanted, list) else []
    result: dict[str, bool] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in known or name in result:
            break
        result[name] = _flag(item, "binary_data", default, f'output "{name}"')
    if not items or len(result) != len(items):
        raise TensorError(
            f"outputs: expected names among {', '.join(known)}, once each"
        )
    return result


class _Tail:
    """The bytes behind the JSON, taken from front to back."""

    def __init__(self, tail: memoryview) -> None:
        self._tail = tail
        self._position = 0

    def decode(self, tensor: Any, head: TensorHead) -> Array:
        """The values of the next tensor, wherever they are."""
        if "parameters" not in tensor:
            return tensors.decode_values(tensor, head)
        size = _parameters(tensor, head.where).get(_SIZE)
        if size is None:
            return tensors.decode_values(tensor, head)
        if type(size) is not int or size < 0:
            raise TensorError(f"{head.where}: {_SIZE} is not a size")
        if "data" in tensor:
            raise TensorError(f'{head.where}: has "data" and {_SIZE} both')
        if head.dtype == BYTES:
            part = self._take(size, head.where)
            return head.reshape(unpack_strings(part, head.values, head.where))
        expected = head.values * head.dtype.itemsize
        if size != expected:
            raise TensorError(
                f"{head.where}: expected {expected} bytes for shape "
                f"{list(head.shape)}, got {size}"
            )
        return _array(self._take(size, head.where), head)

    def finish(self) -> None:
        """Refuse bytes that belong to no tensor."""
        if self._position != len(self._tail):
            left = len(self._tail) - self._position
            raise TensorError(f"{left} bytes follow the last tensor")

    def _take(self, size: int, where: str) -> memoryview:
        end = self._position + size
        if end > len(self._tail):
            left = len(self._tail) - self._position
            raise TensorError(f"{where}: expected {size} bytes, the body has {left}")
        part = self._tail[self._position : end]
        self._position = end
        return part


def _array(data: memoryview, head: TensorHead) -> Array:
    # numpy does not check booleans, and a third value would be undefined behaviour.
    if head.dtype.kind == "b" and np.any(np.frombuffer(data, np.uint8) > 1):
        raise TensorError(f"{head.where}: values are not BOOL")
    flat = np.frombuffer(data, dtype=head.dtype.newbyteorder("<"))
    native = flat.astype(head.dtype, copy=not flat.flags.aligned)
    return head.reshape(native)


def _encode(name: str, array: Array, parts: Parts) -> dict[str, Any]:
    datatype = tensors.datatype_of(name, array)
    if datatype == "BYTES":
        part = memoryview(pack_strings(array, f'"{name}"'))
    else:
        little = array.dtype.newbyteorder("<")
        flat = np.ascontiguousarray(array, dtype=little).reshape(-1)
        part = flat.view(np.uint8).data
    parts.append(part)
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {_SIZE: len(part)},
    }


def _flag(item: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    parameters = _parameters(item, where)
    for refused in _REFUSED:
        if refused in parameters:
            raise TensorError(f"{where}: {refused} is not supported")
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise TensorError(f"{where}: {name} is not a boolean")
    return value


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    value = item.get("parameters")
    if value is None:  # absent, or null as some clients write it
        return {}
    if not isinstance(value, dict):
        raise TensorError(f"{where}: parameters are not an object")
    return value
