"""`python -m security audit`, and the log that a real server writes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.protocol.cosignatures import Cosigner
from security.access.issuer import DEVELOPMENT_ISSUER
from security.audit.journal import load_verifier, record_operation
from security.audit.records import FIELDS, token_hash
from security.audit.verify import verify_log
from security.key_files import pseudonym, read_secret, write_private
from security.settings.audit import AuditSettings
from tests.conftest import mint, run_security, toy_settings
from tests.support.bundles import NAME
from tests.support.disks import file_size_limit
from tests.support.servers import Server, serve
from tests.support.witnesses import RunningWitness, witness

INFER = f"/v2/models/{NAME}/infer"
INPUT = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
ANSWER_TIMEOUT_S = 60


def records(home: Path) -> list[dict]:
    """All records of a log that verifies, whoever wrote them."""
    found: list[dict] = []
    verify_log(
        [home / "audit"],
        verifier=load_verifier(home / "audit.vkey"),
        visit=lambda _, record: found.append(dict(record.fields)),
    )
    return found


def workers(server: Server) -> list[psutil.Process]:
    """The processes of a server that hold an audit file open."""
    family = psutil.Process(server.pid).children(recursive=True)
    return [
        process
        for process in family
        if any("/audit/" in file.path for file in process.open_files())
    ]


def ask(server: Server, token: str, client: httpx.Client | None = None):
    return (client or httpx).post(
        server.url + INFER,
        json={"inputs": [INPUT]},
        headers={"authorization": f"Bearer {token}"},
        timeout=ANSWER_TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the deployment, with a log of its own."""
    folder = tmp_path_factory.mktemp("audited") / "home"
    ignore = shutil.ignore_patterns("audit")
    return Path(shutil.copytree(pristine, folder, ignore=ignore))


@pytest.fixture(scope="module")
def watching(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWitness]:
    """A witness of the deployment's log."""
    folder = tmp_path_factory.mktemp("witness")
    write_private(folder / "ed25519.pem", Ed25519PrivateKey.generate())
    vkeys = [
        (home / name).read_text().strip() for name in ("audit.vkey", "audit.mldsa.vkey")
    ]
    with witness(folder, vkeys, "--every", "0.1", algorithms=["ed25519"]) as running:
        yield running


@pytest.fixture(scope="module")
def extra(home: Path, watching: RunningWitness) -> dict[str, str]:
    (vkey,) = watching.vkeys
    return {
        "SEALGATE_AUDIT_WITNESSES": "{required = 1, interval_s = 0.2, "
        f'witness = [{{url = "{watching.url}", vkeys = ["{vkey}"]}}]}}',
        **toy_settings(home),
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_AUDIT_REFUSAL_RECORDS": "5",
        "SEALGATE_AUDIT_MAX_FILE_BYTES": "100_000",
    }


@pytest.fixture(scope="module")
def token(home: Path) -> str:
    return mint(home, f"infer:{NAME}")


@pytest.fixture(scope="module")
def stopped(home: Path, extra: dict[str, str], token: str) -> Path:
    """The home of a server that answered, refused, and was stopped."""
    with serve("", home, extra=extra, alone=True) as server:
        for _ in range(3):
            assert ask(server, token).status_code == 200
        other = f"{server.url}/v2/models/other"
        assert httpx.get(other, headers={"authorization": f"Bearer {token}"}).is_error
        for _ in range(40):
            assert httpx.get(f"{server.url}/v2").status_code == 401
        wait_for((home / "audit" / "log.cosigned").exists)
        metrics = httpx.get(
            f"{server.url}/metrics",
            headers={"authorization": f"Bearer {mint(home, 'metrics')}"},
        ).text
        assert 'outcome="cosigned",witness="witness.test/w1"' in metrics
        seen = re.search(r"\nsealgate_audit_witnessed_seconds (\S+)", metrics)
        assert seen is not None
        assert abs(float(seen[1]) - time.time()) < ANSWER_TIMEOUT_S
    return home


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_decision_of_a_server_is_there(stopped: Path, token: str) -> None:
    found = records(stopped)
    actions = [record["action"] for record in found]
    assert actions.count("start") == actions.count("load") >= 1
    load = next(record for record in found if record["action"] == "load")
    inference = [record for record in found if record["action"] == "infer"]
    assert len(inference) == 3
    for record in inference:
        assert record.keys() == FIELDS.keys()
        assert record["model_sha256"] == load["model_sha256"]
        assert (record["outcome"], record["reason"], record["rows"]) == (
            "allow",
            None,
            1,
        )
        assert record["request_bytes"] == len(
            httpx.Request("POST", "http://x", json={"inputs": [INPUT]}).content
        )
        assert record["response_bytes"] > 0
        assert record["sealed"] is False
    key = read_secret(stopped / "keys/audit.key")
    assert inference[0]["subject"] == pseudonym(key, f"{DEVELOPMENT_ISSUER}\0developer")
    import jwt

    claims = jwt.decode(token, options={"verify_signature": False})
    assert inference[0]["token"] == token_hash(claims["jti"])


