"""service.forking: workers that go on in the image of the parent that forked them.

That a killed worker is there again and answers is tested in test_workers.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from sealgate.errors import SealgateError
from security.errors import AdmissionRefused
from service.forking import apart
from tests.conftest import mint, toy_settings
from tests.support.live import BODY, INFER, make_live_deployment, settings, wait_for
from tests.support.servers import ROOT, Server, serve

WORKERS = 2
Factory = pytest.TempPathFactory


# What is tried apart.


def test_what_is_done_apart_stays_there() -> None:
    done: list[int] = []
    apart(lambda: done.append(os.getpid()))
    assert done == []


def test_an_error_comes_back_as_its_text() -> None:
    def fail() -> None:
        raise AdmissionRefused(17, "onnxruntime refuses the model: é")

    with pytest.raises(SealgateError, match="refuses the model: é") as caught:
        apart(fail)
    assert str(caught.value) == str(
        AdmissionRefused(17, "onnxruntime refuses the model: é")
    )


def test_an_error_that_is_too_long_is_cut() -> None:
    def fail() -> None:
        raise SealgateError("x" + "é" * 5000)

    with pytest.raises(SealgateError, match=r"^xé{2047}$"):
        apart(fail)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL ended the process"),
        (lambda: os._exit(3), "the process that loaded the models failed"),
    ],
)
def test_an_end_without_an_error_is_a_refusal(end, message: str) -> None:
    """A model that crashes onnxruntime does not take the server's parent with it."""
    with pytest.raises(AdmissionRefused, match=message):
        apart(end)


def test_apart_beside_threads_that_hold_descriptors() -> None:
    """No child is left, and no descriptor of a pipe."""
    us = psutil.Process()

    def ours() -> tuple[set[int], int]:
        # Other tests' servers and threads come and go beside this one.
        found = os.listdir("/dev/fd")
        return {child.pid for child in us.children()}, len(found)

    children, descriptors = ours()
    for _ in range(50):
        apart(lambda: None)
    now, more = ours()
    assert now <= children
    assert more - descriptors < 50


# What a worker is told of it by `subprocess`, whose fork it goes on from.

STATE = """
import gc, json, random, signal, sys

def tell(**_):
    handlers = {int(n): signal.getsignal(n) for n in signal.valid_signals()}
    ignored = sorted(n for n in handlers if handlers[n] is signal.SIG_IGN)
    told = [gc.isenabled(), ignored, random.random()]
    print(json.dumps(told), flush=True)
"""
FORKED = """
import _bentoml_impl.worker.service as worker
from circus import process
from service.forking import fork_workers

fork_workers()
worker.main = tell
random.random()
for _ in range(2):
    command = [sys.executable, "-m", worker.__name__, "--fd", "0"]
    process.Popen(command, preexec_fn=lambda: None, env={}).wait()
"""


