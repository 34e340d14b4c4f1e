"""The server tells what monitoring found: the endpoint, who may, metrics, alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sealgate.cli import main as sealgate
from sealgate.client import Client
from sealgate.errors import NotFoundError, PermissionDeniedError
from sealgate.profile import Profile
from security.monitoring.ledger import LocalLedger
from security.settings.monitoring import MonitoringSettings
from service.inference.lineup import Lineup
from service.problems import Problem
from service.telemetry.metrics import Metrics
from service.watching import Watching
from tests.conftest import mint
from tests.service.telemetry.test_observability import expressions, offered
from tests.support.bundles import NAME, VERSION
from tests.support.in_process import security_result
from tests.support.live import wait_for
from tests.support.released import (
    Draw,
    evidence,
    monitored_settings,
    past,
    put,
    put_weeks,
    shifted,
    usual,
)
from tests.support.rooms import admitted, serving
from tests.support.servers import ROOT, Server, free_port, serve

PATH = f"/v2/models/{NAME}/monitoring"
ALERTS = ROOT / "deploy" / "alerts.yml"


@dataclass(frozen=True)
class Site:
    """A server that counts, and tokens for it."""

    server: Server
    home: Path
    reader: str
    caller: str
    scraper: str

    def get(self, path: str, token: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(self.server.url + path, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def site(monitored: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """After three quiet weeks, one in which a column moved."""
    home = Path(shutil.copytree(monitored, tmp_path_factory.mktemp("site") / "home"))
    put_weeks(home, shifted, 1)
    tokens = [
        mint(home, scope)
        for scope in (f"monitoring:{NAME}", f"infer:{NAME}", "metrics")
    ]
    extra = monitored_settings(home) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        found = Site(server, home, *tokens)
        wait_for(lambda: found.get(PATH, found.reader).status_code == 200)
        yield found


@dataclass
class Desk:
    """One worker's thread, looked with by hand."""

    watching: Watching
    lineup: Lineup
    metrics: Metrics
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        return self.watching.document(self.lineup.table[NAME].default.content)

    def gauge(self, name: str) -> float:
        totals = self.metrics.totals()
        return max(value[0] for key, value in totals.items() if key[0] == name)

    def release(self, draw: Draw, back: int) -> None:
        manifest = self.lineup.table[NAME].default.content.manifest
        put(self.folder, manifest, past("weekly", back, now=time.time()), draw)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    admission = admitted(tmp_path / "bundle")
    admission = replace(admission, reports=evidence(admission.bundle))
    lineup = serving([admission], timeout_s=10)
    settings = MonitoringSettings(enabled=True, directory=tmp_path / "monitoring")
    ledger, metrics = LocalLedger(settings.directory), Metrics()
    ledger.start()
    watching = Watching(settings, ledger=ledger, lineup=lineup, metrics=metrics)
    return Desk(watching, lineup, metrics, settings.directory)


def test_nothing_seen_yet_is_503(desk: Desk) -> None:
    with pytest.raises(Problem) as refused:
        _ = desk.document
    assert refused.value.status == 503


def test_what_is_released_is_seen_at_the_next_look(desk: Desk) -> None:
    desk.watching.look()
    assert desk.document["reason"].endswith("was not released")
    desk.release(usual, 1)
    desk.watching.look()
    assert desk.document["state"] == "quiet"
    assert desk.gauge("sealgate_monitoring_unknown") == 0.0
    # Nothing is new: only the time goes on.
    desk.watching.look()
    assert len(desk.document["windows"]) == 1


def test_a_ledger_that_is_away_is_said_and_delays_nobody(desk: Desk) -> None:
    desk.release(usual, 1)
    desk.watching.look()
    seen = desk.document
    shutil.rmtree(desk.folder)
    desk.watching.look()
    away = desk.document
    assert away.pop("problem") == "what was released cannot be read now"
    assert away == {name: value for name, value in seen.items() if name != "problem"}


def test_gauges_of_what_is_served_no_more_are_0(desk: Desk) -> None:
    desk.release(shifted, 1)
    desk.watching.look()
    assert desk.gauge("sealgate_drift_alarm") == 1.0
    desk.lineup.switch({})
    desk.watching.look()
    assert desk.gauge("sealgate_drift_alarm") == 0.0
    assert desk.gauge("sealgate_drift_alarms") == 0.0


def test_the_endpoint_tells_what_the_command_tells(site: Site) -> None:
    for path in (PATH, f"/v2/models/{NAME}/versions/{VERSION}/monitoring"):
        answer = site.get(path, site.reader)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        document = answer.json()
        assert document.pop("problem") == ""
    extra = monitored_settings(site.home)
    told = json.loads(
        security_result(site.home, "monitor", "--json", extra=extra).stdout
    )
    for one in (document, told[0]):
        del one["as_of"]
    assert document == told[0]
    assert document["state"] == "drift"
    assert "input/a" in document["windows"][-1]["alarms"]


def test_it_takes_a_scope_of_its_own(site: Site) -> None:
    # Who may infer knows of the model, and may not read this.
    refused = site.get(PATH, site.caller)
    assert refused.status_code == 403
    assert f"monitoring:{NAME}" in refused.headers["www-authenticate"]
    # Who may read this may do nothing else, and learns of no other model.
    assert site.get(f"/v2/models/{NAME}", site.reader).status_code == 404
    assert site.get("/v2/models/other/monitoring", site.reader).status_code == 404
    assert site.get(PATH, site.scraper).status_code == 404
    posted = httpx.post(
        site.server.url + PATH,
        headers={"authorization": f"Bearer {site.reader}"},
        timeout=30,
    )
    assert posted.status_code == 405
    assert httpx.get(site.server.url + PATH, timeout=30).status_code == 401


