"""service.routes: who may, what is asked, what is answered, what is recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.protocol.bhttp import Request, Response
from security.access.issuer import DEVELOPMENT_ISSUER
from security.audit.verify import verify_log
from security.errors import ScopeError, TokenError
from security.key_files import pseudonym
from service.problems import Problem
from tests.support.bundles import KINDS
from tests.support.disks import file_size_limit
from tests.support.mutations import JSON, mutated
from tests.support.patience import in_time, once
from tests.support.rooms import (
    INPUT,
    SUBJECT,
    Rooms,
    admitted,
    endless_model,
    request,
    reshape_model,
    token,
    wire,
)

INFER = "/v2/models/toy/infer"
BODY: dict[str, Any] = {"id": "7", "inputs": [INPUT], "outputs": [{"name": "label"}]}
ODD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [-1] * 3}]}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    return wire(tmp_path_factory.mktemp("routes"))


def answer(rooms: Rooms, asked: Request, *, sealed: bool = True) -> Response:
    return asyncio.run(rooms.routes.answer(asked, sealed=sealed))


def ask(
    rooms: Rooms,
    method: str = "POST",
    path: str = INFER,
    *,
    scope: str = "infer:toy",
    body: Any = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> tuple[int, dict[str, Any]]:
    """Status and document of a sealed request with a valid token."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    content = b"" if body is None else content
    response = answer(
        rooms, request(method, path, bearer=token(scope), headers=headers, body=content)
    )
    return response.status, json.loads(response.body or b"{}")


def problem(document: dict[str, Any]) -> str:
    return document["type"].removeprefix("https://sealgate.dev/problems/")


def test_inference(rooms: Rooms) -> None:
    status, document = ask(rooms, body={"id": "7", "inputs": [INPUT]})
    assert status == 200
    assert document["id"] == "7"
    assert (document["model_name"], document["model_version"]) == ("toy", "1.0.0")
    assert [o["name"] for o in document["outputs"]] == ["probabilities", "label"]
    assert document["outputs"][0]["shape"] == [1, 2]
    assert sum(document["outputs"][0]["data"]) == pytest.approx(1)


def test_only_the_outputs_that_were_asked_for(rooms: Rooms) -> None:
    status, document = ask(rooms, body=BODY)
    assert (status, [o["name"] for o in document["outputs"]]) == (200, ["label"])


@pytest.mark.parametrize("identifier", [7, None, ["x"], "x" * 257])
def test_an_id_that_is_none_is_left_out(rooms: Rooms, identifier: object) -> None:
    status, document = ask(rooms, body=BODY | {"id": identifier})
    assert status == 200
    assert "id" not in document


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("/v2", "name", "sealgate"),
        ("/v2/", "extensions", ["binary_tensor_data"]),
        ("/v2/models/toy", "versions", ["1.0.0"]),
        ("/v2/models/toy/versions/1.0.0", "platform", "onnxruntime_onnx"),
        ("/v2/models/toy?verbose=1", "name", "toy"),
    ],
)
def test_metadata(rooms: Rooms, path: str, key: str, value: object) -> None:
    status, document = ask(rooms, "GET", path)
    assert (status, document[key]) == (200, value)


def test_metadata_names_the_tensors(rooms: Rooms) -> None:
    _, document = ask(rooms, "GET", "/v2/models/toy")
    (features,) = document["inputs"]
    assert (features["datatype"], features["shape"]) == ("FP32", [-1, 3])
    assert features["parameters"]["columns"][0] == {"name": "a", "low": -10, "high": 10}
    assert document["outputs"][0]["parameters"]["labels"] == ["no", "yes"]


def test_ready(rooms: Rooms) -> None:
    ready = {"name": "toy", "ready": True}
    assert ask(rooms, "GET", "/v2/models/toy/ready") == (200, ready)


def test_the_passport_holds_the_very_bytes(rooms: Rooms) -> None:
    status, document = ask(rooms, "GET", "/v2/models/toy/attestations")
    files = rooms.admission.bundle.files
    assert status == 200
    assert document["verdict"].encode() == files["attestations/verdict.sigstore.json"]
    assert set(document["evidence"]) == set(KINDS)
    for kind, item in document["evidence"].items():
        assert item["report"].encode() == files[f"evidence/{kind}.json"]


