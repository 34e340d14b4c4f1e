"""gRPC's side of the proxy: what it refuses, how calls end, and what they are told."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import numpy as np
import pytest

from sealgate.errors import TensorError, TransportError
from sealgate.protocol.bhttp import Response
from sealgate.protocol.binary_tensors import encode_response, split
from sealgate.protocol.datatypes import narrow
from sealgate.protocol.tensors import DATATYPES, TensorSpec
from tests.sealgate.test_client import KEYS, KEYS_TYPE, junk
from tests.support.bundles import NAME
from tests.support.proxies import grpc_proxy
from tests.support.tensors import decode_request

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

from sealgate.rpc import inference_pb2 as pb  # noqa: E402
from sealgate.rpc.listener import RpcLimits  # noqa: E402
from sealgate.rpc.messages import infer_answer, infer_request, metadata_of  # noqa: E402
from sealgate.rpc.refusals import refusal_for  # noqa: E402
from tests.support.patience import SpoiledError, in_time, once  # noqa: E402

Code = grpc.StatusCode
ROW = np.array([[1, 2, 3]], dtype="<f4").tobytes()
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LIMITS = RpcLimits(max_message_bytes=1 << 20, max_calls=4, max_requests=2, drain_s=0.5)


def request(**changes) -> pb.InferRequest:
    features = pb.Tensor(name="features", datatype="FP32", shape=[1, 3])
    fields = {"model_name": NAME, "inputs": [features], "raw_input_contents": [ROW]}
    return pb.InferRequest(**(fields | changes))


def typed(datatype="FP32", shape=(1, 3), **contents) -> pb.InferRequest:
    tensor = pb.Tensor(name="features", datatype=datatype, shape=shape)
    tensor.contents.CopyFrom(pb.Contents(**contents))
    return request(inputs=[tensor], raw_input_contents=[])


@pytest.fixture(scope="module")
def address(server, token) -> Iterator[str]:
    with grpc_proxy(server.url, token=token, limits=LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


def ask(channel, message, *, path=INFER, timeout=30, **named):
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return channel.unary_unary(path)(data, timeout=timeout, **named)


def answered(channel, message) -> pb.InferResponse:
    return pb.InferResponse.FromString(ask(channel, message))


def refused(channel, message, **named):
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, message, **named)
    return caught.value


def label(answer: pb.InferResponse) -> list[int]:
    names = [output.name for output in answer.outputs]
    data = answer.raw_output_contents[names.index("label")]
    return np.frombuffer(data, "<i8").tolist()


# What it takes


def test_raw_and_typed_contents_are_the_same(channel):
    raw = answered(channel, request(id="1"))
    same = answered(channel, typed(fp32_contents=[1, 2, 3]))
    assert label(raw) == [1]
    assert raw.raw_output_contents == same.raw_output_contents
    assert raw.id == "1"
    assert (raw.model_name, raw.model_version) == (NAME, "1.0.0")


DATA = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, float("inf")]),
    "FP64": ("fp64_contents", [1e300, -0.1]),
    "BYTES": ("bytes_contents", ["é\0".encode(), b""]),
}


def test_every_datatype_has_contents():
    assert DATA.keys() == DATATYPES.keys() - {"FP16", "BF16"}


@pytest.mark.parametrize("datatype", DATA)
def test_typed_contents(datatype):
    field, values = DATA[datatype]
    headers, body = infer_request(typed(datatype, [2], **{field: values}))
    head, tail = split(body, [headers[1][1]])
    specs = [TensorSpec("features", datatype, (-1,))]
    got = decode_request(json.loads(bytes(head)), specs, max_rows=2, tail=tail)
    wanted = [v.decode() if isinstance(v, bytes) else v for v in values]
    assert got["features"].tolist() == wanted


def test_every_datatype_comes_back():
    arrays = {
        name: np.array([0, 1], dtype=dtype)
        for name, dtype in DATATYPES.items()
        if name not in ("BF16", "BYTES")
    }
    arrays["BF16"] = narrow(np.array([0.5, 1], np.float32))
    arrays["BYTES"] = np.array(["a", "bc"], dtype=object)
    document, parts = encode_response(
        arrays.items(), binary=arrays, model="m", version="1"
    )
    document["parameters"] = {"n": 1, "big": 2**64, "x": 0.5, "s": "t", "l": [1]}
    head = json.dumps(document).encode()
    body = b"".join([head, *parts])
    length = ((b"inference-header-content-length", b"%d" % len(head)),)
    message = infer_answer(Response(200, length, body))
    assert [item.datatype for item in message.outputs] == list(arrays)
    assert list(message.raw_output_contents) == [bytes(part) for part in parts]
    assert message.parameters["l"].string_param == "[1]"
    assert message.parameters["big"].string_param == str(2**64)
    assert message.parameters["n"].int64_param == 1


def test_parameters_and_outputs_pass():
    parameters = {"b": pb.Parameter(bool_param=True), "n": pb.Parameter(int64_param=-1)}
    wanted = [pb.InferRequest.Output(name="label")]
    message = request(parameters=parameters, outputs=wanted, id="x")
    headers, body = infer_request(message)
    document = json.loads(body[: int(headers[1][1])])
    assert document["parameters"] == {"b": True, "n": -1, "binary_data_output": True}
    assert document["outputs"] == [{"name": "label", "parameters": {}}]
    assert document["id"] == "x"
    assert body.endswith(ROW)


def test_requested_outputs(channel):
    wanted = [pb.InferRequest.Output(name="label")]
    answer = answered(channel, request(outputs=wanted))
    assert [item.name for item in answer.outputs] == ["label"]
    other = [pb.InferRequest.Output(name="other")]
    assert refused(channel, request(outputs=other)).code() is Code.INVALID_ARGUMENT


# What it refuses

TENSOR = pb.Tensor(name="features", datatype="FP32", shape=[1, 3])
BAD = {
    "truncated raw contents": request(raw_input_contents=[ROW[:-1]]),
    "raw contents that are too long": request(raw_input_contents=[ROW + b"\0"]),
    "raw contents too many": request(raw_input_contents=[ROW, ROW]),
    "raw contents too few": request(inputs=[TENSOR, TENSOR]),
    "raw and typed both": request(
        inputs=[
            pb.Tensor(
                name="features",
                datatype="FP32",
                shape=[1, 3],
                contents=pb.Contents(fp32_contents=[1, 2, 3]),
            )
        ]
    ),
    "no contents": request(raw_input_contents=[]),
    "no inputs": request(inputs=[], raw_input_contents=[]),
    "an input twice": request(inputs=[TENSOR] * 2, raw_input_contents=[ROW] * 2),
    "too few values": typed(fp32_contents=[1, 2]),
    "too many values": typed(fp32_contents=[1] * 4),
    "contents of another type": typed(fp64_contents=[1, 2, 3]),
    "contents of two types": typed(fp32_contents=[1, 2, 3], int_contents=[1]),
    "a value out of range": typed("INT8", [1], int_contents=[128]),
    "contents that FP16 does not have": typed("FP16", fp32_contents=[1, 2, 3]),
    "contents that are not UTF-8": typed("BYTES", [1], bytes_contents=[b"\xff"]),
    "an unknown datatype": typed("FP8", fp32_contents=[1, 2, 3]),
    "an unknown raw datatype": request(
        inputs=[pb.Tensor(name="features", datatype="complex", shape=[1, 3])]
    ),
    "a negative shape": request(
        inputs=[pb.Tensor(name="features", datatype="FP32", shape=[-1, 3])]
    ),
    "two negative sizes": typed(shape=[-1, -3], fp32_contents=[1, 2, 3]),
    "an endless shape": typed(shape=[2**62, 2**62], fp32_contents=[1]),
    "many dimensions": typed(shape=[1] * 1000 + [3], fp32_contents=[1, 2, 3]),
    "no model": request(model_name=""),
    "a parameter without a value": request(parameters={"x": pb.Parameter()}),
    "a parameter that is not finite": request(
        parameters={"x": pb.Parameter(double_param=float("nan"))}
    ),
    "a parameter of ours": request(
        parameters={"binary_data_output": pb.Parameter(bool_param=False)}
    ),
    "shared memory": request(
        inputs=[
            pb.Tensor(
                name="features",
                datatype="FP32",
                shape=[1, 3],
                parameters={"shared_memory_region": pb.Parameter(string_param="r")},
            )
        ]
    ),
    "classification": request(
        outputs=[
            pb.InferRequest.Output(
                name="label",
                parameters={"classification": pb.Parameter(int64_param=2)},
            )
        ]
    ),
    "no message": b"\xff\xff\xff",
    "a message that is cut": request().SerializeToString()[:-3],
    "a name that is not UTF-8": b"\x0a\x01\xff",
    # Groups in groups, as deep as they come: fields that nobody knows.
    "nesting without end": b"\xa3\x06" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(channel, name):
    error = refused(channel, BAD[name])
    assert error.code() is Code.INVALID_ARGUMENT, error
    assert error.details()
    assert "\n" not in error.details()


@pytest.mark.parametrize(
    "model", ["../other", "toy/versions/1.0.0", "toy?x", "\ud7ff", "x" * 10_000]
)
def test_no_name_spells_another_path(channel, model):
    error = refused(channel, request(model_name=model))
    assert error.code() in (Code.NOT_FOUND, Code.INVALID_ARGUMENT), error


def test_messages_that_are_too_large(channel):
    large = request(raw_input_contents=[bytes(2 << 20)])
    assert refused(channel, large).code() is Code.RESOURCE_EXHAUSTED


def test_a_small_message_that_becomes_large(address):
    """Its size counts when it is unpacked."""
    with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
        large = request(raw_input_contents=[bytes(8 << 20)])
        assert len(gzip.compress(large.SerializeToString())) < 1 << 20
        assert refused(channel, large).code() is Code.RESOURCE_EXHAUSTED
        assert label(answered(channel, request())) == [1]


def test_too_much_metadata(channel):
    metadata = [("x-long", "y" * (64 << 10))]
    error = refused(channel, request(), metadata=metadata)
    assert error.code() in (Code.RESOURCE_EXHAUSTED, Code.UNKNOWN, Code.INTERNAL)
    assert label(answered(channel, request())) == [1]


def test_http_1_gets_no_answer_of_ours(address):
    """So no web page can use it: browsers speak HTTP/2 only over TLS."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(4096):
                received += part
    assert b"HTTP/1.1 200" not in received