def told(code: str) -> list[list]:
    """What each process says of itself."""
    command = [sys.executable, "-c", STATE + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_forked_worker_is_as_a_new_interpreter() -> None:
    """It collects garbage, and a client that goes away does not end it by SIGPIPE."""
    (new,) = told("tell()")
    one, other = told(FORKED)
    assert one[:2] == other[:2] == new[:2]
    assert new[0] is True
    assert {signal.SIGPIPE, signal.SIGXFSZ} <= {*new[1]}
    assert len({one[2], other[2], new[2]}) == 3  # each has its own random numbers


# A real server with a parent.


@pytest.fixture(scope="module")
def server(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("forking") / "home"
    shutil.copytree(pristine, home)
    extra = toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "BENTOML_CONFIG_OPTIONS": f"services.sealgate.workers={WORKERS}",
    }
    with serve("service.app:Sealgate", home, extra=extra, fresh=True) as server:
        wait_for(lambda: len(announced(server)) == WORKERS)
        yield server


def workers(server: Server) -> list[psutil.Process]:
    found = psutil.Process(server.pid).children()
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def announced(server: Server) -> set[int]:
    """The workers that have loaded their models."""
    files = (server.home / "deployment" / "workers").glob("*.json")
    found = {int(path.name.partition("-")[0]) for path in files}
    return found & {one.pid for one in workers(server)}


def descriptors(pid: int) -> dict[str, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {path.name: os.readlink(path) for path in folder.iterdir()}


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_workers_run_in_their_parents_image(server: Server) -> None:
    command = psutil.Process(server.pid).cmdline()
    assert [one.cmdline() for one in workers(server)] == [command] * WORKERS


def test_a_worker_has_one_descriptor_of_its_parents(server: Server) -> None:
    """The listening socket; output, too. The rest leads nowhere."""
    parents = {link for link in descriptors(server.pid).values() if "socket:" in link}
    for one in workers(server):
        shared = parents & {*descriptors(one.pid).values()}
        assert len(shared) == 1
        files = [link for link in descriptors(one.pid).values() if "sealgate" in link]
        assert not {*files} & {*descriptors(server.pid).values()}


def test_no_model_is_loaded_in_the_parent(server: Server) -> None:
    """It has no session, no thread of one, and not even the library."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "onnxruntime" not in maps
    for one in workers(server):
        assert "onnxruntime" in Path(f"/proc/{one.pid}/maps").read_text()


def test_signals_of_a_worker_are_those_of_a_new_process(server: Server) -> None:
    """What its parent does on SIGHUP or SIGCHLD, a worker does not."""
    for one in workers(server):
        status = Path(f"/proc/{one.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT, signal.SIGUSR1):
            assert not caught >> (number - 1) & 1, number
        ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        assert ignored >> (signal.SIGPIPE - 1) & 1


def test_a_worker_is_there_again_for_a_part_of_the_cpu(server: Server) -> None:
    """Beside what its parent took, which has imported all that it needs.

    A tenth was measured; of up to ten restarts one that nothing disturbed counts.
    """
    headers = {"authorization": f"Bearer {mint(server.home, 'infer:toy')}"}
    for _ in range(10):
        (dead, *_) = announced(server)
        os.kill(dead, signal.SIGKILL)
        wait_for(lambda d=dead: len(announced(server) - {d}) == WORKERS)
        new = max(workers(server), key=lambda one: one.create_time()).pid
        answers = [
            httpx.post(server.url + INFER, json=BODY, headers=headers).status_code
            for _ in range(8)
        ]
        assert answers == [200] * 8
        if cpu_s(new) <= 0.5 * cpu_s(server.pid):
            return
        time.sleep(4)  # a second end within three seconds waits for BentoML's own look
    raise AssertionError("never within half of its parent's start")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fork", "own"),
    [("false", ("--timeout-graceful-shutdown", "5")), ("true", ("--reload",))],
)
def test_a_worker_can_be_a_new_interpreter(
    pristine: Path, tmp_path: Path, fork: str, own: tuple[str, ...]
) -> None:
    """By the setting; and always where it is to run sources that change."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    extra = toy_settings(home) | {"SEALGATE_SERVICE_FORK_WORKERS": fork}
    program = (sys.executable, "-m", "bentoml")
    target = "service.app:Sealgate"
    with serve(target, home, extra=extra, own=own, program=program) as server:
        commands = [" ".join(one.cmdline()) for one in workers(server)]
        assert any("_bentoml_impl.worker.service" in one for one in commands)


# Beside it, one process.


@pytest.fixture(scope="module")
def slow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("one") / "home"
    make_live_deployment(home, "1.0.0", slow=True)
    return home


def test_one_process_takes_less_and_ends_without_a_loss(
    server: Server, slow_home: Path
) -> None:
    """SIGTERM: what is in work is answered, what comes is refused, and it ends.

    Its memory is measured beside the parent and one of the workers: 0.51 of them.
    """
    extra = settings(slow_home) | {"SEALGATE_SERVICE_INFERENCE_TIMEOUT_S": "60"}
    headers = {"authorization": f"Bearer {mint(slow_home, 'infer:toy')}"}
    slow = {"inputs": [BODY["inputs"][0] | {"data": [3e6, 1, 1]}]}
    with (
        serve("", slow_home, extra=extra, alone=True, fresh=True) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        process = psutil.Process(one.pid)
        assert process.children() == []
        (worker, *_) = workers(server)
        beside = rss(server.pid) + rss(worker.pid)
        assert rss(one.pid) <= 0.6 * beside
        asked = pool.submit(
            httpx.post, one.url + INFER, json=slow, headers=headers, timeout=90
        )
        wait_for(lambda: any(notes(one)[::256]))
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(one.url))
        assert asked.result(90).status_code == 200
        wait_for(lambda: gone(process))


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def notes(server: Server) -> bytes:
    maps = (item.path for item in psutil.Process(server.pid).memory_maps())
    return next(Path(path) for path in maps if path.endswith(".notes")).read_bytes()


def refuses(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 503
    except httpx.TransportError:
        return True


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
