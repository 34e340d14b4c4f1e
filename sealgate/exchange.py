"""One sealed exchange without I/O: what to send, and what the answer means."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from sealgate.errors import (
    AuthenticationError,
    ClientError,
    ClockError,
    InvalidInputError,
    JsonError,
    KeyRefusedError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProfileError,
    ProofNonceError,
    ProtocolError,
    ServerFailedError,
    ServerRefusedError,
    TransportError,
)
from sealgate.protocol import bhttp, binary_tensors, dpop, ohttp, strict_json
from sealgate.protocol.bhttp import BhttpLimits, Body, Headers, Request, Response
from sealgate.protocol.drafts import chunked
from sealgate.protocol.drafts.chunked import CHUNK_BYTES, ChunkLimits, ChunkSealer
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.padding import pad

__all__ = [
    "DATE_PROBLEM",
    "GATEWAY_PATH",
    "OHTTP_KEY_PROBLEM",
    "RECEIPT_PENDING_PROBLEM",
    "Answer",
    "ChunkedExchange",
    "Content",
    "Exchange",
    "build_request",
    "check_token",
    "check_url",
    "expired_since",
    "json_of",
    "model_path",
    "parse_metadata",
    "refusal",
    "refusal_of",
    "retry_after_seconds",
    "tensors_at",
    "trace_headers",
]

GATEWAY_PATH = "/.well-known/ohttp-gateway"
OHTTP_KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key"
RECEIPT_PENDING_PROBLEM = "https://sealgate.dev/problems/receipt-pending"
DATE_PROBLEM = "https://iana.org/assignments/http-problem-types#date"

_PROBLEM_TYPE = "application/problem+json"
_MAX_PROBLEM_BYTES = 64 << 10
_MAX_RETRY_AFTER_S = 86_400
_MAX_DATE_CHARACTERS = 64
Content = bytes | Iterator[bytes]
_Open = Callable[[bytes], bytes]
# RFC 9449, section 8.1.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_NONCE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
# W3C Trace Context, section 3.2, version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BY_STATUS: Mapping[int, type[ServerRefusedError]] = {
    400: InvalidInputError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: InvalidInputError,
    415: InvalidInputError,
    429: OverloadedError,
    503: OverloadedError,
}
_BY_TYPE: Mapping[str, type[ServerRefusedError]] = {
    OHTTP_KEY_PROBLEM: KeyRefusedError,
    DATE_PROBLEM: ClockError,
    RECEIPT_PENDING_PROBLEM: OverloadedError,
}


@dataclass(frozen=True)
class Answer:
    """An HTTP response as it came, from whoever sent it.

    Attributes:
        status: of the response.
        headers: by lower-case name.
        body: its content.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The content type as it came, empty if there is none."""
        return self.headers.get("content-type", "")


class Exchange:
    """Seals one request, opens its response.

    Both are padded, so that their lengths say little (`sealgate.protocol.padding`).

    Attributes:
        content: the body to POST.
        media_type: its type.
    """

    media_type = ohttp.REQUEST_MEDIA_TYPE
    _response_media_type = ohttp.RESPONSE_MEDIA_TYPE

    def __init__(
        self, config: KeyConfig, request: Request, *, max_response_bytes: int
    ) -> None:
        """Seal a request to a key configuration.

        Raises:
            TransportError: the configuration's public key is not a valid one.
        """
        self._limits = BhttpLimits(max_body_bytes=max_response_bytes)
        try:
            self.content, self._open = self._seal(config, _encode(request))
        except ProtocolError as error:
            raise TransportError(f"the server's key configuration: {error}") from None

    def finish(self, answer: Answer) -> Response:
        """The inner response, whatever its status.

        Raises:
            ServerRefusedError: problem details in the open.
            TransportError: the answer is not the protocol's, or does not open.
        """
        if answer.status != 200 or answer.media_type != self._response_media_type:
            raise refusal(answer)
        try:
            return bhttp.decode_response(self._open(answer.body), self._limits)
        except ProtocolError as error:
            raise TransportError(f"the sealed answer is unusable: {error}") from None

    def _seal(self, config: KeyConfig, message: bytes) -> tuple[Content, _Open]:
        sealed, context = ohttp.seal_request(config, message)
        return sealed, context.open


class ChunkedExchange(Exchange):
    """An exchange in protected chunks (draft-ietf-ohai-chunked-ohttp).

    For large requests: they are sealed while they are sent.
    """

    media_type = chunked.CHUNKED_REQUEST_MEDIA_TYPE
    _response_media_type = chunked.CHUNKED_RESPONSE_MEDIA_TYPE

    def _seal(self, config: KeyConfig, message: bytes) -> tuple[Content, _Open]:
        limits = ChunkLimits(max_message_bytes=2 * self._limits.max_body_bytes)
        sealer, opener = chunked.seal_chunked_request(config, limits=limits)

        def open_chunks(data: bytes) -> bytes:
            return b"".join([*opener.feed(data), opener.finish()])

        return _chunks(sealer, memoryview(message)), open_chunks


def _chunks(sealer: ChunkSealer, message: memoryview) -> Iterator[bytes]:
    yield sealer.head
    last = max(0, (len(message) - 1) // CHUNK_BYTES * CHUNK_BYTES)
    for start in range(0, last, CHUNK_BYTES):
        yield sealer.seal(message[start : start + CHUNK_BYTES])
    yield sealer.finish(message[last:])


def _encode(request: Request) -> bytes:
    return pad(bhttp.encode_request(request, align=tensors_at(request)))


def tensors_at(request: Request) -> int | None:
    """Where in a request's content binary tensors begin, if they do."""
    for name, value in request.headers:
        if name == binary_tensors.HEADER_LENGTH and value.isdigit():
            return int(value[:12])
    return None


