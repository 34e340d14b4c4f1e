"""Every refusal a caller can see, as problem details (RFC 9457).

This is the only module that maps a cause to a status. A problem has a stable ``type``;
what it says in ``detail`` is written for a rightful caller and never repeats input
beyond names and shapes. Open Inference Protocol clients find that text in ``error``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from sealgate.errors import (
    BinaryHttpError,
    EncapsulationError,
    SealgateError,
    TensorError,
)
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.dpop import NONCE_HEADER
from security.errors import (
    AccessError,
    AttesterError,
    AuditError,
    CredentialsError,
    ExtractionBudgetError,
    HiddenError,
    IntrospectionError,
    KeysUnavailableError,
    MonitoringStoreError,
    NonceError,
    ProofError,
    QuotaError,
    QuotaStoreError,
    ReplayError,
    ReplayStoreError,
    RevocationStoreError,
    ScopeError,
)

__all__ = [
    "NO_MODEL",
    "PROBLEM_MEDIA_TYPE",
    "Challenges",
    "Problem",
    "method_not_allowed",
    "problem_response",
    "to_problem",
]

PROBLEM_MEDIA_TYPE = b"application/problem+json"
# Said of a model that is not there, and of one that the caller may not know of.
NO_MODEL = "no such model or version"
_BASE = "https://sealgate.dev/problems/"
_RETRY: Headers = ((b"retry-after", b"1"),)


@dataclass(frozen=True)
class _Kind:
    status: int
    title: str
    type: str


def _kind(status: int, code: str, title: str) -> tuple[str, _Kind]:
    return code, _Kind(status, title, _BASE + code)


_KINDS: Mapping[str, _Kind] = dict(
    (
        _kind(400, "malformed-encapsulation", "Malformed encapsulated request"),
        _kind(400, "malformed-message", "Malformed Binary HTTP message"),
        _kind(400, "malformed-coding", "The content is not what its coding says"),
        _kind(400, "malformed-http", "Malformed HTTP request"),
        _kind(400, "malformed-json", "Body is not JSON"),
        _kind(400, "invalid-request", "Invalid inference request"),
        _kind(400, "invalid-credentials", "More than one set of credentials"),
        _kind(400, "not-explainable", "Answers of this model cannot be explained"),
        _kind(400, "no-tickets", "Answers of this model take no labels here"),
        _kind(401, "unauthenticated", "A valid access token is needed"),
        _kind(403, "insufficient-scope", "The token does not grant this"),
        _kind(403, "sealed-required", "This server only answers sealed requests"),
        _kind(403, "explanations-forbidden", "Answers of this model are not explained"),
        _kind(404, "not-found", "Not found"),
        _kind(405, "method-not-allowed", "Method not allowed"),
        _kind(408, "body-timeout", "The request body did not arrive in time"),
        _kind(409, "replayed", "This sealed request was answered before; seal it anew"),
        _kind(413, "body-too-large", "The request body is too large"),
        _kind(415, "unsupported-media-type", "Unsupported media type"),
        _kind(431, "head-too-large", "The request line and headers are too large"),
        # RFC 9458, section 6.5.2.
        (
            "date",
            _Kind(
                400,
                "The request's Date is missing or too far from the server's",
                "https://iana.org/assignments/http-problem-types#date",
            ),
        ),
        # RFC 9458, section 5.3. A key nobody has and a message that does not open get
        # the same answer: which of the two it was is nobody's business.
        (
            "ohttp-key",
            _Kind(
                422,
                "The key of this request is not usable; fetch the configuration again",
                "https://iana.org/assignments/http-problem-types#ohttp-key",
            ),
        ),
        # draft-ietf-httpapi-ratelimit-headers-11, section 5.1.
        (
            "quota-exceeded",
            _Kind(
                429,
                "A quota of yours for this model is spent",
                "https://iana.org/assignments/http-problem-types#quota-exceeded",
            ),
        ),
        _kind(429, "extraction-budget", "Your extraction budget here is spent"),
        _kind(429, "caller-held-off", "Workers ended while they ran your requests"),
        _kind(500, "internal", "Internal error"),
        _kind(500, "model-failure", "The model failed on this input"),
        _kind(501, "transfer-coding", "The transfer coding is not supported"),
        _kind(503, "admission-expired", "The evidence of this model has expired"),
        _kind(503, "admission-withdrawn", "This model is not admitted any more"),
        _kind(503, "model-held-off", "Workers ended while they ran this model"),
        _kind(503, "not-ready", "This server cannot answer for any model now"),
        _kind(503, "keys-unavailable", "The issuer's keys are not there yet"),
        _kind(503, "issuer-unavailable", "The issuer cannot be asked about tokens now"),
        _kind(503, "revocation-unavailable", "Whether this is revoked cannot be told"),
        _kind(503, "overloaded", "The server is busy"),
        _kind(503, "replay-unavailable", "Whether this is a replay cannot be told now"),
        _kind(503, "quota-unavailable", "What you have used up cannot be told now"),
        _kind(503, "monitoring-unavailable", "What was released cannot be read now"),
        _kind(503, "labels-unavailable", "Labels cannot be kept now; send them again"),
        _kind(503, "attestation-unavailable", "There is no evidence of this machine"),
        _kind(503, "audit-unavailable", "The decision could not be recorded"),
        _kind(504, "inference-timeout", "The inference took too long"),
    )
)


class Problem(SealgateError):  # noqa: N818  (RFC 9457 calls it a problem)
    """A refusal with a code of the table above.

    Attributes:
        code: which.
        detail: for the caller; None says no more than the title.
        headers: to be sent along.
        members: further ones of the document.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        headers: Headers = (),
        members: Mapping[str, Any] | None = None,
    ) -> None:
        self.members = members or {}
        self.code = code
        self.detail = detail
        self.headers = headers
        super().__init__(code)

    @property
    def status(self) -> int:
        """The HTTP status of this problem."""
        return _KINDS[self.code].status


