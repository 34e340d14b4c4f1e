"""A deployment whose models change while it serves, and a caller who never stops."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np

from security.admission.plan import Plan, PlanFolder, plan_of_tags
from tests.conftest import TAG, check_security, toy_settings
from tests.support.bundles import NAME, POLICY, Keys, write_bundle
from tests.support.servers import Server

INFER = f"/v2/models/{NAME}/infer"
# Each version says who it is: by these weights the first class wins for the row of
# ones in odd versions, and the second one in even ones.
ODD = np.array([[1, 0], [1, 0], [1, 0]], dtype=np.float32)
EVEN = np.array([[0, 1], [0, 1], [0, 1]], dtype=np.float32)
BODY = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    ]
}


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_DEPLOYMENT_POLL_S": "0.1",
    }


def make_live_deployment(home: Path, *versions: str, slow: bool = False) -> None:
    """Versions of the toy model in the store, all admitted; the first is served."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(POLICY)
    check_security(home, "keygen", **settings(home))
    for number, version in enumerate(versions, start=1):
        weights = ODD if number % 2 else EVEN
        add_version(home, version, weights=weights, slow=slow)


def add_version(
    home: Path,
    version: str,
    *,
    weights: np.ndarray = ODD,
    **more: Any,
) -> None:
    folder = home / f"bundle-{version}"
    keys = Keys.of(home)
    write_bundle(folder, keys, version=version, weights=weights, **more)
    check_security(home, "store", str(folder), **settings(home))


def change(home: Path, make: Callable[[Plan], Plan], note: str = "test") -> Plan:
    """What the operator's command does, without what it verifies before."""
    folder = PlanFolder(home / "deployment")
    return folder.change(make, first=plan_of_tags([TAG]), note=note)


def reports(home: Path) -> list[dict]:
    found = []
    for path in (home / "deployment" / "workers").glob("*.json"):
        try:
            if time.time() - path.stat().st_mtime < 10:
                found.append(json.loads(path.read_bytes()))
        except FileNotFoundError:
            continue
    return found


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def followed(home: Path, plan: Plan, *, workers: int) -> bool:
    made = [report["generation"] for report in reports(home)]
    return len(made) >= workers and all(number >= plan.generation for number in made)


@dataclass
class Caller:
    """Asks again and again, over several connections.

    Attributes:
        answers: how often each (status, version, label) came, to whoever asked since
            `clear`: what was on its way then counts for nobody.
        failures: what went wrong otherwise.
    """

    url: str
    token: str
    connections: int = 4
    answers: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def versions(self) -> set[str]:
        return {version for _, version, _ in self.answers}

    def clear(self) -> None:
        self.answers = Counter()

    def run(self, stop: Event) -> None:
        asyncio.run(self._all(stop))

    async def _all(self, stop: Event) -> None:
        await asyncio.gather(*(self._one(stop) for _ in range(self.connections)))

    async def _one(self, stop: Event) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=60
        ) as client:
            while not stop.is_set():
                answers = self.answers
                try:
                    self._take(await client.post(INFER, json=BODY), answers)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                await asyncio.sleep(0.005)

    def _take(
        self, answer: httpx.Response, answers: Counter[tuple[int, str, int]]
    ) -> None:
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code} {answer.text}")
            return
        document = answer.json()
        labels = {o["name"]: o["data"] for o in document["outputs"]}["label"]
        answers[200, document["model_version"], labels[0]] += 1


@contextmanager
def calling(server: Server, token: str, *, connections: int = 4) -> Iterator[Caller]:
    caller = Caller(server.url, token, connections)
    stop = Event()
    thread = Thread(target=caller.run, args=(stop,))
    thread.start()
    try:
        yield caller
    finally:
        stop.set()
        thread.join(timeout=60)
