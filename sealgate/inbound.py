"""What the sealing proxy reads and writes on its plain side, without I/O.

HTTP/1.1 heads are parsed by h11, which is lenient where a proxy must not be: two
parties that disagree where a request ends can be made to see different requests. So
before h11 a head is refused that has:

1. a line end other than CRLF, a folded line, or a NUL;
2. more than one Content-Length, or one that is not a plain number;
3. Content-Length and Transfer-Encoding both, or another coding than ``chunked``;
4. a target that is not a path: no absolute form, no CONNECT, no ``*``.

A browser can be made to send requests to this machine by any page it shows. Requests
that say they come from a page are refused, and so is a Host that is not ours, since a
page's own name can be made to point here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from http import HTTPStatus

import h11

from sealgate.errors import ClientError, ServerRefusedError
from sealgate.protocol.bhttp import Headers, Response

__all__ = [
    "BadRequestError",
    "Head",
    "bodiless",
    "forwarded_headers",
    "parse_chunk_size",
    "parse_head",
    "problem",
    "render",
    "render_start",
    "response_of",
]

# RFC 9110, section 7.6.1; Host, Date and framing are made anew on the other side.
_HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"host", b"date", b"content-length", b"expect",
    )
)  # fmt: skip
_BAD_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|\x00")
_LENGTH_FIELD = re.compile(
    rb"\r\ncontent-length[ \t]*:[ \t]*([^\r]*?)[ \t]*(?=\r)", re.IGNORECASE
)
_CODING_FIELD = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
_REASONS = {item.value: item.phrase.encode() for item in HTTPStatus}
_TARGET = re.compile(rb"/[\x21-\x7e]*")


class BadRequestError(ClientError):
    """A request that the proxy does not forward.

    Attributes:
        status: to answer with.
        detail: says why.
    """

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


@dataclass(frozen=True)
class Head:
    """A request's head.

    Attributes:
        method, target: as sent.
        headers: lower-case names, framing included.
        content_length: of the body; None if it comes in chunks.
        takes_chunks: the client understands the chunked coding.
        keep_alive: another request may follow on the connection.
        expects_continue: the client waits for leave to send the body.
        connection: h11's state, which the answer is written with.
    """

    method: bytes
    target: bytes
    headers: Headers
    content_length: int | None
    takes_chunks: bool
    keep_alive: bool
    expects_continue: bool
    connection: h11.Connection


def parse_head(data: bytes, *, hosts: Set[bytes] | None) -> Head:
    """Parse the bytes of one head, its empty line included.

    Args:
        data: from anyone.
        hosts: allowed values of Host, lower case; None allows any.

    Raises:
        BadRequestError: any of the module's checks failed.
    """
    if _BAD_LINES.search(data):
        raise BadRequestError(400, "malformed line end")
    length = _body_length(data)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data) + 1)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequestError(error.error_status_hint, "malformed request") from None
    if not isinstance(event, h11.Request):
        raise BadRequestError(400, "malformed request")
    headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
    if not _TARGET.fullmatch(event.target):
        raise BadRequestError(400, "the target is not a path")
    _check_origin(headers, hosts)
    close = b"close" in _tokens(headers, b"connection")
    return Head(
        method=bytes(event.method),
        target=bytes(event.target),
        headers=headers,
        content_length=length,
        takes_chunks=event.http_version == b"1.1",
        keep_alive=event.http_version == b"1.1" and not close,
        expects_continue=connection.they_are_waiting_for_100_continue,
        connection=connection,
    )


def forwarded_headers(head: Head, *, drop_authorization: bool = False) -> Headers:
    """The fields to seal: none that belong to this connection."""
    dropped = _HOP_BY_HOP | _tokens(head.headers, b"connection")
    if drop_authorization:
        dropped |= {b"authorization"}
    return tuple((n, v) for n, v in head.headers if n not in dropped)


def parse_chunk_size(line: bytes) -> int:
    r"""The size on a chunk's first line, which has its CRLF. Extensions are refused.

    Raises:
        BadRequestError: it is not a size.

    >>> parse_chunk_size(b"1f\r\n")
    31
    """
    if not line.endswith(b"\r\n") or not _CHUNK_SIZE.fullmatch(line[:-2]):
        raise BadRequestError(400, "malformed chunk")
    return int(line[:-2], 16)


def response_of(error: ClientError) -> Response:
    """The answer that says what went wrong on the way."""
    if isinstance(error, ServerRefusedError):
        document = {"status": error.status, **error.problem}
        document.setdefault("error", str(error))
        headers: list[tuple[bytes, bytes]] = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        return _problem_response(error.status, document, headers)
    if isinstance(error, BadRequestError):
        return problem(error.status, error.detail)
    return problem(502, str(error))


def problem(status: int, detail: str) -> Response:
    """Problem details (RFC 9457), with what v2 clients look for in ``error``."""
    document = {
        "type": "about:blank", "status": status, "title": "sealgate proxy",
        "detail": detail, "error": detail,
    }  # fmt: skip
    return _problem_response(status, document, [])


def render(head: Head | None, response: Response, *, close: bool) -> list[bytes]:
    """The pieces to write for an answer that is there as a whole.

    Args:
        head: of the request; None where it could not be read.
        response: to send.
        close: the connection ends behind it.
    """
    body = bytes(response.body)
    start = render_start(head, response, length=len(body), close=close)
    return [start] if bodiless(head, response.status) else [start, body]


def render_start(
    head: Head | None, response: Response, *, length: int | None, close: bool
) -> bytes:
    """An answer's status line and fields.

    Args:
        head: as for `render`.
        response: its content is not looked at.
        length: of the content; None if it will be sent in chunks, or to a client that
            knows no chunks until the connection ends.
        close: as for `render`.
    """
    headers = [(n, v) for n, v in response.headers if n not in _HOP_BY_HOP]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    elif head is not None and head.takes_chunks:
        headers.append((b"transfer-encoding", b"chunked"))
    if close:
        headers.append((b"connection", b"close"))
    connection = _fresh() if head is None else head.connection
    start = connection.send(
        h11.Response(
            status_code=response.status,
            headers=headers,
            reason=_REASONS.get(response.status, b""),
        )
    )
    return start or b""


def bodiless(head: Head | None, status: int) -> bool:
    """Whether an answer ends with its head (RFC 9110, section 6.4.1)."""
    return (head is not None and head.method == b"HEAD") or status in (204, 304)


def _fresh() -> h11.Connection:
    """A connection that has seen a request, for answers to what was none."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: -\r\n\r\n")
    connection.next_event()
    return connection


