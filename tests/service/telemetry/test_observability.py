"""What operators see: traces of the SDK, stages of chunked requests, shipped alerts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from sealgate.async_client import AsyncClient
from sealgate.client import Client
from sealgate.errors import ProfileError
from sealgate.options import Options
from service.problems import _KINDS
from service.telemetry.metrics import FAMILIES
from tests.conftest import mint, toy_settings
from tests.support.bundles import NAME
from tests.support.servers import ROOT, Server, serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
INPUTS = {"features": np.zeros((2, 3), np.float32)}
# Only of trials, of monitoring and of witnesses, which this server has none of: checked
# by the table itself, in tests/service/test_watching.py, and in test_audit_command.py.
ELSEWHERE = {
    name
    for name in FAMILIES
    if re.match(
        "sealgate_(export|comparison|monitoring|drift|label|coverage|shared|audit"
        "|witness)",
        name,
    )
}


@pytest.fixture(scope="module")
def logging_server(deployment: Path) -> Iterator[Server]:
    """Sealed only, with a line for each request."""
    extra = toy_settings(deployment) | {"SEALGATE_OBSERVABILITY_LOG_REQUESTS": "true"}
    with serve("", deployment, extra=extra, alone=True) as server:
        yield server


@pytest.fixture(scope="module")
def reader(deployment: Path) -> str:
    return mint(deployment, "metrics")


def scrape(server: Server, reader: str) -> str:
    headers = {"authorization": f"Bearer {reader}"}
    return httpx.get(server.url + "/metrics", headers=headers, timeout=30).text


def logged(server: Server, trace_id: str) -> dict:
    """The line of a request, which is written a moment after its answer."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in server.log.read_text().splitlines():
            if f'"trace_id":"{trace_id}"' in line and '"action":"infer"' in line:
                return json.loads(line)
        time.sleep(0.05)
    raise AssertionError(f"no line of {trace_id}")


def test_a_trace_goes_inside_the_seal(logging_server: Server, token: str) -> None:
    with Client(logging_server.url, token=token) as client:
        client.infer(NAME, INPUTS, traceparent=PARENT)
    line = logged(logging_server, TRACE)
    assert line["sealed"] is True
    assert line["rows"] == 2
    # Nobody in between can tell which requests belong together.
    assert "outer_trace_id" not in line or line["outer_trace_id"] is None


async def ask(client: AsyncClient) -> None:
    async with client:
        await client.infer(NAME, INPUTS)


def test_the_current_span_is_asked_for_each_request(
    logging_server: Server, token: str
) -> None:
    import asyncio

    spans = iter(range(1, 100))
    options = Options(traceparent=lambda: f"00-{'c' * 32}-{next(spans):016x}-01")
    asyncio.run(ask(AsyncClient(logging_server.url, token=token, options=options)))
    assert logged(logging_server, "c" * 32)["status"] == 200
    assert next(spans) > 2  # the metadata was a request too


@pytest.mark.parametrize(
    "value",
    [
        "",
        PARENT + "\r\nx-more: 1",
        PARENT.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        PARENT + "-é",
    ],
)
def test_what_is_no_trace_is_not_sent(value: str) -> None:
    refused = pytest.raises(ProfileError, match="W3C Trace Context")
    with Client("http://127.0.0.1:9", token="t") as client, refused:
        client.infer(NAME, INPUTS, traceparent=value)


def count(text: str, stage: str) -> float:
    pattern = (
        rf'sealgate_stage_seconds_count\{{model="",stage="{stage}",version=""\}} (\S+)'
    )
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def test_chunked_requests_are_timed_by_stage(
    logging_server: Server, token: str, reader: str
) -> None:
    before = scrape(logging_server, reader)
    options = Options(chunked_above_bytes=0)
    with Client(logging_server.url, token=token, options=options) as client:
        client.infer(NAME, INPUTS)
    after = scrape(logging_server, reader)
    # Server metadata, the model's, and the inference.
    for stage in ("open", "seal"):
        assert count(after, stage) - count(before, stage) == 3


def expressions() -> list[str]:
    """Every PromQL expression that is shipped."""
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())["panels"]
    targets = [item for panel in panels for item in panel.get("targets", ())]
    return found + [target["expr"] for target in targets]


def test_what_labels_say_is_on_the_dashboard() -> None:
    shown = "\n".join(expressions())
    figures = [name for name in FAMILIES if name.startswith("sealgate_label_")]
    assert len(figures) > 1
    assert [name for name in figures if name not in shown] == []


def offered(text: str) -> dict[str, set[str]]:
    """Labels by series, as a server answers them."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = re.match(r"(sealgate_\w+)(?:\{(.*)\})? ", line)
        if match:
            labels = set(re.findall(r'(\w+)="', match[2] or ""))
            found.setdefault(match[1], set()).update(labels)
    return found


def test_alerts_and_dashboard_name_what_there_is(
    logging_server: Server, token: str, reader: str
) -> None:
    with Client(logging_server.url, token=token) as client:
        client.infer(NAME, INPUTS)
    assert httpx.get(logging_server.url + "/v2", timeout=30).status_code == 401
    series = offered(scrape(logging_server, reader))
    for name in ELSEWHERE:
        assert name not in series
        end = "_total" if FAMILIES[name].kind == "counter" else ""
        series[f"{name}{end}"] = set(FAMILIES[name].labels)
    texts = expressions()
    assert len(texts) > 20
    for text in texts:
        names = set(re.findall(r"sealgate_\w+", text))
        assert names <= series.keys(), text
        grouped = re.findall(r"by \(([^)]*)\)", text)
        labels = {part.strip() for group in grouped for part in group.split(",")}
        labels |= set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", text))
        known = set().union(*(series[name] for name in names))
        assert labels <= known | {"le", "instance", "job"}, text
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in series}
    assert families <= FAMILIES.keys()


def test_alerts_name_reasons_that_exist() -> None:
    patterns = [
        pattern
        for text in expressions()
        for pattern in re.findall(r'reason=~?"([^"]+)"', text)
    ]
    assert patterns
    for pattern in patterns:
        assert any(re.fullmatch(pattern, code) for code in _KINDS), pattern


def test_annotations_name_labels_of_their_expression() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
                info = "sealgate_model_info" in rule["expr"]
                own = FAMILIES["sealgate_model_info"].labels if info else ()
                assert label in own or label in rule["expr"] or label == "instance"


def test_prometheus_reads_these_alerts() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert document["rule_files"] == ["alerts.yml"]
    (job,) = document["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"] == "metrics.token"


def test_loggers_that_another_configuration_silenced_speak_again() -> None:
    """As BentoML's does, in a worker that has its parent's loggers."""
    program = (
        "import logging, logging.config\n"
        "there = logging.getLogger('security.access.introspection')\n"
        "logging.config.dictConfig({'version': 1})\n"
        "assert there.disabled\n"
        "from service.telemetry.logs import install\n"
        "install()\n"
        "there.warning('it speaks')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stderr)["message"] == "it speaks"