def test_versions(rooms: Rooms) -> None:
    assert ask(rooms, path="/v2/models/toy/versions/1.0.0/infer", body=BODY)[0] == 200
    status, document = ask(rooms, path="/v2/models/toy/versions/1.0.1/infer", body=BODY)
    assert (status, document["detail"]) == (404, "no such model or version")


# Who may.


def test_without_a_token(rooms: Rooms) -> None:
    response = answer(rooms, request("GET", "/v2"))
    assert response.status == 401
    # RFC 6750, section 3.1: no error code where no authentication was tried.
    assert dict(response.headers)[b"www-authenticate"] == b'Bearer realm="sealgate"'


@pytest.mark.parametrize(
    "value",
    [b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearer abc", b"Bearer a.b.c", b"\xff"],
)
def test_with_another_credential(rooms: Rooms, value: bytes) -> None:
    response = answer(rooms, request(headers=((b"authorization", value),)))
    assert response.status == 401
    assert b'error="invalid_token"' in dict(response.headers)[b"www-authenticate"]


def test_two_authorization_headers(rooms: Rooms) -> None:
    one = (b"authorization", b"Bearer " + token("infer:toy").encode())
    for headers in ((one, one), (one, (b"authorization", b"")), (one, one, one)):
        response = answer(rooms, request(headers=headers))
        assert response.status == 400
        # RFC 6750, section 3.1.
        challenge = dict(response.headers)[b"www-authenticate"]
        assert b'error="invalid_request"' in challenge


def test_the_scheme_has_no_case(rooms: Rooms) -> None:
    value = b"bEaReR " + token("infer:toy").encode()
    assert answer(rooms, request(headers=((b"authorization", value),))).status == 200


@pytest.mark.parametrize("name", ["access_token", "token", "authorization"])
def test_a_token_in_the_query_is_no_token(rooms: Rooms, name: str) -> None:
    path = f"/v2?{name}={token('infer:toy')}"
    assert answer(rooms, request("GET", path)).status == 401


@pytest.mark.parametrize("path", ["", "/infer", "/ready", "/attestations"])
def test_another_scope(rooms: Rooms, path: str) -> None:
    bearer = token("infer:other", "metrics")
    response = answer(rooms, request("GET", f"/v2/models/toy{path}", bearer=bearer))
    assert response.status == 404
    assert b"www-authenticate" not in dict(response.headers)


@pytest.mark.parametrize("action", ["", "/infer", "/ready", "/attestations"])
@pytest.mark.parametrize("version", ["", "/versions/1.0.0", "/versions/7"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
def test_no_answer_tells_which_models_there_are(
    rooms: Rooms, method: str, version: str, action: str
) -> None:
    def seen(model: str, scope: str) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        path = f"/v2/models/{model}{version}{action}"
        response = answer(rooms, request(method, path, bearer=token(scope), body=b"{"))
        kept = [pair for pair in response.headers if pair[0] != b"x-request-id"]
        return response.status, bytes(response.body), kept

    for scope in ("infer:none", "metrics", "infer:to", "explain:none"):
        assert seen("toy", scope) == seen("not-there", scope)
    # Nor does it differ from what who may use everything is told of nothing.
    assert seen("toy", "infer:none") == seen("not-there", "infer:*")
    assert seen("toy", "infer:none")[0] == 404


def test_who_may_read_about_a_model_is_told_what_is_missing(rooms: Rooms) -> None:
    bearer = token("metadata:toy")
    asked = request("GET", "/v2/models/toy", bearer=bearer)
    assert answer(rooms, asked).status == 200
    response = answer(rooms, request("POST", INFER, bearer=bearer, body=b"{}"))
    assert response.status == 403
    assert dict(response.headers)[b"www-authenticate"] == (
        b'Bearer realm="sealgate", error="insufficient_scope", scope="infer:toy"'
    )


def test_a_rightful_caller_learns_that_it_is_not_there(rooms: Rooms) -> None:
    for scope in ("infer:*", "infer:not-there"):
        status, document = ask(rooms, "GET", "/v2/models/not-there", scope=scope)
        assert (status, problem(document)) == (404, "not-found")


def test_plaintext_is_refused_with_a_valid_token(rooms: Rooms) -> None:
    asked = request("POST", INFER, bearer=token("infer:toy"), body=b"{}")
    response = answer(rooms, asked, sealed=False)
    assert response.status == 403
    assert problem(json.loads(response.body)) == "sealed-required"
    with pytest.raises(Problem, match="sealed-required"):
        asyncio.run(rooms.routes.check_early(asked))
    with pytest.raises(Problem, match="unauthenticated"):
        asyncio.run(rooms.routes.check_early(request("POST", INFER)))


def test_plaintext_is_answered_where_the_operator_says_so(tmp_path: Path) -> None:
    rooms = wire(tmp_path, require_sealed=False)
    body = json.dumps(BODY).encode()
    asked = request("POST", INFER, bearer=token("infer:toy"), body=body)
    principal = asyncio.run(rooms.routes.check_early(asked))
    assert principal.subject == SUBJECT
    assert answer(rooms, asked, sealed=False).status == 200


def test_metrics_need_their_scope(rooms: Rooms) -> None:
    allow = rooms.routes.authorize_metrics
    asyncio.run(allow(request(bearer=token("metrics"))))
    with pytest.raises(ScopeError):
        asyncio.run(allow(request(bearer=token("infer:*"))))
    with pytest.raises(Problem, match="unauthenticated"):
        asyncio.run(allow(request()))


# What is asked.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models/toy",
        "/v2/models/",
        "/v2/repository",
        "/v2/models/toy/",
        "/v2/models/TOY",
        "/v2/models/to_y",
        "/v2/models/toy.",
        "/v2/models/..",
        "/v2/models/toy/explain/",
        "/v2/models/toy/infer/",
        "/v2/models/toy/../toy",
        "/v2/models/%74oy",
        "/v2/models/toy/versions/latest",
        "/v2//models/toy",
        "/v2/health/ready?x",
        "/v2/models/toy/infer\x00",
    ],
)
def test_there_is_nothing_else(rooms: Rooms, path: str) -> None:
    status, document = ask(rooms, "GET", path, scope="infer:*")
    assert (status, problem(document)) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, b"POST"),
        ("PUT", INFER, b"POST"),
        ("PUT", "/v2", b"GET, HEAD"),
        ("POST", "/v2", b"GET, HEAD"),
        ("DELETE", "/v2/models/toy", b"GET, HEAD"),
        ("get", "/v2/models/toy", b"GET, HEAD"),
        ("POST", "/v2/models/toy/ready", b"GET, HEAD"),
        ("POST", "/v2/models/toy/attestations", b"GET, HEAD"),
        ("POST", "/v2/health/ready", b"GET, HEAD"),
    ],
)
def test_methods(rooms: Rooms, method: str, path: str, allowed: bytes) -> None:
    response = answer(rooms, request(method, path, bearer=token("infer:toy")))
    assert response.status == 405
    assert dict(response.headers)[b"allow"] == allowed


