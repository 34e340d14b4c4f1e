"""service.problems: a status and a stable type for every refusal."""

from __future__ import annotations

import ast
import json

import pytest

from models.errors import BundleError
from sealgate.errors import (
    BinaryHttpError,
    DecryptionError,
    EncapsulationError,
    SealgateError,
    TensorError,
)
from security.errors import (
    AuditError,
    CredentialsError,
    HiddenError,
    IntrospectionError,
    KeysUnavailableError,
    NonceError,
    ProofError,
    RevocationStoreError,
    ScopeError,
    TokenError,
)
from service.problems import (
    _KINDS,
    Challenges,
    Problem,
    problem_response,
    to_problem,
)
from tests.support.servers import ROOT

SECRET = "a detail that is nobody's business"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TokenError(SECRET), 401, "unauthenticated"),
        (EncapsulationError(SECRET), 400, "malformed-encapsulation"),
        (BinaryHttpError(SECRET), 400, "malformed-message"),
        (AuditError(SECRET), 503, "audit-unavailable"),
        (BundleError(SECRET), 500, "internal"),
        (DecryptionError(SECRET), 500, "internal"),
        (SealgateError(SECRET), 500, "internal"),
    ],
)
def test_details_stay_inside(error: SealgateError, status: int, code: str) -> None:
    problem = to_problem(error)
    response = problem_response(problem)
    assert (problem.code, response.status) == (code, status)
    assert SECRET.encode() not in response.body
    assert all(SECRET.encode() not in value for _, value in response.headers)


def test_a_rightful_caller_learns_which_tensor() -> None:
    response = problem_response(to_problem(TensorError('input "x": expected FP32')))
    document = json.loads(response.body)
    assert response.status == 400
    assert document["detail"] == document["error"] == 'input "x": expected FP32'


def test_the_challenge_of_rfc_6750() -> None:
    headers = dict(problem_response(to_problem(TokenError("x"))).headers)
    assert headers[b"www-authenticate"] == (
        b'Bearer realm="sealgate", error="invalid_token"'
    )
    headers = dict(problem_response(to_problem(ScopeError("infer:toy"))).headers)
    assert headers[b"www-authenticate"] == (
        b'Bearer realm="sealgate", error="insufficient_scope", scope="infer:toy"'
    )


@pytest.mark.parametrize(
    ("error", "status", "code", "header"),
    [
        (ProofError(SECRET), 401, "unauthenticated", b'error="invalid_dpop_proof"'),
        (NonceError("n"), 401, "unauthenticated", b'error="use_dpop_nonce"'),
        (CredentialsError(SECRET), 400, "invalid-credentials", b"invalid_request"),
        (KeysUnavailableError(SECRET), 503, "keys-unavailable", b""),
        (IntrospectionError(SECRET), 503, "issuer-unavailable", b""),
        (RevocationStoreError(SECRET), 503, "revocation-unavailable", b""),
        (HiddenError(SECRET), 404, "not-found", b""),
    ],
)
def test_refusals_of_callers(
    error: SealgateError, status: int, code: str, header: bytes
) -> None:
    response = problem_response(to_problem(error, Challenges(dpop_algorithms=["A"])))
    assert (response.status, to_problem(error).code) == (status, code)
    challenges = [v for name, v in response.headers if name == b"www-authenticate"]
    assert any(header in value for value in challenges) or not header
    assert all(SECRET.encode() not in value for _, value in response.headers)
    assert SECRET.encode() not in response.body


def test_one_challenge_per_scheme() -> None:
    url = "https://models.example/.well-known/oauth-protected-resource"
    both = Challenges(url, dpop_algorithms=("ES256", "EdDSA"))
    bearer, bound = (value for _, value in both.headers())
    assert bearer == b'Bearer realm="sealgate", resource_metadata="%b"' % url.encode()
    assert bound.startswith(b'DPoP realm="sealgate", resource_metadata=')
    assert bound.endswith(b', algs="ES256 EdDSA"')
    only = Challenges(bearer=False, dpop_algorithms=("ES256",)).headers("invalid_token")
    assert [value.split(b" ")[0] for _, value in only] == [b"DPoP"]
    # What is wrong with a proof is nothing that a bearer token would do better.
    (proof,) = both.headers("use_dpop_nonce")
    assert proof[1].startswith(b"DPoP")


@pytest.mark.parametrize("code", sorted(_KINDS))
def test_every_problem_is_a_document(code: str) -> None:
    response = problem_response(Problem(code))
    document = json.loads(response.body)
    assert document["status"] == response.status == Problem(code).status
    assert document["error"] == document["title"]
    assert "detail" not in document
    assert dict(response.headers)[b"content-type"] == b"application/problem+json"
    if code in ("ohttp-key", "date", "quota-exceeded"):
        iana = f"https://iana.org/assignments/http-problem-types#{code}"
        status = {"ohttp-key": 422, "date": 400, "quota-exceeded": 429}[code]
        assert (document["type"], document["status"]) == (iana, status)
    else:
        assert document["type"] == f"https://sealgate.dev/problems/{code}"


def test_every_code_that_is_raised_is_in_the_table_and_the_other_way_round() -> None:
    used = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                code = node.args[0]
                assert isinstance(code, ast.Constant)
                used.add(code.value)
    assert used == set(_KINDS)
