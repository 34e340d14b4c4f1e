"""The clients' core without I/O: recoveries, bounds, pins, what is not repeated."""

from __future__ import annotations

import json
from email.utils import formatdate

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.attestation import AttestationPolicy
from sealgate.core import Core
from sealgate.errors import (
    AuthenticationError,
    ClockError,
    InvalidInputError,
    KeyRefusedError,
    NotFoundError,
    OverloadedError,
    PassportError,
    PermissionDeniedError,
    ProfileError,
    ServerFailedError,
    ServerRefusedError,
    TransportError,
)
from sealgate.exchange import DATE_PROBLEM, OHTTP_KEY_PROBLEM
from sealgate.options import Options
from sealgate.protocol import keyconfig, ohttp
from sealgate.protocol.bhttp import Response
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING
from sealgate.retry import RetryPolicy
from tests.support.gateways import (
    METADATA,
    URL,
    Gateway,
    json_response,
    refusal,
    unsealed,
)
from tests.support.quotes import OURS_PEM, RECORDED, REGISTERS, quote

NO_JITTER = RetryPolicy(jitter=0.0)


def core(gateway: Gateway, **options) -> Core:
    options.setdefault("retry", NO_JITTER)
    return Core(URL, Options(**options), clock=lambda: gateway.now)


def answers(*responses: Response):
    """Handles requests with these, one after the other, then with success."""
    left = list(responses)
    return lambda request: left.pop(0) if left else json_response(METADATA)


def call(gateway: Gateway, tokens=("token",), **options):
    return gateway.run(core(gateway, **options).metadata("m"), tokens)


# Keys


def test_post_quantum_where_offered():
    gateway = Gateway(answers())
    call(gateway)
    assert ohttp.parse_header(gateway.sealed[0]).kem_id == KEM_XWING


def test_classical_where_nothing_else_is_offered():
    gateway = Gateway(answers(), post_quantum=False)
    call(gateway)
    assert ohttp.parse_header(gateway.sealed[0]).kem_id == KEM_X25519


def test_a_rotation_is_recovered_from():
    gateway = Gateway(answers())
    client = core(gateway)
    gateway.run(client.metadata("m"))
    gateway.rotate()
    assert gateway.run(client.metadata("m"))["inputs"]
    assert [method for method, _ in gateway.fetched] == [
        "GET", "POST", "POST", "GET", "POST",
    ]  # fmt: skip


def test_a_key_problem_is_believed_once():
    def refuse(step):
        problem = unsealed(refusal(422, kind=OHTTP_KEY_PROBLEM))
        return problem if step.method == "POST" else None

    gateway = Gateway(outer=refuse)
    with pytest.raises(KeyRefusedError):
        call(gateway)
    assert [method for method, _ in gateway.fetched] == ["GET", "POST"] * 2


def test_pinned_keys_are_never_replaced():
    gateway = Gateway(answers())
    pinned = gateway.document
    gateway.rotate()
    with pytest.raises(KeyRefusedError):
        call(gateway, key_configs=pinned)
    assert [method for method, _ in gateway.fetched] == ["POST"]


def test_keys_are_used_as_long_as_their_answer_may_be_cached():
    gateway = Gateway(lambda _: json_response(METADATA), cache_control="max-age=60")
    client = core(gateway)
    for elapsed in (0, 59, 60):
        gateway.now = 1_000_000_000.0 + elapsed
        gateway.run(client.metadata("m"))
    assert [method for method, _ in gateway.fetched].count("GET") == 2


IDENTITY = ec.generate_private_key(ec.SECP256R1())
PEM = public_pem(IDENTITY.public_key())


def test_signed_keys():
    gateway = Gateway(lambda _: json_response(METADATA), identity=IDENTITY)
    client = core(gateway, identity_keys=(PEM,))
    gateway.run(client.metadata("m"))
    gateway.rotate()
    gateway.run(client.metadata("m"))
    gets = [url for method, url in gateway.fetched if method == "GET"]
    assert gets == [f"{URL}/.well-known/sealgate-keys"] * 2


