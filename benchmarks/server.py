"""CPU time per request of the real server, sealed and plaintext, on the toy model.

Beside it a bare Starlette handler that does the same inference. The load comes from
this process over keep-alive connections, with requests made and sealed beforehand; what
is measured is the CPU time of the server's processes, so the client's speed does not
matter. Each figure is the median of alternating rounds.

With ``--base FOLDER``, a checkout of another commit, its server runs beside this one on
a copy of the same deployment, and ratios are printed for each kind of request.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from benchmarks.timing import table
from sealgate.exchange import GATEWAY_PATH, build_request
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from tests.conftest import make_deployment, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.servers import ROOT, Server, free_port, serve

REQUESTS = 480
ROUNDS = 7
CONNECTIONS = (1, 16)
BODY = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    ]
}
READY = "/v2/health/ready"
PATH = f"/v2/models/{NAME}/infer"
_JSON = {"content-type": "application/json"}
_SEALED = {"content-type": ohttp.REQUEST_MEDIA_TYPE}
_START_TIMEOUT_S = 60


@dataclass(frozen=True)
class Case:
    """One kind of request.

    Attributes:
        url, pid: whom it goes to.
        make: makes so many requests.
        status: of all their answers.
    """

    url: str
    pid: int
    make: Callable[[int], list[bytes]]
    status: int = 200


def main(arguments: Sequence[str]) -> None:
    """Print the table, or the ratios to another build."""
    parser = argparse.ArgumentParser("python -m benchmarks server", description=__doc__)
    parser.add_argument("--base", type=Path, help="a checkout of another commit")
    base = parser.parse_args(arguments).base
    if base is None:
        run()
    elif not (base / "service" / "app.py").is_file():
        parser.error(f"{base}: no checkout")
    else:
        compare(base.resolve())


def compare(base: Path) -> None:
    """Print the CPU of this build and of another one, and their ratio."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{NAME}")
        cases: dict[str, Case] = {}
        for name, tree in {"before": base, "now": ROOT}.items():
            own = Path(shutil.copytree(home, Path(folder) / name))
            extra = toy_settings(own) | {
                "SEALGATE_SEALING_REQUIRE_SEALED": "false",
                "PYTHONPATH": str(tree),
            }
            server = stack.enter_context(
                serve("service.app:Sealgate", own, extra=extra, cwd=tree)
            )
            for kind, case in cases_of(server, token).items():
                cases[f"{kind}|{name}"] = case
        columns = [measure(cases, connections) for connections in CONNECTIONS]
    kinds = [name.removesuffix("|now") for name in cases if name.endswith("|now")]
    table(
        (
            "request",
            *(f"{n} connections: before, µs | now | ratio" for n in CONNECTIONS),
        ),
        [(kind, *(_ratio(column, kind) for column in columns)) for kind in kinds],
    )


def _ratio(column: dict[str, list[float]], kind: str) -> str:
    before, now = column[f"{kind}|before"], column[f"{kind}|now"]
    ratio = statistics.median(b / a for a, b in zip(before, now))
    medians = [statistics.median(samples) * 1e6 for samples in (before, now)]
    return f"{medians[0]:.0f} | {medians[1]:.0f} | {ratio:.2f}"


def run() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{NAME}")
        extra = toy_settings(home) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
        server = stack.enter_context(serve("service.app:Sealgate", home, extra=extra))
        watched = Path(shutil.copytree(home, Path(folder) / "watched"))
        counted = extra | {"SEALGATE_MONITORING_ENABLED": "true"}
        counted |= toy_settings(watched)
        other = stack.enter_context(
            serve("service.app:Sealgate", watched, extra=counted)
        )
        url, pid = stack.enter_context(bare(home / "bundle" / "model.onnx"))
        monitored = cases_of(other, token)
        cases = cases_of(server, token) | {
            "plaintext, monitored, too": monitored["plaintext, JWT, quotas, audited"],
            "bare Starlette: health": Case(url, pid, same("GET", READY)),
            "bare Starlette: inference": Case(url, pid, same("POST", PATH, _JSON)),
        }
        columns = [measure(cases, connections) for connections in CONNECTIONS]
    table(
        ("request", *(f"µs, {n} connections | over health" for n in CONNECTIONS)),
        [(name, *(_cell(column, name) for column in columns)) for name in columns[0]],
    )


