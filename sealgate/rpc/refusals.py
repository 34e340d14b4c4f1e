"""What went wrong, as gRPC's status code, message and details.

Details are those of google.rpc (AIP-193), in ``grpc-status-details-bin``: the reason,
which is the problem's type as an upper-case name; how long to wait, where the server
says so, in ``grpc-retry-pushback-ms``, too, so that a client's own retries keep to it;
and the id of the request in the server's audit log.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from sealgate.errors import (
    AuthenticationError,
    ClientError,
    ClockError,
    InvalidInputError,
    KeyRefusedError,
    NotFoundError,
    PermissionDeniedError,
    ProfileError,
    SealgateError,
    ServerRefusedError,
    TensorError,
)
from sealgate.rpc import inference_pb2 as pb

__all__ = ["Refusal", "refusal_for"]

Code = grpc.StatusCode
_DOMAIN = "sealgate.dev"
_TYPES = "type.googleapis.com/google.rpc."
_MAX_REASON_CHARACTERS = 63
# By HTTP status; beside it by the kind of error.
_CODES = {
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    431: Code.RESOURCE_EXHAUSTED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class Refusal:
    """How a call ends that went wrong.

    Attributes:
        code: gRPC's.
        message: for people.
        trailing: metadata behind it.
    """

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str | bytes], ...]


def refusal_for(error: SealgateError) -> Refusal:
    """What a caller is told of an error."""
    code, message = _code(error), _message(error)
    details: list[tuple[str, bytes]] = []
    trailing: list[tuple[str, str | bytes]] = []
    if isinstance(error, ServerRefusedError):
        reason = pb.ErrorInfo(reason=_reason(error.type), domain=_DOMAIN)
        details.append(("ErrorInfo", reason.SerializeToString()))
        if error.request_id is not None:
            about = pb.RequestInfo(request_id=error.request_id)
            details.append(("RequestInfo", about.SerializeToString()))
        if error.retry_after_s is not None:
            seconds, rest = divmod(error.retry_after_s, 1)
            delay = pb.RetryInfo.Delay(seconds=int(seconds), nanos=int(rest * 1e9))
            wait = pb.RetryInfo(retry_delay=delay)
            details.append(("RetryInfo", wait.SerializeToString()))
            milliseconds = str(int(error.retry_after_s * 1000))
            trailing.append(("grpc-retry-pushback-ms", milliseconds))
    if details:
        status = pb.ErrorStatus(code=code.value[0], message=message)
        for name, value in details:
            status.details.add(type_url=_TYPES + name, value=value)
        trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    return Refusal(code, message, tuple(trailing))


def _code(error: SealgateError) -> grpc.StatusCode:
    match error:
        case AuthenticationError():
            return Code.UNAUTHENTICATED
        case PermissionDeniedError():
            return Code.PERMISSION_DENIED
        case NotFoundError():
            return Code.NOT_FOUND
        case KeyRefusedError() | ClockError():
            return Code.UNAVAILABLE  # recovery did not help; a later call may
        case ServerRefusedError(status=status) if status in _CODES:
            return _CODES[status]
        case InvalidInputError() | TensorError():
            return Code.INVALID_ARGUMENT
        case ServerRefusedError(status=status):
            return Code.INTERNAL if status >= 500 else Code.FAILED_PRECONDITION
        case ProfileError():
            return Code.UNAUTHENTICATED  # the proxy's own token is none
        case ClientError():
            return Code.UNAVAILABLE
    return Code.INTERNAL


def _message(error: SealgateError) -> str:
    """The server's own words where there are any: v2 clients show them alone."""
    if isinstance(error, ServerRefusedError):
        text = error.problem.get("error") or error.problem.get("detail")
        if isinstance(text, str) and text.isprintable() and len(text) <= 1000:
            return text
    return str(error)


def _reason(kind: str) -> str:
    """A problem's type as a reason of ErrorInfo.

    >>> _reason("https://sealgate.dev/problems/insufficient-scope")
    'INSUFFICIENT_SCOPE'
    """
    last = kind.replace("#", "/").rpartition("/")[2]
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in last)
    return text.upper()[:_MAX_REASON_CHARACTERS]
