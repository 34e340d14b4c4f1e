"""Binary HTTP messages (RFC 9292), whole and bounded, in both framings.

A message that breaks the format is refused whole; nothing is guessed (section 4).
Informational responses are read and passed over, since nobody here acts on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sealgate.errors import BinaryHttpError
from sealgate.protocol.bhttp_fields import (
    BhttpLimits,
    FieldBudget,
    are_fields,
    check_control,
    check_padding,
)

__all__ = [
    "BhttpLimits",
    "Body",
    "Headers",
    "Request",
    "Response",
    "chunk_front",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "request_front",
    "response_parts",
]

Headers = tuple[tuple[bytes, bytes], ...]
Body = bytes | bytearray | memoryview

_KNOWN_REQUEST, _KNOWN_RESPONSE, _INDETERMINATE_REQUEST, _INDETERMINATE_RESPONSE = (
    range(4)
)
# The framing, the control data and the fields of most requests fit in so many bytes.
_FRONT_BYTES = 4 << 10
# The variable-length integers of one byte.
_SHORT = [bytes([value]) for value in range(64)]
# Of the largest element of a tensor, in bytes.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Request:
    """A request: control data, headers, content, trailers.

    Attributes:
        method, scheme, authority, path: as in RFC 9292, section 3.4; path with query.
        headers, trailers: lower-case names; order and repetition kept.
        body: a view into the decoded message.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Headers = ()
    body: Body = field(default=b"", repr=False)
    trailers: Headers = ()


@dataclass(frozen=True)
class Response:
    """A final response.

    Attributes:
        status: 200 to 599.
        headers, trailers: lower-case names; order and repetition kept.
        body: a view into the decoded message.
    """

    status: int
    headers: Headers = ()
    body: Body = field(default=b"", repr=False)
    trailers: Headers = ()


def encode_request(
    request: Request, *, known: bool = True, align: int | None = None
) -> bytes:
    """A request with known (section 3.1) or indeterminate length (section 3.2).

    Args:
        request: the message.
        known: which of the two.
        align: an offset in the content. It comes to lie on a multiple of eight bytes
            of the message, so that a tensor that begins there can be used where it is,
            not copied. Lengths in front of it are written in longer forms for that
            (RFC 9000, section 16, lets the sender choose).

    >>> encode_request(Request(b"GET", b"https", b"example.com", b"/")).hex()
    '00034745540568747470730b6578616d706c652e636f6d012f000000'
    """
    front = request_front(
        request, length=len(request.body) if known else None, align=align
    )
    if known:
        return b"".join((front, request.body, _field_section(request.trailers)))
    # An empty chunk would be the end of the content.
    chunk = _varint(len(request.body)) if request.body else b""
    ends = b"\0" + _field_lines(request.trailers) + b"\0"
    return b"".join((front, chunk, request.body, ends))


def request_front(
    request: Request, *, length: int | None, align: int | None = None
) -> bytes:
    """All of a request that stands before its content.

    Args:
        request: its content and trailers are not looked at.
        length: of the content in bytes; None for a message of indeterminate length,
            whose content comes in chunks behind a `chunk_front` each.
        align: as for `encode_request`; what a chunk's own length takes is accounted
            for where the content is one chunk of all of ``request.body``.
    """
    control = (request.method, request.scheme, request.authority, request.path)
    numbers = [0 if length is not None else 2, *map(len, control)]
    if length is not None:
        tail = _field_section(request.headers) + _varint(length)
    else:
        tail = _field_lines(request.headers) + b"\0"
    encoded = [_varint(number) for number in numbers]
    if align is not None:
        before = sum(map(len, (*encoded, *control, tail)))
        if length is None and request.body:
            before += len(_varint(len(request.body)))
        encoded = _lengthened(numbers, -(before + align) % _ALIGNMENT)
    framing, *lengths = encoded
    return b"".join(
        (framing, *(part for pair in zip(lengths, control) for part in pair), tail)
    )


def chunk_front(size: int) -> bytes:
    """What stands before a chunk of content of indeterminate length (section 3.2)."""
    return _varint(size)


def encode_response(response: Response, *, known: bool = True) -> bytes:
    """A response with known (section 3.1) or indeterminate length (section 3.2).

    >>> encode_response(Response(200)).hex()
    '0140c8000000'
    """
    return b"".join(response_parts(response, known=known))