def test_signed_keys_are_not_used_beyond_their_time():
    gateway = Gateway(lambda _: json_response(METADATA), identity=IDENTITY)
    client = core(gateway, identity_keys=(PEM,))
    gateway.run(client.metadata("m"))
    gateway.now += 1001
    gateway.run(client.metadata("m"))
    assert [method for method, _ in gateway.fetched].count("GET") == 2


def test_keys_signed_by_another():
    gateway = Gateway(identity=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(TransportError, match="signed by a key that is not trusted"):
        call(gateway, identity_keys=(PEM,))
    assert gateway.sealed == []


def test_unsigned_keys_are_no_substitute():
    gateway = Gateway()
    with pytest.raises(TransportError, match=r"the server offers no keys \(404\)"):
        call(gateway, identity_keys=(PEM,))
    assert gateway.sealed == []


def test_old_signed_keys():
    gateway = Gateway(identity=IDENTITY)
    client = Core(URL, Options(identity_keys=(PEM,)), clock=lambda: gateway.now + 2000)
    with pytest.raises(TransportError, match="not valid any more"):
        gateway.run(client.metadata("m"))


LATTICE = MLDSA65PrivateKey.from_seed_bytes(b"\7" * 32)
LATTICE_PEM = public_pem(LATTICE.public_key())
BOTH = {"identities": (IDENTITY, LATTICE), "identity": IDENTITY}
PINS = {"identity_keys": (PEM, LATTICE_PEM)}
POLICY = AttestationPolicy.from_object(
    {"types": {"tpm2": {"keys": [OURS_PEM], "pcrs": {"15": REGISTERS[15].hex()}}}}
)


@pytest.mark.parametrize("pins", [PINS, {"identity_keys": (PEM + LATTICE_PEM,)}])
def test_keys_signed_by_both_algorithms(pins):
    gateway = Gateway(lambda _: json_response(METADATA), **BOTH)
    gateway.run(core(gateway, **pins).metadata("m"))
    gets = [url for method, url in gateway.fetched if method == "GET"]
    assert gets == [f"{URL}/.well-known/sealgate-keys-v2"]


@pytest.mark.parametrize("identities", [(IDENTITY,), (LATTICE,)])
def test_half_of_the_signatures_that_are_pinned(identities):
    gateway = Gateway(identities=identities)
    with pytest.raises(TransportError, match="no signature by a trusted key of"):
        call(gateway, **PINS)
    assert gateway.sealed == []


@pytest.mark.parametrize("status", [401, 404])  # the former of release 0.1
def test_a_server_that_only_knows_the_first_version(status):
    gateway = Gateway(
        lambda _: json_response(METADATA),
        identity=IDENTITY,
        outer=lambda step: (
            unsealed(refusal(status)) if step.url.endswith("-v2") else None
        ),
    )
    gateway.run(core(gateway, identity_keys=(PEM,)).metadata("m"))
    missing = rf"no signed keys of the second version, which .* \({status}\)"
    with pytest.raises(TransportError, match=missing):
        call(gateway, **PINS)


def test_keys_that_a_machine_is_attested_with():
    gateway = Gateway(lambda _: json_response(METADATA), attest=quote, **BOTH)
    client = core(gateway, attestation=POLICY, **PINS)
    gateway.run(client.metadata("m"))
    assert client.key_source.attested.claims == {"PCR 15": REGISTERS[15].hex()}


ATTESTED = {
    "nothing": (None, "without evidence of a machine"),
    "a replay": (lambda _: quote(bytes(32)), "over another nonce"),
    "another state": (
        lambda nonce: quote(nonce, {15: bytes(32), 16: bytes(32)}),
        "PCR 15 does not hold what it should",
    ),
    "another kind": (lambda _: {"type": "of-tests"}, "that the policy does not name"),
    "another key's": (lambda _: RECORDED["evidence"], "key that is not trusted"),
}


@pytest.mark.parametrize(("attest", "message"), ATTESTED.values(), ids=ATTESTED)
def test_nothing_is_sealed_to_what_is_not_attested(attest, message):
    gateway = Gateway(attest=attest, **BOTH)
    with pytest.raises(TransportError, match=f"the server's attestation: .*{message}"):
        call(gateway, attestation=POLICY, **PINS)
    assert gateway.sealed == []


P384 = public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())


