"""The client's core without I/O: URLs, key documents, answers of every kind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import (
    ClientError,
    ProfileError,
    ServerRefusedError,
    TransportError,
)
from sealgate.exchange import (
    Answer,
    Exchange,
    build_request,
    check_url,
    json_of,
    model_path,
    parse_metadata,
    refusal,
    refusal_of,
)
from sealgate.keys import choose_config
from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig, encode_list

KEY = PrivateKey.from_bytes(b"\x21" * 32)
CONFIG = KeyConfig(1, KEM_X25519, KEY.public_bytes)
REQUEST = Request(b"GET", b"https", b"models.example", b"/v2")
SEALED = "message/ohttp-res"
PROBLEM = "application/problem+json"


def start(max_response_bytes: int = 1000):
    """An exchange, and the gateway's side of it."""
    exchange = Exchange(CONFIG, REQUEST, max_response_bytes=max_response_bytes)
    message, gateway = ohttp.open_request(exchange.content, KEY)
    assert bhttp.decode_request(message) == REQUEST
    return exchange, gateway


def answer(response: Response, **options):
    """What a sealed answer means: its JSON, or the error it stands for."""
    exchange, gateway = start(**options)
    sealed = gateway.seal(bhttp.encode_response(response))
    inner = exchange.finish(outer(200, SEALED, sealed))
    error = refusal_of(inner)
    if error is not None:
        raise error
    return json_of(inner.body)


def outer(status: int, media_type: str, body: bytes) -> Answer:
    return Answer(status, {"content-type": media_type}, body)


def problem(status: int, **fields) -> Response:
    body = json.dumps(fields).encode()
    return Response(status, ((b"content-type", PROBLEM.encode()),), body)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://models.example", "https://models.example"),
        ("https://models.example/", "https://models.example"),
        ("https://models.example:8443/base//", "https://models.example:8443/base"),
        ("HTTPS://Models.Example", "HTTPS://Models.Example"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://localhost", "http://localhost"),
        ("http://LOCALHOST:1/", "http://LOCALHOST:1"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_urls(url, base):
    assert check_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example",
        "http://127.0.0.1.models.example",
        "http://localhost.models.example",
        "http://127.0.0.2",
        "http://0.0.0.0",
        "http://[::]",
        "http://10.0.0.1",
    ],
)
def test_plain_http_beyond_this_machine(url):
    with pytest.raises(ProfileError, match="plain http is for this machine only"):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "models.example",
        "/v2",
        "ftp://models.example",
        "file:///etc/passwd",
        "https://",
        "https:///v2",
        "http://[::1",
        "http://[zz]",
        "https://a:port",
        "https://a:99999",
        "https://a:0",
        "https://a?b",
        "https://a#b",
        "https://user:pw@a",
        "http://localhost@models.example",
        "https://a b",
        "https://a\nb",
        "https://a..b",
        "https://" + "a" * 64,
        "https://m\u00fcnchen.example",
    ],
)
def test_urls_that_are_none(url):
    with pytest.raises(ProfileError, match="not an http or https URL"):
        check_url(url)


@given(
    st.text(max_size=20)
    | st.text(max_size=15).map(lambda rest: "https://" + rest)
    | st.text("htps:/[]@.:0189?#% ", max_size=30)
)
@settings(deadline=None, max_examples=300)
def test_arbitrary_urls_only_raise_profile_error(url):
    try:
        base = check_url(url)
    except ProfileError:
        return
    assert check_url(base) == base


def test_first_usable_configuration():
    aes256 = KeyConfig(9, KEM_X25519, KEY.public_bytes, ((1, 2),))
    assert choose_config(encode_list([CONFIG, aes256])) == CONFIG
    assert choose_config(encode_list([aes256, CONFIG])) == CONFIG


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "no usable key configuration"),
        (b"<html>", "key configuration list is truncated"),
        (
            encode_list([KeyConfig(9, KEM_X25519, KEY.public_bytes, ((1, 2),))]),
            "no supported algorithm",
        ),
    ],
)
def test_unusable_configurations(document, message):
    with pytest.raises(TransportError, match=f"the server's key conf.*{message}"):
        choose_config(document)