# Streams


def stream(channel, messages, **named) -> list[pb.StreamInferResponse]:
    data = (m if isinstance(m, bytes) else m.SerializeToString() for m in messages)
    return [
        pb.StreamInferResponse.FromString(item)
        for item in channel.stream_stream(STREAM)(data, timeout=30, **named)
    ]


def test_a_stream_outlives_what_it_refuses(channel):
    bad = [BAD["truncated raw contents"], BAD["no message"], request(model_name="no")]
    got = stream(channel, [request(id="a"), *bad, request(id="b")])
    assert [bool(item.error_message) for item in got] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert [got[0].infer_response.id, got[-1].infer_response.id] == ["a", "b"]
    assert got[1].error_message.startswith('input "features": expected 12 bytes')


def test_a_large_message_ends_its_stream_only(channel):
    large = request(raw_input_contents=[bytes(2 << 20)])
    with pytest.raises(grpc.RpcError) as caught:
        stream(channel, [request(), large])
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert label(answered(channel, request())) == [1]


def test_streams_that_are_cancelled_leave_room(channel):
    for _ in range(2 * LIMITS.max_calls):
        endless = iter(lambda: request().SerializeToString(), None)
        call = channel.stream_stream(STREAM)(endless)
        next(call)
        call.cancel()
    got = eventually(lambda: answered(channel, request()))
    assert label(got) == [1]


