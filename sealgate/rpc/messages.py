"""Requests and answers of protocol v2, from gRPC's messages to HTTP's and back, no I/O.

A request becomes one with binary tensors (`sealgate.protocol.binary_tensors`), so that
raw contents pass as they are. Typed contents are packed here; FP16 and BF16 have none.
Of a request is checked:

1. it is a message, and names a model;
2. contents are all raw, one for each input, or all typed, those of the datatype;
3. shapes have sizes that are none below zero, and typed contents as many values;
4. parameters ask for nothing that only this side of the proxy may say.

The server checks everything else, and says what is wrong in its own words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from google.protobuf.message import DecodeError, Message

from sealgate.errors import TensorError, TransportError
from sealgate.exchange import json_of, model_path
from sealgate.protocol import binary_tensors
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.datatypes import DATATYPES, pack_strings
from sealgate.rpc import inference_pb2 as pb

__all__ = [
    "infer_answer",
    "infer_request",
    "metadata_of",
    "parsed",
    "path_of",
    "server_of",
]

# The field of typed contents that each datatype has (specification, "Tensor Data").
_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_SIZE = "binary_data_size"
_OURS = frozenset((_SIZE, "binary_data", "binary_data_output"))
_SHARED_MEMORY = "shared_memory_"
_INT64 = range(-(2**63), 2**63)
_BINARY = (b"content-type", b"application/octet-stream")

M = TypeVar("M", bound=Message)


def parsed(kind: type[M], data: bytes) -> M:
    """A message from its bytes, which anyone may have sent.

    Raises:
        TensorError: they are none; nesting is bounded by the library.
    """
    try:
        message: M = kind.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise TensorError("the message is malformed") from None
    return message


def path_of(model: str, version: str, action: str = "") -> str:
    """The path of a model's resource, or of one version's.

    >>> path_of("toy", "1.0.0", "/infer")
    '/v2/models/toy/versions/1.0.0/infer'

    Raises:
        TensorError: there is no name.
    """
    if not model:
        raise TensorError("the name of a model is missing")
    if not version:
        return model_path(model, action)
    return model_path(model, f"/versions/{quote(version, safe='')}{action}")


def infer_request(request: pb.InferRequest) -> tuple[Headers, bytes]:
    """Headers and content of the HTTP request that asks the same.

    Raises:
        TensorError: checks 2 to 4 of the module.
    """
    document: dict[str, Any] = {
        "parameters": _parameters(request.parameters, "request")
        | {"binary_data_output": True}
    }
    if request.id:
        document["id"] = request.id
    parts = _parts(request)
    document["inputs"] = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _parameters(tensor.parameters, _where(tensor))
            | {_SIZE: len(part)},
        }
        for tensor, part in zip(request.inputs, parts)
    ]
    if request.outputs:
        document["outputs"] = [
            {
                "name": output.name,
                "parameters": _parameters(output.parameters, "output"),
            }
            for output in request.outputs
        ]
    head = json.dumps(document, separators=(",", ":")).encode()
    length = (binary_tensors.HEADER_LENGTH, b"%d" % len(head))
    return (_BINARY, length), b"".join((head, *parts))


def infer_answer(response: Response) -> pb.InferResponse:
    """The message that says what an answer says: all its values as raw contents.

    Raises:
        TransportError: it is not the protocol's.
    """
    lengths = [v for n, v in response.headers if n == binary_tensors.HEADER_LENGTH]
    try:
        head, tail = binary_tensors.split(response.body, lengths)
        document = json_of(head)
        message = pb.InferResponse(
            model_name=document["model_name"],
            model_version=document.get("model_version", ""),
            id=document.get("id", ""),
        )
        _put(message.parameters, document.get("parameters"))
        for tensor in document["outputs"]:
            parameters = dict(tensor["parameters"])
            size = parameters.pop(_SIZE)
            if not 0 <= size <= len(tail):
                raise ValueError(size)
            output = message.outputs.add(
                name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
            )
            _put(output.parameters, parameters)
            message.raw_output_contents.append(bytes(tail[:size]))
            tail = tail[size:]
        if tail:
            raise ValueError(len(tail))
    except (TensorError, AttributeError, LookupError, TypeError, ValueError):
        raise TransportError("the server's answer is unusable") from None
    return message


def metadata_of(document: Any) -> pb.Model:
    """A model's metadata.

    Raises:
        TransportError: it is not the protocol's.
    """
    try:
        message = pb.Model(
            name=document["name"],
            versions=document.get("versions", ()),
            platform=document.get("platform", ""),
        )
        for tensors, role in ((message.inputs, "inputs"), (message.outputs, "outputs")):
            for item in document[role]:
                tensors.add(
                    name=item["name"], datatype=item["datatype"], shape=item["shape"]
                )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise TransportError("the model's metadata is unusable") from None
    return message


def server_of(document: Any) -> pb.Server:
    """The server's metadata.

    Raises:
        TransportError: it is not the protocol's.
    """
    try:
        return pb.Server(
            name=document["name"],
            version=document["version"],
            extensions=document.get("extensions", ()),
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise TransportError("the server's metadata is unusable") from None


def _parts(request: pb.InferRequest) -> list[bytes]:
    """The bytes of each input's values."""
    raw = request.raw_input_contents
    typed = [tensor.HasField("contents") for tensor in request.inputs]
    for tensor in request.inputs:
        if any(size < 0 for size in tensor.shape):
            raise TensorError(f"{_where(tensor)}: a size in its shape is below zero")
    if not raw:
        return [_packed(tensor) for tensor in request.inputs]
    if any(typed):
        raise TensorError("contents are raw and typed both")
    if len(raw) != len(typed):
        raise TensorError(f"{len(raw)} raw contents for {len(typed)} inputs")
    return list(raw)


