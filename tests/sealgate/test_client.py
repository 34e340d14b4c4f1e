"""The client against a real server, and against servers that are none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

import sealgate.convert
import sealgate.keys
from models.sessions import make_session
from sealgate import (
    AuthenticationError,
    Client,
    Options,
    PassportError,
    Profile,
    ProfileError,
    ServerRefusedError,
    TensorError,
    TransportError,
)
from sealgate.exchange import GATEWAY_PATH, OHTTP_KEY_PROBLEM
from sealgate.keys import KeyChoice, choose_config
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.bhttp import Response
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from security.access import issuer
from security.admission.keys import load_mldsa_key, load_signing_key
from security.settings.loading import load_settings
from tests.conftest import mint, toy_settings
from tests.support.bundles import KINDS, NAME, Keys, onnx_model
from tests.support.servers import serve

ROWS = np.array([[1, 2, 3], [-4, 5.5, 0.125], [0, 0, 0]], dtype=np.float32)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What ONNX Runtime answers in this process."""
    session = make_session(onnx_model())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"features": ROWS}), strict=True))


@pytest.fixture(scope="module")
def client(server, token) -> Iterator[Client]:
    with Client(server.url, token=token) as client:
        yield client


def release_pem(home: Path) -> str:
    return public_pem(load_signing_key(home / "keys" / "release.pem").public_key())


# Against the real server


def test_inference_equals_onnx_runtime(client, expected):
    outputs = client.infer(NAME, {"features": ROWS})
    assert sorted(outputs) == sorted(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_allclose(outputs[name], array, rtol=1e-6)
    assert outputs["probabilities"].shape == (3, 2)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS.astype(np.float64),
        ROWS.astype(">f4"),
        np.asfortranarray(ROWS),
        ROWS.tolist(),
        tuple(map(tuple, ROWS.tolist())),
    ],
    ids=["float64", "big endian", "fortran", "list", "tuple"],
)
def test_rows_in_other_forms(client, expected, rows):
    label = client.infer(NAME, {"features": rows})["label"]
    np.testing.assert_array_equal(label, expected["label"])


def test_integers_and_booleans_are_floats_too(client):
    ones = client.infer(NAME, {"features": [[1, 0, 1]]})["probabilities"]
    same = client.infer(NAME, {"features": [[True, False, True]]})["probabilities"]
    np.testing.assert_array_equal(ones, same)


def test_metadata(client):
    metadata = client.metadata(NAME)
    assert metadata["name"] == NAME
    assert [column["name"] for column in metadata["inputs"][0]["parameters"]["columns"]]
    assert metadata["outputs"][0]["parameters"]["labels"] == ["no", "yes"]


def test_health(server, client):
    assert client.health() is True
    with Client("http://127.0.0.1:9", token="t") as nobody:
        assert nobody.health() is False


def test_wrong_width(client):
    with pytest.raises(ServerRefusedError) as caught:
        client.infer(NAME, {"features": [[1.0, 2.0]]})
    assert caught.value.status == 400
    assert str(caught.value).endswith(
        'input "features": expected FP32[-1,3], got FP32[1,2]'
    )


def test_wrong_name(client):
    with pytest.raises(ServerRefusedError) as caught:
        client.infer(NAME, {"rows": ROWS})
    assert caught.value.status == 400
    assert 'input "rows": unknown, expected "features"' in str(caught.value)


def test_missing_input(client):
    with pytest.raises(ServerRefusedError, match='input "features": missing'):
        client.infer(NAME, {})


def test_too_many_rows_in_one_request(client):
    with pytest.raises(ServerRefusedError, match="65 rows, at most 64 allowed"):
        client.infer(NAME, {"features": np.zeros((65, 3))}, batched=False)


def test_too_many_rows_go_in_several_requests(client):
    rows = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    told = []
    answer = client.infer(
        NAME, {"features": rows}, progress=lambda *item: told.append(item)
    )
    assert told == [(64, 200), (128, 200), (192, 200), (200, 200)]
    parts = [client.infer(NAME, {"features": part}) for part in np.split(rows, 4)]
    for name, array in answer.items():
        assert array.dtype == parts[0][name].dtype
        whole = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(array, whole, rtol=1e-6)


