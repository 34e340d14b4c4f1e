"""Binary HTTP: RFC 9292's examples, both framings, every limit, hostile bytes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import BinaryHttpError
from sealgate.protocol import bhttp
from sealgate.protocol.bhttp import (
    BhttpLimits,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

REQUEST = Request(
    b"POST",
    b"https",
    b"example.com",
    b"/v2/models/m/infer?a=b",
    ((b"authorization", b"Bearer abc"), (b"accept", b""), (b"accept", b"*/*")),
    b'{"inputs":[]}',
    ((b"trailer", b"text"),),
)
RESPONSE = Response(
    422, ((b"content-type", b"application/problem+json"),), b"{}", ((b"a", b"b"),)
)
CONTROL = b"\x00\x03GET\x05https\x00\x01/"


def varint(value: int, size: int | None = None) -> bytes:
    """RFC 9000, section 16; longer than needed on demand."""
    size = size or next(n for n in (1, 2, 4, 8) if value < 1 << (8 * n - 2))
    prefix = (1, 2, 4, 8).index(size)
    return (value | prefix << (8 * size - 2)).to_bytes(size, "big")


def text(data: bytes) -> bytes:
    return varint(len(data)) + data


def line(name: bytes, value: bytes) -> bytes:
    return text(name) + text(value)


def known(*lines: bytes) -> bytes:
    return text(b"".join(lines))


def indeterminate(*lines: bytes) -> bytes:
    return b"".join(lines) + b"\x00"


@pytest.fixture(scope="module")
def examples(shared_data):
    path = shared_data / "vectors-ohttp" / "rfc9292_bhttp_examples.json"
    return {
        item["anchor"]: bytes.fromhex(item["hex"])
        for item in json.loads(path.read_text())["binary"]
    }


CURL = b"curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"


@pytest.mark.parametrize("anchor", ["ex-bink-request", "ex-bini-request"])
def test_rfc9292_requests(examples, anchor):
    assert decode_request(examples[anchor]) == Request(
        b"GET",
        b"https",
        b"",
        b"/hello.txt",
        (
            (b"user-agent", CURL),
            (b"host", b"www.example.com"),
            (b"accept-language", b"en, mi"),
        ),
    )


def test_rfc9292_known_request_is_what_we_write_but_for_truncation(examples):
    example = examples["ex-bink-request"]
    assert encode_request(decode_request(example)) == example


def test_rfc9292_response_with_informational_ones(examples):
    response = decode_response(examples["ex-bini-response"])
    assert response.status == 200
    assert dict(response.headers)[b"etag"] == b'"34aa387-d-1568eb00"'
    assert len(response.headers) == 8
    assert response.body == b"Hello World! My content includes a trailing CRLF.\r\n"
    assert response.trailers == ()


def test_rfc9292_known_response_with_trailers(examples):
    example = examples["ex-bink-chunked"]
    response = decode_response(example)
    assert response == Response(
        200, (), b"This content contains CRLF.\r\n", ((b"trailer", b"text"),)
    )
    assert encode_response(response) == example


def _truncations(data: bytes, decode) -> dict[int, object]:
    """What decodes, by length, among the proper prefixes of a message."""
    decoded = {}
    for size in range(len(data)):
        try:
            decoded[size] = decode(data[:size])
        except BinaryHttpError as error:
            assert str(error) in ("message is truncated", "not a request")  # noqa: PT017
    return decoded


def test_truncated_known_requests():
    data = encode_request(REQUEST)
    body, trailers = text(REQUEST.body), known(line(b"trailer", b"text"))
    before_trailers = len(data) - len(trailers)
    before_body = before_trailers - len(body)
    before_headers = before_body - len(known(*(line(*h) for h in REQUEST.headers)))
    # Whole sections may be missing at the end (section 3.8), nothing else.
    decoded = _truncations(data, decode_request)
    assert sorted(decoded) == [before_headers, before_body, before_trailers]
    assert decoded[before_headers].headers == ()
    assert decoded[before_body].body == b""
    assert decoded[before_trailers].trailers == ()
    assert decoded[before_trailers].body == REQUEST.body


def test_truncated_indeterminate_requests():
    headers = indeterminate(line(b"a", b"b"), line(b"c", b""))
    body = text(b"one") + text(b"two") + b"\x00"
    control = b"\x02" + CONTROL[1:]
    data = control + headers + body + indeterminate(line(b"t", b"u"))
    whole = decode_request(data)
    assert whole.headers == ((b"a", b"b"), (b"c", b""))
    assert whole.body == b"onetwo"
    assert whole.trailers == ((b"t", b"u"),)
    ends = [len(control), len(control + headers), len(control + headers + body)]
    assert sorted(_truncations(data, decode_request)) == ends


@pytest.mark.parametrize(
    "anchor", ["ex-bink-request", "ex-bini-request", "ex-bini-response"]
)
def test_truncated_examples(examples, anchor):
    data = examples[anchor]
    decode = decode_response if "response" in anchor else decode_request
    whole = decode(data)
    for size in range(len(data)):
        try:
            part = decode(data[:size])
        except BinaryHttpError:
            continue
        assert part.headers in ((), whole.headers)
        assert bytes(part.body) in (b"", bytes(whole.body))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_lengths_of_every_size_are_read(size):
    data = (
        b"".join(varint(0, size) for _ in "k")
        + varint(3, size)
        + b"GET"
        + varint(5, size)
        + b"https"
        + varint(0, size)
        + varint(1, size)
        + b"/"
        + varint(0, size)
        + varint(2, size)
        + b"hi"
    )
    assert decode_request(data).body == b"hi"


@pytest.mark.parametrize("size", [0, 63, 64, 16383, 16384, 100_000])
def test_bodies_around_the_length_boundaries(size):
    body = bytes(size)
    assert decode_request(encode_request(Request(*_GET, body=body))).body == body
    assert decode_response(encode_response(Response(200, (), body))).body == body


_GET = (b"GET", b"https", b"", b"/")

FAULTS = {
    "nothing": (b"", "message is truncated"),
    "framing of a response": (encode_response(RESPONSE), "not a request"),
    "unknown framing": (b"\x04" + CONTROL[1:], "not a request"),
    "huge framing": (varint(1 << 60) + CONTROL[1:], "not a request"),
    "empty method": (b"\x00\x00\x05https\x00\x01/", "malformed control data"),
    "method with a space": (b"\x00\x02G T"[:4] + CONTROL[5:], "malformed control data"),
    "method with a line break": (
        b"\x00" + text(b"GET\r\n") + CONTROL[5:],
        "malformed control data",
    ),
    "path without a slash": (
        CONTROL[:-2] + text(b"v2"),
        "malformed control data",
    ),
    "empty path": (CONTROL[:-2] + b"\x00", "malformed control data"),
    "path with a space": (CONTROL[:-2] + text(b"/a b"), "malformed control data"),
    "path with a NUL": (CONTROL[:-2] + text(b"/\x00"), "malformed control data"),
    "path beyond ASCII": (CONTROL[:-2] + text(b"/\xc3"), "malformed control data"),
    "authority with a line break": (
        b"\x00\x03GET\x05https" + text(b"a\nb") + b"\x01/",
        "malformed control data",
    ),
    "uppercase name": (
        CONTROL + known(line(b"Accept", b"x")),
        "malformed header field",
    ),
    "empty name": (CONTROL + known(line(b"", b"x")), "malformed header field"),
    "pseudo field": (
        CONTROL + known(line(b":method", b"GET")),
        "malformed header field",
    ),
    "name with a space": (CONTROL + known(line(b"a b", b"")), "malformed header field"),
    "name with a colon": (CONTROL + known(line(b"a:", b"")), "malformed header field"),
    "name beyond ASCII": (
        CONTROL + known(line(b"\xe9", b"")),
        "malformed header field",
    ),
    "name with a line break at its end": (
        CONTROL + known(line(b"a\n", b"")),
        "malformed header field",
    ),
    "header section beyond the message": (
        CONTROL + b"\x05\x01a",
        "message is truncated",
    ),
    "name beyond the section": (
        CONTROL + b"\x02\x05abcde\x00",
        "field section overruns its length",
    ),
    "value beyond the section": (
        CONTROL + b"\x04\x01a\x05bcdef",
        "field section overruns its length",
    ),
    "section that ends inside a length": (
        CONTROL + b"\x03\x01a\x40\x01b\x00",
        "field section overruns its length",
    ),
    "body shorter than its length": (
        CONTROL + b"\x00\x05abcd",
        "message is truncated",
    ),
    "body of 2^62-1 bytes": (
        CONTROL + b"\x00" + b"\xff" * 8,
        "content is too long",
    ),
    "length cut short": (CONTROL + b"\x00\x80\x00", "message is truncated"),
    "padding that is not zero": (
        CONTROL + b"\x00\x00\x00" + b"\x00\x00\x01\x00",
        "padding is not zero",
    ),
    "a second message behind the first": (
        CONTROL + b"\x00\x00\x00" + CONTROL,
        "padding is not zero",
    ),
    "indeterminate fields without an end": (
        b"\x02" + CONTROL[1:] + line(b"a", b"b"),
        "message is truncated",
    ),
    "indeterminate content without an end": (
        b"\x02" + CONTROL[1:] + b"\x00" + text(b"abc"),
        "message is truncated",
    ),
}
FAULTS |= {
    f"value with {byte:#04x}": (
        CONTROL + known(line(b"a", b"x%cy" % byte)),
        "malformed header field",
    )
    for byte in (*range(0x09), *range(0x0A, 0x20), 0x7F)
}
FAULTS |= {
    f"value {value!r}": (CONTROL + known(line(b"a", value)), "malformed header field")
    for value in (b" x", b"x ", b"\tx", b"x\t", b" ", b"x\n")
}


@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS)
def test_malformed_requests(data, message):
    with pytest.raises(BinaryHttpError) as caught:
        decode_request(data)
    assert str(caught.value) == message


RESPONSE_FAULTS = {
    "framing of a request": (encode_request(REQUEST), "not a response"),
    "status 0": (b"\x01\x00", "status is out of range"),
    "status 99": (b"\x01" + varint(99), "status is out of range"),
    "status 600": (b"\x01" + varint(600), "status is out of range"),
    "status of 2^62-1": (b"\x01" + b"\xff" * 8, "status is out of range"),
    "informational only": (b"\x01" + varint(103) + b"\x00", "message is truncated"),
    "no status": (b"\x01", "message is truncated"),
    "informational without end": (
        b"\x01" + (varint(103) + b"\x00") * 1000 + varint(200),
        "status is out of range",
    ),
    "malformed informational field": (
        b"\x01" + varint(103) + known(line(b"A", b"")) + varint(200),
        "malformed header field",
    ),
}


@pytest.mark.parametrize(
    ("data", "message"), RESPONSE_FAULTS.values(), ids=RESPONSE_FAULTS
)
def test_malformed_responses(data, message):
    with pytest.raises(BinaryHttpError) as caught:
        decode_response(data)
    assert str(caught.value) == message


def test_values_that_are_allowed():
    fields = tuple(
        (b"a", value)
        for value in (b"", b"x", b"a\tb c", b"\xc3\xa9", b"\x80\xff", b'"{}"')
    )
    message = encode_request(Request(*_GET, headers=fields))
    assert decode_request(message).headers == fields


def test_padding_is_passed_over():
    for pad in (1, 3, 1000):
        assert decode_request(encode_request(REQUEST) + bytes(pad)) == REQUEST
        assert decode_response(encode_response(RESPONSE) + bytes(pad)) == RESPONSE


LIMITS = BhttpLimits(
    max_headers=3, max_header_bytes=40, max_control_bytes=12, max_body_bytes=8
)
FIELD = line(b"abcd", b"efghij")  # 10 bytes of name and value

# What still passes, what does not, and why: at the limit and one beyond it.
AT_AND_BEYOND = {
    "control data": (
        CONTROL[:-2] + text(b"/" + b"p" * 11),
        CONTROL[:-2] + text(b"/" + b"p" * 12),
        "control data is too long",
    ),
    "header count": (
        CONTROL + known(*[line(b"a", b"")] * 3),
        CONTROL + known(*[line(b"a", b"")] * 4),
        "too many or too long header fields",
    ),
    "header count with trailers": (
        CONTROL + known(*[line(b"a", b"")] * 2) + b"\0" + known(line(b"a", b"")),
        CONTROL + known(*[line(b"a", b"")] * 2) + b"\0" + known(*[line(b"a", b"")] * 2),
        "too many or too long header fields",
    ),
    "header bytes": (
        CONTROL + known(FIELD, FIELD, line(b"a", b"b" * 19)),
        CONTROL + known(FIELD, FIELD, line(b"a", b"b" * 20)),
        "too many or too long header fields",
    ),
    "name bytes": (
        CONTROL + known(line(b"a" * 40, b"")),
        CONTROL + known(line(b"a" * 41, b"")),
        "too many or too long header fields",
    ),
    "indeterminate header count": (
        b"\x02" + CONTROL[1:] + indeterminate(*[line(b"a", b"")] * 3),
        b"\x02" + CONTROL[1:] + indeterminate(*[line(b"a", b"")] * 4),
        "too many or too long header fields",
    ),
    "body": (
        CONTROL + b"\x00" + text(b"b" * 8),
        CONTROL + b"\x00" + text(b"b" * 9),
        "content is too long",
    ),
    "indeterminate body": (
        b"\x02" + CONTROL[1:] + b"\x00" + text(b"b" * 7) + text(b"b") + b"\x00",
        b"\x02" + CONTROL[1:] + b"\x00" + text(b"b" * 7) + text(b"bb") + b"\x00",
        "content is too long",
    ),
    "header section": (
        CONTROL + known(*[line(b"a", b"")] * 3),
        CONTROL + text(bytes(65)),
        "field section is too long",
    ),
}


@pytest.mark.parametrize(
    ("at", "beyond", "message"), AT_AND_BEYOND.values(), ids=AT_AND_BEYOND
)
def test_limits_are_exact(at, beyond, message):
    decode_request(at, LIMITS)
    with pytest.raises(BinaryHttpError) as caught:
        decode_request(beyond, LIMITS)
    assert str(caught.value) == message


def test_headers_of_informational_responses_count_too():
    informational = varint(103) + known(line(b"a", b""), line(b"b", b""))
    data = b"\x01" + informational + varint(200) + known(line(b"c", b""))
    assert decode_response(data, LIMITS).headers == ((b"c", b""),)
    with pytest.raises(BinaryHttpError, match="too many or too long header fields"):
        decode_response(b"\x01" + informational * 2 + varint(200), LIMITS)


def test_one_byte_chunks_are_bounded():
    limits = BhttpLimits(max_chunks=100)
    head = b"\x02" + CONTROL[1:] + b"\x00"
    assert decode_request(head + b"\x01a" * 100 + b"\x00", limits).body == b"a" * 100
    with pytest.raises(BinaryHttpError, match="content has too many chunks"):
        decode_request(head + b"\x01a" * 101 + b"\x00", limits)
    with pytest.raises(BinaryHttpError, match="content has too many chunks"):
        decode_request(head + b"\x01a" * (1 << 20))


def test_nothing_too_long_to_write_is_written():
    with pytest.raises(BinaryHttpError, match="does not fit"):
        encode_response(Response(1 << 62))


def test_a_known_body_is_not_copied():
    data = encode_request(REQUEST)
    body = decode_request(data).body
    assert isinstance(body, memoryview)
    assert body.obj is data


def test_bodies_stay_out_of_repr():
    for message in (REQUEST, RESPONSE):
        assert "body" not in repr(message)


TOKENS = st.text("abcxyz0189-_!~", min_size=1, max_size=10).map(str.encode)
VALUES = st.binary(max_size=20).map(
    lambda b: b"".join(b"%c" % c for c in b if c >= 0x20 and c != 0x7F).strip(b" \t")
)
FIELDS = st.lists(st.tuples(TOKENS, VALUES), max_size=6).map(tuple)
URLS = st.text("/abc?=&%.:", max_size=20).map(str.encode)
REQUESTS = st.builds(
    Request,
    TOKENS,
    URLS,
    URLS,
    URLS.map(lambda p: b"/" + p),
    FIELDS,
    st.binary(),
    FIELDS,
)
RESPONSES = st.builds(
    Response, st.integers(200, 599), FIELDS, st.binary(max_size=200), FIELDS
)


@given(REQUESTS, st.integers(0, 20))
@settings(deadline=None, max_examples=100)
def test_requests_round_trip(request, padding):
    assert decode_request(encode_request(request) + bytes(padding)) == request


@given(RESPONSES, st.integers(0, 20))
@settings(deadline=None, max_examples=100)
def test_responses_round_trip(response, padding):
    assert decode_response(encode_response(response) + bytes(padding)) == response


@given(
    REQUESTS, st.lists(st.integers(1, 40), max_size=5), st.sampled_from([1, 2, 4, 8])
)
@settings(deadline=None, max_examples=100)
def test_both_framings_say_the_same(request, cuts, size):
    chunks, left = [], bytes(request.body)
    for cut in [*cuts, len(left)]:
        chunk, left = left[:cut], left[cut:]
        chunks += [varint(len(chunk), max(size, 2)) + chunk] if chunk else []
    data = b"".join(
        [
            varint(2, size),
            *map(
                text, (request.method, request.scheme, request.authority, request.path)
            ),
            indeterminate(*(line(*field) for field in request.headers)),
            *chunks,
            b"\x00",
            indeterminate(*(line(*field) for field in request.trailers)),
        ]
    )
    assert decode_request(data) == request


SMALL = BhttpLimits(
    max_headers=3, max_header_bytes=40, max_control_bytes=8, max_body_bytes=30
)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_the_short_way_reads_what_the_long_way_reads(data):
    """Messages, whole, damaged and cut, with lengths of every form, in all limits."""
    request = data.draw(REQUESTS)
    offset = data.draw(st.none() | st.integers(0, 7))
    message = bytearray(encode_request(request, align=offset))
    message += bytes(data.draw(st.integers(0, 20)))
    for _ in range(data.draw(st.integers(0, 2))):
        position = data.draw(st.integers(0, len(message) - 1))
        message[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(message)) | st.integers(0, len(message)))
    limits = data.draw(st.sampled_from([BhttpLimits(), SMALL]))
    _check_both_ways(bytes(message[:end]), limits)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("cut", [None, *range(-9, 0)])
def test_a_front_around_the_length_that_the_short_way_reads(size, cut):
    """The content's length lies across the end of what the short way looks at."""
    fixed = len(CONTROL) + 2 + len(line(b"a", b"")) + 1
    for beyond in range(-10, 3):
        value = b"v" * (4096 - fixed + beyond)
        front = CONTROL + known(line(b"a", value))
        _check_both_ways((front + varint(5, size) + b"01234")[:cut], BhttpLimits())