@pytest.mark.parametrize("path", ["/v2", "/v2/models/toy", "/v2/models/toy/ready"])
def test_head_is_get_without_content(rooms: Rooms, path: str) -> None:
    asked = request("HEAD", path, bearer=token("infer:toy"))
    assert answer(rooms, asked).status == 200


@pytest.mark.parametrize("word", ["live", "ready"])
def test_health_says_it_in_json(rooms: Rooms, word: str) -> None:
    response = answer(rooms, request("GET", f"/v2/health/{word}"), sealed=False)
    assert json.loads(response.body) == {word: True}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live"])
def test_health_answers_strangers_and_is_not_recorded(rooms: Rooms, path: str) -> None:
    before = rooms.records
    assert answer(rooms, request("GET", path), sealed=False).status == 200
    assert answer(rooms, request("HEAD", path)).status == 200
    assert rooms.records == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"inputs": NaN}',
        b"\xff\xfe",
        b"\x80\x04}.",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b'{"id": "\\ud800"}',
    ],
    ids=range(11),
)
def test_what_is_no_json(rooms: Rooms, body: bytes) -> None:
    status, document = ask(rooms, body=body)
    assert (status, problem(document)) == (400, "malformed-json")


@pytest.mark.parametrize(
    "header",
    [
        (b"content-type", b"application/vnd.bentoml+pickle"),
        (b"content-type", b"application/x-pickle"),
        (b"content-type", b"multipart/form-data"),
        (b"content-type", b"text/plain"),
        (b"content-type", b""),
        (b"content-type", b"application/jsonp"),
    ],
)
def test_media_types(rooms: Rooms, header: tuple[bytes, bytes]) -> None:
    status, document = ask(rooms, body=BODY, headers=(header,))
    assert (status, problem(document)) == (415, "unsupported-media-type")