def test_a_request_that_is_too_long_goes_in_shorter_ones(deployment, token):
    extra = toy_settings(deployment) | {"SEALGATE_SERVICE_MAX_BODY_BYTES": "2500"}
    with (
        serve("service.app:Sealgate", deployment, extra=extra, alone=True) as server,
        Client(server.url, token=token) as client,
    ):
        told = []
        rows = np.ones((100, 3), dtype=np.float32)
        answer = client.infer(
            NAME, {"features": rows}, progress=lambda *item: told.append(item)
        )
        assert len(answer["label"]) == 100
        assert len(told) > 2


def test_an_error_says_which_model_and_which_rows(client):
    with pytest.raises(ServerRefusedError, match=r"^other: 40[34] "):
        client.metadata("other")
    with pytest.raises(ServerRefusedError, match=r"^toy: 400 .*: expected FP32"):
        client.infer(NAME, {"features": [[1, 2]]})
    wide = {"features": np.zeros((100, 2), dtype=np.float32)}
    with pytest.raises(ServerRefusedError, match="in rows 0 to 63"):
        client.infer(NAME, wide)


def test_an_expired_token_says_since_when(server, deployment):
    settings = load_settings({"SEALGATE_HOME": str(deployment)})
    token = issuer.mint(
        issuer.load_issuer_key(settings.home),
        audience=settings.access.audience,
        subject="s",
        client_id="c",
        scopes=["infer:toy"],
        lifetime_s=60,
        now=int(time.time()) - 3 * 3600,
    )
    with (
        Client(server.url, token=token) as client,
        pytest.raises(AuthenticationError, match="the token expired 2 hours ago, at 2"),
    ):
        client.metadata(NAME)


@pytest.mark.parametrize("model", ["other", "no such", "a/b", "\udcff", "", ".."])
def test_other_models(client, model):
    with pytest.raises(ServerRefusedError) as caught:
        client.infer(model, {"features": ROWS})
    assert caught.value.status in (403, 404)


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ("abc", 401),
        ("a.b.c", 401),
        ("x" * 10_000, 401),
        # This does not fit into the head of a message.
        ("x" * 20_000, 400),
    ],
)
def test_wrong_token(server, bad, status):
    with (
        Client(server.url, token=bad) as client,
        pytest.raises(ServerRefusedError) as caught,
    ):
        client.infer(NAME, {"features": ROWS})
    assert caught.value.status == status


def test_wrong_scope(server, deployment):
    token = mint(deployment, "infer:other")
    with (
        Client(server.url, token=token) as client,
        pytest.raises(ServerRefusedError) as caught,
    ):
        client.infer(NAME, {"features": ROWS})
    assert caught.value.status == 404


def test_a_callable_gives_a_token_per_request(server, token):
    given = []

    def fresh() -> str:
        given.append(1)
        return token

    with Client(server.url, token=fresh) as client:
        client.metadata(NAME)
        client.metadata(NAME)
    assert len(given) == 2


def test_passport(server, token, deployment):
    trusted = (release_pem(deployment),)
    with Client(
        server.url, token=token, options=Options(trusted_keys=trusted)
    ) as client:
        passport = client.passport(NAME)
    assert passport.model == f"{NAME}:1.0.0"
    assert set(passport.reports) == set(KINDS)
    assert passport.metric("privacy", "epsilon") == 2.5


def test_passport_with_a_second_signature(server, token, deployment):
    second = load_mldsa_key(deployment / "keys" / "release.mldsa.pem").public_key()
    other = MLDSA65PrivateKey.generate().public_key()
    for key in (second, other):
        trusted = (release_pem(deployment), public_pem(key))
        options = Options(trusted_keys=trusted)
        with Client(server.url, token=token, options=options) as client:
            if key is second:
                assert client.passport(NAME).model == f"{NAME}:1.0.0"
                continue
            with pytest.raises(PassportError, match="not trusted for it"):
                client.passport(NAME)


def test_passport_of_untrusted_keys(server, token, client):
    with pytest.raises(PassportError, match="no trusted key: give trusted_keys"):
        client.passport(NAME)
    other = public_pem(Keys.generate().release.public_key())
    with (
        Client(server.url, token=token, options=Options(trusted_keys=(other,))) as wary,
        pytest.raises(PassportError, match="signed by a key that is not trusted"),
    ):
        wary.passport(NAME)