def test_invalid_public_key():
    config = choose_config(encode_list([KeyConfig(1, KEM_X25519, bytes(32))]))
    with pytest.raises(TransportError, match="the server's key configuration: invalid"):
        Exchange(config, REQUEST, max_response_bytes=1)


def test_request():
    request = build_request(
        "POST",
        "/v2",
        url="https://a:1/base",
        token="t\u00e9",
        now=0,
        headers=((b"x", b"y"),),
        body=b"{}",
    )
    date = (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")
    headers = (date, (b"authorization", b"Bearer t?"), (b"x", b"y"))
    assert request == Request(b"POST", b"https", b"a:1", b"/v2", headers, b"{}")
    request = build_request("GET", "/v2", url="https://a", token=None, now=0)
    assert request.headers == (date,)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("breast-cancer", "/v2/models/breast-cancer"),
        ("a/attestations", "/v2/models/a%2Fattestations"),
        ("a?b#c", "/v2/models/a%3Fb%23c"),
        ("\u00e9 \r\n", "/v2/models/%C3%A9%20%0D%0A"),
        ("\udcff", "/v2/models/%3F"),
    ],
)
def test_a_model_is_one_segment_of_the_path(model, path):
    assert model_path(model) == path
    assert model_path(model, "/infer") == path + "/infer"


def test_json_answers():
    assert answer(Response(200, (), b'{"a": 1}')) == {"a": 1}
    assert answer(Response(200)) is None


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_answers_that_are_not_json(body):
    with pytest.raises(TransportError, match="the answer is not JSON"):
        answer(Response(200, (), body), max_response_bytes=1 << 20)


def test_sealed_problems():
    title, detail = "Invalid inference request", 'input "x": missing'
    with pytest.raises(ServerRefusedError) as caught:
        answer(problem(400, type="https://a", title=title, detail=detail))
    assert str(caught.value) == f"400 {title}: {detail}"
    assert caught.value.status == 400
    assert caught.value.type == "https://a"


def test_unsealed_problems():
    exchange, _ = start()
    body = b'{"title": "busy"}'
    with pytest.raises(ServerRefusedError, match=r"^503 busy$") as caught:
        exchange.finish(outer(503, PROBLEM + "; charset=utf-8", body))
    assert caught.value.type == "about:blank"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "400 refused"),
        ({"title": ""}, "400 refused"),
        ({"title": 1, "detail": [2]}, "400 1: [2]"),
        ({"title": "a\nb\r\x1b[31m\x00"}, "400 a b  [31m "),
        ({"title": "a", "detail": "\u2028\u202e"}, "400 a:   "),
        ({"title": "t" * 2000}, "400 " + "t" * 996 + "\u2026"),
    ],
)
def test_a_refusal_is_one_printable_line(fields, text):
    with pytest.raises(ServerRefusedError) as caught:
        answer(problem(400, **fields), max_response_bytes=1 << 20)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (500, "text/html", b"<html>"),
        (502, PROBLEM, b"<html>"),
        (502, PROBLEM, b"[]"),
        (502, PROBLEM, b'{"title": "' + b"t" * 70_000 + b'"}'),
        (200, "application/json", b"{}"),
        (200, "", b""),
        (200, "text/html", b"<html>"),
        (302, SEALED, b""),
    ],
)
def test_answers_of_no_known_kind(status, content_type, body):
    exchange, _ = start()
    with pytest.raises(TransportError) as caught:
        exchange.finish(outer(status, content_type, body))
    message = f"the server answered {status} without problem details"
    assert str(caught.value) == message


def test_sealed_answer_without_problem_details():
    with pytest.raises(TransportError, match="answered 404 without problem details"):
        answer(Response(404, ((b"content-type", b"text/plain"),), b"no"))


def test_unsealed_success_is_not_believed():
    exchange, _ = start()
    with pytest.raises(TransportError):
        exchange.finish(outer(200, "application/json", b'{"outputs": []}'))


