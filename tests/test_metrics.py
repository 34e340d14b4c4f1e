"""BentoML's /metrics names the models that a worker runs, and what admitted them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from models.bundle import read_bundle
from tests.bundles import NAME, VERSION
from tests.conftest import mint, toy_settings
from tests.servers import Server, serve


def test_a_model_and_its_verdict(server: Server, deployment: Path) -> None:
    token = mint(deployment, "metrics")
    answer = httpx.get(
        server.url + "/metrics", headers={"authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200
    (line,) = re.findall(
        r"^sealgate_model_info\{(.*)\} 1\.0$", answer.text, re.MULTILINE
    )
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    subject = read_bundle(deployment / "bundle").subject
    assert labels["model"] == NAME
    assert labels["version"] == VERSION
    assert labels["root_sha256"] == subject.root_sha256
    assert re.fullmatch("[0-9a-f]{64}", labels["verdict_sha256"])
    assert labels["waived"] == ""


def test_a_second_server_of_the_same_home_wipes_nothing(
    server: Server, deployment: Path
) -> None:
    token = mint(deployment, "metrics")
    with serve("service.app:Sealgate", deployment, extra=toy_settings(deployment)):
        answer = httpx.get(
            server.url + "/metrics", headers={"authorization": f"Bearer {token}"}
        )
    assert "sealgate_model_info{" in answer.text
