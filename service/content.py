"""The content of inference requests and their answers, within bounds.

Whatever takes long is done beside the event loop, one at a time, and in portions, so
that the loop gets its turn: a long text of JSON, values that are texts, a compressed
body.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import orjson

from sealgate.errors import JsonError
from sealgate.protocol import binary_tensors, long_arrays
from sealgate.protocol.bhttp import Body, Headers, Request, Response
from sealgate.protocol.tensors import Array, TensorHead, TensorSpec
from service.http.intake import VISIT
from service.problems import Problem

__all__ = ["JSON", "Content", "decode_inputs", "encode_answer"]

JSON: Headers = ((b"content-type", b"application/json"),)
_BINARY = (b"content-type", b"application/octet-stream")
# The second one is what clients call a body with binary tensors; some, any body.
_TENSOR_TYPES = (b"application/json", b"application/octet-stream")
# What zlib calls the formats of RFC 9110, section 8.4.1.
_CODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_ACCEPTED: Headers = ((b"accept-encoding", b"gzip, deflate"),)
# Beyond these the event loop is left: some milliseconds of parsing or of writing.
_LONG_BYTES = 64 << 10
_MANY_VALUES = 16 << 10
# Of JSON beside long arrays: for a request, and more for each input.
_OTHER_BYTES, _INPUT_BYTES = 128 << 10, 2 << 10
# At most one, since each that waits for the interpreter keeps the event loop waiting.
_APART = asyncio.Semaphore(1)

_T = TypeVar("_T")
Heads = Mapping[str, tuple[Any, TensorHead]]


class Content:
    """A request's JSON object, and the bytes behind it.

    Attributes:
        document: the object; long arrays in it are still text.
        tail: what follows it.
    """

    def __init__(self, document: dict[str, Any], tail: memoryview) -> None:
        self.document = document
        self.tail = tail

    @classmethod
    async def read(
        cls, request: Request, specs: Sequence[TensorSpec], *, max_bytes: int
    ) -> Content:
        """Read what a request holds.

        Args:
            request: for an inference.
            specs: what the model takes.
            max_bytes: of the content, once it is no longer compressed.

        Raises:
            Problem: another media type or coding; too large; not a JSON object.
            TensorError: its length of JSON is none.
        """
        lengths, coding = _fields(request.headers)
        body: Body = request.body
        if coding is not None:
            body = await _apart(lambda: _inflated(request.body, coding, max_bytes))
            _account(len(body))
        head, tail = binary_tensors.split(body, lengths)
        try:
            if len(head) < _LONG_BYTES:
                document = _parse(head)
            else:
                most = _OTHER_BYTES + _INPUT_BYTES * len(specs)
                document = await _apart(
                    lambda: long_arrays.loads(
                        bytes(head), orjson.loads, max_other_bytes=most
                    )
                )
        except JsonError as error:
            raise _not_json(str(error), len(tail) if lengths else 0) from None
        if not isinstance(document, dict):
            raise Problem("malformed-json", "expected a JSON object")
        return cls(document, tail)


async def decode_inputs(content: Content, heads: Heads) -> dict[str, Array]:
    """The values of inputs whose heads have been read.

    Raises:
        TensorError: as `binary_tensors.decode_inputs`.
        Problem: not JSON.
    """

    def decode() -> dict[str, Array]:
        return binary_tensors.decode_inputs(heads, content.tail)

    if not any(_takes_long(content, tensor, head) for tensor, head in heads.values()):
        return decode()
    try:
        return await _apart(decode)
    except JsonError as error:
        raise _not_json(str(error), 0) from None


async def encode_answer(
    outputs: Iterable[tuple[str, Array]],
    *,
    binary: Mapping[str, bool],
    model: str,
    version: str,
    identifier: object,
    parameters: Mapping[str, Any] = {},
) -> Response:
    """The answer to an inference.

    Args:
        outputs: arrays by name, in the order to send them in.
        binary: which of them to send as bytes.
        model: its name.
        version: its version.
        identifier: the request's; repeated if it is a short text.
        parameters: of the answer.

    Raises:
        TensorError: a dtype that v2 cannot carry.
    """
    arrays = list(outputs)

    def encode() -> Response:
        document, parts = binary_tensors.encode_response(
            arrays,
            binary={name for name, asked in binary.items() if asked},
            model=model,
            version=version,
            present=_present,
        )
        if parameters:
            document["parameters"] = parameters
        if isinstance(identifier, str) and len(identifier) <= 256:
            document["id"] = identifier
        return _response(document, parts)

    values = [a.size for n, a in arrays if not binary[n] or a.dtype.kind in "OSU"]
    return await _apart(encode) if sum(values) > _MANY_VALUES else encode()


async def _apart(work: Callable[[], _T]) -> _T:
    async with _APART:
        return await asyncio.to_thread(work)


def _fields(headers: Headers) -> tuple[list[bytes], bytes | None]:
    """Lengths of the JSON, and the content's coding.

    Raises:
        Problem: another media type, or a coding that is not undone here.
    """
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in headers:
        if name == binary_tensors.HEADER_LENGTH:
            lengths.append(value)
        elif name == b"content-type":
            if value.partition(b";")[0].strip().lower() not in _TENSOR_TYPES:
                raise Problem("unsupported-media-type", "expected application/json")
        elif name == b"content-encoding":
            codings += [
                c for c in value.lower().split(b",") if c.strip() != b"identity"
            ]
    if not codings:
        return lengths, None
    coding = codings[0].strip()
    if len(codings) > 1 or coding not in _CODINGS:
        raise Problem(
            "unsupported-media-type", "expected one of gzip, deflate", _ACCEPTED
        )
    return lengths, coding


def _inflated(body: Body, coding: bytes, max_bytes: int) -> bytes:
    """A compressed body, of which never more is made than is allowed."""
    machine = zlib.decompressobj(_CODINGS[coding])
    try:
        content = machine.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Problem("malformed-coding") from None
    if len(content) > max_bytes:
        raise Problem("body-too-large", f"at most {max_bytes} bytes allowed")
    if not machine.eof or machine.unused_data:
        raise Problem("malformed-coding")
    return content


def _account(size: int) -> None:
    visit = VISIT.get()
    if visit is not None:
        visit.hold(size)


def _parse(head: memoryview) -> Any:
    try:
        return orjson.loads(head)
    except orjson.JSONDecodeError as error:
        at = long_arrays.offset_of(error, bytes(head))
        raise JsonError(f"not JSON at byte {at}") from None


def _not_json(reason: str, cut_off: int) -> Problem:
    if cut_off:
        name = binary_tensors.HEADER_LENGTH.decode().title()
        reason = f"{reason}; {name} leaves {cut_off} bytes of the body out of the JSON"
    return Problem("malformed-json", reason)


def _takes_long(content: Content, tensor: Any, head: TensorHead) -> bool:
    data = tensor.get("data")
    if isinstance(data, list):
        return len(data) > _MANY_VALUES
    return data is not None or (
        head.dtype.kind == "O" and len(content.tail) > _LONG_BYTES
    )


def _present(flat: Array) -> Any:
    """The "data" of flat values. Many of them are written in portions.

    orjson writes null where JSON has no word for a number.
    """
    if flat.size <= _MANY_VALUES:
        return flat.tolist()
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64)  # the digits are those of Python's numbers
    texts = []
    for begin in range(0, flat.size, _MANY_VALUES):
        part = flat[begin : begin + _MANY_VALUES]
        values = part.tolist() if part.dtype.kind == "O" else part
        texts.append(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    texts[0], texts[-1] = b"[" + texts[0], texts[-1] + b"]"
    return orjson.Fragment(b",".join(texts))


def _response(document: Any, parts: binary_tensors.Parts) -> Response:
    head = orjson.dumps(document)
    if not parts:
        return Response(200, JSON, head)
    length = (binary_tensors.HEADER_LENGTH, str(len(head)).encode())
    return Response(200, (_BINARY, length), b"".join((head, *parts)))