@pytest.mark.parametrize("pem", ["", "x", "\ud800", P384])
def test_identity_keys_that_are_none(pem):
    with pytest.raises(ProfileError, match="an identity key is not"):
        Core(URL, Options(identity_keys=(pem,)))


def test_a_relay_gets_the_requests():
    gateway = Gateway(answers())
    call(gateway, relay_url="https://relay.example/ohttp")
    assert gateway.fetched == [
        ("GET", f"{URL}/.well-known/ohttp-gateway"),
        ("POST", "https://relay.example/ohttp"),
    ]


# Clock


def stale(server_time: float) -> Response:
    return refusal(400, kind=DATE_PROBLEM, date=formatdate(server_time, usegmt=True))


def dates(gateway: Gateway) -> list[bytes]:
    return [dict(request.headers)[b"date"] for request in gateway.requests]


def test_a_wrong_clock_is_recovered_from_once_and_for_good():
    gateway = Gateway(answers(stale(1_000_000_500.0)))
    client = core(gateway)
    gateway.run(client.metadata("m"))
    gateway.run(client.metadata("m"))
    wrong, right = (formatdate(1e9 + s, usegmt=True).encode() for s in (0, 500))
    assert dates(gateway) == [wrong, right, right]


def test_who_has_a_former_key_cannot_hold_the_time():
    """By a sealed refusal that says it is long ago: the key has its window, no more."""
    times, gateway = [1e9], Gateway(answers(stale(1e9 - 100_000)), identity=IDENTITY)
    options = Options(identity_keys=(PEM,), retry=NO_JITTER)
    client = Core(URL, options, clock=lambda: times[0])
    gateway.run(client.metadata("m"))
    times[0] += 5000
    with pytest.raises(TransportError, match="not valid any more"):
        gateway.run(client.metadata("n"))
    assert len(gateway.sealed) == 2


def test_a_clock_that_stays_wrong():
    gateway = Gateway(answers(stale(1e9 + 500), stale(1e9 + 900)))
    with pytest.raises(ClockError):
        call(gateway)
    assert len(gateway.requests) == 2


def test_a_date_in_the_open_is_not_believed():
    gateway = Gateway(
        outer=lambda step: unsealed(stale(2e9)) if step.method == "POST" else None
    )
    with pytest.raises(ClockError) as caught:
        call(gateway)
    assert not caught.value.sealed
    assert len(gateway.fetched) == 2


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 99 Jan 1970 00:00:00 GMT"])
def test_a_date_that_is_none(date):
    gateway = Gateway(answers(refusal(400, kind=DATE_PROBLEM, date=date)))
    with pytest.raises(ClockError):
        call(gateway)
    assert len(gateway.requests) == 1


# Overload


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_is_asked_again_when_it_says(status):
    busy = refusal(status, retry_after="3")
    gateway = Gateway(answers(busy, busy))
    assert call(gateway)["inputs"]
    assert gateway.waits == [3.0, 3.0]


def test_not_more_often_than_allowed():
    busy = refusal(503, retry_after="1")
    gateway = Gateway(answers(busy, busy, busy))
    with pytest.raises(OverloadedError) as caught:
        call(gateway)
    assert caught.value.retry_after_s == 1.0
    assert len(gateway.requests) == 3
    gateway = Gateway(answers(busy))
    with pytest.raises(OverloadedError):
        call(gateway, retry=RetryPolicy(max_retries=0))
    assert gateway.waits == []


@pytest.mark.parametrize(
    "retry_after", ["", "11", "-1", "1.5", "soon", "9" * 500, "\u00b2", "Fri, 01 Jan"]
)
def test_not_without_a_word_and_not_for_long(retry_after):
    problem = refusal(503, retry_after="1")
    headers = (problem.headers[0], (b"retry-after", retry_after.encode("latin-1")))
    gateway = Gateway(answers(Response(503, headers, problem.body)))
    with pytest.raises(OverloadedError):
        call(gateway)
    assert gateway.waits == []


