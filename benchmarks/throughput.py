"""Large tensors through the whole server: sealed against plaintext.

Binary tensors in, their mean out, over one keep-alive connection per case, requests
sealed beforehand, rounds alternating. Throughput is the worker's: payload bytes per
second of its CPU time, since the client shares the machine; the wall clock's beside it.
"""

import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from benchmarks.deployments import admit
from benchmarks.server import worker_cpu
from benchmarks.timing import table
from models.manifest import Manifest, Tensor
from sealgate.exchange import GATEWAY_PATH, build_request
from sealgate.protocol import bhttp, binary_tensors, keyconfig, ohttp
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from sealgate.protocol.padding import pad
from sealgate.protocol.tensors import TensorSpec
from tests.conftest import check_security, mint, toy_settings
from tests.support import bundles
from tests.support.servers import Server, serve

SIZES = {"600 KB": (600 << 10, 100), "10 MB": (10 << 20, 12)}
ROUNDS = 9
PATH = f"/v2/models/{bundles.NAME}/infer"
KEMS = {"X25519": KEM_X25519, "X-Wing": KEM_XWING}


def run() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        _deploy(home)
        token = mint(home, f"infer:{bundles.NAME}")
        extra = toy_settings(home) | {
            "SEALGATE_SEALING_REQUIRE_SEALED": "false",
            "SEALGATE_SEALING_REQUIRE_DATE": "false",
            "SEALGATE_SERVICE_MAX_BODY_BYTES": str(32 << 20),
        }
        server = stack.enter_context(serve("service.app:Sealgate", home, extra=extra))
        rows = [
            row
            for name, (size, repeat) in SIZES.items()
            for row in _measure(server, token, name, size=size, repeat=repeat)
        ]
    table(
        ("tensor", "transport", "worker CPU, MB/s", "of plaintext", "wall, MB/s"), rows
    )


def _measure(
    server: Server, token: str, name: str, *, size: int, repeat: int
) -> list[tuple[str, ...]]:
    head, body = _message(size)
    cases: dict[str, Callable[[], float]] = {
        "plaintext": lambda: _plain(server, token, head, body, repeat)
    }
    for kem, kem_id in KEMS.items():
        cases[f"sealed, {kem}"] = lambda kem_id=kem_id: _sealed(
            server, token, head, body, repeat=repeat, kem_id=kem_id
        )
    cpu: dict[str, list[float]] = {case: [] for case in cases}
    wall: dict[str, list[float]] = {case: [] for case in cases}
    for round_number in range(ROUNDS + 1):
        for case, send in cases.items():
            before = worker_cpu(server)
            elapsed = send()
            if round_number:  # the first one warms up
                cpu[case].append(size * repeat / (worker_cpu(server) - before))
                wall[case].append(size * repeat / elapsed)
    return [
        (
            name,
            case,
            f"{statistics.median(cpu[case]) / 1e6:.0f}",
            f"{_ratio(cpu[case], cpu['plaintext']):.2f}",
            f"{statistics.median(wall[case]) / 1e6:.0f}",
        )
        for case in cases
    ]


def _ratio(ours: list[float], base: list[float]) -> float:
    """The median over rounds: a busy machine disturbs both sides of a round alike."""
    return statistics.median(a / b for a, b in zip(ours, base))


def _message(size: int) -> tuple[int, bytes]:
    """The length of the JSON, and the JSON with the tensor behind it."""
    array = np.ones((1, size // 4), np.float32)
    document, parts = binary_tensors.encode_request({"x": array})
    head = json.dumps(document).encode()
    # As the client does where it seals, so that neither side copies to align.
    head = head.ljust(-(-len(head) // 8) * 8)
    return len(head), b"".join([head, *map(bytes, parts)])


def _plain(server: Server, token: str, head: int, body: bytes, repeat: int) -> float:
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(head),
    }
    return _send(server, PATH, [body] * repeat, headers)


def _sealed(
    server: Server, token: str, head: int, body: bytes, *, repeat: int, kem_id: int
) -> float:
    request = build_request(
        "POST",
        PATH,
        url=server.url,
        token=token,
        now=time.time(),
        headers=(
            (b"content-type", b"application/octet-stream"),
            (b"inference-header-content-length", str(head).encode()),
        ),
        body=body,
    )
    message = pad(bhttp.encode_request(request, align=head))
    config = next(item for item in _configs(server) if item.kem_id == kem_id)
    sealed = [bytes(ohttp.seal_request(config, message)[0]) for _ in range(repeat)]
    headers = {"content-type": ohttp.REQUEST_MEDIA_TYPE}
    return _send(server, GATEWAY_PATH, sealed, headers)


def _configs(server: Server) -> list[keyconfig.KeyConfig]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", GATEWAY_PATH)
    return keyconfig.decode_list(connection.getresponse().read())


def _send(
    server: Server, path: str, bodies: list[bytes], headers: dict[str, str]
) -> float:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    began = time.perf_counter()
    for body in bodies:
        connection.request("POST", path, body=body, headers=headers)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status}")
    elapsed = time.perf_counter() - began
    connection.close()
    return elapsed


def _deploy(home: Path) -> None:
    """A deployment whose model takes a row of any length and gives its mean."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(bundles.POLICY)
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    admit(home, _model(), _manifest(), settings)


def _model() -> bytes:
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1, axes=[1])
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


def _manifest() -> Manifest:
    return Manifest(
        name=bundles.NAME,
        version=bundles.VERSION,
        inputs=(Tensor(TensorSpec("x", "FP32", (-1, -1))),),
        outputs=(Tensor(TensorSpec("y", "FP32", (-1, 1))),),
        max_rows=16,
    )