def eventually(work):
    deadline = time.monotonic() + 20
    while True:
        try:
            return work()
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# How calls end


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections, and says nothing."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listening.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", connections
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for one in connections:
        one.close()


def hung_up(connection: socket.socket) -> bool:
    """Whether the other side closes it soon."""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


@contextlib.contextmanager
def connected(url: str, limits: RpcLimits = LIMITS):
    """A proxy, and a connection to it that nobody else uses."""
    alone = (("grpc.use_local_subchannel_pool", 1),)
    with (
        grpc_proxy(url, token="a.b.c", limits=limits) as address,
        grpc.insecure_channel(address, alone) as channel,
        grpc.insecure_channel(address, alone) as other,
    ):
        yield channel, other


def test_of_a_stream_little_waits():
    """Whatever a caller sends ahead: what waits for its turn is held whole."""
    limits = RpcLimits(max_requests=1, stream_ahead=64, drain_s=0.2)
    large = request(raw_input_contents=[bytes(1 << 20)]).SerializeToString()
    sent = []

    def messages() -> Iterator[bytes]:
        for number in range(64):
            sent.append(number)
            yield large

    with silent() as (url, _), connected(url, limits) as (channel, _):
        call = channel.stream_stream(STREAM)(messages())
        deadline = time.monotonic() + 60
        while len(sent) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2)
        assert len(sent) < 40
        call.cancel()


