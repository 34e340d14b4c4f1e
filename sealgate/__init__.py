"""Sealgate's client: sealed, authenticated inference.

>>> from sealgate import Client
>>> with Client.from_profile(".sealgate/profile.json") as client:  # doctest: +SKIP
...     client.infer("breast-cancer", {"features": rows})["label"]

client, async_client  what callers hold: they move bytes, and decide nothing
core, options         what both do, as steps without I/O; what callers trust and allow
steps, answers        what is asked of who does the I/O; answers read as they come
exchange, streams     one sealed request and its answer: whole, or as it comes
keys, key_source      which key to seal to, and where it comes from
attestation           what must be attested of the machine behind it
retry                 when a request may be sent again
transport, direct     how bytes leave, and by a closed list of fields: httpcore's pools,
                      and connections of our own for what is sent as a whole
batches               more rows than a model takes in one request
content               arrays as a request's content, and an answer's
convert, cells        arrays, data frames and their cells into what a model takes
explanation, bars     why a model answered so; as charts
feedback              tickets that came with answers, and the labels for them
receipt_numbers, receipts  what comes with answers; proofs that they are on record
proofs                that the client has the key its token is bound to
passport, profile     a model's signed evidence; where the server is, whom to trust
proxy, inbound        the sealing proxy; its plain side without I/O
listener              the small HTTP server that it and a witness listen with
rpc                   its gRPC side
endpoints, peers      where the proxy listens; which account connects to it
log_trust, offers     which log to believe; the public log of what is offered
cli, commands, receipt_commands  the `sealgate` command
version               which is installed, and `--version` of both commands
tables, output        the files that it reads, and what it prints and writes
long_tables           tables that are too long to be read at once
page, charts          the frame of HTML pages, and what is drawn in them
monitoring            what was found of a served model, in lines for people
protocol              bytes that two parties must agree on
errors                the one error tree
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sealgate.errors import (
    AuthenticationError,
    ClientError,
    ClockError,
    InvalidInputError,
    KeyRefusedError,
    NotFoundError,
    NotOfferedError,
    OverloadedError,
    PassportError,
    PermissionDeniedError,
    ProfileError,
    ReceiptError,
    SealgateError,
    ServerFailedError,
    ServerRefusedError,
    TensorError,
    TransportError,
)

if TYPE_CHECKING:
    from sealgate.async_client import AsyncClient
    from sealgate.client import Client
    from sealgate.explanation import Explanation
    from sealgate.feedback import Ticketed
    from sealgate.options import Options
    from sealgate.passport import Passport
    from sealgate.profile import Profile
    from sealgate.proofs import ProofKey
    from sealgate.protocol.receipts import Proven
    from sealgate.receipt_numbers import Answers, ReceiptNumber
    from sealgate.retry import RetryPolicy

__all__ = [
    "Answers",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ClientError",
    "ClockError",
    "Explanation",
    "InvalidInputError",
    "KeyRefusedError",
    "NotFoundError",
    "NotOfferedError",
    "Options",
    "OverloadedError",
    "Passport",
    "PassportError",
    "PermissionDeniedError",
    "Profile",
    "ProfileError",
    "ProofKey",
    "Proven",
    "ReceiptError",
    "ReceiptNumber",
    "RetryPolicy",
    "SealgateError",
    "ServerFailedError",
    "ServerRefusedError",
    "TensorError",
    "Ticketed",
    "TransportError",
]

# Whoever imports a module of this package imports the package. Servers and the
# commands need its errors and protocol, not an HTTP client: that is half of the time
# a command takes to start.
_LAZY = {
    "Answers": "sealgate.receipt_numbers",
    "AsyncClient": "sealgate.async_client",
    "Client": "sealgate.client",
    "Explanation": "sealgate.explanation",
    "Options": "sealgate.options",
    "Passport": "sealgate.passport",
    "Profile": "sealgate.profile",
    "ProofKey": "sealgate.proofs",
    "Proven": "sealgate.protocol.receipts",
    "ReceiptNumber": "sealgate.receipt_numbers",
    "RetryPolicy": "sealgate.retry",
    "Ticketed": "sealgate.feedback",
}


def __getattr__(name: str) -> object:
    """Import what belongs to the client when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