def test_a_charset_is_no_harm(rooms: Rooms) -> None:
    header = (b"content-type", b"Application/JSON; charset=utf-8")
    assert ask(rooms, body=BODY, headers=(header,))[0] == 200


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [INPUT | changes]}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, 'request: expected an array "inputs"'),
        ({"inputs": []}, 'input "features": missing, expected FP32[-1,3]'),
        (tensor(name="featurs"), 'input "featurs": unknown, expected "features"'),
        (
            tensor(datatype="FP64"),
            'input "features": expected FP32[-1,3], got FP64[1,3]',
        ),
        (tensor(shape=[3]), 'input "features": expected FP32[-1,3], got FP32[3]'),
        (tensor(shape=[1, 4]), 'input "features": expected FP32[-1,3], got FP32[1,4]'),
        (
            tensor(shape=[65, 3], data=[0] * 195),
            'input "features": 65 rows, at most 64 allowed',
        ),
        (
            tensor(data=[1, 2]),
            'input "features": expected 3 values for shape [1, 3], got 2',
        ),
        (tensor(data=[1, 2, "3"]), 'input "features": values are not FP32'),
        (tensor(data=[1, 2, None]), 'input "features": values are not FP32'),
        (
            {"inputs": [INPUT, INPUT]},
            'input "features": given twice',
        ),
        (
            BODY | {"outputs": [{"name": "logits"}]},
            "outputs: expected names among probabilities, label, once each",
        ),
        (
            BODY | {"outputs": [{"name": "label"}, {"name": "label"}]},
            "outputs: expected names among probabilities, label, once each",
        ),
        (
            BODY | {"outputs": "label"},
            "outputs: expected names among probabilities, label, once each",
        ),
        (
            BODY | {"outputs": []},
            "outputs: expected names among probabilities, label, once each",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    rooms: Rooms, body: dict[str, Any], detail: str
) -> None:
    status, document = ask(rooms, body=body)
    assert (status, problem(document)) == (400, "invalid-request")
    assert document["detail"] == document["error"] == detail


def test_one_long_string_takes_no_memory(rooms: Rooms) -> None:
    # numpy would make every element as wide as the widest: 2 TB from 1 MB.
    body = tensor(shape=[64, 3], data=[0] * 500_000 + ["x" * 500_000])

    def scene() -> None:
        started = time.monotonic()
        status, _ = ask(rooms, body=body)
        assert status == 400
        in_time(started, 2)

    once(scene)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=mutated(BODY) | JSON)
def test_any_body_gets_an_answer(rooms: Rooms, body: object) -> None:
    status, document = ask(rooms, body=json.dumps(body).encode())
    assert status in (200, 400)
    assert ("outputs" in document) == (status == 200)