def test_it_is_sealed_where_inference_is(
    server: Server, deployment: Path, token: str
) -> None:
    reader = mint(deployment, f"monitoring:{NAME}")
    headers = {"authorization": f"Bearer {reader}"}
    plain = httpx.get(server.url + PATH, headers=headers, timeout=30)
    assert plain.status_code == 403
    assert plain.json()["type"].endswith("sealed-required")
    # This one does not count; sealed, it says so.
    with Client(server.url, token=reader) as client, pytest.raises(NotFoundError):
        client.monitoring(NAME)
    with (
        Client(server.url, token=token) as client,
        pytest.raises(PermissionDeniedError),
    ):
        client.monitoring(NAME)


def test_sdk_and_command_read_it(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(site.server.url, token=site.reader) as client:
        document = client.monitoring(NAME)
        assert client.monitoring(NAME, VERSION)["windows"] == document["windows"]
    assert document["state"] == "drift"
    profile = tmp_path / "profile.json"
    profile.write_bytes(Profile(site.server.url, site.reader, model=NAME).to_json())
    profile.chmod(0o600)
    assert sealgate(["monitoring", "--profile", str(profile)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{NAME}:{VERSION}: drift in ")
    assert "cannot see a changed relation" in out


def test_metrics_are_of_released_figures_with_few_labels(site: Site) -> None:
    text = site.get("/metrics", site.scraper).text
    series = offered(text)
    found = {name for name in series if re.match("sealgate_(monitoring|drift)", name)}
    assert {"sealgate_drift_alarm", "sealgate_drift_alarms"} <= found
    labels = set().union(*(series[name] for name in found))
    assert labels == {"model", "version", "histogram"}
    alarmed = re.findall(r'sealgate_drift_alarm\{histogram="([^"]+)".*\} 1\.0', text)
    # A series for what is in alarm, not for each histogram that there is.
    assert "input/a" in alarmed
    assert "input/b" not in text
    # What it cannot see is for people, and no metric to build an alert on.
    assert "without" not in "".join(found)
    # Whatever else is shipped about this names what there is.
    for text in expressions():
        names = set(re.findall(r"sealgate_(?:monitoring|drift)\w+", text))
        assert names <= series.keys() | {"sealgate_monitoring_away"}, text


def promtool(*arguments: str) -> str:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules() -> None:
    count = len(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])
    assert f"{count} rules found" in promtool("check", "rules", str(ALERTS))


def test_promtool_sees_each_alert_of_monitoring_fire_and_rest(tmp_path: Path) -> None:
    version = 'instance="a", model="m", version="1"'
    column = f'{version}, histogram="input/a"'
    series = {
        f"sealgate_drift_alarm{{{column}}}": "0x5 1x200 0x20",
        f"sealgate_monitoring_unknown{{{version}}}": "0 1x1300 0x20",
        'sealgate_monitoring_away{instance="a"}': "0 1x10 0x200",
        f'sealgate_label_accuracy{{{version}, end="high"}}': "0.9x5 0.7x10 0x200",
        f'sealgate_label_accuracy{{{version}, end="low"}}': "0.6x220",
    }
    plain = {"instance": "a", "model": "m", "version": "1"}
    expected = {
        ("SealgateDrift", "50m"): [],
        ("SealgateDrift", "70m"): [plain | {"histogram": "input/a"}],
        ("SealgateDrift", "2110m"): [],
        ("SealgateDriftUnknown", "11500m"): [],
        ("SealgateDriftUnknown", "11600m"): [plain],
        ("SealgateMonitoringAway", "10m"): [],
        ("SealgateMonitoringAway", "30m"): [{"instance": "a"}],
        ("SealgateAccuracyLow", "50m"): [],
        ("SealgateAccuracyLow", "70m"): [plain],
        # A version that is served no more has no accuracy, rather than none at all.
        ("SealgateAccuracyLow", "200m"): [],
    }
    rules = {
        rule["alert"]: rule
        for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    }

    def told(name: str, labels: dict[str, str]) -> dict[str, object]:
        text = rules[name]["annotations"]["summary"]
        for label, value in labels.items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", value)
        own = rules[name]["labels"] | labels
        return {"exp_labels": own, "exp_annotations": {"summary": text}}

    document = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "10m",
        "tests": [
            {
                "interval": "10m",
                "input_series": [
                    {"series": name, "values": values}
                    for name, values in series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": at,
                        "alertname": name,
                        "exp_alerts": [told(name, labels) for labels in alerts],
                    }
                    for (name, at), alerts in expected.items()
                ],
            }
        ],
    }
    file = tmp_path / "alerts.yml"
    file.write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", str(file))


def test_a_real_prometheus_scrapes_and_alerts(site: Site, tmp_path: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    target = site.server.url.removeprefix("http://")
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "metrics.token").write_text(site.scraper)
    shutil.copy(ALERTS, tmp_path)
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        fired = _alerts(f"http://{address}/api/v1/alerts")
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "input/a" in fired


def _alerts(url: str) -> set[str]:
    """Histograms of which Prometheus says that they have drifted."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            alerts = httpx.get(url, timeout=5).json()["data"]["alerts"]
        except (httpx.HTTPError, ValueError):
            alerts = []
        found = {
            item["labels"]["histogram"]
            for item in alerts
            if item["labels"]["alertname"] == "SealgateDrift"
            and item["state"] == "firing"
        }
        if found:
            return found
        time.sleep(0.3)
    return set()