def trace_headers(traceparent: str | None) -> Headers:
    """The field that puts a request into a trace (W3C Trace Context).

    Raises:
        ProfileError: it is no ``traceparent`` of version 00.

    >>> trace_headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")[0][0]
    b'traceparent'
    >>> trace_headers(None)
    ()
    """
    if traceparent is None:
        return ()
    if not _TRACEPARENT.fullmatch(traceparent):
        raise ProfileError("traceparent: expected version 00 of W3C Trace Context")
    return ((b"traceparent", traceparent.encode("ascii")),)


def refusal_of(response: Response) -> ClientError | None:
    """The error that a sealed answer stands for; None for a success."""
    if response.status == 200:
        return None
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(response.headers)
    }
    answer = Answer(response.status, headers, bytes(response.body))
    return refusal(answer, sealed=True)


def refusal(answer: Answer, *, sealed: bool = False) -> ClientError:
    """The error that an unsuccessful answer stands for."""
    problem = _problem(answer)
    if problem is None:
        return TransportError(
            f"the server answered {answer.status} without problem details"
        )
    kind = _BY_TYPE.get(str(problem.get("type"))) or _BY_STATUS.get(
        answer.status,
        ServerFailedError if answer.status >= 500 else ServerRefusedError,
    )
    nonce = _nonce(answer) if kind is AuthenticationError else None
    error = (kind if nonce is None else ProofNonceError)(
        answer.status,
        problem,
        retry_after_s=retry_after_seconds(answer.headers),
        sealed=sealed,
        request_id=answer.headers.get("x-request-id"),
    )
    if isinstance(error, ClockError):
        error.server_time = _time(answer.headers.get("date", ""))
    if isinstance(error, ProofNonceError):
        error.nonce = nonce
    return error


def json_of(body: Body) -> Any:
    """The JSON value of an answer's content.

    Raises:
        TransportError: it is none.
    """
    try:
        return json.loads(bytes(body) or b"null")
    except (ValueError, RecursionError):
        raise TransportError("the answer is not JSON") from None


