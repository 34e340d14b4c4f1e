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
from security.errors import AuditError, ScopeError, TokenError
from service.problems import _KINDS, Problem, problem_response, to_problem
from tests.servers import ROOT

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
        b'Bearer error="insufficient_scope", scope="infer:toy"'
    )


@pytest.mark.parametrize("code", sorted(_KINDS))
def test_every_problem_is_a_document(code: str) -> None:
    response = problem_response(Problem(code))
    document = json.loads(response.body)
    assert document["status"] == response.status == Problem(code).status
    assert document["error"] == document["title"]
    assert "detail" not in document
    assert dict(response.headers)[b"content-type"] == b"application/problem+json"
    if code in ("ohttp-key", "date"):
        iana = f"https://iana.org/assignments/http-problem-types#{code}"
        status = {"ohttp-key": 422, "date": 400}[code]
        assert (document["type"], document["status"]) == (iana, status)
    else:
        assert document["type"] == f"https://sealgate.dev/problems/{code}"


def test_every_code_that_is_raised_is_in_the_table_and_the_other_way_round() -> None:
    used = set()
    for path in (ROOT / "service").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                code = node.args[0]
                assert isinstance(code, ast.Constant)
                used.add(code.value)
    assert used == set(_KINDS)