def _check_both_ways(message: bytes, limits: BhttpLimits) -> None:
    """`_usual_request` says nothing of a request, or what `_any_request` says."""
    expected = _outcome(lambda: bhttp._any_request(message, limits))
    assert _outcome(lambda: decode_request(message, limits)) == expected
    usual = _outcome(lambda: bhttp._usual_request(memoryview(message), limits))
    assert usual in (None, expected)


def _outcome(decode: Callable[[], Request | None]) -> Request | str | None:
    """What it gives, or the text of its error."""
    try:
        return decode()
    except BinaryHttpError as error:
        return str(error)


def test_what_clients_send_takes_the_short_way():
    request = Request(
        b"POST",
        b"https",
        b"models.example",
        b"/v2/models/m/versions/1.2.3/infer",
        ((b"authorization", b"Bearer " + b"x" * 900), (b"date", b"Sun, 06 Nov 1994")),
        b"{}",
    )
    for offset in (None, *range(8)):
        message = encode_request(request, align=offset) + bytes(77)
        usual = bhttp._usual_request(memoryview(message), BhttpLimits())
        assert usual == request


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_messages_only_raise_binary_http_error(data):
    message = data.draw(REQUESTS.map(encode_request) | RESPONSES.map(encode_response))
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    _decode_both(bytes(damaged))