def _packed(tensor: pb.Tensor) -> bytes:
    """Typed contents as raw ones.

    Raises:
        TensorError: not those of the datatype, or not as many as the shape says.
    """
    where, field = _where(tensor), _FIELDS.get(tensor.datatype)
    if field is None:
        known = (
            "has raw contents only" if tensor.datatype in DATATYPES else "is unknown"
        )
        raise TensorError(f"{where}: the datatype {known}")
    given = [found.name for found, _ in tensor.contents.ListFields()]
    if any(name != field for name in given):
        raise TensorError(f"{where}: expected {field}, got {', '.join(given)}")
    values = getattr(tensor.contents, field)
    count = math.prod(tensor.shape)
    if len(values) != count:
        raise TensorError(
            f"{where}: expected {count} values for shape {list(tensor.shape)}, "
            f"got {len(values)}"
        )
    dtype = DATATYPES[tensor.datatype]
    if tensor.datatype == "BYTES":
        array = np.empty(count, dtype=dtype)
        array[:] = list(values)
        return pack_strings(array, where)
    try:
        return np.array(values, dtype=dtype.newbyteorder("<")).tobytes()
    except OverflowError:
        raise TensorError(
            f"{where}: a value is out of range for {tensor.datatype}"
        ) from None


def _where(tensor: pb.Tensor) -> str:
    return f'input "{tensor.name[:64]}"'


def _parameters(given: Mapping[str, pb.Parameter], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in _OURS or name.startswith(_SHARED_MEMORY):
            raise TensorError(f"{where}: the parameter {name} is not supported")
        choice = value.WhichOneof("choice")
        if choice is None:
            raise TensorError(f'{where}: the parameter "{name[:64]}" has no value')
        item = getattr(value, choice)
        if isinstance(item, float) and not math.isfinite(item):
            raise TensorError(f'{where}: the parameter "{name[:64]}" is not finite')
        found[name] = item
    return found


def _put(parameters: Any, given: Mapping[str, Any] | None) -> None:
    """Set an answer's parameters; what has no type here becomes the text of JSON."""
    items: Iterable[tuple[str, Any]] = (given or {}).items()
    for name, value in items:
        match value:
            case bool():
                parameters[name].bool_param = value
            case int() if value in _INT64:
                parameters[name].int64_param = value
            case float():
                parameters[name].double_param = value
            case str():
                parameters[name].string_param = value
            case _:
                parameters[name].string_param = json.dumps(value)
