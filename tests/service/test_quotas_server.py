"""Quotas of a real server: what callers see, what restarts and other servers keep."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from sealgate import Client
from sealgate.errors import OverloadedError
from sealgate.options import Options
from sealgate.retry import RetryPolicy
from security.access.issuer import DEVELOPMENT_ISSUER
from security.access.quotas import load_quota_counters
from security.access.tokens import Principal
from security.key_files import read_secret
from security.settings.quotas import QuotaSettings
from tests.conftest import check_security, toy_settings
from tests.security.audit.test_audit_command import records
from tests.service.test_service import seal
from tests.support.bundles import NAME
from tests.support.patience import clear_of_midnight
from tests.support.servers import Server, serve

INFER = f"/v2/models/{NAME}/infer"
TABLE = """
[default]
requests_per_minute = "unlimited"
rows_per_minute = "unlimited"

[[rule]]
subjects = ["busy"]
requests_per_day = 12

[[rule]]
subjects = ["rows"]
rows_per_day = 10

[[rule]]
subjects = ["one"]
concurrent_requests = 1
"""


def mint(home: Path, subject: str) -> str:
    flags = ("--scope", f"infer:{NAME}", "--subject", subject, "--lifetime", "3600")
    return check_security(home, "token", *flags).strip()


def body(rows: int = 1) -> dict:
    data = {"datatype": "FP32", "shape": [rows, 3], "data": [1, 2, 3] * rows}
    return {"inputs": [{"name": "features", **data}]}


def ask(server: Server, token: str, content: dict | None = None) -> httpx.Response:
    return httpx.post(
        server.url + INFER,
        json=content or body(),
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    )


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the deployment, with quotas of its own."""
    folder = tmp_path_factory.mktemp("quotas") / "home"
    shutil.copytree(pristine, folder)
    (folder / "table.toml").write_text(TABLE)
    return folder


@pytest.fixture(scope="module")
def extra(home: Path) -> dict[str, str]:
    return toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_QUOTAS_TABLE": str(home / "table.toml"),
        "SEALGATE_AUDIT_REFUSAL_RECORDS": "3",
    }


@dataclass(frozen=True)
class Servers:
    """Two servers of one home, after one that is gone, and what that one answered."""

    before: list[httpx.Response]
    first: Server
    second: Server


@pytest.fixture(scope="module")
def servers(home: Path, extra: dict[str, str]) -> Iterator[Servers]:
    clear_of_midnight()  # the tests below count within one day
    token = mint(home, "busy")
    with serve("", home, extra=extra, alone=True) as gone:
        before = [ask(gone, token) for _ in range(5)]
    with (
        serve("service.app:Sealgate", home, extra=extra, alone=True) as first,
        serve("service.app:Sealgate", home, extra=extra, alone=True) as second,
    ):
        yield Servers(before, first, second)


def test_a_budget_outlives_its_server_and_holds_for_two(servers: Servers) -> None:
    home, first = servers.first.home, servers.first
    assert {answer.status_code for answer in servers.before} == {200}
    policy = servers.before[0].headers["ratelimit-policy"]
    assert policy.startswith('"requests-per-day";q=12;w=86400, ')
    limits = [answer.headers["ratelimit"].split(";")[1] for answer in servers.before]
    assert limits == [f"r={number}" for number in range(11, 6, -1)]
    token = mint(home, "busy")
    # Bad input costs a request too.
    assert ask(first, token, {"inputs": []}).status_code == 400
    both = (first, servers.second)
    statuses = [ask(both[number % 2], token).status_code for number in range(20)]
    assert statuses == [200] * 6 + [429] * 14
    refused = ask(first, token)
    assert refused.json()["type"].endswith("problem-types#quota-exceeded")
    assert refused.json()["violated-policies"] == ["requests-per-day"]
    wait_s = int(refused.headers["retry-after"])
    assert abs(wait_s - (86400 - time.time() % 86400)) < 120
    assert '"requests-per-day";r=0;' in refused.headers["ratelimit"]
    # The SDK believes that this takes too long.
    with Client(first.url, token=token) as client, pytest.raises(OverloadedError):
        client.infer(NAME, {"features": np.zeros((1, 3), np.float32)})