def _cell(column: dict[str, list[float]], name: str) -> str:
    ratios = [a / b for a, b in zip(column[name], column["health"])]
    value = statistics.median(column[name]) * 1e6
    return f"{value:.0f} | {statistics.median(ratios):.1f}"


def cases_of(server: Server, token: str) -> dict[str, Case]:
    """What is asked of our own server."""

    def case(make: Callable[[int], list[bytes]], status: int = 200) -> Case:
        return Case(server.url, server.pid, make, status)

    authorized = _JSON | {"authorization": f"Bearer {token}"}
    garbage = bytes([1]) + bytes.fromhex("002000010001") + bytes(900)
    return {
        "health": case(same("GET", READY)),
        "plaintext, JWT, quotas, audited": case(same("POST", PATH, authorized)),
        "sealed (X25519), the same": case(sealer(server, token, KEM_X25519)),
        "sealed (X-Wing), the same": case(sealer(server, token, KEM_XWING)),
        "refused: no token": case(same("POST", PATH, _JSON), 401),
        "refused: garbage for the gateway": case(
            same("POST", GATEWAY_PATH, _SEALED, garbage), 422
        ),
    }


@contextmanager
def bare(model: Path) -> Iterator[tuple[str, int]]:
    """The bare handler's URL and process, while it runs."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app"]
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    process = subprocess.Popen(
        [*command, *flags, "--port", str(port), "--log-level", "warning"],
        env=os.environ | {"MODEL": str(model)},
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            try:
                httpx.get(url + READY)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def measure(
    cases: dict[str, Case], connections: int, *, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of CPU per request, of each round."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(rounds + 1):
        for name, case in cases.items():
            requests = case.make(REQUESTS)
            before = cpu_of(case.pid)
            _send(case, requests, connections)
            if round_number:  # the first one warms up
                samples[name].append((cpu_of(case.pid) - before) / REQUESTS)
    return samples


def worker_cpu(server: Server) -> float:
    """Seconds of CPU that the workers have used, to the nanosecond (proc(5))."""
    return cpu_of(server.pid)


def cpu_of(pid: int) -> float:
    """The same of a server's first process: of its children, or of itself."""
    parent = psutil.Process(pid)
    family = parent.children(recursive=True) or [parent]
    tasks = [Path(f"/proc/{worker.pid}/task") for worker in family]
    threads = [thread for folder in tasks for thread in folder.iterdir()]
    used = [int((item / "schedstat").read_text().split()[0]) for item in threads]
    return sum(used) / 1e9


def same(
    method: str,
    path: str,
    headers: Mapping[str, str] = MappingProxyType({}),
    body: bytes | None = None,
) -> Callable[[int], list[bytes]]:
    content = json.dumps(BODY).encode() if body is None else body
    request = http_request(method, path, headers, content if method == "POST" else b"")
    return lambda count: [request] * count


def sealer(server: Server, token: str, kem_id: int) -> Callable[[int], list[bytes]]:
    configs = keyconfig.decode_list(httpx.get(server.url + GATEWAY_PATH).content)
    config = next(item for item in configs if item.kem_id == kem_id)

    def make(count: int) -> list[bytes]:
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
        bodies = [ohttp.seal_request(config, message)[0] for _ in range(count)]
        return [http_request("POST", GATEWAY_PATH, _SEALED, body) for body in bodies]

    return make


def http_request(
    method: str, path: str, headers: Mapping[str, str], body: bytes
) -> bytes:
    """A request as it goes over the wire."""
    if body:
        headers = {**headers, "content-length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _send(case: Case, requests: list[bytes], connections: int) -> None:
    """Send one request on each connection, take all answers, and so on."""
    url = httpx.URL(case.url)
    address = (url.host, url.port or 80)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(address))
            for _ in range(connections)
        ]
        for one in sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(requests), connections):
            part = list(zip(sockets, requests[start : start + connections]))
            for one, request in part:
                one.sendall(request)
            for one, _ in part:
                status = take_answer(one)
                if status != case.status:
                    raise SystemExit(f"{status}, not {case.status}")


def take_answer(one: socket.socket) -> int:
    """Take one answer; its status."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _receive(one)
    field = data.lower().index(b"content-length: ") + 16
    length = int(data[field : data.index(b"\r\n", field)])
    while len(data) < end + 4 + length:
        data += _receive(one)
    return int(data[9:12])


def _receive(one: socket.socket) -> bytes:
    data = one.recv(1 << 16)
    if not data:
        raise SystemExit("the server closed the connection")
    return data