def served_keys(url: str) -> bytes:
    return httpx.get(url + GATEWAY_PATH).content


def rotated(document: bytes) -> bytes:
    """A configuration that the server does not have: its key has been replaced."""
    key_id = keyconfig.decode_list(document)[0].key_id
    key = PrivateKey.generate()
    return keyconfig.encode_list([KeyConfig(key_id, KEM_X25519, key.public_bytes)])


def test_pinned_keys(server, token, expected):
    keys = served_keys(server.url)
    with Client(server.url, token=token, options=Options(key_configs=keys)) as client:
        label = client.infer(NAME, {"features": ROWS})["label"]
    np.testing.assert_array_equal(label, expected["label"])


def test_pinned_keys_that_the_server_does_not_have(server, token):
    keys = rotated(served_keys(server.url))
    with (
        Client(server.url, token=token, options=Options(key_configs=keys)) as client,
        pytest.raises(ServerRefusedError) as caught,
    ):
        client.metadata(NAME)
    assert caught.value.status == 422
    assert caught.value.type == OHTTP_KEY_PROBLEM


def test_rotated_keys_are_fetched_again(server, token, expected):
    keys = served_keys(server.url)
    with Client(server.url, token=token) as client:
        client.metadata(NAME)
        # As after a rotation: the configuration it fetched is of a key that is gone.
        client._core.key_source._choice = KeyChoice(choose_config(rotated(keys)))
        label = client.infer(NAME, {"features": ROWS})["label"]
        assert client._core.key_source._choice.config == choose_config(keys)
    np.testing.assert_array_equal(label, expected["label"])


def test_from_profile(server, token, expected, tmp_path):
    profile = Profile(url=server.url, token=token, key_configs=served_keys(server.url))
    path = tmp_path / "profile.json"
    path.write_bytes(profile.to_json())
    for source in (profile, path, str(path)):
        with Client.from_profile(source) as client:
            label = client.infer(NAME, {"features": ROWS})["label"]
        np.testing.assert_array_equal(label, expected["label"])


def test_the_open_server_takes_sealed_requests_too(open_server, token, expected):
    with Client(open_server.url, token=token) as client:
        label = client.infer(NAME, {"features": ROWS})["label"]
    np.testing.assert_array_equal(label, expected["label"])


def test_what_is_not_sent_at_all(client):
    for rows, message in (
        ([[1, 2], [3]], 'input "features": rows are not of one length'),
        ([["a", "b", "c"]], 'input "features": <U1 cannot be sent as FP32'),
        ([[None, 1, 2]], 'input "features": object cannot be sent as FP32'),
        ([[1j, 1, 2]], 'input "features": complex128 cannot be sent as FP32'),
        ([[1e300, 1, 2]], 'input "features": a value is out of range for FP32'),
    ):
        with pytest.raises(TensorError) as caught:
            client.infer(NAME, {"features": rows})
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("array", "datatype", "result"),
    [
        (np.array([1, 255]), "UINT8", [1, 255]),
        (np.array([-128, 127]), "INT8", [-128, 127]),
        (np.array([2**63 - 1], dtype=np.uint64), "INT64", [2**63 - 1]),
        (np.array([0.1]), "FP32", [np.float32(0.1)]),
        (np.array([True]), "INT64", [1]),
        (np.array([], dtype=np.float64), "FP32", []),
        (np.array(["a"]), None, ["a"]),  # the server says that it is unknown
    ],
)
def test_casts(array, datatype, result):
    converted = sealgate.convert._cast("x", array, datatype)
    assert converted.tolist() == result