def test_refusals_of_strangers_are_counted(stopped: Path) -> None:
    refused = [r for r in records(stopped) if r["reason"] == "unauthenticated"]
    assert [record["count"] for record in refused] == [1] * 5 + [35]


def test_a_server_that_stops_signs_all(stopped: Path) -> None:
    report = verify_log(
        [stopped / "audit"], verifier=load_verifier(stopped / "audit.vkey")
    )
    assert report.records == report.signed
    assert report.notices == []


def run(home: Path, *arguments: str):
    return run_security(home, "audit", *arguments, **toy_settings(home))


def failed(result, code: int, message: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_verify(stopped: Path, tmp_path: Path) -> None:
    result = run(stopped, "verify")
    count = len(records(stopped))
    assert result.returncode == 0, result.stderr
    assert f"verified {count} records" in result.stdout.splitlines()[-1]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (stopped / "audit").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = max(copy.glob("*.jsonl"), key=lambda path: path.stat().st_size)
    first.write_bytes(first.read_bytes().replace(b'"rows":1', b'"rows":2', 1))
    failed(run(stopped, "verify", str(copy)), 1, "altered")
    (copy / "checkpoints").write_bytes(b"")
    assert run(stopped, "verify", str(copy)).returncode == 1
    failed(run(stopped, "verify", str(tmp_path / "none")), 1, "no such folder")
    failed(run(stopped, "verify", "--key", str(tmp_path / "k")), 2, "No such file")
    failed(
        run(stopped, "verify", "--key", str(stopped / "jwks.json")),
        2,
        "not a verifier key",
    )


def test_a_server_has_its_log_cosigned(
    stopped: Path, extra: dict[str, str], watching: RunningWitness, tmp_path: Path
) -> None:
    """To its end; and what was seen once cannot be cut off again."""

    def audit(*arguments: str, **more: str):
        return run_security(stopped, "audit", *arguments, **extra | more)

    folder = stopped / "audit"
    result = audit("cosign")
    assert (result.returncode, result.stderr) == (0, "")
    assert "cosigned" in result.stdout
    result = audit("verify", "--ask")
    assert (result.returncode, result.stderr) == (0, "")
    assert "; enough witnesses saw" in result.stdout.splitlines()[-2]
    # Somebody else, with the log and two files of keys.
    names = tmp_path / "witnesses"
    names.write_text(f"witness W {watching.vkeys[0]} {watching.url}\n")
    key = ("--key", str(stopped / "audit.vkey"))
    known = ("--witnesses", str(names), *key)
    assert run(stopped, "verify", *known, "--required", "1", "--ask").returncode == 0
    failed(run(stopped, "verify", *known), 2, "--required M says how many")
    failed(run(stopped, "verify", *known, "--required", "2"), 2, "2 are required, of 1")
    failed(run(stopped, "verify", "--ask", *key), 2, "no witnesses are named")
    other = str(Cosigner("other.test", Ed25519PrivateKey.generate()).verifier)
    names.write_text(other)
    failed(
        run(stopped, "verify", *known, "--required", "1"),
        1,
        "1 witnesses are required, and 0 cosigned the log: none",
    )
    # The owner of the host puts the log back to when it was new.
    shutil.copytree(folder, tmp_path / "whole")
    shutil.rmtree(folder)
    failed(audit("verify", "--ask"), 1, "no such folder")
    record_operation(
        AuditSettings(
            folder, checkpoint_key=stopped / "keys/checkpoint.pem",
            pseudonym_key=stopped / "keys/audit.key",
        ),
        [{"action": "start"}],
    )  # fmt: skip
    failed(audit("cosign"), 1, "too few witnesses cosigned 1 checkpoints")
    failed(audit("verify", "--ask"), 1, "the log was cut off")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "whole", folder)


def test_both_keys_must_have_signed_the_log(stopped: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stopped / "audit", tmp_path / "audit"))
    assert run(stopped, "verify", str(copy)).returncode == 0
    path = copy / "log.checkpoint"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    failed(run(stopped, "verify", str(copy)), 1, "did not sign the checkpoint")


def test_query(stopped: Path) -> None:
    result = run(stopped, "query", "--action", "infer", "--subject", "developer")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["rows"] for line in lines] == [1, 1, 1]
    assert lines[0].keys() == {"writer", "seq", "time", "hash", "signed", *FIELDS}
    # Answers are found by the version that gave them: its load says which bytes it was.
    (load,) = {
        record["model"] for record in records(stopped) if record["action"] == "load"
    }
    of_version = run(stopped, "query", "--model", load, "--action", "infer").stdout
    assert [json.loads(line) for line in of_version.splitlines()] == lines
    by_name = run(stopped, "query", "--model", NAME).stdout.splitlines()
    assert {json.loads(line)["action"] for line in by_name} == {"infer", "load"}
    failed(run(stopped, "query", "--model", f"{NAME}:9.9.9"), 2, f"knows {NAME}:9.9.9")
    assert run(stopped, "query", "--subject", "somebody").stdout == ""
    assert run(stopped, "query", "--until", "1d").stdout == ""
    since = run(stopped, "query", "--since", "1d", "--outcome", "refuse").stdout
    reasons = {json.loads(line)["reason"] for line in since.splitlines()}
    assert "unauthenticated" in reasons
    failed(run(stopped, "query", "--since", "yesterday"), 2, "not a time")