def _body_length(data: bytes) -> int | None:
    lengths = _LENGTH_FIELD.findall(data)
    codings = _CODING_FIELD.findall(data)
    if len(lengths) + len(codings) > 1:
        raise BadRequestError(400, "conflicting lengths")
    if codings:
        return None  # h11 refuses any coding but chunked
    if not lengths:
        return 0
    if not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise BadRequestError(400, "malformed length")
    return int(lengths[0])


def _check_origin(headers: Headers, hosts: Set[bytes] | None) -> None:
    if hosts is None:
        return
    values = [value.lower() for name, value in headers if name == b"host"]
    if len(values) != 1 or values[0] not in hosts:
        raise BadRequestError(421, "this proxy is for this machine only")
    if any(name in (b"origin", b"sec-fetch-site") for name, _ in headers):
        raise BadRequestError(403, "this proxy is not for web pages")


def _tokens(headers: Headers, wanted: bytes) -> frozenset[bytes]:
    values = b",".join(value for name, value in headers if name == wanted)
    return frozenset(token.strip().lower() for token in values.split(b","))


def _problem_response(
    status: int, document: object, headers: Sequence[tuple[bytes, bytes]]
) -> Response:
    body = json.dumps(document).encode()
    fields = ((b"content-type", b"application/problem+json"), *headers)
    return Response(status, fields, body)