@pytest.mark.parametrize(
    ("array", "datatype", "message"),
    [
        (np.array([1, 256]), "UINT8", "a value is out of range for UINT8"),
        (np.array([-1]), "UINT8", "a value is out of range for UINT8"),
        (np.array([-1]), "UINT64", "a value is out of range for UINT64"),
        (np.array([2**31]), "INT32", "a value is out of range for INT32"),
        (
            np.array([2**63], dtype=np.uint64),
            "INT64",
            "a value is out of range for INT64",
        ),
        (np.array([70000]), "FP16", "a value is out of range for FP16"),
        (np.array([1e39]), "FP32", "a value is out of range for FP32"),
        (np.array([1.0]), "INT64", "float64 cannot be sent as INT64"),
        (np.array([1.0]), "BOOL", "float64 cannot be sent as BOOL"),
        (np.array([1]), "BOOL", "int64 cannot be sent as BOOL"),
        (np.array([b"a"]), "FP32", "|S1 cannot be sent as FP32"),
    ],
)
def test_casts_that_would_change_a_value(array, datatype, message):
    with pytest.raises(TensorError) as caught:
        sealgate.convert._cast("x", array, datatype)
    assert str(caught.value) == f'input "x": {message}'


# What a client refuses, and does not show


@pytest.mark.parametrize("url", ["http://models.example", "models.example", "ftp://a"])
def test_urls(url):
    with pytest.raises(ProfileError):
        Client(url, token="t")


def test_malformed_pinned_keys():
    with pytest.raises(TransportError, match="the server's key configuration"):
        Client(
            "https://models.example", token="t", options=Options(key_configs=b"\x00")
        )


def test_repr_shows_no_secret():
    profile = Profile(url="https://models.example", token="hush")
    with Client.from_profile(profile) as client:
        assert repr(client) == "<Client https://models.example>"


# Servers that are none


@contextmanager
def junk(answer) -> Iterator[str]:
    """A real HTTP server; ``answer(method, body)`` gives status, type and content.

    Of requests in chunks it knows nothing.
    """

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
                status, kind, content = 415, "text/plain", b"no chunks"
            else:
                size = int(self.headers.get("content-length", 0))
                status, kind, content = answer(self.command, self.rfile.read(size))
            self.send_response(status)
            self.send_header("content-type", kind)
            if 300 <= status < 400:
                self.send_header("location", "/elsewhere")
            self.end_headers()
            try:
                for chunk in content if isinstance(content, list) else [content]:
                    self.wfile.write(chunk)
            except OSError:  # the client has read enough
                self.close_connection = True

        do_GET = do_POST = _answer  # noqa: N815  (http.server's names)

        def log_message(self, *args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


GATEWAY = PrivateKey.generate()
KEYS = keyconfig.encode_list([KeyConfig(1, KEM_X25519, GATEWAY.public_bytes)])
KEYS_TYPE = "application/ohttp-keys"
JSON_HEADERS = ((b"content-type", b"application/json"),)


def talk(post, *, get=(200, KEYS_TYPE, KEYS), **options):
    """Ask a server that answers like this for a model's metadata."""

    def answer(method, body):
        if method == "GET":
            return get
        return post(body) if callable(post) else post

    with junk(answer) as url, Client(url, token="t", **options) as client:
        return client.metadata(NAME)


def sealed(body: bytes, response: Response) -> tuple[int, str, bytes]:
    _, context = ohttp.open_request(body, GATEWAY)
    return 200, "message/ohttp-res", context.seal(bhttp.encode_response(response))


@pytest.mark.parametrize(
    ("get", "message"),
    [
        ((200, "text/html", b"<html>"), r"the server offers no keys \(200\)"),
        ((404, "text/plain", b""), r"the server offers no keys \(404\)"),
        ((301, KEYS_TYPE, b""), r"the server offers no keys \(301\)"),
        ((200, KEYS_TYPE, b""), "no usable key configuration"),
        ((200, KEYS_TYPE, b"<html>"), "key configuration list is truncated"),
        ((200, KEYS_TYPE, bytes(70_000)), "more than 65536 bytes"),
        (
            (
                200,
                KEYS_TYPE,
                keyconfig.encode_list([KeyConfig(1, KEM_X25519, bytes(32))]),
            ),
            "invalid encapsulated key",
        ),
    ],
    ids=["html", "none", "moved", "empty", "junk", "long", "low order"],
)
def test_servers_without_keys(get, message):
    with pytest.raises(TransportError, match=message):
        talk((200, "", b""), get=get)


@pytest.mark.parametrize(
    "post",
    [
        (200, "text/html", b"<html>"),
        (200, "application/json", b'{"inputs": [], "outputs": []}'),
        (500, "text/plain", b"oops"),
        (200, "message/ohttp-res", b""),
        (200, "message/ohttp-res", bytes(200)),
    ],
)
def test_answers_that_are_not_the_protocols(post):
    with pytest.raises(TransportError):
        talk(post)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"inputs": [{}], "outputs": []}', b"{", b"\xff"],
)
def test_sealed_answers_that_make_no_sense(body):
    with pytest.raises(TransportError):
        talk(lambda request: sealed(request, Response(200, JSON_HEADERS, body)))