def test_export(stopped: Path, tmp_path: Path) -> None:
    output = tmp_path / "records.csv"
    result = run(stopped, "export", "--format", "csv", "--output", str(output))
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert len(rows) == len(records(stopped))
    assert {row["model"] for row in rows if row["action"] == "infer"} == {NAME}
    assert output.stat().st_mode & 0o777 == 0o600
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    altered = tmp_path / "altered"
    altered.mkdir()
    (altered / "1-1.000001.jsonl").write_bytes(b"{}\n")
    unwritten = tmp_path / "none.csv"
    failed(
        run(stopped, "export", str(altered), "--output", str(unwritten)),
        1,
        "1-1.000001.jsonl, record 1: not a record",
    )
    assert not unwritten.exists()


def answers_again(server: Server, token: str) -> None:
    """Wait for the next worker, which signs its start before it serves anybody."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if ask(server, token).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("no worker answers")


def test_kill_9_loses_no_acknowledged_record(
    home: Path, extra: dict[str, str], token: str
) -> None:
    acknowledged: set[str] = set()
    stop = threading.Event()

    def keep_asking(server: Server) -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                try:
                    response = ask(server, token, client)
                except httpx.HTTPError:
                    return
                if response.status_code == 200:
                    acknowledged.add(response.headers["x-request-id"])

    with serve("service.app:Sealgate", home, extra=extra) as server:
        (worker,) = workers(server)
        threads = [
            threading.Thread(target=keep_asking, args=(server,)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while len(acknowledged) < 400 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
        answers_again(server, token)
    assert len(acknowledged) >= 400
    found = records(home)
    ids = [record["request_id"] for record in found if record["request_id"]]
    assert acknowledged <= set(ids)
    assert len(ids) == len(set(ids))
    # More than one file was filled on the way.
    assert len(list((home / "audit").glob("*.000002.jsonl"))) >= 1


def test_a_full_disk_stops_serving_until_there_is_room(
    home: Path, extra: dict[str, str], token: str
) -> None:
    big = extra | {"SEALGATE_AUDIT_MAX_FILE_BYTES": "100_000_000"}
    with serve("service.app:Sealgate", home, extra=big) as server:
        (worker,) = workers(server)
        with httpx.Client() as client:
            # The audit file must be the first to meet the limit.
            for _ in range(300):
                assert ask(server, token, client).status_code == 200
            (path,) = [
                file.path for file in worker.open_files() if ".jsonl" in file.path
            ]
            with file_size_limit(os.stat(path).st_size + 100, worker.pid):
                for _ in range(3):
                    full = ask(server, token, client)
                    assert full.status_code == 503
                    assert full.json()["type"].endswith("audit-unavailable")
            after = ask(server, token, client)
            assert after.status_code == 200
    ids = [record["request_id"] for record in records(home)]
    assert after.headers["x-request-id"] in ids
    assert full.headers["x-request-id"] not in ids


def test_commands_are_recorded(pristine: Path, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("audit")  # what making it has recorded
    home = Path(shutil.copytree(pristine, tmp_path / "home", ignore=ignore))
    settings = toy_settings(home)
    commands = (
        ("keys", "rotate", "--role", "sealing", "--force"),
        ("access", "revoke", "--new-list"),  # no server has made one here
        ("access", "revoke", "--subject", "mallory", "--issuer", DEVELOPMENT_ISSUER),
        ("admit", str(home / "bundle")),
    )
    for command in commands:
        result = run_security(home, *command, **settings)
        assert result.returncode == 0, result.stderr
    # Refused, and nothing written but the record.
    (home / "bundle" / "model.onnx").write_bytes(b"another model")
    assert run_security(home, "admit", str(home / "bundle"), **settings).returncode == 1
    found = records(home)
    said = [(r["action"], r["reason"], r["outcome"]) for r in found]
    assert ("key-rotation", "sealing-rotated", "allow") in said
    assert ("revocation", "subject-revoked", "allow") in said
    assert ("admission", None, "allow") in said
    key = read_secret(home / "keys/audit.key")
    made, revoked = [r for r in found if r["action"] == "revocation"]
    assert made["reason"] == "list-made"  # by whom: the operator of the command
    assert revoked["subject"] == pseudonym(key, f"{DEVELOPMENT_ISSUER}\0mallory")
    # A machine without the key of checkpoints keeps no log.
    (home / "keys" / "checkpoint.pem").unlink()
    assert run_security(home, *commands[0], **settings).returncode == 0
    assert len(records(home)) == len(found)