@dataclass(frozen=True)
class Challenges:
    """What a refused caller is told about access here, in WWW-Authenticate.

    Attributes:
        metadata_url: of this resource's metadata (RFC 9728, section 5.1), or empty.
        bearer: bearer tokens are taken (RFC 6750).
        dpop_algorithms: of proofs, where bound tokens are (RFC 9449, section 7.1).
    """

    metadata_url: str = ""
    bearer: bool = True
    dpop_algorithms: Collection[str] = ()

    def headers(self, error: str | None = None, **parameters: str) -> Headers:
        """One field per scheme.

        Args:
            error: code of RFC 6750, section 3.1; None where no token was given.
            parameters: further ones.
        """
        common = {"realm": "sealgate"}
        if error is not None:
            common["error"] = error
        common |= parameters
        if self.metadata_url:
            common["resource_metadata"] = self.metadata_url
        found: list[tuple[bytes, bytes]] = []
        if self.bearer and error not in _PROOF_CODES:
            found.append(_challenge("Bearer", common))
        if self.dpop_algorithms:
            algorithms = {"algs": " ".join(self.dpop_algorithms)}
            found.append(_challenge("DPoP", common | algorithms))
        return tuple(found) or (_challenge("Bearer", common),)


# Codes of RFC 9449, sections 7.1 and 9: about the proof, not about the token.
_PROOF_CODES = ("invalid_dpop_proof", "use_dpop_nonce")


def to_problem(error: SealgateError, challenges: Challenges = Challenges()) -> Problem:
    """The problem that an error from the rooms below becomes."""
    match error:
        case Problem():
            return error
        case QuotaError():
            return _quota_problem(error)
        case AccessError():
            return _refused(error, challenges)
        case TensorError():
            return Problem("invalid-request", str(error))
        case EncapsulationError():
            return Problem("malformed-encapsulation")
        case BinaryHttpError():
            return Problem("malformed-message")
        case ReplayError():
            return Problem("replayed")
        case AttesterError():
            return Problem("attestation-unavailable", headers=_RETRY)
        case ReplayStoreError() | QuotaStoreError() | MonitoringStoreError():
            return _store_problem(error)
        case AuditError():
            return Problem("audit-unavailable")
    return Problem("internal")


def _store_problem(error: SealgateError) -> Problem:
    """A store cannot be asked: what depends on it is not answered."""
    match error:
        case ReplayStoreError():
            return Problem("replay-unavailable", headers=_RETRY)
        case QuotaStoreError():
            return Problem("quota-unavailable", headers=_RETRY)
    return Problem("labels-unavailable", headers=_RETRY)


def _refused(error: AccessError, challenges: Challenges) -> Problem:
    """Refusals of a caller."""
    match error:
        case NonceError():
            headers = challenges.headers("use_dpop_nonce")
            nonce = (NONCE_HEADER, error.nonce.encode())
            return Problem("unauthenticated", headers=(*headers, nonce))
        case ProofError():
            headers = challenges.headers("invalid_dpop_proof")
            return Problem("unauthenticated", headers=headers)
        case CredentialsError():
            headers = challenges.headers("invalid_request")
            return Problem("invalid-credentials", headers=headers)
        case HiddenError():
            return Problem("not-found", NO_MODEL)
        case ScopeError():
            scope = str(error).encode("ascii", "replace").decode()
            headers = challenges.headers("insufficient_scope", scope=scope)
            return Problem("insufficient-scope", f"it lacks {scope}", headers=headers)
        case KeysUnavailableError():
            return Problem("keys-unavailable", headers=_RETRY)
        case IntrospectionError():
            return Problem("issuer-unavailable", headers=_RETRY)
        case RevocationStoreError():
            return Problem("revocation-unavailable", headers=_RETRY)
    return Problem("unauthenticated", headers=challenges.headers("invalid_token"))


def method_not_allowed(*allowed: bytes) -> Problem:
    """The problem that names the methods that are."""
    return Problem("method-not-allowed", headers=((b"allow", b", ".join(allowed)),))


def problem_response(problem: Problem) -> Response:
    """The response that carries a problem."""
    kind = _KINDS[problem.code]
    document: dict[str, Any] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        **problem.members,
    }
    if problem.detail is not None:
        document["detail"] = problem.detail
    document["error"] = problem.detail or kind.title
    return Response(
        kind.status,
        ((b"content-type", PROBLEM_MEDIA_TYPE), *problem.headers),
        orjson.dumps(document),
    )


def _challenge(scheme: str, parameters: Mapping[str, str]) -> tuple[bytes, bytes]:
    """One challenge; no value of ours holds a quote (RFC 9110, section 11.6.1)."""
    pairs = ", ".join(f'{name}="{value}"' for name, value in parameters.items())
    return b"www-authenticate", f"{scheme} {pairs}".encode()


def _quota_problem(error: QuotaError) -> Problem:
    """Says which quota, and when to come back; never, if it asks for too much."""
    names = ", ".join(error.policies)
    headers = error.fields
    if error.retry_after_s is None:
        detail = f"this request is larger than the quota: {names}"
    else:
        detail = f"spent: {names}"
        headers = (*headers, (b"retry-after", b"%d" % error.retry_after_s))
    members = {"violated-policies": list(error.policies)}
    if isinstance(error, ExtractionBudgetError):
        return Problem("extraction-budget", detail, headers, members)
    return Problem("quota-exceeded", detail, headers, members)
