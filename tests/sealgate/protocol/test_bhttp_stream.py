"""Binary HTTP as it arrives: the same messages and the same faults as whole ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import BinaryHttpError
from sealgate.protocol.bhttp import (
    BhttpLimits,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from sealgate.protocol.bhttp_stream import RequestDecoder, ResponseDecoder, Trailers
from tests.sealgate.protocol.test_bhttp import (
    AT_AND_BEYOND,
    FAULTS,
    LIMITS,
    RESPONSE_FAULTS,
)

REQUEST = Request(
    b"POST",
    b"https",
    b"example.com",
    b"/v2",
    ((b"authorization", b"Bearer abc"), (b"accept", b"")),
    b'{"inputs":[]}',
    ((b"trailer", b"text"),),
)
RESPONSE = Response(422, ((b"content-type", b"text/plain"),), b"body", ((b"a", b"b"),))
CORPUS = Path(__file__).parents[2] / "vectors" / "bhttp-corpus"
EXPECTED = json.loads((CORPUS / "expected.json").read_text())
KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known", "indeterminate"])
PORTIONS = pytest.mark.parametrize("portion", [1, 2, 5, 64, 10_000])


def whole(data: bytes, kind, *, portion: int = 1, limits=BhttpLimits()):
    """Decode in portions and put the events together again."""
    decoder = (RequestDecoder if kind is Request else ResponseDecoder)(limits)
    events = []
    for start in range(0, len(data), portion):
        events += decoder.feed(data[start : start + portion])
    events += decoder.finish()
    head, *content, end = events
    assert isinstance(head, kind)
    assert isinstance(end, Trailers)
    assert all(isinstance(piece, bytes) and piece for piece in content)
    control = (
        (head.method, head.scheme, head.authority, head.path)
        if isinstance(head, Request)
        else (head.status,)
    )
    return kind(*control, head.headers, b"".join(content), end.fields)


@KNOWN
@PORTIONS
def test_messages_in_any_portions(known, portion):
    data = encode_request(REQUEST, known=known) + bytes(5)
    assert whole(data, Request, portion=portion) == REQUEST
    data = encode_response(RESPONSE, known=known) + bytes(5)
    assert whole(data, Response, portion=portion) == RESPONSE


@KNOWN
def test_both_framings_are_written_and_read_whole(known):
    for message in (REQUEST, Request(b"GET", b"https", b"", b"/")):
        assert decode_request(encode_request(message, known=known)) == message
    for answer in (RESPONSE, Response(200)):
        assert decode_response(encode_response(answer, known=known)) == answer


def test_the_indeterminate_form_of_the_examples():
    request = Request(b"GET", b"https", b"", b"/", ((b"a", b"b"),))
    assert encode_request(request, known=False).hex() == (
        "02" + "03474554" + "056874747073" + "00" + "012f" + "01610162" + "00" + "0000"
    )
    assert encode_response(Response(200, (), b"hi"), known=False).hex() == (
        "03" + "40c8" + "00" + "026869" + "00" + "00"
    )


@pytest.mark.parametrize(
    "anchor", ["ex-bink-request", "ex-bini-request", "ex-bini-response"]
)
def test_rfc9292_examples(shared_data, anchor):
    path = shared_data / "vectors-ohttp" / "rfc9292_bhttp_examples.json"
    items = json.loads(path.read_text())["binary"]
    (data,) = [bytes.fromhex(i["hex"]) for i in items if i["anchor"] == anchor]
    kind, decode = (
        (Response, decode_response)
        if "response" in anchor
        else (Request, decode_request)
    )
    assert whole(data, kind) == decode(data)


def test_the_head_comes_before_the_content():
    decoder = ResponseDecoder()
    data = encode_response(Response(200, ((b"a", b"b"),), b"x" * 100))
    start = data.index(b"x")
    assert decoder.feed(data[:start]) == [Response(200, ((b"a", b"b"),))]
    assert decoder.feed(b"x" * 60) == [b"x" * 60]
    assert decoder.feed(b"x" * 40 + b"\0") == [b"x" * 40, Trailers(())]
    assert decoder.finish() == []


@KNOWN
@pytest.mark.parametrize("kind", [Request, Response])
def test_truncated_where_a_whole_one_may_be(known, kind):
    if kind is Request:
        data, decode = encode_request(REQUEST, known=known), decode_request
    else:
        data, decode = encode_response(RESPONSE, known=known), decode_response
    for size in range(len(data)):
        try:
            expected = decode(data[:size])
        except BinaryHttpError:
            with pytest.raises(BinaryHttpError, match="message is truncated"):
                whole(data[:size], kind)
        else:
            assert whole(data[:size], kind) == expected


@PORTIONS
@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_of_requests(data, message, portion):
    # A length beyond the end is only missing bytes here, until the end has come; then
    # what follows may be looked at in another order.
    with pytest.raises(BinaryHttpError):
        whole(data, Request, portion=portion)


@pytest.mark.parametrize(
    ("data", "message"), RESPONSE_FAULTS.values(), ids=RESPONSE_FAULTS
)
def test_faults_of_responses(data, message):
    with pytest.raises(BinaryHttpError) as caught:
        whole(data, Response)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("at", "beyond", "message"), AT_AND_BEYOND.values(), ids=AT_AND_BEYOND
)
def test_limits_are_those_of_whole_messages(at, beyond, message):
    assert whole(at, Request, limits=LIMITS) == decode_request(at, LIMITS)
    with pytest.raises(BinaryHttpError) as caught:
        whole(beyond, Request, limits=LIMITS)
    assert str(caught.value) == message


def test_what_is_held_is_bounded():
    decoder = RequestDecoder(LIMITS)
    decoder.feed(encode_request(Request(b"GET", b"https", b"", b"/")))
    for _ in range(100):
        assert decoder.feed(bytes(1000)) == []
        assert len(decoder._buffer) == 0


def test_a_broken_decoder_stays_broken():
    decoder = RequestDecoder()
    with pytest.raises(BinaryHttpError, match="not a request"):
        decoder.feed(b"\x01")
    with pytest.raises(BinaryHttpError, match="message is malformed"):
        decoder.feed(b"\x00")
    with pytest.raises(BinaryHttpError, match="message is truncated"):
        decoder.finish()


# Inputs that once broke a parser, or would break a careless one.


def test_the_corpus_is_complete():
    files = {path.stem for path in CORPUS.glob("*.bin")}
    assert files == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_corpus(name):
    data = (CORPUS / f"{name}.bin").read_bytes()
    is_response = data[0] & 1
    decode = decode_response if is_response else decode_request
    with pytest.raises(BinaryHttpError) as caught:
        decode(data)
    assert str(caught.value) == EXPECTED[name]
    with pytest.raises(BinaryHttpError) as caught:
        whole(data, Response if is_response else Request, portion=1000)
    if "beyond" not in name:
        assert str(caught.value) == EXPECTED[name]


NAMES = st.from_regex(rb"[a-z0-9-]{1,12}", fullmatch=True)
VALUES = st.from_regex(rb"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)


@given(FIELDS, st.binary(max_size=300), FIELDS, st.booleans(), st.integers(1, 50))
@settings(deadline=None, max_examples=80)
def test_round_trip(headers, body, trailers, known, portion):
    request = Request(b"POST", b"https", b"h", b"/p", headers, body, trailers)
    data = encode_request(request, known=known)
    assert whole(data, Request, portion=portion) == request == decode_request(data)
    response = Response(200, headers, body, trailers)
    data = encode_response(response, known=known)
    assert whole(data, Response, portion=portion) == response == decode_response(data)


@given(st.sampled_from([b"", b"\0", b"\2", b"\1", b"\3"]), st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_both_parsers_agree_on_arbitrary_bytes(framing, rest):
    data = framing + rest
    for kind, decode in ((Request, decode_request), (Response, decode_response)):
        try:
            expected = decode(data)
        except BinaryHttpError:
            with pytest.raises(BinaryHttpError):
                whole(data, kind, portion=7)
        else:
            assert whole(data, kind, portion=7) == expected
