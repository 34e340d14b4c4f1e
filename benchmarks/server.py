"""CPU time per request of the real server, sealed and plaintext, on the toy model.

The load comes from this process over one keep-alive connection, with requests sealed
beforehand; what is measured is the CPU time of the server's worker, so the client's
speed does not matter. Each figure is the median of alternating rounds.
"""

import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.timing import table
from sealgate.exchange import GATEWAY_PATH, build_request
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from tests.bundles import NAME
from tests.conftest import make_deployment, mint, toy_settings
from tests.servers import Server, serve

REQUESTS = 2000
ROUNDS = 5
BODY = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    ]
}
PATH = f"/v2/models/{NAME}/infer"


def run() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{NAME}")
        extra = toy_settings(home) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
        server = stack.enter_context(serve("service.app:Sealgate", home, extra=extra))
        cases = {
            "health": _health(server),
            "plaintext, JWT, audited": _plaintext(server, token),
            "sealed (X25519), JWT, audited": _sealed(server, token, KEM_X25519),
            "sealed (X-Wing), JWT, audited": _sealed(server, token, KEM_XWING),
            "refused: no token": _plaintext(server, None),
            "refused: garbage for the gateway": _garbage(server),
        }
        medians = _measure(server, cases)
    base = medians["plaintext, JWT, audited"]
    table(
        ("request", "worker CPU, µs", "ratio"),
        [
            (name, f"{value * 1e6:.0f}", f"{value / base:.2f}")
            for name, value in medians.items()
        ],
    )


def _measure(server: Server, cases: dict[str, Callable[[], None]]) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(ROUNDS + 1):
        for name, requests in cases.items():
            before = worker_cpu(server)
            requests()
            if round_number:  # the first one warms up
                samples[name].append((worker_cpu(server) - before) / REQUESTS)
    return {name: statistics.median(values) for name, values in samples.items()}


def worker_cpu(server: Server) -> float:
    """Seconds of CPU that the workers have used, to the nanosecond (proc(5))."""
    family = psutil.Process(server.pid).children(recursive=True)
    tasks = [Path(f"/proc/{worker.pid}/task") for worker in family]
    threads = [thread for folder in tasks for thread in folder.iterdir()]
    used = [int((item / "schedstat").read_text().split()[0]) for item in threads]
    return sum(used) / 1e9


def _health(server: Server) -> Callable[[], None]:
    return lambda: _send(server, [("GET", "/v2/health/ready", b"", {})] * REQUESTS, 200)


def _plaintext(server: Server, token: str | None) -> Callable[[], None]:
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    request = ("POST", PATH, json.dumps(BODY).encode(), headers)
    return lambda: _send(server, [request] * REQUESTS, 401 if token is None else 200)


def _sealed(server: Server, token: str, kem_id: int) -> Callable[[], None]:
    configs = keyconfig.decode_list(_keys(server))
    config = next(item for item in configs if item.kem_id == kem_id)
    headers = {"content-type": ohttp.REQUEST_MEDIA_TYPE}

    def requests() -> None:
        inner = build_request(
            "POST",
            PATH,
            url=server.url,
            token=token,
            now=time.time(),
            headers=((b"content-type", b"application/json"),),
            body=json.dumps(BODY).encode(),
        )
        message = bhttp.encode_request(inner)
        sealed = [ohttp.seal_request(config, message)[0] for _ in range(REQUESTS)]
        posts = [("POST", GATEWAY_PATH, body, headers) for body in sealed]
        _send(server, posts, 200)

    return requests


def _garbage(server: Server) -> Callable[[], None]:
    body = bytes([1]) + bytes.fromhex("002000010001") + bytes(900)
    headers = {"content-type": ohttp.REQUEST_MEDIA_TYPE}
    return lambda: _send(
        server, [("POST", GATEWAY_PATH, body, headers)] * REQUESTS, 422
    )


def _keys(server: Server) -> bytes:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", GATEWAY_PATH)
    return connection.getresponse().read()


def _send(
    server: Server, requests: list[tuple[str, str, bytes, dict[str, str]]], status: int
) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    for method, path, body, headers in requests:
        connection.request(method, path, body=body or None, headers=headers)
        response = connection.getresponse()
        response.read()
        if response.status != status:
            raise SystemExit(f"{method} {path}: {response.status}, not {status}")
    connection.close()
