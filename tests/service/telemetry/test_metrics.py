"""/metrics: what is counted, added up over workers, and bounded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.bundle import read_bundle
from sealgate.client import Client
from service.telemetry.counters import MAX_SERIES, MAX_VALUES, Counters, read_counters
from service.telemetry.metrics import FAMILIES, Metrics, serve_metrics
from tests.conftest import mint, toy_settings
from tests.support.bundles import NAME, VERSION
from tests.support.servers import Server, free_port, serve


def scrape(server: Server, token: str) -> str:
    headers = {"authorization": f"Bearer {token}"}
    answer = httpx.get(server.url + "/metrics", headers=headers)
    assert answer.status_code == 200
    return answer.text


@pytest.fixture(scope="module")
def reader(deployment: Path) -> str:
    return mint(deployment, "metrics")


def series(text: str, name: str) -> dict[str, float]:
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_a_model_and_its_verdict(server: Server, deployment: Path, reader: str) -> None:
    ((line, value),) = series(scrape(server, reader), "sealgate_model_info").items()
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    subject = read_bundle(deployment / "bundle").subject
    assert value == 1
    assert labels["model"] == NAME
    assert labels["version"] == VERSION
    assert labels["root_sha256"] == subject.root_sha256
    assert re.fullmatch("[0-9a-f]{64}", labels["verdict_sha256"])
    assert labels["waived"] == ""


def test_a_sealed_inference_is_counted_in_every_stage(
    server: Server, reader: str, token: str
) -> None:
    def numbers() -> dict[str, float]:
        text = scrape(server, reader)
        stages = series(text, "sealgate_stage_seconds_count")
        requests = series(text, "sealgate_requests_total")
        return stages | requests | series(text, "sealgate_rows_total")

    before = numbers()
    with Client(server.url, token=token) as client:
        client.infer(NAME, {"features": np.zeros((5, 3), np.float32)})
    after = numbers()
    grown = {key for key in after if after[key] > before.get(key, 0)}
    for stage in ("open", "verify", "seal"):
        assert f'model="",stage="{stage}",version=""' in grown
    assert f'model="{NAME}",stage="run",version="{VERSION}"' in grown
    labels = f'model="{NAME}",version="{VERSION}"'
    assert f'action="infer",model="{NAME}",status="200",version="{VERSION}"' in grown
    assert after[labels] - before.get(labels, 0) == 5


def test_strangers_cannot_grow_it(server: Server, reader: str) -> None:
    def labels() -> set[str]:
        return set(
            re.findall(r"^sealgate\w+(?:\{.*\})?", scrape(server, reader), re.MULTILINE)
        )

    def flood(start: int) -> None:
        with httpx.Client(base_url=server.url) as client:
            for number in range(start, start + 50):
                client.get(f"/v2/models/m{number}", headers={"x-n": str(number)})
                client.get(f"/{number}")
                client.request("BREW", "/v2", headers={"traceparent": str(number)})

    flood(0)
    before = labels()
    flood(50)
    assert labels() == before


def test_a_second_server_of_the_same_home_wipes_nothing(
    server: Server, deployment: Path, reader: str
) -> None:
    with serve("service.app:Sealgate", deployment, extra=toy_settings(deployment)):
        text = scrape(server, reader)
    assert "sealgate_model_info{" in text


ADD = """
import json, sys
from pathlib import Path
from service.telemetry.counters import Counters
from service.telemetry.metrics import Metrics
metrics = Metrics(Counters(Path(sys.argv[1])))
metrics.count("sealgate_refusals", "overloaded", amount=int(sys.argv[2]))
metrics.set("sealgate_requests_in_work", value=7)
metrics.observe("sealgate_batch_rows", "toy", "1", value=3)
print("counted", flush=True)
sys.stdin.read()
import os
os.kill(os.getpid(), 9)
"""


def test_workers_add_up_and_survive_being_killed(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(tmp_path), str(amount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for amount in (2, 3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"counted\n"
    mine = Metrics(Counters(tmp_path))
    mine.count("sealgate_refusals", "overloaded")
    text = mine.text().decode()
    assert 'sealgate_refusals_total{reason="overloaded"} 6.0' in text
    assert "sealgate_requests_in_work 14.0" in text
    assert 'sealgate_batch_rows_bucket{le="2",model="toy",version="1"} 0.0' in text
    assert 'sealgate_batch_rows_bucket{le="4",model="toy",version="1"} 2.0' in text
    assert 'sealgate_batch_rows_sum{model="toy",version="1"} 6.0' in text
    for worker in workers:
        worker.communicate(b"")
    assert 'sealgate_refusals_total{reason="overloaded"} 6.0' in mine.text().decode()
    # Somebody takes the place of one of the dead: counters stay, gauges do not.
    add = [sys.executable, "-c", ADD, str(tmp_path), "10"]
    subprocess.run(
        add,
        check=False,
        input=b"",
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
    )
    text = mine.text().decode()
    assert 'sealgate_refusals_total{reason="overloaded"} 16.0' in text
    assert "sealgate_requests_in_work 14.0" in text
    assert len(list(tmp_path.iterdir())) == 3


def test_series_are_bounded() -> None:
    counters = Counters()
    for number in range(MAX_SERIES + 10):
        counters.values(("sealgate_refusals", str(number)))[0] += 1
    counters.values(("sealgate_refusals", "x" * 2000))[0] += 1
    assert len(list(counters.read())) == MAX_SERIES


@pytest.mark.parametrize("content", [b"", b"\xff" * 1000, b"\xff" * 4096])
def test_a_damaged_table_tells_nothing(tmp_path: Path, content: bytes) -> None:
    Counters(tmp_path).values(("sealgate_refusals", "a"))[0] = 5
    (tmp_path / "worker-1.counters").write_bytes(content)
    assert [values[0] for _, values in read_counters(tmp_path)] == [5]


def test_every_family_fits_its_record() -> None:
    for name, family in FAMILIES.items():
        assert re.fullmatch("sealgate_[a-z_]+", name)
        assert (family.kind == "histogram") == bool(family.buckets)
        assert len(family.buckets) + 2 <= MAX_VALUES
        assert list(family.buckets) == sorted(set(family.buckets))


def test_the_text_is_prometheus(server: Server, reader: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(scrape(server, reader)))
    assert {family.name for family in families} <= set(FAMILIES)
    assert json.dumps([family.documentation for family in families])


def test_whoever_holds_its_port_open_keeps_nobody_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are descriptors of the process that answers requests."""
    monkeypatch.setenv("_SEALGATE_METRICS_FOLDER", str(tmp_path))
    port = free_port()
    serve_metrics("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(100)
        ]
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
        assert answer.status_code == 200
        for connection in held[:60]:
            assert connection.recv(1) == b""
