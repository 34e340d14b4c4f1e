"""Who is measured: each is started on the same model files, and asked in its way."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.peers import environments
from benchmarks.peers.environments import LeftOut
from benchmarks.peers.load import http_request
from benchmarks.peers.processes import running
from benchmarks.peers.sealer import Order
from benchmarks.peers.workloads import Workload
from sealgate.exchange import GATEWAY_PATH
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from tests.conftest import mint
from tests.support.servers import ROOT, free_port, serve

SERVERS = Path(__file__).parent / "servers"
START_TIMEOUT_S = 120
LIMIT = "onnxruntime, in process"
OURS = "Sealgate, plaintext, JWT"
SEALED = {"Sealgate, X25519, JWT": KEM_X25519, "Sealgate, X-Wing, JWT": KEM_XWING}
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Place:
    """Where everything of a run lies.

    Attributes:
        models: folder of the ONNX files.
        work: folder for logs and configurations.
        home: our deployment.
        settings: of our server.
        workers: how many.
        workloads: what will be asked.
        base: a checkout of another commit, whose server is measured, too.
    """

    models: Path
    work: Path
    home: Path
    settings: Mapping[str, str]
    workers: int
    workloads: Mapping[str, Workload]
    base: Path | None = None


@dataclass(frozen=True)
class Contender:
    """A running server and how to ask it.

    Attributes:
        name: for tables.
        url: where it listens.
        pid: of its first process; all its descendants count.
        request: an HTTP request that may be repeated; raises `LeftOut`.
        order: what is to be sealed, where each request is used once.
        refused: our server's answers so far that were not 200, sealed ones too.
    """

    name: str
    url: str
    pid: int
    request: Callable[[Workload], bytes]
    order: Callable[[Workload], Order] | None = None
    refused: Callable[[], int] = lambda: 0


Start = Callable[[Place], Iterator[list[Contender]]]


def bentoml_native(place: Place) -> Iterator[list[Contender]]:
    """BentoML's native API, its defaults: JSON only."""
    port = free_port()

    def request(work: Workload) -> bytes:
        _not_too_long(work)
        body = json.dumps({"x": work.array.tolist()}).encode()
        return http_request(f"/{work.name}", body, _JSON, host=f"127.0.0.1:{port}")

    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_service:Native"]
    extra = {
        "BENTOML_HOME": str(place.work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    yield from _peer(
        "BentoML native API",
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        place,
        port=port,
        request=request,
        extra=extra,
    )


def starlette(place: Place) -> Iterator[list[Contender]]:
    """Starlette and uvicorn with uvloop and httptools."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "starlette_app:app"]
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    bind = ["--port", str(port), "--workers", str(place.workers)]
    yield from _peer(
        "Starlette, uvicorn",
        [*command, *flags, *bind, "--log-level", "warning"],
        place,
        port=port,
        request=_v2(port),
    )


def mlserver(place: Place) -> Iterator[list[Contender]]:
    """MLServer with an onnxruntime runtime: JSON only over HTTP."""
    python = environments.environment("mlserver")
    folder = place.work / f"mlserver-{place.workers}"
    port = free_port()
    _mlserver_settings(folder, place, port)

    def request(work: Workload) -> bytes:
        _not_too_long(work)
        path = f"/v2/models/{work.name}/infer"
        return http_request(path, work.json(), _JSON, host=f"127.0.0.1:{port}")

    yield from _peer(
        "MLServer",
        [str(python.with_name("mlserver")), "start", str(folder)],
        place,
        port=port,
        request=request,
        extra={"PYTHONPATH": str(SERVERS)},
    )


def triton(place: Place) -> Iterator[list[Contender]]:
    """Triton by pytriton, its Python backend."""
    python = environments.environment("pytriton", shared_libpython=True)
    port = free_port()
    yield from _peer(
        "Triton (pytriton)",
        [str(python), str(SERVERS / "pytriton_server.py")],
        place,
        port=port,
        request=_v2(port),
    )


def before(place: Place) -> Iterator[list[Contender]]:
    """`sealgate`, of another commit, on a copy of the same deployment."""
    if place.base is None:
        raise LeftOut("it is measured with --base only")
    home = place.work / f"before-{place.workers}"
    shutil.copytree(place.home, home)
    own = {
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "PYTHONPATH": str(place.base),
    }
    old = replace(place, home=home, settings={**place.settings, **own})
    for ours in sealgate(old, tree=place.base):
        yield [replace(one, name=f"{one.name}, before") for one in ours]


def sealgate(place: Place, *, tree: Path = ROOT) -> Iterator[list[Contender]]:
    """Ours, three ways to ask one server: tokens, quotas, audit and gate as always."""
    token = mint(place.home, "infer:*")
    scope = {"Authorization": f"Bearer {mint(place.home, 'metrics')}"}
    workers = f"services.sealgate.workers={place.workers}"
    extra = {
        **place.settings,
        "BENTOML_CONFIG_OPTIONS": workers,
        "SEALGATE_SERVICE_MAX_BODY_BYTES": str(32 << 20),
    }
    with serve("service.app:Sealgate", place.home, extra=extra, cwd=tree) as server:
        host = server.url.removeprefix("http://")
        keys = ask(host, "GET", GATEWAY_PATH)[1]

        def request(work: Workload) -> bytes:
            body, headers = work.message()
            headers["Authorization"] = f"Bearer {token}"
            return http_request(_path(work), body, headers, host=host)

        def order(work: Workload, kem_id: int) -> Order:
            body, headers = work.message()
            return Order(keys, kem_id, server.url, token, _path(work), body, headers)

        def refused() -> int:
            return count_refused(ask(host, "GET", "/metrics", scope)[1].decode())

        yield [
            Contender(OURS, server.url, server.pid, request, refused=refused),
            *(
                Contender(
                    name,
                    server.url,
                    server.pid,
                    request,
                    order=lambda work, kem_id=kem_id: order(work, kem_id),
                    refused=refused,
                )
                for name, kem_id in SEALED.items()
            ),
        ]


CONTENDERS: Mapping[str, Start] = {
    "bentoml": bentoml_native,
    "starlette": starlette,
    "mlserver": mlserver,
    "triton": triton,
    "before": before,
    "sealgate": sealgate,
}


def in_process(place: Place, work: Workload, seconds: float) -> list[dict[str, float]]:
    """onnxruntime in a loop, in as many processes as there are workers."""
    command = [
        sys.executable,
        str(SERVERS / "in_process.py"),
        str(place.models / f"{work.name}.onnx"),
        str(place.models / f"{work.name}.npy"),
        str(seconds),
    ]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(place.workers)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def count_refused(metrics: str) -> int:
    """Answers of inference that were not 200, from a server's metrics.

    >>> count_refused('sealgate_requests_total{action="infer",status="401"} 2.0')
    2
    """
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith("sealgate_requests_total{") and 'status="200"' not in line
    ) + sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith("sealgate_refusals_total{")
    )


def ask(
    host: str, method: str, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request(method, path, headers=dict(headers or {}))
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def check_answer(contender: Contender, work: Workload) -> None:
    """Ask once, and compare with what the model gives.

    Raises:
        LeftOut: no answer, or another one.
    """
    raw = contender.request(work)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    connection = http.client.HTTPConnection(headers["Host"], timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LeftOut(f"{work.name}: {type(error).__name__}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise LeftOut(f"{work.name}: status {response.status}")
    document = json.loads(answer)
    if isinstance(document, dict):
        document = document["outputs"][0]["data"]
    given, wanted = np.ravel(document), work.expected().ravel()
    if given.shape != wanted.shape or not np.allclose(given, wanted, atol=1e-4):
        raise LeftOut(f"{work.name}: another answer than the model's")


def _peer(
    name: str,
    command: list[str],
    place: Place,
    *,
    port: int,
    request: Callable[[Workload], bytes],
    extra: Mapping[str, str] | None = None,
) -> Iterator[list[Contender]]:
    env = {
        "MODELS": str(place.models),
        "PORT": str(port),
        "WORKERS": str(place.workers),
        **(extra or {}),
    }
    log = place.work / f"{port}.log"
    with running(command, log=log, env=env, cwd=SERVERS) as process:
        contender = Contender(name, f"http://127.0.0.1:{port}", process.pid, request)
        _wait(contender, process, log, next(iter(place.workloads.values())))
        yield [contender]


def _wait(
    contender: Contender,
    process: subprocess.Popen[bytes],
    log: Path,
    work: Workload,
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    why = "it did not start"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LeftOut(last_error(log.read_text(errors="replace")) or why)
        try:
            check_answer(contender, work)
        except LeftOut as error:
            why = str(error)
            time.sleep(0.2)
        else:
            return
    raise LeftOut(why)


def last_error(text: str) -> str:
    """What a log gives as the reason of a program's end, as far as one line can.

    >>> last_error("RuntimeError: no loop\\nshutdown complete")
    'RuntimeError: no loop'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [""])[-1][:200]


def _mlserver_settings(folder: Path, place: Place, port: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        # None of them means that the server's own process runs the model.
        "parallel_workers": 0 if place.workers == 1 else place.workers,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for name in place.workloads:
        model = {
            "name": name,
            "implementation": "mlserver_runtime.OnnxRuntime",
            "parameters": {"uri": str(place.models / f"{name}.onnx")},
        }
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(model))


def _not_too_long(work: Workload) -> None:
    if work.array.nbytes > 4 << 20:
        raise LeftOut(f"{work.name}: it takes JSON only")


def _path(work: Workload) -> str:
    return f"/v2/models/{work.name}/infer"


def _v2(port: int) -> Callable[[Workload], bytes]:
    def request(work: Workload) -> bytes:
        body, headers = work.message()
        return http_request(_path(work), body, headers, host=f"127.0.0.1:{port}")

    return request


OPENERS = {name: contextmanager(start) for name, start in CONTENDERS.items()}
