"""`python -m security witness`: the real command, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from sealgate.protocol.cosignatures import CosignatureVerifier, verify_cosignatures
from sealgate.protocol.merkle import tree_root
from sealgate.protocol.notes import open_checkpoint
from sealgate.protocol.tlog_witness import (
    MAX_REQUEST_BYTES,
    AddCheckpoint,
    checkpoint_path,
    parse_size,
)
from security.audit.checkpoints import split_notes
from security.commands import main
from tests.conftest import run_security
from tests.security.witness.test_witness import FORK, LOG, ORIGIN, SIGNER
from tests.support.live import wait_for
from tests.support.patience import in_time, once
from tests.support.servers import ROOT
from tests.support.witnesses import RunningWitness, command, generate_keys, witness

VKEYS = (SIGNER.verifier,)
HASH = hashlib.sha256(ORIGIN.encode()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("witness")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningWitness]:
    """One that has cosigned four entries, and then nine."""
    with witness(folder, VKEYS, "--every", "0.01") as running:
        assert post(running, LOG.request(0, 4)).status_code == 200
        assert post(running, LOG.request(4, 9)).status_code == 200
        yield running


def post(running: RunningWitness, body: bytes) -> httpx.Response:
    return httpx.post(f"{running.url}/add-checkpoint", content=body, timeout=20)


def get(running: RunningWitness, path: str) -> httpx.Response:
    return httpx.get(f"{running.url}/{path}", timeout=20)


def verifiers(running: RunningWitness) -> list[CosignatureVerifier]:
    return [CosignatureVerifier.parse(vkey) for vkey in running.vkeys]


def test_the_newest_checkpoint_is_there_for_auditors(running: RunningWitness) -> None:
    answer = get(running, checkpoint_path(ORIGIN))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert open_checkpoint(answer.content, VKEYS).size == 9
    found = verify_cosignatures(answer.content, verifiers(running))
    assert len(found) == 2
    assert all(abs(c.time_s - time.time()) < 60 for c in found)
    head = httpx.head(f"{running.url}/{checkpoint_path(ORIGIN)}")
    assert (head.status_code, head.content) == (200, b"")
    # And those before it.
    earlier = get(running, f"{HASH}/checkpoint/4")
    assert open_checkpoint(earlier.content, VKEYS).size == 4
    assert get(running, f"{HASH}/checkpoint/5").status_code == 404


def test_the_history_is_there_for_auditors(running: RunningWitness) -> None:
    lines = [line.split() for line in get(running, f"{HASH}/history").text.splitlines()]
    assert [(int(size), base64.b64decode(root)) for size, root, _ in lines] == [
        (size, tree_root(size, LOG.read)) for size in (4, 9)
    ]
    after = get(running, f"{HASH}/history?after=4").text
    assert after.split() == lines[1]
    assert get(running, f"{HASH}/forks").content == b""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "add-checkpoint", 405),
        ("PUT", "add-checkpoint", 405),
        ("POST", "add-checkpoint?x=1", 404),
        ("POST", "add-checkpoint/", 404),
        ("POST", f"{HASH}/checkpoint", 405),
        ("GET", "", 404),
        ("GET", f"{HASH}", 404),
        ("GET", f"{HASH}/history/4", 404),
        ("GET", f"{HASH}/forks?after=4", 404),
        ("GET", f"{HASH}/history?after={'9' * 19}", 404),
        ("GET", f"{HASH.upper()}/checkpoint", 404),
        ("GET", f"{'0' * 64}/checkpoint", 404),
        ("GET", f"{HASH}/../../etc/passwd", 404),
    ],
)
def test_other_requests(
    running: RunningWitness, method: str, path: str, status: int
) -> None:
    where = urlsplit(running.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request(method, f"/{path}")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == status
    assert (answer.getheader("allow") is not None) == (status == 405)
    connection.close()


def test_refusals_as_the_specification_has_them(running: RunningWitness) -> None:
    conflict = post(running, LOG.request(4, 12))
    assert conflict.status_code == 409
    assert conflict.headers["content-type"] == "text/x.tlog.size"
    assert parse_size(conflict.content) == 9
    stranger = LOG.note(9).replace(b"log.test/a\n9", b"log.test/b\n9")
    false = LOG.note(9).replace(b"\n9\n", b"\n8\n")
    for body, status in (
        (b"", 400),
        (LOG.request(0, 3).replace(b"old 0", b"old 12"), 400),
        (AddCheckpoint(9, (), stranger).encode(), 404),
        (AddCheckpoint(9, (), false).encode(), 403),
        (FORK.request(9, 12), 422),
        (b"x" * (MAX_REQUEST_BYTES + 1), 413),
    ):
        answer = post(running, body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"].startswith("text/plain")


def test_connections_are_kept_and_chunks_are_taken(running: RunningWitness) -> None:
    body = LOG.request(9, 9)
    with httpx.Client(base_url=running.url) as client:
        for _ in range(3):
            answer = client.post("/add-checkpoint", content=body)
            assert answer.status_code == 200
            assert "connection" not in answer.headers
        pieces = (body[at : at + 7] for at in range(0, len(body), 7))
        assert client.post("/add-checkpoint", content=pieces).content == answer.content


def test_a_body_in_the_smallest_parts_is_cut_short(running: RunningWitness) -> None:
    """Each part is work; of a large body that comes byte by byte, little is taken."""
    with connected(running) as client:
        client.sendall(
            b"POST /add-checkpoint HTTP/1.1\r\nhost: x\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            client.sendall(b"1\r\nx\r\n" * (MAX_REQUEST_BYTES - 1))
        answer = b""  # head and body may come one after the other
        with contextlib.suppress(ConnectionError):
            while part := client.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"too small parts" in answer


def test_requests_that_two_servers_could_read_in_two_ways(
    running: RunningWitness,
) -> None:
    for fields in (
        b"content-length: 1\r\ncontent-length: 2\r\n",
        b"content-length: 1\r\ntransfer-encoding: chunked\r\n",
        b"content-length: +1\r\n",
    ):
        with connected(running) as client:
            client.sendall(b"POST /add-checkpoint HTTP/1.1\r\nhost: x\r\n")
            client.sendall(fields + b"\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


def connected(running: RunningWitness) -> socket.socket:
    where = urlsplit(running.url)
    return socket.create_connection((where.hostname, where.port), timeout=30)


def test_one_key_and_its_verifier_key(tmp_path: Path) -> None:
    [path] = generate_keys(tmp_path, "w.test/x", ["ed25519"])
    assert path.stat().st_mode & 0o777 == 0o600
    shown = run_security(
        tmp_path, "witness", "vkey", "--name", "w.test/x", "--key", str(path)
    )
    assert CosignatureVerifier.parse(shown.stdout).name == "w.test/x"
    # It is never overwritten.
    again = run_security(
        tmp_path, "witness", "keygen", "--name", "w.test/x", "--key", str(path)
    )
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_an_encrypted_key(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    key = tmp_path / "key.pem"
    named = ("--name", "w.test/x", "--key", str(key))
    made = run_security(
        tmp_path, "witness", "keygen", *named, "--passphrase-file", str(secret)
    )
    assert made.returncode == 0, made.stderr
    assert key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    refused = run_security(tmp_path, "witness", "vkey", *named)
    assert (refused.returncode, "is encrypted" in refused.stderr) == (2, True)
    shown = run_security(
        tmp_path,
        "witness",
        "vkey",
        *named,
        SEALGATE_KEY_PASSPHRASE_FILE=str(secret),
    )
    assert shown.stdout == made.stdout


def test_what_it_cannot_start_with(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = generate_keys(folder, "witness.test/w1")
    (tmp_path / "other.pem").write_text("nothing")
    (tmp_path / "other.pem").chmod(0o600)
    (tmp_path / "logs").write_text("# none\n\n")
    name, log = ("--name", "w.test/x"), ("--log", str(SIGNER.verifier))
    key, state = ("--key", str(keys[0])), ("--state", str(tmp_path / "state"))
    for arguments, message in (
        ((), "--name, --key, --state is missing"),
        ((*name, *key, *state), "no log to cosign"),
        ((*name, *key, *state, "--logs", str(tmp_path / "logs")), "no log to cosign"),
        ((*name, *key, *state, "--logs", str(tmp_path / "none")), "No such file"),
        ((*name, *key, *state, "--log", "a+b+c"), "log a+b+c: not a verifier key"),
        (("--name", "a b", *key, *state, *log), "not a name for a key"),
        (("--name", "ä" * 150, *key, *state, *log), "more than 255 bytes"),
        ((*name, *key, *key, *state, *log), "two keys of one algorithm"),
        ((*name, "--key", str(tmp_path / "none"), *state, *log), "none"),
        ((*name, "--key", str(tmp_path / "other.pem"), *state, *log), "PKCS#8"),
        ((*name, *key, "--state", str(keys[0]), *log), "File exists"),
        ((*name, *key, *state, *log, "--listen", "192.0.2.1:1"), "192.0.2.1:1"),
        ((*name, *key, *state, *log, "--listen", "x"), "invalid address value"),
        ((*name, *key, *state, *log, "--every", "0"), "seconds, from 0.01 to 86400"),
        ((*name, *key, *state, *log, "--every", "x"), "seconds, from 0.01 to 86400"),
        ((*name, *key, *state, *log, "--max-gib", "0"), "a number from 1 to 8192"),
    ):
        try:
            code: object = main(["witness", *arguments])
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_logs_of_a_file(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.write_text(f"# ours\n{SIGNER.verifier}\n\n")
    with witness(tmp_path, (), "--logs", logs, algorithms=["ml-dsa-44"]) as running:
        answer = post(running, LOG.request(0, 4))
        assert answer.text.count("— witness.test/w1 ") == 1
        assert len(answer.content) > 3000


def test_the_unit_in_the_docs_starts_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "witness.md").read_text()
    [line] = [x for x in text.splitlines() if x.startswith("ExecStart=")]
    program, *arguments = line.removeprefix("ExecStart=").split()
    assert program.endswith("/sealgate-toolkit")
    # As far as the files that are not there.
    assert main(arguments) == 2
    assert "/etc/witness/logs" in capsys.readouterr().err


# Attacks.


def test_two_logs_race_and_one_is_cosigned(tmp_path: Path) -> None:
    """Of each size at most one tree, whoever asks at the same time."""
    with witness(tmp_path, VKEYS, "--every", "0.01", algorithms=["ed25519"]) as running:
        assert post(running, LOG.request(0, 5)).status_code == 200
        statuses: list[tuple[str, int]] = []
        ready = threading.Barrier(8)

        def work(name: str, log: type[LOG]) -> None:
            ready.wait(20)
            for size in (6, 7, 8, 9):
                with httpx.Client(base_url=running.url, timeout=30) as client:
                    body = log.request(size - 1, size)
                    answer = client.post("/add-checkpoint", content=body)
                    statuses.append((name, answer.status_code))

        threads = [
            threading.Thread(target=work, args=pair)
            for pair in (("log", LOG), ("fork", FORK)) * 4
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(statuses) == 32
        assert {status for _, status in statuses} <= {200, 409, 422}
        winners = {name for name, status in statuses if status == 200}
        assert len(winners) == 1
        winner = LOG if winners == {"log"} else FORK
        for line in get(running, f"{HASH}/history").text.splitlines():
            size, root, _ = line.split()
            assert base64.b64decode(root) == tree_root(int(size), winner.read)
        # What the other one signed convicts the log.
        forks = split_notes(get(running, f"{HASH}/forks").content)
        assert forks
        for note in forks:
            fork = open_checkpoint(note, VKEYS)
            seen = get(running, f"{HASH}/checkpoint/{fork.size}").content
            assert open_checkpoint(seen, VKEYS).root != fork.root
        assert "FORK: log.test/a signed two trees of" in running.log.read_text()


def test_what_it_cosigned_survives_being_killed(tmp_path: Path) -> None:
    keys = ["ed25519"]
    with witness(tmp_path, VKEYS, algorithms=keys) as running:
        for old, new in ((0, 4), (4, 9), (9, 31)):
            assert post(running, LOG.request(old, new)).status_code == 200
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(10)
    with witness(tmp_path, VKEYS, algorithms=keys) as running:
        assert parse_size(post(running, LOG.request(0, 9)).content) == 31
        assert post(running, FORK.request(31, 40)).status_code == 422
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    arguments = ["--name", "witness.test/w1", "--key", tmp_path / "ed25519.pem"]
    arguments += ["--state", tmp_path / "state", "--log", VKEYS[0]]
    result = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == 2
    assert "is gone" in result.stderr


def test_slow_clients_hold_up_nobody(running: RunningWitness) -> None:
    """Heads and bodies that never end: others are answered, and those are cut off."""
    head = b"POST /add-checkpoint HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n"
    slow = [connected(running) for _ in range(60)]
    begun = time.monotonic()
    for number, client in enumerate(slow):
        client.sendall(head[:20] if number % 2 else head + b"old 9\n")

    def others() -> None:
        began = time.monotonic()
        for _ in range(5):
            assert post(running, LOG.request(9, 9)).status_code == 200
        in_time(began, 5)

    once(others)
    # A byte now and then buys no more time than silence does.
    dripping = slow.pop(0)
    while time.monotonic() - begun < 20:
        try:
            dripping.sendall(b"A")
            time.sleep(0.5)
        except OSError:
            break
    assert 9 < time.monotonic() - begun < 18
    for client in slow:
        client.settimeout(10)
        with client, contextlib.suppress(ConnectionResetError):
            assert not client.recv(100)
    dripping.close()


def test_one_address_has_a_part_of_the_connections(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no other address than its own")
        here = probe.getsockname()[0]
    own = ("--listen", f"{here}:0")
    with witness(tmp_path, VKEYS, *own, algorithms=["ed25519"]) as running:
        held = [connected(running) for _ in range(32)]
        assert get(running, f"{HASH}/history").status_code == 503
        held.pop().close()
        wait_for(lambda: get(running, f"{HASH}/history").status_code == 200)
        for client in held:
            client.close()


def test_what_it_tells_is_bounded_and_says_nothing_of_strangers(
    running: RunningWitness,
) -> None:
    before = running.log.stat().st_size
    for number in range(50):
        body = b"old 0\n\nsecret-%d.test\n0\nAAAA\n\n" % number
        assert post(running, body).status_code == 400
    told = running.log.read_text()
    assert len(told) - before < 500
    assert "secret" not in told
    assert "PRIVATE" not in told


def test_it_stops_in_an_orderly_way(tmp_path: Path) -> None:
    with (
        witness(tmp_path, VKEYS, algorithms=["ed25519"]) as running,
        connected(running),
    ):
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
    assert running.log.read_text() == ""
