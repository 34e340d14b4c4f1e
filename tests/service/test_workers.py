"""Workers that end: killed while they run, stopped, or left behind by their parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from sealgate.client import Client
from service.telemetry.casualties import Casualties, Casualty, Note
from tests.conftest import check_security
from tests.support.live import (
    BODY,
    INFER,
    make_live_deployment,
    reports,
    settings,
    wait_for,
)
from tests.support.patience import in_time, once
from tests.support.servers import Server, serve

WORKERS = 2
# Rounds of the slow model's loop: about ten seconds, if nothing stops it.
LONG = 3e7


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workers") / "home"
    make_live_deployment(home, "1.0.0", slow=True)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with started(home, workers=WORKERS) as server:
        yield server


@contextmanager
def started(home: Path, *, workers: int) -> Iterator[Server]:
    # With it, a socket's path has more bytes than the kernel takes.
    temporary = home / ("t" * 90)
    temporary.mkdir(exist_ok=True)
    extra = settings(home) | {
        "BENTOML_CONFIG_OPTIONS": f"services.sealgate.workers={workers}",
        "SEALGATE_SERVICE_INFERENCE_TIMEOUT_S": "60",
        "TMPDIR": str(temporary),
        # Reports to BentoML's makers are written to the log then, and not sent.
        "BENTOML_DO_NOT_TRACK": "False",
        "__BENTOML_DEBUG_USAGE": "True",
    }
    with contextlib.ExitStack() as stack:
        before = os.umask(0)
        try:
            server = stack.enter_context(
                serve("service.app:Sealgate", home, extra=extra, graceful_s=30)
            )
        finally:
            os.umask(before)
        wait_for(lambda: len(alive(server)) == workers)
        yield server


def processes(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children()}


def alive(server: Server) -> set[int]:
    """Workers that follow the plan: what they write is there, and so are they."""
    return processes(server) & {report["pid"] for report in reports(server.home)}


def caller(home: Path, subject: str) -> dict[str, str]:
    words = ("--scope", "infer:toy", "--subject", subject, "--lifetime", "3600")
    return {"authorization": f"Bearer {check_security(home, 'token', *words).strip()}"}


def ask(server: Server, headers: dict[str, str], value: float = 1) -> httpx.Response:
    body = json.loads(json.dumps(BODY))
    body["inputs"][0]["data"] = [value, 1, 1]
    return httpx.post(server.url + INFER, json=body, headers=headers, timeout=90)


def told(server: Server, headers: dict[str, str]) -> str:
    """What kind of problem an answer is about; empty where it is none."""
    kind = ask(server, headers).json().get("type", "")
    return str(kind).rpartition("/")[2]


def get(server: Server, path: str) -> int:
    return httpx.get(server.url + path).status_code


def folder_of(server: Server) -> Path:
    (pid, *_) = alive(server)
    # It maps its notes, which lie there.
    maps = (item.path for item in psutil.Process(pid).memory_maps())
    return next(Path(path).parent for path in maps if path.endswith(".notes"))


def running(server: Server) -> int | None:
    """The worker that runs a request now, as its note says."""
    for pid in alive(server):
        notes = (folder_of(server) / f"worker-{pid}.notes").read_bytes()
        if any(notes[::256]):
            return pid
    return None


def records(home: Path, action: str) -> list[dict]:
    lines = b"".join(p.read_bytes() for p in (home / "audit").glob("*.jsonl"))
    return [r for r in map(json.loads, lines.splitlines()) if r["action"] == action]


def test_the_parent_takes_no_orders_by_the_network(server: Server) -> None:
    """Circus asks nobody who they are: who can reach it is what counts."""
    parent = psutil.Process(server.pid)
    every = [parent, *parent.children(recursive=True)]
    inet = [one for process in every for one in process.net_connections("inet")]
    listening = {one.laddr.port for one in inet if one.status == psutil.CONN_LISTEN}
    assert listening == {int(server.url.rpartition(":")[2])}
    unix = {Path(one.laddr) for one in parent.net_connections("unix") if one.laddr}
    control = next(path for path in unix if path.name == "control")
    assert control.parent.stat().st_mode & 0o777 == 0o700
    assert control.parent.resolve() == folder_of(server)
    assert len(bytes(folder_of(server) / "control")) > 107


def test_nobody_else_writes_to_what_it_makes(server: Server) -> None:
    names = ("audit", "deployment", "quotas", "replay", "revocations")
    made = [server.home / name for name in names]
    found = [path for folder in made for path in (folder, *folder.rglob("*"))]
    assert [path for path in found if path.lstat().st_mode & 0o022] == []
    assert {path.name for path in found} >= {"workers", "revocations.sqlite"}


def test_bentoml_tells_its_makers_nothing(server: Server) -> None:
    """Unless told otherwise, its parent reports starts, and makes up who reports."""
    assert "Tracking Payload" not in server.log.read_text()
    assert not (server.home / "bentoml" / "client_id").exists()


def kill_while_it_runs(server: Server, headers: dict[str, str]) -> float:
    """Kill a worker under a long request; how long that one's client then waited."""
    with ThreadPoolExecutor(1) as pool:
        asked: Future[httpx.Response] = pool.submit(ask, server, headers, LONG)
        wait_for(lambda: running(server) is not None)
        pid = running(server)
        assert pid is not None
        os.kill(pid, signal.SIGSEGV)
        began = time.monotonic()
        with pytest.raises(httpx.TransportError):
            assert asked.result(timeout=30).status_code == 200
        waited = time.monotonic() - began
    wait_for(lambda: len(processes(server) - {pid}) == WORKERS)
    # Told to, the parent starts another one at once; else it looks every ten seconds.
    assert time.monotonic() - began < 5
    assert ask(server, caller(server.home, "sibling")).status_code == 200
    wait_for(lambda: len(alive(server)) == WORKERS and pid not in alive(server))
    return waited