def test_rows(servers: Servers) -> None:
    server, token = servers.first, mint(servers.first.home, "rows")
    statuses = [ask(server, token, body(count)).status_code for count in (6, 6, 4)]
    assert statuses == [200, 429, 200]
    refused = ask(server, token, body(11))
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers
    assert refused.json()["violated-policies"] == ["rows-per-day"]


def test_slots(servers: Servers) -> None:
    token = mint(servers.first.home, "one")
    _retry_until_there_is_a_slot(servers.first, servers.first.home, token)
    inner = seal(servers.first, token=token, path=INFER, body=body())
    headers = dict(inner.headers)
    assert inner.status == 200
    assert b'"concurrent-requests";q=1;' in headers[b"ratelimit-policy"]
    assert b'"requests-per-day";r=' in headers[b"ratelimit"]


def _retry_until_there_is_a_slot(server: Server, home: Path, token: str) -> None:
    """Another worker, here, has the only slot for a while; the SDK waits for it."""
    settings = QuotaSettings(table=home / "table.toml", directory=home / "quotas")
    key = read_secret(home / "keys/audit.key")
    who = Principal("one", "app", "id", frozenset(), 0, DEVELOPMENT_ISSUER)
    policy = RetryPolicy(max_retries=60, max_wait_s=30)
    answers: list[object] = []

    def infer() -> None:
        with Client(server.url, token=token, options=Options(retry=policy)) as client:
            answers.append(
                client.infer(NAME, {"features": np.zeros((1, 3), np.float32)})
            )

    async def main() -> None:
        other = load_quota_counters(settings, key=key)
        ticket = await other.enter(who, NAME)
        thread = threading.Thread(target=infer)
        thread.start()
        began = time.monotonic()
        for _ in range(300):
            blocked = await asyncio.to_thread(ask, server, token)
            assert blocked.status_code == 429
            assert blocked.headers["retry-after"] == "1"
            # Once it was refused a while: the SDK too, then, which came before.
            if time.monotonic() - began > 1:
                break
            await asyncio.sleep(0.05)
        assert not answers
        ticket.leave()
        await other.close()
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert len(answers) == 1


def test_refusals_are_counted(servers: Servers) -> None:
    """What is counted is written when the interval ends."""
    token = mint(servers.first.home, "rows")
    for _ in range(8):
        assert ask(servers.first, token, body(11)).status_code == 429
    found = [
        record
        for record in records(servers.first.home)
        if record["reason"] == "quota-exceeded"
    ]
    assert {(r["outcome"], r["model"], r["status"]) for r in found} == {
        ("refuse", NAME, 429)
    }
    # Three one by one from each server, though far more were refused.
    assert 1 <= len([r for r in found if r["request_id"]]) <= 6


def test_without_its_store_a_server_refuses(home: Path, extra: dict[str, str]) -> None:
    (home / "blocked").write_text("a file where the folder should be")
    away = extra | {"SEALGATE_QUOTAS_DIRECTORY": str(home / "blocked")}
    token = mint(home, "busy")
    with serve("", home, extra=away, wait_for="live", alone=True) as server:
        assert httpx.get(server.url + "/readyz").status_code == 503
        refused = ask(server, token)
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("/quota-unavailable")
        assert refused.headers["retry-after"] == "1"
        # Who is not let in does not come so far.
        assert httpx.post(server.url + INFER, json=body()).status_code == 401


def test_a_table_that_is_wrong_ends_the_start(
    home: Path, extra: dict[str, str]
) -> None:
    (home / "wrong.toml").write_text("[default]\nrequest_per_day = 1\n")
    wrong = extra | {"SEALGATE_QUOTAS_TABLE": str(home / "wrong.toml")}
    with (
        pytest.raises(AssertionError, match=r"exited 1: .*did you mean 'requests_per"),
        serve("service.app:Sealgate", home, extra=wrong),
    ):
        pass


def test_config_hides_the_stores_password(home: Path) -> None:
    shown = check_security(
        home, "config", SEALGATE_QUOTAS_STORE="redis://user:secret@cache/0?password=x"
    )
    assert json.loads(shown)["quotas"]["store"] == "redis://***@cache/0?***"