def response_parts(response: Response, *, known: bool = True) -> list[Body]:
    """`encode_response` in pieces, the content among them as it is, not copied."""
    return [
        (b"\x01" if known else b"\x03") + _varint(response.status),
        *_sections(response, known=known),
    ]


def decode_request(data: Body, limits: BhttpLimits = BhttpLimits()) -> Request:
    """Parse a request in either framing.

    Raises:
        BinaryHttpError: malformed, or over a limit.
    """
    return _usual_request(memoryview(data), limits) or _any_request(data, limits)


def decode_response(data: Body, limits: BhttpLimits = BhttpLimits()) -> Response:
    """Parse a response in either framing.

    Raises:
        BinaryHttpError: malformed, or over a limit.
    """
    reader = _Reader(data, limits)
    framing = reader.varint()
    if framing not in (_KNOWN_RESPONSE, _INDETERMINATE_RESPONSE):
        raise BinaryHttpError("not a response")
    known = framing == _KNOWN_RESPONSE
    status = reader.varint()
    for _ in range(limits.max_headers):
        if not 100 <= status <= 199:
            break
        reader.fields(known=known)
        status = reader.varint()
    if not 200 <= status <= 599:
        raise BinaryHttpError("status is out of range")
    headers, body, trailers = reader.sections(known=known)
    return Response(status, headers, body, trailers)


def _any_request(data: Body, limits: BhttpLimits) -> Request:
    reader = _Reader(data, limits)
    framing = reader.varint()
    if framing not in (_KNOWN_REQUEST, _INDETERMINATE_REQUEST):
        raise BinaryHttpError("not a request")
    control = check_control([reader.control() for _ in range(4)])
    headers, body, trailers = reader.sections(known=framing == _KNOWN_REQUEST)
    return Request(*control, headers, body, trailers)


def _usual_request(data: memoryview, limits: BhttpLimits) -> Request | None:
    """A request of the usual shape, as `_any_request` reads it but in few steps.

    Its length is known, it has content, no trailers, and a short front. None for any
    other, and for one in which anything is wrong: `_any_request` says what.
    """
    front = bytes(data[:_FRONT_BYTES])
    try:
        framing, at = _number(front, 0)
        if framing != _KNOWN_REQUEST:
            return None
        control, at = _texts(front, at, len(front), most=4)
        size, at = _number(front, at)
        fields, end = _texts(front, at, at + size, most=2 * limits.max_headers)
        length, begin = _number(front, end)
    except IndexError:  # it ends, or its front is longer
        return None
    names, values = fields[::2], fields[1::2]
    rest = data[begin + length :]
    if (
        max(map(len, control)) > limits.max_control_bytes
        or end != at + size
        or size > limits.max_section_bytes
        or sum(map(len, fields)) > limits.max_header_bytes
        or len(names) != len(values)
        or not are_fields(names, values)
        or length > limits.max_body_bytes
        or begin + length > len(data)
        or bytes(rest) != bytes(len(rest))
    ):
        return None
    content = data[begin : begin + length]
    return Request(*check_control(control), tuple(zip(names, values)), content)