@settings(deadline=None)
@given(
    method=st.binary(max_size=8),
    path=st.binary(max_size=40).map(lambda tail: b"/v2/models/toy" + tail),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))),
)
def test_any_request_gets_an_answer(
    rooms: Rooms, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    bearer = (b"authorization", b"Bearer " + token("infer:toy").encode())
    asked = Request(method, b"", b"", path, (bearer, *headers))
    assert answer(rooms, asked).status < 500


# What the model does.


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (reshape_model, 500, "model-failure"),
        (endless_model, 504, "inference-timeout"),
    ],
)
def test_a_model_that_fails(tmp_path: Path, make: Any, status: int, code: str) -> None:
    rooms = wire(tmp_path, admissions=[make(tmp_path / "odd")], timeout_s=0.3)
    path = "/v2/models/odd/infer"
    got, document = ask(rooms, path=path, scope="infer:odd", body=ODD)
    assert (got, problem(document)) == (status, code)
    assert "detail" not in document
    record = json.loads(rooms.records.splitlines()[-1])
    assert (record["outcome"], record["reason"]) == ("refuse", code)


# What is recorded.


def test_one_record_per_decision(tmp_path: Path) -> None:
    rooms = wire(tmp_path)
    response = answer(
        rooms,
        request(
            "POST",
            INFER,
            bearer=token("infer:toy"),
            body=json.dumps(BODY).encode(),
        ),
    )
    ask(rooms, scope="infer:other", body=BODY)
    answer(rooms, request("GET", "/v2"))
    allowed, scope, stranger = map(json.loads, rooms.records.splitlines())
    assert allowed["request_id"] == dict(response.headers)[b"x-request-id"].decode()
    assert allowed | {"latency_us": 0, "time_us": 0} == allowed | {
        "action": "infer",
        "client": "app",
        "latency_us": 0,
        "model": "toy",
        "model_sha256": rooms.admission.bundle.subject.root_sha256,
        "outcome": "allow",
        "reason": None,
        "rows": 1,
        "sealed": True,
        "status": 200,
        "subject": pseudonym(b"k" * 32, f"{DEVELOPMENT_ISSUER}\0{SUBJECT}"),
        "time_us": 0,
    }
    assert abs(allowed["time_us"] / 1e6 - time.time()) < 60
    assert (scope["outcome"], scope["reason"]) == ("refuse", "not-granted")
    assert (scope["model"], scope["model_sha256"]) == ("toy", None)
    assert (stranger["reason"], stranger["subject"]) == ("unauthenticated", None)
    assert verify_log([rooms.log.path.parent], verifier=None).records == {"worker": 3}


@pytest.mark.parametrize("client_id", ["app", SUBJECT])
def test_no_secret_is_recorded(tmp_path: Path, client_id: str) -> None:
    rooms = wire(tmp_path)
    bearer = token("infer:toy", client_id=client_id)
    body = tensor(data=[0.123456, 0.2, 0.3]) | {"id": "my-own-id"}
    for headers in ((), ((b"x-secret", b"hunter2"),)):
        asked = request(
            "POST",
            f"{INFER}?q=secretquery",
            bearer=bearer,
            headers=headers,
            body=json.dumps(body).encode(),
        )
        assert answer(rooms, asked).status == 200
    text = rooms.records.decode()
    for secret in ("0.123456", "my-own-id", "hunter2", "secretquery", SUBJECT):
        assert secret not in text
    assert not any(part in text for part in bearer.split("."))


def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path) -> None:
    rooms = wire(tmp_path)
    asked = request(
        "POST", INFER, bearer=token("infer:toy"), body=json.dumps(BODY).encode()
    )
    with file_size_limit(10):
        for response in (
            answer(rooms, asked),
            answer(rooms, request("GET", "/v2")),
            asyncio.run(rooms.routes.refuse(TokenError("x"), sealed=True)),
        ):
            assert response.status == 503
            assert problem(json.loads(response.body)) == "audit-unavailable"
    assert rooms.records == b""
    assert answer(rooms, asked).status == 200
    assert rooms.records.count(b"\n") == 1


def test_requests_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().path = b"/"


def test_a_model_whose_evidence_has_expired(tmp_path: Path) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    expired = dataclasses.replace(admitted(tmp_path / "bundle"), expires_at=past)
    rooms = wire(tmp_path / "rooms", admissions=[expired])
    status, document = ask(rooms, body=BODY)
    assert (status, problem(document)) == (503, "admission-expired")