def test_waits_are_jittered():
    gateway = Gateway(answers(*[refusal(503, retry_after="2")] * 2))
    call(gateway, retry=RetryPolicy(jitter=1.0))
    assert all(2.0 <= wait <= 4.0 for wait in gateway.waits)
    assert gateway.waits[0] != gateway.waits[1]


def test_the_guards_answer_in_the_open_counts():
    left = [unsealed(refusal(503, retry_after="1"))]
    gateway = Gateway(
        answers(), outer=lambda s: left.pop() if s.method == "POST" and left else None
    )
    assert call(gateway)["inputs"]


@pytest.mark.parametrize("status", [400, 403, 404, 408, 409, 413, 500, 502, 504])
def test_nothing_else_is_repeated(status):
    gateway = Gateway(answers(refusal(status, retry_after="1")))
    with pytest.raises(ServerRefusedError):
        call(gateway)
    assert len(gateway.requests) == 1


def test_a_503_that_is_not_the_servers():
    page = Response(503, ((b"content-type", b"text/html"), (b"retry-after", b"1")))
    gateway = Gateway(outer=lambda s: unsealed(page) if s.method == "POST" else None)
    with pytest.raises(TransportError):
        call(gateway)
    assert gateway.waits == []


# Tokens


def tokens_of(gateway: Gateway) -> list[bytes]:
    return [dict(request.headers)[b"authorization"] for request in gateway.requests]


def test_a_fresh_token_is_tried_once():
    gateway = Gateway(answers(refusal(401)))
    call(gateway, tokens=["old", "new"])
    assert tokens_of(gateway) == [b"Bearer old", b"Bearer new"]
    gateway = Gateway(answers(refusal(401), refusal(401)))
    with pytest.raises(AuthenticationError):
        call(gateway, tokens=["old", "new", "newer"])
    assert len(gateway.requests) == 2


def test_the_same_token_is_not_tried_again():
    gateway = Gateway(answers(refusal(401)))
    with pytest.raises(AuthenticationError):
        call(gateway)
    assert len(gateway.requests) == 1


# Errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInputError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (413, InvalidInputError),
        (415, InvalidInputError),
        (429, OverloadedError),
        (500, ServerFailedError),
        (503, OverloadedError),
        (504, ServerFailedError),
        (418, ServerRefusedError),
    ],
)
def test_a_class_per_cause(status, kind):
    gateway = Gateway(answers(refusal(status, x_request_id="abc")))
    with pytest.raises(ServerRefusedError) as caught:
        call(gateway)
    assert type(caught.value) is kind
    assert caught.value.sealed
    assert caught.value.request_id == "abc"


# Tensors


def serving(*, extensions, answer=None):
    """A model y = sum of x's rows, by either kind of tensor."""
    seen = []

    def handle(request):
        if request.path == b"/v2":
            return json_response({"extensions": extensions})
        if request.method == b"GET":
            return json_response(METADATA)
        seen.append(dict(request.headers))
        output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [3.0]}
        return answer or json_response({"outputs": [output]})

    return Gateway(handle), seen


def test_bytes_where_the_server_takes_them():
    gateway, seen = serving(extensions=["binary_tensor_data"])
    outputs = gateway.run(core(gateway).infer("m", {"x": [[1, 2]]}))
    assert outputs["y"].tolist() == [3.0]
    assert seen[0][b"content-type"] == b"application/octet-stream"
    body = gateway.requests[-1].body
    size = int(seen[0][b"inference-header-content-length"])
    assert json.loads(bytes(body[:size]))["inputs"][0]["shape"] == [1, 2]
    assert np.frombuffer(body[size:], "<f4").tolist() == [1, 2]


def test_json_where_it_does_not():
    gateway, seen = serving(extensions=[])
    gateway.run(core(gateway).infer("m", {"x": [[1, 2]]}))
    assert seen[0][b"content-type"] == b"application/json"
    assert json.loads(bytes(gateway.requests[-1].body))["inputs"][0]["data"] == [1, 2]


def test_what_is_known_is_not_asked_again():
    gateway, _ = serving(extensions=[])
    client = core(gateway)
    for _ in range(3):
        gateway.run(client.infer("m", {"x": [[1, 2]]}))
    assert len(gateway.requests) == 5