def _texts(data: bytes, at: int, end: int, *, most: int) -> tuple[list[bytes], int]:
    """Texts with their lengths in front; the last may end behind ``end``.

    Raises:
        IndexError: there is no length where one should be.
    """
    texts: list[bytes] = []
    while at < end and len(texts) < most:
        size = data[at]
        at += 1
        if size >= 0x40:
            size, at = _number(data, at - 1)
        texts.append(data[at : at + size])
        at += size
    return texts, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, and where it ends.

    Raises:
        IndexError: it does not end in the data.
    """
    size = 1 << (data[at] >> 6)
    end = at + size
    value = int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1)
    if end > len(data):
        raise IndexError
    return value, end


def _sections(message: Response, *, known: bool) -> Iterator[Body]:
    body = message.body
    if known:
        yield _field_section(message.headers) + _varint(len(body))
        yield body
        yield _field_section(message.trailers)
    else:
        # An empty chunk would be the end of the content.
        chunk = _varint(len(body)) if body else b""
        yield _field_lines(message.headers) + b"\0" + chunk
        yield body
        yield b"\0" + _field_lines(message.trailers) + b"\0"


def _field_section(fields: Headers) -> bytes:
    lines = _field_lines(fields)
    return _varint(len(lines)) + lines


def _field_lines(fields: Headers) -> bytes:
    parts: list[bytes] = []
    for name, value in fields:
        parts += (_varint(len(name)), name, _varint(len(value)), value)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    """Variable-length integer (RFC 9000, section 16), shortest form."""
    if value < 0x40:
        return _SHORT[value]
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    for prefix, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise BinaryHttpError("length does not fit a variable-length integer")


def _lengthened(numbers: Sequence[int], extra: int) -> list[bytes]:
    """Variable-length integers that take ``extra`` bytes more than at their shortest.

    Where no choice of forms does, they stay short: alignment saves time, no more.
    """
    encoded = [_varint(number) for number in numbers]
    for position, number in enumerate(numbers):
        for size in (8, 4, 2):
            added = size - len(encoded[position])
            if 0 < added <= extra:
                prefix = size.bit_length() - 1 << (8 * size - 2)
                encoded[position] = (number | prefix).to_bytes(size, "big")
                extra -= added
                break
    return [_varint(number) for number in numbers] if extra else encoded


class _Reader:
    """Takes the parts of a message from front to back, never beyond its end."""

    def __init__(self, data: Body, limits: BhttpLimits) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._limits = limits
        self._budget = FieldBudget(limits)

    def varint(self) -> int:
        start = self._position
        if start >= len(self._data):
            raise BinaryHttpError("message is truncated")
        first = self._data[start]
        if first < 0x40:  # the one-byte form, by far the most frequent
            self._position = start + 1
            return first
        size = 1 << (first >> 6)
        value = int.from_bytes(self.take(size), "big")
        return value & ((1 << (8 * size - 2)) - 1)

    def take(self, size: int) -> memoryview:
        end = self._position + size
        if end > len(self._data):
            raise BinaryHttpError("message is truncated")
        part = self._data[self._position : end]
        self._position = end
        return part

    def control(self) -> bytes:
        size = self.varint()
        if size > self._limits.max_control_bytes:
            raise BinaryHttpError("control data is too long")
        return bytes(self.take(size))

    def sections(self, *, known: bool) -> tuple[Headers, Body, Headers]:
        """Headers, content and trailers; absent sections are empty (section 3.8)."""
        headers = self.fields(known=known) if self._left() else ()
        body = self._content(known=known) if self._left() else b""
        trailers = self.fields(known=known) if self._left() else ()
        check_padding(self._data[self._position :])
        return headers, body, trailers

    def fields(self, *, known: bool) -> Headers:
        """A field section: with its length, or ended by an empty name."""
        if known:
            return self._section(bytes(self.take(self._section_size())))
        fields: list[tuple[bytes, bytes]] = []
        while name_size := self.varint():
            fields.append(self._field(name_size))
        return tuple(fields)

    def _section_size(self) -> int:
        size = self.varint()
        if size > self._limits.max_section_bytes:
            raise BinaryHttpError("field section is too long")
        return size

    def _section(self, data: bytes) -> Headers:
        """A whole field section: every sealed request has one, so without calls."""
        parts: list[bytes] = []
        position, end = 0, len(data)
        most = 2 * self._limits.max_headers
        while position < end and len(parts) <= most:
            size = data[position]
            if size < 0x40:  # the one-byte form
                start = position + 1
            else:
                start = position + (1 << (size >> 6))
                size = int.from_bytes(data[position:start], "big")
                size &= (1 << (8 * (start - position) - 2)) - 1
            position = start + size
            parts.append(data[start:position])
        self._budget.spend(sum(map(len, parts)), fields=(len(parts) + 1) // 2)
        if position != end or len(parts) % 2:
            raise BinaryHttpError("field section overruns its length")
        fields = tuple(zip(parts[::2], parts[1::2]))
        for name, value in fields:
            self._budget.check(name, value)
        return fields

    def _field(self, name_size: int) -> tuple[bytes, bytes]:
        self._budget.spend(name_size, fields=1)
        name = bytes(self.take(name_size))
        value_size = self.varint()
        self._budget.spend(value_size)
        return self._budget.check(name, bytes(self.take(value_size)))

    def _content(self, *, known: bool) -> Body:
        if known:
            return self.take(self._body_size(0))
        chunks: list[memoryview] = []
        total = 0
        while size := self._body_size(total):
            if len(chunks) == self._limits.max_chunks:
                raise BinaryHttpError("content has too many chunks")
            chunks.append(self.take(size))
            total += size
        return b"".join(chunks)

    def _body_size(self, so_far: int) -> int:
        size = self.varint()
        if so_far + size > self._limits.max_body_bytes:
            raise BinaryHttpError("content is too long")
        return size

    def _left(self) -> bool:
        return self._position < len(self._data)