@given(
    st.binary(max_size=80)
    | st.builds(bytes.__add__, st.just(CONTROL), st.binary(max_size=40))
    | st.builds(bytes.__add__, st.just(b"\x02" + CONTROL[1:]), st.binary(max_size=40))
    | st.builds(bytes.__add__, st.just(b"\x03\x40\xc8"), st.binary(max_size=40))
)
@settings(deadline=None, max_examples=400)
def test_arbitrary_bytes_only_raise_binary_http_error(data):
    _decode_both(data)


def _decode_both(data: bytes) -> None:
    for decode, encode in (
        (decode_request, encode_request),
        (decode_response, encode_response),
    ):
        try:
            message = decode(data)
        except BinaryHttpError:
            continue
        assert decode(encode(message)) == message


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize("path", [b"/", b"/" + b"x" * 62, b"/" + b"x" * 70])
def test_content_that_is_aligned(known, offset, path):
    """Lengths in longer forms (RFC 9000, section 16): the same message."""
    request = Request(b"POST", b"https", b"h", path, ((b"a", b"b"),), b"-" * 80)
    encoded = encode_request(request, known=known, align=offset)
    assert (encoded.index(b"-" * 80) + offset) % 8 == 0
    assert decode_request(encoded) == request
    assert len(encoded) - len(encode_request(request, known=known)) < 8


def test_a_megabyte_of_padding():
    encoded = encode_request(Request(b"GET", b"https", b"h", b"/"))
    assert decode_request(encoded + bytes(1 << 20)).path == b"/"
    with pytest.raises(BinaryHttpError, match="padding"):
        decode_request(encoded + bytes(1 << 20) + b"\x01")