def check_url(url: str) -> str:
    """A server's base URL without trailing slash, if keys may be fetched from it.

    Raises:
        ProfileError: not http or https, more than a base URL, or plain http beyond
            this machine: whoever is in between could answer with a key of their own.

    >>> check_url("https://models.example/")
    'https://models.example'
    """
    parts = _split(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ProfileError("plain http is for this machine only; use https")
    return url.rstrip("/")


def check_token(token: str) -> str:
    """An access token, if it can be sent as one (RFC 6750, section 2.1).

    Raises:
        ProfileError: it is empty, or no token; the message does not repeat it.
    """
    if not token:
        raise ProfileError("the access token is empty")
    if not _TOKEN.fullmatch(str(token)):
        raise ProfileError("the access token is none: text of A-Z a-z 0-9 - . _ ~ + /")
    return token


def expired_since(token: str, *, now: float) -> str:
    """What to tell of a token that is over: ", expired since …"; empty otherwise.

    Nothing is verified: it is the caller's own token.
    """
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        expires = float(claims["exp"])
        if now < expires:
            return ""
        when = datetime.fromtimestamp(expires, UTC)
    except (ValueError, LookupError, TypeError, OverflowError, OSError, RecursionError):
        return ""
    ago = _spoken(now - expires)
    return f"; the token expired {ago} ago, at {when:%Y-%m-%d %H:%M:%S} UTC"


def _spoken(seconds: float) -> str:
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {name}"
    return f"{seconds:.0f} seconds"


@lru_cache(maxsize=256)
def model_path(model: str, action: str = "") -> str:
    """The path of a model's resource; no name can spell another one's.

    >>> model_path("toy", "/infer")
    '/v2/models/toy/infer'
    """
    return f"/v2/models/{quote(model, safe='', errors='replace')}{action}"


def parse_metadata(value: Any) -> dict[str, Any]:
    """Check of a model's v2 metadata what this client reads of it.

    Raises:
        TransportError: tensors without name or datatype, columns without name.
    """
    try:
        for tensor in (*value["inputs"], *value["outputs"]):
            parameters = tensor.get("parameters", {})
            columns = [column["name"] for column in parameters.get("columns", [])]
            labels = parameters.get("labels", [])
            # Joining takes nothing but texts.
            "".join((tensor["name"], tensor["datatype"], *columns, *labels))
    except (AttributeError, KeyError, TypeError):
        raise TransportError("the model's metadata is malformed") from None
    return dict(value)


def build_request(
    method: str,
    path: str,
    *,
    url: str,
    token: str | None,
    now: float,
    headers: Headers = (),
    body: Body = b"",
    proof: str | None = None,
) -> Request:
    """The inner request: Authorization and Date, and what else it has.

    Args:
        method: of the request.
        path: with query.
        url: base URL of the server.
        token: access token; None where ``headers`` has the authorization.
        now: the time to state (RFC 9458, section 6.5.1), in seconds since 1970.
        headers: further fields.
        body: content.
        proof: that we have the key that the token is bound to (RFC 9449).
    """
    scheme, authority = _base(url)
    own = [(b"date", _date(int(now)))]
    if token is not None:
        kind = b"Bearer" if proof is None else dpop.SCHEME
        value = b"%b %b" % (kind, token.encode("ascii", "replace"))
        own.append((b"authorization", value))
    if proof is not None:
        own.append((dpop.PROOF_HEADER, proof.encode("ascii")))
    return Request(
        method=method.encode(),
        scheme=scheme,
        authority=authority,
        path=path.encode(),
        headers=(*own, *headers),
        body=body,
    )


@lru_cache(maxsize=64)
def _base(url: str) -> tuple[bytes, bytes]:
    parts = urlsplit(url)
    return parts.scheme.encode(), parts.netloc.encode()


@lru_cache(maxsize=4)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ProfileError(f"not an http or https URL: {url!r}") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    extra = parts.query or parts.fragment or "@" in parts.netloc or port == 0
    labels = (parts.hostname or "").removesuffix(".").split(".")
    if (
        parts.scheme not in ("http", "https")
        or not plain
        or extra
        or not all(0 < len(label) < 64 for label in labels)
    ):
        raise ProfileError(f"not an http or https URL: {url!r}")
    return parts


def _problem(answer: Answer) -> dict[str, Any] | None:
    if answer.media_type.partition(";")[0].strip().lower() != _PROBLEM_TYPE:
        return None
    try:
        return strict_json.loads_object(answer.body, max_bytes=_MAX_PROBLEM_BYTES)
    except JsonError:
        return None


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Retry-After (RFC 9110, section 10.2.3) in seconds, at most a day.

    A date counts from the same answer's Date: our clock may be another.
    """
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), _MAX_RETRY_AFTER_S))
    until, since = _time(text), _time(headers.get("date", ""))
    if until is None or since is None:
        return None
    return min(max(until - since, 0.0), float(_MAX_RETRY_AFTER_S))


def _nonce(answer: Answer) -> str | None:
    """The nonce that a proof must hold, if that is what the server wants."""
    nonce = answer.headers.get("dpop-nonce", "")
    wanted = "use_dpop_nonce" in answer.headers.get("www-authenticate", "")
    return nonce if wanted and _NONCE.fullmatch(nonce) else None


def _time(text: str) -> float | None:
    if len(text) > _MAX_DATE_CHARACTERS:
        return None
    try:
        date = parsedate_to_datetime(text)
        # HTTP's dates are in GMT, though one of their three forms does not say so.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
