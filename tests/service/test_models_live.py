"""Models are loaded, switched, tried and rolled back while two workers serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol.dsse import public_pem
from security.admission import changes
from security.admission.plan import PlanFolder
from security.errors import PlanError
from tests.conftest import mint, run_security
from tests.support.live import (
    EVEN,
    INFER,
    add_version,
    calling,
    change,
    followed,
    make_live_deployment,
    reports,
    settings,
    wait_for,
)
from tests.support.servers import Server, serve

WORKERS = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("live") / "home"
    make_live_deployment(home, "1.0.0", "2.0.0")
    add_version(home, "6.6.6", weights=EVEN, admit=False)
    return home


@pytest.fixture(scope="module")
def live(home: Path) -> Iterator[Server]:
    extra = settings(home) | {
        "BENTOML_CONFIG_OPTIONS": f"services.sealgate.workers={WORKERS}"
    }
    with serve("", home, extra=extra, alone=True) as server:
        wait_for(lambda: len(reports(home)) == WORKERS)
        yield server


@pytest.fixture(scope="module")
def token(home: Path) -> str:
    return mint(home, "infer:toy", "metrics")


def headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def ready(server: Server) -> set[int]:
    """What both workers say, as far as a few connections tell."""
    return {
        httpx.get(server.url + path).status_code
        for path in ("/readyz", "/v2/health/ready") * 6
    }


def comparisons(server: Server, token: str, kind: str) -> dict[str, float]:
    text = httpx.get(server.url + "/metrics", headers=headers(token)).text
    lines = [line for line in text.splitlines() if f'kind="{kind}"' in line]
    return {
        result: float(line.split()[-1])
        for result in ("same", "different", "failed", "skipped")
        for line in lines
        if line.startswith("sealgate_comparisons_total") and f'"{result}"' in line
    }


@pytest.mark.slow
def test_the_life_of_a_model_under_load(home: Path, live: Server, token: str) -> None:
    with calling(live, token) as caller:
        wait_for(lambda: caller.answers.total() > 20)
        assert caller.versions() == {"1.0.0"}

        # Loaded by the command, for requests that name it.
        result = run_security(home, "models", "load", "toy:2.0.0", **settings(home))
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("follows") == WORKERS
        named = f"{live.url}/v2/models/toy/versions/2.0.0"
        for _ in range(10):
            answer = httpx.get(named, headers=headers(token))
            assert answer.json()["versions"] == ["1.0.0", "2.0.0"]
        assert caller.versions() == {"1.0.0"}

        # A canary gets its share, and the metrics say that it disagrees.
        plan = change(home, lambda p: changes.set_canary(p, "toy:2.0.0", 50))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
        caller.clear()
        wait_for(lambda: caller.answers.total() > 100)
        odd, even = caller.answers[200, "1.0.0", 0], caller.answers[200, "2.0.0", 1]
        assert odd + even == caller.answers.total()
        assert 0.3 < even / (odd + even) < 0.7
        wait_for(lambda: comparisons(live, token, "canary").get("different", 0) > 20)
        assert "same" not in comparisons(live, token, "canary")

        # A shadow answers nobody.
        plan = change(
            home,
            lambda p: changes.set_shadow(
                changes.set_canary(p, "toy:2.0.0", 0), "toy:2.0.0", 100
            ),
        )
        wait_for(lambda: followed(home, plan, workers=WORKERS))
        caller.clear()
        wait_for(lambda: caller.answers.total() > 50)
        assert caller.versions() == {"1.0.0"}
        wait_for(lambda: comparisons(live, token, "shadow").get("different", 0) > 20)

        # Switched, and back in one command.
        plan = change(home, lambda p: changes.set_default(p, "toy:2.0.0"))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
        caller.clear()
        wait_for(lambda: caller.answers.total() > 50)
        assert caller.versions() == {"2.0.0"}
        back = run_security(home, "models", "rollback", "toy", **settings(home))
        assert back.returncode == 0, back.stderr
        caller.clear()
        wait_for(lambda: caller.answers.total() > 50)
        assert caller.versions() == {"1.0.0"}

        # Read again, and unloaded.
        plan = change(home, lambda p: changes.reload(p, "toy:1.0.0"))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
        plan = change(home, lambda p: changes.unload(p, "toy:2.0.0"))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
        for _ in range(10):
            assert httpx.get(named, headers=headers(token)).status_code == 404
    assert caller.failures == []


@pytest.mark.slow
def test_what_is_not_admitted_is_never_loaded(
    home: Path, live: Server, token: str
) -> None:
    # The command refuses before it writes anything.
    before = PlanFolder(home / "deployment").stamp()
    result = run_security(home, "models", "default", "toy:6.6.6", **settings(home))
    assert result.returncode == 1
    assert result.stderr.startswith("refused: ")
    assert len(result.stderr.splitlines()) == 1
    assert PlanFolder(home / "deployment").stamp() == before
    # Whoever writes the plan past the command gets no further.
    with calling(live, token) as caller:
        for tag in ("toy:6.6.6", "toy:9.9.9", "ghost:1.0.0"):
            plan = change(home, lambda p, tag=tag: changes.set_default(p, tag))
            wait_for(lambda p=plan: followed(home, p, workers=WORKERS))
            assert all(tag in report["refused"] for report in reports(home))
        listed = run_security(home, "models", "list", **settings(home))
        assert listed.returncode == 1
        assert listed.stdout.count("toy:9.9.9 refused") == WORKERS
        url = f"{live.url}/v2/models/toy/versions/6.6.6"
        assert httpx.get(url, headers=headers(token)).status_code == 404
        caller.clear()
        wait_for(lambda: caller.answers.total() > 20)
        assert caller.versions() == {"1.0.0"}
        restored = run_security(
            home, "models", "rollback", "toy", "--to", "1", **settings(home)
        )
        assert "ghost:1.0.0 refused" in restored.stdout
        plan = change(home, lambda p: changes.unload(p, "ghost:1.0.0"))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
    assert caller.failures == []
    log = live.log.read_text()
    assert "toy:6.6.6 refused" in log
    records = b"".join(p.read_bytes() for p in (home / "audit").glob("*.jsonl"))
    refused = [
        record
        for record in map(json.loads, records.splitlines())
        if record.get("action") == "load" and record.get("outcome") == "refuse"
    ]
    assert any("toy:6.6.6" in str(record["model"]) for record in refused)


def test_a_plan_that_is_none_changes_nothing(
    home: Path, live: Server, token: str
) -> None:
    path = home / "deployment" / "plan.json"
    good = path.read_bytes()
    try:
        path.write_bytes(b"{")
        wait_for(lambda: all(report["problem"] for report in reports(home)))
        answer = httpx.get(f"{live.url}/v2/models/toy", headers=headers(token))
        assert answer.status_code == 200
    finally:
        path.write_bytes(good)
    wait_for(lambda: not any(report["problem"] for report in reports(home)))


def test_a_changed_policy_withdraws_what_it_does_not_admit(
    home: Path, live: Server, token: str
) -> None:
    policy = home / "policy.toml"
    good = policy.read_bytes()
    body = {"inputs": []}

    def statuses() -> set[int]:
        return {
            httpx.post(live.url + INFER, json=body, headers=headers(token)).status_code
            for _ in range(8)
        }

    assert statuses() == {400}
    # It was a canary once: there is something to go back to.
    for percent in (5, 0):
        plan = change(home, lambda p, n=percent: changes.set_canary(p, "toy:2.0.0", n))
    wait_for(lambda: followed(home, plan, workers=WORKERS))
    try:
        policy.write_bytes(good.replace(b"max = 3.0", b"max = 2.0"))
        wait_for(lambda: all(report["withdrawn"] for report in reports(home)))
        assert statuses() == {503}
        # The server is alive, says that it is not ready, and why.
        wait_for(lambda: ready(live) == {503})
        assert (
            httpx.get(live.url + "/v2/health/ready")
            .json()["type"]
            .endswith("/not-ready")
        )
        assert httpx.get(live.url + "/v2/health/live").status_code == 200
        one = httpx.get(live.url + "/v2/models/toy/ready", headers=headers(token))
        assert one.status_code == 503
        text = httpx.get(live.url + "/metrics", headers=headers(token)).text
        assert "sealgate_ready 0.0" in text
        assert f'sealgate_unready{{missing="model"}} {WORKERS}.0' in text
        # What is loaded already is not let answer more, meanwhile.
        before = PlanFolder(home / "deployment").stamp()
        for words in (
            ("default", "toy:2.0.0"),
            ("canary", "toy:2.0.0", "--percent", "5"),
            ("rollback", "toy"),
        ):
            refused = run_security(home, "models", *words, **settings(home))
            assert refused.returncode == 1, refused.stderr
            assert refused.stderr.startswith("refused: ")
        assert PlanFolder(home / "deployment").stamp() == before
    finally:
        policy.write_bytes(good)
    wait_for(lambda: not any(report["withdrawn"] for report in reports(home)))
    assert statuses() == {400}
    wait_for(lambda: ready(live) == {200})


@pytest.mark.slow
def test_a_signer_who_is_removed_admits_nothing_more(
    home: Path, live: Server, token: str
) -> None:
    """Not what runs, not what is loaded later, not a server that starts later."""
    policy, trust = home / "policy.toml", home / "trust.json"
    of_policy, of_trust = policy.read_bytes(), trust.read_bytes()
    folder = PlanFolder(home / "deployment")
    successor = ec.generate_private_key(ec.SECP256R1()).public_key()
    document = json.loads(of_trust)
    document["roles"]["trainer"] = [public_pem(successor)]
    changed = {
        policy: of_policy.replace(b'signers = ["trainer"]', b'signers = ["assessor"]'),
        trust: json.dumps(document).encode(),
    }
    url = f"{live.url}/v2/models/toy/versions"

    def status(version: str) -> int:
        address = f"{url}/{version}/infer"
        return httpx.post(
            address, json={"inputs": []}, headers=headers(token), timeout=30
        ).status_code

    with suppress(PlanError):  # a test before may have left it loaded
        plan = change(home, lambda p: changes.unload(p, "toy:2.0.0"))
        wait_for(lambda: followed(home, plan, workers=WORKERS))
    assert status("1.0.0") == 400
    for path, data in changed.items():
        good = path.read_bytes()
        assert data != good
        try:
            path.write_bytes(data)
            wait_for(lambda: all(report["withdrawn"] for report in reports(home)))
            assert {status("1.0.0") for _ in range(4)} == {503}
            before = folder.stamp()
            for words in (("load", "toy:2.0.0"), ("reload", "toy:1.0.0")):
                result = run_security(home, "models", *words, **settings(home))
                assert result.returncode == 1, result.stderr
                assert result.stderr.startswith("refused: ")
            assert folder.stamp() == before
            # Past the command, and for a server that starts now.
            plan = change(home, lambda p: changes.load(p, "toy:2.0.0"))
            wait_for(lambda p=plan: followed(home, p, workers=WORKERS))
            assert all("toy:2.0.0" in report["refused"] for report in reports(home))
            assert {status("2.0.0") for _ in range(4)} == {404}
            plan = change(home, lambda p: changes.unload(p, "toy:2.0.0"))
            wait_for(lambda p=plan: followed(home, p, workers=WORKERS))
            start = serve("service.app:Sealgate", home, extra=settings(home))
            with pytest.raises(AssertionError, match="exited 1"), start:
                pass
        finally:
            path.write_bytes(good)
        wait_for(lambda: not any(report["withdrawn"] for report in reports(home)))
        assert {status("1.0.0") for _ in range(4)} == {400}