@pytest.mark.parametrize(
    "outputs", [b"null", b'{"outputs": 1}', b'{"outputs": [{"name": "x"}]}']
)
def test_inference_answers_that_make_no_sense(outputs):
    bodies = [b'{"inputs": [], "outputs": []}', b'{"extensions": []}', outputs]

    def answer(method, body):
        if method == "GET":
            return 200, KEYS_TYPE, KEYS
        return sealed(body, Response(200, JSON_HEADERS, bodies.pop(0)))

    with junk(answer) as url, Client(url, token="t") as client:
        client.metadata(NAME)
        with pytest.raises(TransportError, match="the answer is unusable"):
            client.infer(NAME, {})


def test_answers_are_bounded_while_reading():
    sent = []

    def endless():
        for _ in range(1000):
            sent.append(1)
            yield bytes(1 << 16)

    class Stream(list):
        def __iter__(self):
            return endless()

    with pytest.raises(TransportError, match="the answer is too long"):
        talk(
            (200, "message/ohttp-res", Stream()),
            options=Options(max_response_bytes=100_000),
        )
    assert len(sent) < 900


def test_a_key_problem_is_believed_once():
    posts = []
    problem = b'{"type": "%b", "title": "no"}' % OHTTP_KEY_PROBLEM.encode()

    def refuse(body):
        posts.append(body)
        return 422, "application/problem+json", problem

    with pytest.raises(ServerRefusedError, match="422 no"):
        talk(refuse)
    assert len(posts) == 2
    assert posts[0] != posts[1]


def test_other_problems_are_not_repeated():
    posts = []

    def refuse(body):
        posts.append(body)
        return 503, "application/problem+json", b'{"title": "busy"}'

    with pytest.raises(ServerRefusedError, match="503 busy"):
        talk(refuse)
    assert len(posts) == 1


def test_neither_path_nor_token_travel_in_the_open():
    seen = []

    def answer(method, body):
        if method == "GET":
            return 200, KEYS_TYPE, KEYS
        seen.append(body)
        return sealed(body, Response(200, JSON_HEADERS, b'{"inputs":[],"outputs":[]}'))

    with junk(answer) as url, Client(url, token="hush-hush") as client:
        client.metadata("secret-model")
    (body,) = seen
    assert b"hush" not in body
    assert b"secret-model" not in body
    message, _ = ohttp.open_request(body, GATEWAY)
    request = bhttp.decode_request(message)
    assert request.path == b"/v2/models/secret-model"
    assert [name for name, _ in request.headers] == [b"date", b"authorization"]
    assert request.headers[1] == (b"authorization", b"Bearer hush-hush")
    # The length says little, too.
    assert len(message) == 1024


def test_redirects_are_not_followed():
    asked = []

    def answer(method, body):
        asked.append(method)
        return (200, KEYS_TYPE, KEYS) if method == "GET" else (307, "text/plain", b"")

    with (
        junk(answer) as url,
        Client(url, token="t") as client,
        pytest.raises(TransportError, match="the server answered 307"),
    ):
        client.metadata(NAME)
    assert asked == ["GET", "POST"]


def test_nobody_listens():
    with (
        Client("http://127.0.0.1:9", token="t") as client,
        pytest.raises(TransportError, match="the connection was refused"),
    ):
        client.metadata(NAME)


def test_a_server_that_never_answers():
    release = threading.Event()

    def answer(method, body):
        release.wait(5)
        return 200, "", b""

    with junk(answer) as url, Client(url, token="t", timeout_s=0.2) as client:
        with pytest.raises(TransportError, match="does not answer: no read in time"):
            client.metadata(NAME)
        release.set()