def test_a_deadline_ends_the_request_behind_it():
    def scene():
        with silent() as (url, connections), connected(url) as (channel, _):
            began = time.monotonic()
            error = refused(channel, request(), timeout=2)
            assert error.code() is Code.DEADLINE_EXCEEDED
            in_time(began, 10)
            if not connections:  # the two seconds went to other work
                raise SpoiledError
            assert hung_up(connections[0])

    once(scene)


def test_a_cancelled_call_ends_the_request_behind_it():
    with silent() as (url, connections), connected(url) as (channel, _):
        call = channel.unary_unary(INFER).future(request().SerializeToString())
        while not connections:
            time.sleep(0.01)
        call.cancel()
        assert hung_up(connections[0])


def test_calls_beyond_the_bound_are_refused_and_then_taken_again():
    limits = RpcLimits(max_calls=2, max_requests=1, drain_s=0.2)

    def scene():
        with silent() as (url, connections), connected(url, limits) as (channel, other):
            infer = channel.unary_unary(INFER)
            data = request().SerializeToString()
            waiting = [infer.future(data, timeout=60) for _ in range(2)]
            while not connections:
                time.sleep(0.01)

            def one_more() -> grpc.RpcError:
                error = refused(other, request(), timeout=0.3)
                if any(call.done() for call in waiting):  # the third one came before
                    raise SpoiledError
                return error

            until(one_more, Code.RESOURCE_EXHAUSTED)
            assert len(connections) == 1  # the second one waits for its turn
            for call in waiting:
                call.cancel()
            until(
                lambda: refused(other, request(), timeout=0.3), Code.DEADLINE_EXCEEDED
            )

    once(scene)


def until(refusal, code) -> None:
    """Ask again until it is this one: a busy machine takes its time."""
    deadline = time.monotonic() + 30
    while (error := refusal()).code() is not code:
        assert time.monotonic() < deadline, error


def test_a_proxy_that_stops_ends_what_hangs():
    with silent() as (url, connections):
        with grpc_proxy(url, limits=LIMITS) as address:
            channel = grpc.insecure_channel(address)
            call = channel.unary_unary(INFER).future(request().SerializeToString())
            while not connections:
                time.sleep(0.01)
        with pytest.raises((grpc.RpcError, futures.CancelledError)):
            call.result(10)
        channel.close()
        assert hung_up(connections[0])


# What a caller is told


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with connected(url) as (channel, _):
        error = refused(channel, request())
        assert error.code() is Code.UNAVAILABLE
        assert "refused" in error.details()


