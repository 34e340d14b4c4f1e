"""Tickets and labels through real servers: what callers see, and what is kept of it."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sealgate import AsyncClient, Client, Ticketed
from sealgate.errors import (
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    ServerRefusedError,
    TensorError,
)
from sealgate.options import Options
from sealgate.retry import RetryPolicy
from security.monitoring.cohorts import open_cohorts
from security.monitoring.ledger import open_ledger
from security.monitoring.outcomes import state
from security.monitoring.release import read_releases
from security.monitoring.windows import Jumps, window_at
from security.settings.loading import Settings, load_settings
from service.feedback import MAX_BODY_BYTES, MAX_LABELS, MAX_TICKETS, ticketed
from tests.conftest import check_security, mint, run_security, toy_settings
from tests.sealgate.test_cli import sealgate
from tests.security.audit.test_audit_command import records
from tests.support.bundles import NAME
from tests.support.servers import ROOT, Server, serve

ROWS = np.array([[1, 2, 3], [4, 5, 6.5], [-1, 0, 2]], dtype=np.float32)
FEEDBACK = f"/v2/models/{NAME}/feedback"
ONCE = Options(retry=RetryPolicy(max_retries=0))
DAY_S = 86_400
APP = "service.app:Sealgate"
_TOKENS: dict[tuple[Path, str], str] = {}


def settings(home: Path) -> dict[str, str]:
    path = home / "service.toml"
    path.write_text(
        (ROOT / "deploy" / "service.toml").read_text()
        + f"[monitoring.models.{NAME}]\nlabels_final_after_days = 2.5\n"
        'groups = ["under 30", "older"]\n'
    )
    return toy_settings(home) | {
        "SEALGATE_CONFIG": str(path),
        "SEALGATE_ACCESS_PERMISSIONS": str(ROOT / "deploy" / "access.toml"),
        "SEALGATE_MONITORING_ENABLED": "true",
        "SEALGATE_MONITORING_WINDOW": "daily",
        "SEALGATE_MONITORING_MIN_SUBJECTS": "1",
        "SEALGATE_MONITORING_EPSILON": "100",
        "SEALGATE_MONITORING_FLUSH_S": "0.2",
        "SEALGATE_MONITORING_MAX_LABELS_PER_SUBJECT": "1000",
        "SEALGATE_OBSERVABILITY_LOG_REQUESTS": "true",
    }


@pytest.fixture(scope="module")
def home(
    within_a_day: None, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("feedback") / "home"
    return Path(shutil.copytree(pristine, folder))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serve(APP, home, extra=settings(home), alone=True) as running:
        yield running


@pytest.fixture(scope="module")
def other(home: Path, server: Server) -> Iterator[Server]:
    """A second server of the same deployment: one store for both."""
    with serve(APP, home, extra=settings(home), alone=True) as running:
        yield running


@pytest.fixture(scope="module")
def asker(home: Path, server: Server) -> Iterator[Client]:
    """May ask, and send no labels."""
    with Client(server.url, token=mint(home, f"infer:{NAME}"), options=ONCE) as client:
        yield client


@pytest.fixture(scope="module")
def teller(home: Path, server: Server) -> Iterator[Client]:
    """May send labels, and ask nothing: another subject, as from a back office."""
    flags = ("--scope", f"feedback:{NAME}", "--subject", "office", "--lifetime", "3600")
    token = check_security(home, "token", *flags).strip()
    with Client(server.url, token=token, options=ONCE) as client:
        yield client


def ask(client: Client, rows: Any = ROWS) -> Ticketed:
    found = client.infer(NAME, {"features": rows}, tickets=True)
    assert isinstance(found, Ticketed)
    return found


def test_a_ticket_for_each_row(asker: Client) -> None:
    plain = asker.infer(NAME, {"features": ROWS})
    found = ask(asker)
    assert not isinstance(plain, Ticketed)
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array)
    assert [len(ticket or "") for ticket in found.tickets] == [80] * 3
    assert "E" not in repr(found).partition("rows")[2]


def test_more_rows_than_a_request_takes(asker: Client) -> None:
    found = ask(asker, np.tile(ROWS, (30, 1)))
    assert len(set(found.tickets)) == 90


def test_tickets_of_more_rows_than_the_event_loop_can_make() -> None:
    """A model may take a million rows; making their tickets took 2.4 seconds."""
    with pytest.raises(TensorError, match="at most 4096 rows get tickets"):
        ticketed({"parameters": {"tickets": True}}, MAX_TICKETS + 1, None, None)  # type: ignore[arg-type]


def test_tickets_of_an_output_that_was_not_asked_for(
    home: Path, server: Server
) -> None:
    """They are made from the scores, which the answer does not show."""
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3]}
    body = {
        "inputs": [{**tensor, "data": [1, 2, 3]}],
        "outputs": [{"name": "label"}],
        "parameters": {"tickets": True},
    }
    status, answer = post(home, server, f"infer:{NAME}", body, "infer")
    assert status == 200
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert len(answer["parameters"]["tickets"]) == 1
    body["parameters"] = {"tickets": 1}
    status, answer = post(home, server, f"infer:{NAME}", body, "infer")
    assert (status, answer["detail"]) == (400, "request: tickets is not a boolean")


def post(
    home: Path, server: Server, scope: str, body: Any, action: str = "feedback"
) -> tuple[int, Any]:
    token = _TOKENS.get((home, scope)) or mint(home, scope)
    _TOKENS[home, scope] = token
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Client(server.url, token=token, options=ONCE) as client:
        answer = client.forward(
            "POST",
            f"/v2/models/{NAME}/{action}",
            headers=((b"content-type", b"application/json"),),
            body=content,
        )
    return answer.status, json.loads(bytes(answer.body))


def test_each_ticket_once_on_two_servers(
    home: Path, asker: Client, teller: Client, other: Server
) -> None:
    tickets = ask(asker, np.tile(ROWS, (8, 1))).tickets
    labels = [{"ticket": ticket, "label": "yes"} for ticket in tickets]
    urls = [teller.url, other.url] * 2
    clients = [Client(url, token=teller._token, options=ONCE) for url in urls]
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(one.feedback, NAME, labels) for one in clients]
        found = [item.result() for item in work]
    for one in clients:
        assert one.feedback(NAME, labels) == ["spent"] * 24
        one.close()
    each = [Counter(outcomes) for outcomes in zip(*found)]
    assert each == [Counter(accepted=1, spent=3)] * 24


def test_what_became_of_each(asker: Client, teller: Client) -> None:
    good, bad, odd = ask(asker).tickets
    found = teller.feedback(
        NAME,
        [
            (good, "yes", "older"),
            (good, "no"),
            (bad, "maybe"),
            (odd, np.int64(0), "strangers"),
            ("A" * 80, "yes"),
            {"ticket": bad, "label": 1.0, "group": "under 30"},
        ],
    )
    assert found == [
        "accepted", "spent", "no such label", "no such group", "refused", "accepted",
    ]  # fmt: skip


def test_asynchronously(home: Path, server: Server, asker: Client) -> None:
    async def run() -> list[str]:
        token = mint(home, f"infer:{NAME}", f"feedback:{NAME}")
        async with AsyncClient(server.url, token=token) as client:
            found = await client.infer(NAME, {"features": ROWS}, tickets=True)
            labels = [(ticket, "no") for ticket in found.tickets]  # type: ignore[attr-defined]
            return await client.feedback(NAME, labels)

    assert asyncio.run(run()) == ["accepted"] * 3


def test_who_may(home: Path, server: Server, asker: Client, teller: Client) -> None:
    """Deny by default: asking grants no labels, labels no asking, nor knowing."""
    (ticket, *_) = ask(asker).tickets
    with pytest.raises(PermissionDeniedError):
        asker.feedback(NAME, [(ticket, "yes")])
    with pytest.raises(NotFoundError):
        teller.metadata(NAME)
    for scope in ("feedback:other", "metrics", f"metadata:{NAME}"):
        status, _ = post(home, server, scope, {"labels": []})
        assert status in (403, 404)
    status, _ = post(home, server, f"feedback:{NAME}", {}, "versions/1.0.0/feedback")
    assert status == 404
    with Client(server.url, token=mint(home, "feedback:*"), options=ONCE) as client:
        assert client.feedback(NAME, [(ticket, "yes")]) == ["accepted"]
        with pytest.raises(NotFoundError):
            client.feedback("other", [(ticket, "yes")])
        answer = client.forward("GET", FEEDBACK)
    assert (answer.status, dict(answer.headers)[b"allow"]) == (405, b"POST")


def test_in_plaintext(home: Path, server: Server) -> None:
    fields = {"authorization": f"Bearer {mint(home, f'feedback:{NAME}')}"}
    answer = httpx.post(server.url + FEEDBACK, json={"labels": []}, headers=fields)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (
        403,
        "sealed-required",
    )


LABEL = {"ticket": "A" * 80, "label": "yes"}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "malformed-json"),
        (b"[]", 400, "malformed-json"),
        ({}, 400, "invalid-request"),
        ({"labels": {}}, 400, "invalid-request"),
        ({"labels": []}, 400, "invalid-request"),
        ({"labels": [LABEL] * (MAX_LABELS + 1)}, 400, "invalid-request"),
        ({"labels": [LABEL], "more": 1}, 400, "invalid-request"),
        ({"labels": [{**LABEL, "more": 1}]}, 400, "invalid-request"),
        ({"labels": [{"ticket": "x"}]}, 400, "invalid-request"),
        ({"labels": [{"label": "x"}]}, 400, "invalid-request"),
        ({"labels": [{"ticket": 7, "label": "x"}]}, 400, "invalid-request"),
        ({"labels": [{"ticket": "x", "label": None}]}, 400, "invalid-request"),
        ({"labels": [{"ticket": "x", "label": ["yes"]}]}, 400, "invalid-request"),
        ({"labels": [{**LABEL, "group": 3}]}, 400, "invalid-request"),
        (b'{"labels":' + b"[" * 5000, 400, "malformed-json"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "body-too-large"),
        ({"labels": [{"ticket": "x" * 90_000, "label": 1}]}, 200, None),
        ({"labels": [{"ticket": "x", "label": 10**300}]}, 200, None),
    ],
)  # fmt: skip
def test_bodies(
    home: Path, server: Server, body: Any, status: int, reason: str | None
) -> None:
    found, answer = post(home, server, f"feedback:{NAME}", body)
    assert found == status
    if reason is None:
        assert answer == {"outcomes": ["refused"], "accepted": 0}
    else:
        assert answer["type"].rpartition("/")[2] == reason
        assert "yes" not in json.dumps(answer)


def test_the_client_sends_as_many_requests_as_it_takes(teller: Client) -> None:
    labels = [("A" * 80, "yes")] * (MAX_LABELS + 200)
    assert teller.feedback(NAME, labels) == ["refused"] * len(labels)
    assert teller.feedback(NAME, []) == []
    for label in (("A" * 80,), "x", {"ticket": "x"}, ("x", True), ("x", None), (1, 1)):
        with pytest.raises(TensorError):
            teller.feedback(NAME, [label])


def test_servers_that_do_not_count(deployment: Path) -> None:
    """Monitoring is off unless it is turned on: nobody gets a ticket."""
    off = toy_settings(deployment)
    scopes = f"infer:{NAME}", f"feedback:{NAME}"
    token = mint(deployment, *scopes)
    with (
        serve(APP, deployment, extra=off, alone=True) as bare,
        Client(bare.url, token=token, options=ONCE) as client,
    ):
        with pytest.raises(InvalidInputError, match="take no labels here"):
            client.infer(NAME, {"features": ROWS}, tickets=True)
        with pytest.raises(InvalidInputError, match="take no labels here"):
            client.feedback(NAME, [("A" * 80, "yes")])
        assert client.infer(NAME, {"features": ROWS})


def test_the_command_line(home: Path, server: Server, tmp_path: Path) -> None:
    """`infer --tickets`, labels written into the file, `feedback`; then once more."""
    scopes = ("--scope", f"infer:{NAME}", "--scope", f"feedback:{NAME}")
    token = check_security(home, "token", *scopes, "--lifetime", "3600").strip()
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"url": server.url, "token": token, "model": NAME}))
    profile.chmod(0o600)
    rows, tickets = tmp_path / "rows.csv", tmp_path / "tickets.csv"
    rows.write_text("1,2,3\n4,5,6\n7,8,9\n")
    asked = sealgate(
        "infer", "--profile", profile, "--input", rows, "--tickets", tickets
    )
    assert asked.returncode == 0, asked.stderr
    with tickets.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["row"] for line in table] == ["0", "1", "2"]
    table[0]["label"], table[2]["label"] = "yes", "1"
    with tickets.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    sent = sealgate("feedback", tickets, "--profile", profile)
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, "accepted: 2\n", "")
    lines = tmp_path / "labels.jsonl"
    last = {"ticket": table[1]["ticket"], "label": "never"}
    lines.write_text(json.dumps(last) + "\n\n" + json.dumps(LABEL))
    sent = sealgate("feedback", lines, "--profile", profile)
    assert (sent.returncode, sent.stdout) == (1, "no such label: 1\nrefused: 1\n")
    # The operator's command takes the same files, without a server's help.
    table[1]["label"] = "no"
    lines.write_text("\n".join(map(json.dumps, [last | {"label": "no"}, LABEL])))
    time.sleep(0.5)
    found = run_security(
        home, "feedback", str(lines), "--model", NAME, **settings(home)
    )
    assert (found.returncode, found.stdout) == (1, "accepted: 1\nrefused: 1\n")
    found = run_security(
        home, "feedback", str(tickets), "--model", NAME, **settings(home)
    )
    assert (found.returncode, found.stdout) == (0, "spent: 2\n"), found.stderr


def test_the_store_is_away(
    home: Path, server: Server, asker: Client, teller: Client
) -> None:
    """It never blocks an answer; labels are refused, and can be sent again."""
    store = home / "monitoring" / "labels.sqlite"
    kept = store.with_name("kept")
    (ticket, *_) = ask(asker).tickets
    assert teller.feedback(NAME, [(ticket, "yes")]) == ["accepted"]
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store}{suffix}").rename(f"{kept}{suffix}")
    store.mkdir()
    try:
        late = None
        for _ in range(3):
            late = ask(asker).tickets[0]
        with pytest.raises(ServerRefusedError) as refused:
            teller.feedback(NAME, [(late, "yes")])
        assert refused.value.status == 503
    finally:
        store.rmdir()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{kept}{suffix}").rename(f"{store}{suffix}")
    assert teller.feedback(NAME, [(late, "yes"), (ticket, "yes")]) == [
        "accepted",
        "spent",
    ]


def loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in settings(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEALGATE_HOME", str(home))
    return load_settings()


def test_nothing_is_kept_but_counts(
    home: Path,
    server: Server,
    asker: Client,
    teller: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither in logs nor in audit records; and what is released is a cohort."""
    tickets = ask(asker).tickets
    labels = [(ticket, "yes", "under 30") for ticket in tickets]
    assert teller.feedback(NAME, labels) == ["accepted"] * 3
    sent = [item for item in records(home) if item.get("action") == "feedback"]
    last = max(sent, key=lambda item: item["time_us"])
    assert (last["rows"], last["model"], last["outcome"]) == (3, NAME, "allow")
    text = server.log.read_text() + json.dumps(records(home))
    for secret in (*tickets, "under 30", '"yes"'):
        assert secret is not None
        assert secret not in text
    cohorts = open_cohorts(loaded(home, monkeypatch).monitoring, versions=list)
    assert cohorts is not None
    assert cohorts.accept(NAME, []) == []
    now = time.time()
    later = Jumps(lambda: now + 4 * DAY_S, lambda: now + 4 * DAY_S)
    monkeypatch.setattr(cohorts, "_clock", later._clock)
    monkeypatch.setattr(cohorts, "_jumps", later)
    time.sleep(0.5)
    cohorts.look()
    (made,) = read_releases(open_ledger(cohorts._settings), kind="labels")
    assert made.about.window == window_at("daily", now)
    assert made.withheld in ("", "too few subjects")
    assert state([replace(made)]).subjects is not None
