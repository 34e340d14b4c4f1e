"""Arrays as a request's content, and an answer's; how many rows one request has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from sealgate.errors import TensorError, TransportError
from sealgate.exchange import json_of
from sealgate.protocol import binary_tensors, datatypes, tensors
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.tensors import Array
from sealgate.receipt_numbers import Answers, numbers_of

__all__ = ["JSON", "decode_answer", "encode_arrays", "max_rows_of", "rows_of"]

JSON: Headers = ((b"content-type", b"application/json"),)
_BINARY = (b"content-type", b"application/octet-stream")


def encode_arrays(
    arrays: Mapping[str, Array], *, binary: bool, parameters: Mapping[str, Any] = {}
) -> tuple[Headers, bytes]:
    """Headers and content of a request: tensors as bytes, or as JSON."""
    if not binary:
        document = tensors.encode_request(arrays)
        if parameters:
            document["parameters"] = dict(parameters)
        return JSON, json.dumps(document, separators=(",", ":")).encode()
    document, parts = binary_tensors.encode_request(arrays)
    document["parameters"] |= parameters
    head = json.dumps(document, separators=(",", ":")).encode()
    length = (binary_tensors.HEADER_LENGTH, str(len(head)).encode())
    return (_BINARY, length), b"".join((head, *parts))


def decode_answer(response: Response, model: str) -> tuple[Answers, dict[str, Any]]:
    """The arrays of an answer of a model, by output name, and its parameters.

    Raises:
        TransportError: it is not the protocol's.
    """
    lengths = [v for n, v in response.headers if n == binary_tensors.HEADER_LENGTH]
    try:
        head, tail = binary_tensors.split(response.body, lengths)
        document = json_of(head)
        arrays = binary_tensors.decode_response(document, tail)
    except TensorError as error:
        raise TransportError(f"the answer is unusable: {error}") from None
    # Callers own their arrays: a view could not be written to, and would keep all of
    # the message alive.
    parameters = document.get("parameters")
    kept = parameters if isinstance(parameters, dict) else {}
    outputs = {name: _own(array) for name, array in arrays.items()}
    return Answers(outputs, numbers_of(response.headers, model)), kept


def _own(array: Array) -> Array:
    # numpy has no BF16: callers get the same numbers as FP32.
    array = datatypes.numbers(array)
    return array if array.flags.writeable else array.copy()


def rows_of(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> int:
    """How many rows a request has that may be sent in several; 0 if it may not.

    It may if every input and output has rows, and every array the same number.
    """
    tensors = (*metadata["inputs"], *metadata["outputs"])
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    apart = all(tensor.get("shape", [])[:1] == [-1] for tensor in tensors)
    return lengths.pop() if apart and len(lengths) == 1 else 0


def max_rows_of(metadata: Mapping[str, Any]) -> int:
    """How many rows one request may have, if the server says so."""
    parameters = metadata.get("parameters")
    most = parameters.get("max_rows") if isinstance(parameters, Mapping) else None
    return most if type(most) is int and most > 0 else sys.maxsize