def details(error) -> dict[str, bytes]:
    trailing = dict(error.trailing_metadata())
    status = pb.ErrorStatus.FromString(trailing["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return {item.type_url.rpartition(".")[2]: item.value for item in status.details}


def test_a_refusal_has_a_reason_and_an_id(channel):
    found = details(refused(channel, request(model_name="other")))
    info = pb.ErrorInfo.FromString(found["ErrorInfo"])
    assert (info.reason, info.domain) == ("NOT_FOUND", "sealgate.dev")
    assert pb.RequestInfo.FromString(found["RequestInfo"]).request_id


PROBLEMS = [
    (400, "invalid-request", Code.INVALID_ARGUMENT),
    (400, "malformed-json", Code.INVALID_ARGUMENT),
    (401, "unauthenticated", Code.UNAUTHENTICATED),
    (403, "insufficient-scope", Code.PERMISSION_DENIED),
    (404, "not-found", Code.NOT_FOUND),
    (405, "method-not-allowed", Code.UNIMPLEMENTED),
    (409, "replayed", Code.ABORTED),
    (413, "body-too-large", Code.RESOURCE_EXHAUSTED),
    (415, "unsupported-media-type", Code.INVALID_ARGUMENT),
    (422, "x", Code.FAILED_PRECONDITION),
    (429, "quota-exceeded", Code.RESOURCE_EXHAUSTED),
    (500, "model-failure", Code.INTERNAL),
    (503, "overloaded", Code.UNAVAILABLE),
    (504, "inference-timeout", Code.DEADLINE_EXCEEDED),
]


@pytest.mark.parametrize(("status", "kind", "code"), PROBLEMS)
def test_codes(status, kind, code):
    problem = {"type": f"https://sealgate.dev/problems/{kind}", "title": "A title"}
    content = json.dumps(problem | {"error": "why"}).encode()

    def answer(method, _):
        if method == "GET":
            return 200, KEYS_TYPE, KEYS
        return status, "application/problem+json", content

    with junk(answer) as url, connected(url) as (channel, _):
        error = refused(channel, request())
    assert (error.code(), error.details()) == (code, "why")
    info = pb.ErrorInfo.FromString(details(error)["ErrorInfo"])
    assert info.reason == kind.upper().replace("-", "_")


def test_how_long_to_wait():
    from sealgate.errors import OverloadedError

    error = OverloadedError(429, {"title": "spent"}, retry_after_s=7.5)
    refusal = refusal_for(error)
    assert refusal.code is Code.RESOURCE_EXHAUSTED
    trailing = dict(refusal.trailing)
    assert trailing["grpc-retry-pushback-ms"] == "7500"
    status = pb.ErrorStatus.FromString(trailing["grpc-status-details-bin"])
    wait = pb.RetryInfo.FromString(status.details[-1].value).retry_delay
    assert (wait.seconds, wait.nanos) == (7, 500_000_000)


def test_health(channel):
    path = "/grpc.health.v1.Health/Check"
    for service in ("", "inference.GRPCInferenceService"):
        asked = pb.HealthRequest(service=service)
        answer = pb.HealthResponse.FromString(ask(channel, asked, path=path))
        assert answer.status == pb.HealthResponse.SERVING
    error = refused(channel, pb.HealthRequest(service="x"), path=path)
    assert error.code() is Code.NOT_FOUND


def test_unknown_methods(channel):
    path = "/inference.GRPCInferenceService/RepositoryModelLoad"
    assert refused(channel, b"", path=path).code() is Code.UNIMPLEMENTED


# What a server says that is not one


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"outputs":[],"model_name":7}',
        b'{"outputs":[{}],"model_name":"m"}',
        b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}],'
        b'"model_name":"m"}',
        b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1],'
        b'"parameters":{"binary_data_size":4}}],"model_name":"m"}',
        b'{"outputs":[{"name":"x","datatype":"FP32","shape":"1",'
        b'"parameters":{"binary_data_size":0}}],"model_name":"m"}',
        b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1],'
        b'"parameters":{"binary_data_size":-4}}],"model_name":"m"}',
        b"[" * 100_000,
    ],
)
def test_unusable_answers(body):
    with pytest.raises(TransportError):
        infer_answer(Response(200, (), body))


@pytest.mark.parametrize("document", [None, [], {}, {"name": 1}, {"name": "m"}])
def test_unusable_metadata(document):
    with pytest.raises(TransportError):
        metadata_of(document)


def test_a_name_is_needed():
    from sealgate.rpc.messages import path_of

    with pytest.raises(TensorError, match="missing"):
        path_of("", "1")
    assert path_of("a/b", "1/2") == "/v2/models/a%2Fb/versions/1%2F2"
