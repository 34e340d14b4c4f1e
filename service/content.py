"""The content of inference requests and their answers, within bounds.

Whatever takes long is done beside the event loop, one at a time, and in portions, so
that the loop gets its turn: a long text of JSON, values that are texts, a compressed
body.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson

from sealgate.errors import JsonError, SealgateError, TensorError
from sealgate.protocol import binary_tensors, long_arrays
from sealgate.protocol.bhttp import Body, Headers, Request, Response
from sealgate.protocol.tensors import Array, TensorHead, TensorSpec, request_heads
from service.http.intake import VISIT
from service.inference.batching import (
    InferenceFailedError,
    InferenceTimeoutError,
    OverloadedError,
)
from service.problems import Problem

__all__ = [
    "JSON",
    "Asked",
    "Content",
    "content_fields",
    "encode_answer",
    "failures",
    "is_long",
    "told",
    "write_answer",
]

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
        lengths, coding = content_fields(request.headers)
        body: Body = request.body
        if coding is not None:
            body = await _apart(lambda: _inflated(request.body, coding, max_bytes))
            _account(len(body))
        content = cls.at_once(body, lengths)
        if content is not None:
            return content
        head, tail = binary_tensors.split(body, lengths)
        most = _OTHER_BYTES + _INPUT_BYTES * len(specs)
        return await _apart(
            lambda: cls._of(
                lambda: long_arrays.loads(
                    bytes(head), orjson.loads, max_other_bytes=most
                ),
                tail,
                lengths,
            )
        )

    @classmethod
    def at_once(cls, body: Body, lengths: Sequence[bytes]) -> Content | None:
        """As `read`, of what is not compressed; None if its JSON is long.

        Args:
            body: the content.
            lengths: of its JSON, from `content_fields`.

        Raises:
            Problem, TensorError: as `read`.
        """
        head, tail = binary_tensors.split(body, lengths)
        if len(head) >= _LONG_BYTES:
            return None
        return cls._of(lambda: _parse(head), tail, lengths)

    @classmethod
    def _of(
        cls, parse: Callable[[], Any], tail: memoryview, lengths: Sequence[bytes]
    ) -> Content:
        try:
            document = parse()
        except JsonError as error:
            raise _not_json(str(error), len(tail) if lengths else 0) from None
        if not isinstance(document, dict):
            raise Problem("malformed-json", "expected a JSON object")
        return cls(document, tail)


@dataclass(slots=True)
class Asked:
    """An inference request, before the values of its inputs are read.

    Attributes:
        content: all of it.
        heads: what it states of its inputs.
        outputs: those it wants, and whether as bytes.
        rows: of the longest input.
    """

    content: Content
    heads: Heads
    outputs: dict[str, bool]
    rows: int

    @classmethod
    async def read(
        cls,
        request: Request,
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
        *,
        max_rows: int,
        max_bytes: int,
    ) -> Asked:
        """Read a request.

        Args:
            request: for an inference.
            specs: what the model takes.
            outputs: names of what it gives.
            max_rows: largest first dimension of any input.
            max_bytes: of the content, once it is no longer compressed.

        Raises:
            Problem: as `Content.read`.
            TensorError: it does not fit the model.
        """
        content = await Content.read(request, specs, max_bytes=max_bytes)
        return cls.of(content, specs, outputs, max_rows=max_rows)

    @classmethod
    def of(
        cls,
        content: Content,
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
        *,
        max_rows: int,
    ) -> Asked:
        """As `read`, of a content that has been read.

        Raises:
            TensorError: it does not fit the model.
        """
        heads = request_heads(content.document, specs, max_rows=max_rows)
        wanted = binary_tensors.requested_outputs(content.document, outputs)
        rows = [head.shape[0] for _, head in heads.values() if head.shape]
        return cls(content, heads, wanted, max(rows, default=1))

    @property
    def takes_long(self) -> bool:
        """Whether its values are so many that they are read beside the event loop."""
        tail = self.content.tail
        for tensor, head in self.heads.values():
            if _takes_long(tail, tensor, head):
                return True
        return False

    def inputs_at_once(self) -> dict[str, Array]:
        """The values, where that does not take long.

        Raises:
            TensorError: as `binary_tensors.decode_inputs`.
        """
        return binary_tensors.decode_inputs(self.heads, self.content.tail)

    async def inputs(self) -> dict[str, Array]:
        """The values.

        Raises:
            TensorError: as `binary_tensors.decode_inputs`.
            Problem: not JSON.
        """
        if not self.takes_long:
            return self.inputs_at_once()
        try:
            return await _apart(self.inputs_at_once)
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
    write = partial(
        write_answer,
        arrays,
        binary=binary,
        model=model,
        version=version,
        identifier=identifier,
        parameters=parameters,
    )
    return await _apart(write) if is_long(arrays, binary) else write()


def write_answer(
    outputs: Iterable[tuple[str, Array]],
    *,
    binary: Mapping[str, bool],
    model: str,
    version: str,
    identifier: object,
    parameters: Mapping[str, Any] = {},
) -> Response:
    """As `encode_answer`, of what is not long."""
    document, parts = binary_tensors.encode_response(
        outputs,
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


def is_long(outputs: Iterable[tuple[str, Array]], binary: Mapping[str, bool]) -> bool:
    """Whether an answer has so many values that it is written beside the event loop."""
    size = 0
    for name, array in outputs:
        if not binary[name] or array.dtype.kind in "OSU":
            size += array.size
    return size > _MANY_VALUES


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Errors of runs as callers are told of them.

    Raises:
        Problem: in their place.
    """
    try:
        yield
    except SealgateError as error:
        raise told(error) from None


def told(error: SealgateError) -> SealgateError:
    """An error of a run as callers are told of it."""
    if isinstance(error, InferenceTimeoutError):
        return Problem("inference-timeout")
    if isinstance(error, OverloadedError):
        return Problem("overloaded", headers=((b"retry-after", b"1"),))
    if isinstance(error, InferenceFailedError | TensorError):
        return Problem("model-failure")
    return error


async def _apart(work: Callable[[], _T]) -> _T:
    async with _APART:
        return await asyncio.to_thread(work)


def content_fields(headers: Headers) -> tuple[list[bytes], bytes | None]:
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


def _takes_long(tail: memoryview, tensor: Any, head: TensorHead) -> bool:
    data = tensor.get("data")
    if isinstance(data, list):
        return len(data) > _MANY_VALUES
    return data is not None or (head.dtype.kind == "O" and len(tail) > _LONG_BYTES)


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