def test_a_refused_input_makes_the_metadata_be_asked_again():
    gateway, _ = serving(extensions=[], answer=refusal(400))
    client = core(gateway)
    for _ in range(2):
        with pytest.raises(InvalidInputError):
            gateway.run(client.infer("m", {"x": [[1, 2]]}))
    paths = [request.path for request in gateway.requests]
    assert paths.count(b"/v2/models/m") == 2


def test_callers_own_their_arrays():
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"120"),
    )
    output = {"name": "y", "datatype": "FP32", "shape": [1]}
    output |= {"parameters": {"binary_data_size": 4}}
    head = json.dumps({"outputs": [output]}).encode().ljust(120)
    answer = Response(200, headers, head + np.float32(2).tobytes())
    gateway, _ = serving(extensions=["binary_tensor_data"], answer=answer)
    y = gateway.run(core(gateway).infer("m", {"x": [[1, 2]]}))["y"]
    y += 1
    assert y.tolist() == [3.0]


# Chunks


def test_large_requests_go_in_chunks():
    gateway, _ = serving(extensions=["binary_tensor_data"])
    client = core(gateway, chunked_above_bytes=50_000)
    rows = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
    assert gateway.run(client.infer("m", {"x": rows}))["y"].tolist() == [3.0]
    body = bytes(gateway.requests[-1].body)
    assert body.endswith(rows.tobytes())


def test_a_gateway_without_chunks():
    gateway, _ = serving(extensions=["binary_tensor_data"])
    gateway.takes_chunks = False
    client = core(gateway, chunked_above_bytes=50_000)
    rows = np.zeros((20_000, 2), dtype=np.float32)
    for _ in range(2):
        assert gateway.run(client.infer("m", {"x": rows}))["y"].tolist() == [3.0]
    # Metadata twice, the refused one, and then whole ones only.
    assert len(gateway.sealed) == 5


# Passport


def test_no_model_without_a_passport():
    gateway = Gateway(lambda _: json_response({"verdict": "x", "evidence": {}}))
    client = core(gateway, require_passport=True, trusted_keys=(PEM,))
    for steps in (client.metadata("m"), client.infer("m", {"x": [[1, 2]]})):
        with pytest.raises(PassportError):
            gateway.run(steps)
    assert {request.path for request in gateway.requests} == {
        b"/v2/models/m/attestations"
    }


def test_a_passport_needs_keys():
    gateway = Gateway()
    with pytest.raises(PassportError, match="no trusted key"):
        call(gateway, require_passport=True)
    assert gateway.fetched == []


# The rest


def test_ready():
    for response, expected in (
        (Response(200), True),
        (refusal(404), False),
        (refusal(503), False),
    ):
        gateway = Gateway(answers(response))
        assert gateway.run(core(gateway).ready("m")) is expected
    gateway = Gateway(answers(refusal(403)))
    with pytest.raises(PermissionDeniedError):
        gateway.run(core(gateway).ready("m"))


@pytest.mark.parametrize("value", [None, [], {}, {"extensions": "x"}])
def test_server_metadata_that_makes_no_sense(value):
    gateway = Gateway(answers(json_response(value)))
    with pytest.raises(TransportError, match="the server's metadata is malformed"):
        gateway.run(core(gateway).server_metadata())


def test_lengths_of_requests_say_little():
    gateway = Gateway(lambda _: json_response(METADATA))
    client = core(gateway)
    for model in ("m", "a-much-longer-name-of-a-model"):
        gateway.run(client.metadata(model))
    assert len(set(map(len, gateway.sealed))) == 1


def test_forwarded_requests_keep_their_own_token():
    gateway = Gateway(lambda _: Response(418))
    headers = ((b"authorization", b"Bearer own"),)
    steps = core(gateway).forward("GET", "/v2", headers, b"", own_token=False)
    assert gateway.run(steps).status == 418
    assert tokens_of(gateway) == [b"Bearer own"]


def test_keys():
    gateway = Gateway()
    assert keyconfig.decode_list(gateway.run(core(gateway).keys()))
