"""The root of the one error tree, and the part of it that clients meet.

::

    SealgateError
    ├── ProtocolError            bytes that break a format two parties agreed on
    │   ├── JsonError            strict JSON: size, depth, duplicate keys, NaN
    │   ├── BinaryHttpError      RFC 9292
    │   ├── KeyConfigError       RFC 9458, section 3
    │   ├── EncapsulationError   RFC 9458, section 4: malformed, before any key is used
    │   ├── UnknownKeyError      no configuration for this key id, KEM, KDF and AEAD
    │   ├── DecryptionError      authentication failed; never says which check
    │   ├── SealedFileError      a sealed file that was never one, or was cut
    │   ├── TensorError          Open Inference Protocol v2 tensors
    │   ├── AttestationError     evidence of a TPM, or what a policy asks of it
    │   ├── StatementError       DSSE, in-toto, Sigstore bundle
    │   ├── NoteError            signed notes, checkpoints, cosignatures
    │   ├── MerkleError          a proof of a transparency log does not verify
    │   ├── ReceiptError         a receipt is none, or does not prove what it should
    │   └── OfferError           the log of what is offered, or not in it
    ├── ClientError              what the SDK and the `sealgate` command raise
    │   ├── ProfileError         the profile or the input file cannot be used
    │   ├── TransportError       no answer, or one that is not the protocol's
    │   ├── ServerRefusedError   the server's problem details (RFC 9457)
    │   │   ├── InvalidInputError      400, 413, 415: the request itself
    │   │   ├── AuthenticationError    401: no valid token
    │   │   │   └── ProofNonceError    its proof lacks a nonce of the server
    │   │   ├── PermissionDeniedError  403: the token does not grant this
    │   │   ├── NotFoundError          404: no such model, version or route
    │   │   ├── ClockError             the request's Date is not the server's
    │   │   ├── KeyRefusedError        422: the key it was sealed to is gone
    │   │   ├── OverloadedError        429, 503, a receipt's 409: not now
    │   │   └── ServerFailedError      any other 5xx
    │   ├── NotOfferedError      a key or passport is not in the public log
    │   └── PassportError        the model's attestations do not verify
    └── …                        models/errors.py and security/errors.py hold the rest
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AttestationError",
    "AuthenticationError",
    "BinaryHttpError",
    "ClientError",
    "ClockError",
    "DecryptionError",
    "EncapsulationError",
    "InvalidInputError",
    "JsonError",
    "KeyConfigError",
    "KeyRefusedError",
    "MerkleError",
    "NotFoundError",
    "NotOfferedError",
    "NoteError",
    "OfferError",
    "OverloadedError",
    "PassportError",
    "PermissionDeniedError",
    "ProfileError",
    "ProofNonceError",
    "ProtocolError",
    "ReceiptError",
    "SealedFileError",
    "SealgateError",
    "ServerFailedError",
    "ServerRefusedError",
    "StatementError",
    "TensorError",
    "TransportError",
    "UnknownKeyError",
]


_MAX_MESSAGE_CHARACTERS = 1000


class SealgateError(Exception):
    """Root of every error this project raises on purpose."""


class ProtocolError(SealgateError):
    """Bytes that break a format two parties agreed on."""


class JsonError(ProtocolError):
    """Not the JSON that the caller's bounds allow."""


class BinaryHttpError(ProtocolError):
    """Not a Binary HTTP message (RFC 9292) within the caller's bounds."""


class KeyConfigError(ProtocolError):
    """Not a key configuration, or a list of them (RFC 9458, section 3)."""


class EncapsulationError(ProtocolError):
    """Not an encapsulated message (RFC 9458, section 4.3 or 4.4)."""


class UnknownKeyError(ProtocolError):
    """The gateway has no key for the identifiers of an encapsulated request."""


class DecryptionError(ProtocolError):
    """A sealed message did not authenticate. It never says why."""


class SealedFileError(ProtocolError):
    """Not a sealed file, one that was cut, or one for other keys."""


class TensorError(ProtocolError):
    """A v2 tensor, or a v2 request or response, is not what the model takes."""


class AttestationError(ProtocolError):
    """Evidence about a machine is malformed or forged, or not what was asked of it."""


class StatementError(ProtocolError):
    """A DSSE envelope, in-toto statement or Sigstore bundle is malformed or forged."""


class NoteError(ProtocolError):
    """A note or checkpoint is malformed, or not signed by whom it must be."""


class MerkleError(ProtocolError):
    """A proof of a Merkle tree does not verify, or cannot be made."""


class ReceiptError(ProtocolError):
    """A receipt is malformed, or does not prove what it should."""


class OfferError(ProtocolError):
    """The log of what is offered does not verify, or something is not in it."""


class ClientError(SealgateError):
    """Root of what the client raises."""


class ProfileError(ClientError):
    """The client profile, or an input file, cannot be used."""


class TransportError(ClientError):
    """The server did not answer, or not in the protocol."""


class PassportError(ClientError):
    """A model's attestations do not verify against the keys the client trusts."""


class NotOfferedError(ClientError):
    """A key configuration or passport is not in the deployment's public log."""


class ServerRefusedError(ClientError):
    """The server answered with problem details (RFC 9457).

    Attributes:
        status: HTTP status of the (inner) response.
        problem: the decoded problem object, at least ``type`` and ``title``.
        retry_after_s: how long the server asks to wait, or None. It only says so where
            nothing ran.
        sealed: the answer came sealed, so it is the server's own; anyone on the way can
            write another one.
        request_id: names the request's audit record, where the server gave one.
    """

    def __init__(
        self,
        status: int,
        problem: dict[str, Any],
        *,
        retry_after_s: float | None = None,
        sealed: bool = False,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s
        self.sealed = sealed
        self.request_id = request_id
        title = problem.get("title") or "refused"
        detail = problem.get("detail")
        super().__init__(
            _one_line(f"{status} {title}" + (f": {detail}" if detail else ""))
        )

    @property
    def type(self) -> str:
        """The problem's ``type`` URI, ``about:blank`` when it has none."""
        return str(self.problem.get("type", "about:blank"))


class InvalidInputError(ServerRefusedError):
    """The server cannot use the request: its tensors, size or media type."""


class AuthenticationError(ServerRefusedError):
    """The server wants a valid token."""


class ProofNonceError(AuthenticationError):
    """The proof of the token's key lacks the server's nonce (RFC 9449, section 9).

    Attributes:
        nonce: the one to use.
    """

    nonce: str | None = None


class PermissionDeniedError(ServerRefusedError):
    """The token does not grant what was asked."""


class NotFoundError(ServerRefusedError):
    """There is no such model, version or route."""


class ClockError(ServerRefusedError):
    """The Date of the request is too far from the server's (RFC 9458, section 6.5.2).

    Attributes:
        server_time: the server's clock in seconds since 1970, or None.
    """

    server_time: float | None = None


class KeyRefusedError(ServerRefusedError):
    """The server cannot open what was sealed to this key (RFC 9458, section 5.3)."""


class OverloadedError(ServerRefusedError):
    """The server cannot answer now: too much work, too many requests, no proof yet."""


class ServerFailedError(ServerRefusedError):
    """The server failed."""


def _one_line(text: str) -> str:
    # An unsealed problem can come from anyone on the way, and ends up on a terminal.
    if len(text) > _MAX_MESSAGE_CHARACTERS:
        text = text[:_MAX_MESSAGE_CHARACTERS] + "…"
    return "".join(c if c.isprintable() else " " for c in text)