@pytest.fixture(scope="module")
def killed(home: Path, server: Server) -> tuple[float, Casualty]:
    """A worker killed under a request: how long mallory then waited, and its entry."""
    waited = kill_while_it_runs(server, caller(home, "mallory"))
    (casualty,) = Casualties(folder_of(server)).all()
    return waited, casualty


@contextmanager
def casualties_of(server: Server) -> Iterator[Casualties]:
    """The list of the server's casualties, which is put back as it was."""
    path = folder_of(server) / "casualties.json"
    before = path.read_bytes() if path.exists() else b"[]"
    try:
        yield Casualties(path.parent)
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_keys_rotate_under_load(home: Path, server: Server) -> None:
    """A client may have a key from one worker that another has not taken up yet."""
    token = caller(home, "other")["authorization"].partition(" ")[2]
    done = threading.Event()

    def work() -> int:
        answered = 0
        while not done.is_set():
            # Each time anew: the keys of one worker, a connection to any.
            with Client(server.url, token=token, timeout_s=60) as client:
                for _ in range(5):
                    client.infer("toy", {"features": [[1.0, 1.0, 1.0]]})
                    answered += 1
                    time.sleep(0.02)
        return answered

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(work) for _ in range(3)]
        try:
            words = ("keys", "generate", "--role", "sealing")
            check_security(home, *words, **settings(home))
            time.sleep(1.5)
        finally:
            done.set()
        assert all(one.result(timeout=60) > 0 for one in asked)


def test_a_model_that_ends_workers_is_held_off(home: Path, server: Server) -> None:
    """As if it had: three workers ended while three callers' requests ran there."""
    mine = caller(home, "other")
    with casualties_of(server) as casualties:
        for number in range(3):
            note = Note(f"{number:016x}", f"caller-{number}", "toy:1.0.0")
            casualties.add(Casualty(time.time(), number, "SIGFPE", (note,)))
        wait_for(lambda: {ask(server, mine).status_code for _ in range(6)} == {503})
        # Of both workers, each of which may be the one that does not know it yet.
        wait_for(lambda: told(server, mine) == "model-held-off")
        wait_for(lambda: get(server, "/readyz") == 503)
        assert get(server, "/livez") == 200
        wait_for(lambda: bool(records(home, "withdraw")))
        (record, *_) = records(home, "withdraw")
        assert record["reason"].startswith("workers that ran it ended")
    wait_for(lambda: {ask(server, mine).status_code for _ in range(6)} == {200})
    wait_for(lambda: get(server, "/readyz") == 200)


def test_a_killed_worker_leaves_a_trace_and_its_sibling_answers(
    home: Path, server: Server, killed: tuple[float, Casualty]
) -> None:
    assert killed[0] < 5
    (record,) = records(home, "worker-ended")
    assert record["reason"] == "SIGSEGV"
    assert record["model"] == "toy"
    assert record["outcome"] == "refuse"
    assert len(record["request_id"]) == 16
    log = server.log.read_text()
    assert f"SIGSEGV while it ran request {record['request_id']}" in log
    assert record["subject"] in log
    assert "mallory" not in log
    check_security(home, "audit", "verify")


def test_who_ends_workers_again_and_again_is_held_off(
    home: Path, server: Server, killed: tuple[float, Casualty]
) -> None:
    """Two more, as they would be on the list, beside the one that was killed."""
    mallory, other = caller(home, "mallory"), caller(home, "other")
    assert ask(server, mallory).status_code == 200
    _, casualty = killed
    assert casualty.signal == "SIGSEGV"
    with casualties_of(server) as casualties:
        for _ in range(2):
            casualties.add(casualty)
        wait_for(lambda: ask(server, mallory).status_code == 429)
        wait_for(lambda: {ask(server, mallory).status_code for _ in range(6)} == {429})
        wait_for(lambda: told(server, mallory) == "caller-held-off")
        assert {ask(server, other).status_code for _ in range(6)} == {200}


def test_a_server_that_stops_says_so_at_once(home: Path, server: Server) -> None:
    other = caller(home, "other")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, other, LONG / 20)
        wait_for(lambda: running(server) is not None)
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: stopping(server))
        for path in ("/v2/health/ready", "/readyz", "/v2"):
            once(lambda: refused_at_once(server.url + path))  # noqa: B023
        assert asked.result(timeout=30).status_code == 200


def stopping(server: Server) -> bool:
    """Whoever connects is refused: one worker may not have been told yet."""
    try:
        return {get(server, "/readyz") for _ in range(4)} == {503}
    except httpx.TransportError:  # accepted before, and closed
        return False


def refused_at_once(url: str) -> None:
    began = time.monotonic()
    answer = httpx.get(url, timeout=5)
    assert answer.status_code == 503
    assert answer.headers["connection"] == "close"
    in_time(began, 1)


@pytest.mark.slow
def test_a_worker_ends_with_its_parent_however_that_ended(home: Path) -> None:
    with started(home, workers=1) as server:
        (pid,) = alive(server)
        limits = Path(f"/proc/{pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if "core file" in line]
        assert line.split()[4:6] == ["0", "0"]
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(pid))