def test_answers_to_others_are_not_believed():
    exchange, _ = start()
    _, gateway = start()
    sealed = gateway.seal(bhttp.encode_response(Response(200)))
    with pytest.raises(TransportError, match="response does not authenticate"):
        exchange.finish(outer(200, SEALED, sealed))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (b"", "message is truncated"),
        (b"\x00", "not a response"),
        (bhttp.encode_response(Response(200, (), b"x" * 1001)), "content is too long"),
    ],
)
def test_unusable_sealed_answers(inner, message):
    exchange, gateway = start()
    with pytest.raises(
        TransportError, match=f"the sealed answer is unusable: {message}"
    ):
        exchange.finish(outer(200, SEALED, gateway.seal(inner)))


@given(
    st.integers(100, 599),
    st.sampled_from([SEALED, PROBLEM, "", "text/html"]),
    st.binary(max_size=100),
)
@settings(deadline=None, max_examples=150)
def test_arbitrary_answers_only_raise_client_errors(status, content_type, body):
    exchange, _ = start()
    with pytest.raises(ClientError):
        exchange.finish(outer(status, content_type, body))


@given(st.integers(200, 599), st.binary(max_size=100), st.booleans())
@settings(deadline=None, max_examples=150)
def test_arbitrary_sealed_answers_only_raise_client_errors(status, body, problem_):
    headers = ((b"content-type", PROBLEM.encode()),) if problem_ else ()
    try:
        answer(Response(status, headers, body))
    except ClientError:
        return


TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1]}
METADATA = {
    "inputs": [TENSOR | {"parameters": {"columns": [{"name": "a"}]}}],
    "outputs": [TENSOR | {"parameters": {"labels": ["no", "yes"]}}],
}


def test_metadata():
    assert parse_metadata(METADATA) == METADATA


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {},
        {"inputs": []},
        METADATA | {"inputs": None},
        METADATA | {"inputs": ["x"]},
        METADATA | {"inputs": [{"name": "x"}]},
        METADATA | {"inputs": [TENSOR | {"name": 1}]},
        METADATA | {"inputs": [TENSOR | {"datatype": None}]},
        METADATA | {"outputs": [TENSOR | {"parameters": []}]},
        METADATA | {"outputs": [TENSOR | {"parameters": {"labels": [1]}}]},
        METADATA | {"outputs": [TENSOR | {"parameters": {"labels": 1}}]},
        METADATA | {"inputs": [TENSOR | {"parameters": {"columns": ["a"]}}]},
        METADATA | {"inputs": [TENSOR | {"parameters": {"columns": [{}]}}]},
    ],
)
def test_malformed_metadata(metadata):
    with pytest.raises(TransportError, match="the model's metadata is malformed"):
        parse_metadata(metadata)


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("3", DATE, 3.0),
        ("3", "", 3.0),
        ("999999999999", "", 86_400.0),
        ("Sun, 06 Nov 1994 08:49:40 GMT", DATE, 3.0),
        ("Sunday, 06-Nov-94 08:49:40 GMT", DATE, 3.0),  # RFC 850's form
        ("Sun Nov  6 08:49:40 1994", DATE, 3.0),  # asctime's
        ("Sun, 06 Nov 1994 08:49:30 GMT", DATE, 0.0),  # it is over
        ("Sun, 06 Nov 2094 08:49:37 GMT", DATE, 86_400.0),
        ("Sun, 06 Nov 1994 08:49:40 GMT", "", None),  # by whose clock?
        ("Sun, 06 Nov 1994 08:49:40 GMT", "now", None),
        ("soon", DATE, None),
        ("Sun, 06 Nov 99999 08:49:40 GMT", DATE, None),
        (DATE + " " * 100, DATE, None),
        ("-1", DATE, None),
        ("", DATE, None),
    ],
)
def test_retry_after(retry_after, date, seconds):
    headers = {
        "content-type": "application/problem+json",
        "retry-after": retry_after,
        "date": date,
    }
    error = refusal(Answer(503, headers, b'{"title": "busy"}'))
    assert error.retry_after_s == seconds
