"""Receipts through real servers: numbers inside the seal, proofs for who asked."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from sealgate import (
    Answers,
    AsyncClient,
    Client,
    NotFoundError,
    Options,
    OverloadedError,
    ReceiptError,
    ReceiptNumber,
    RetryPolicy,
)
from sealgate.errors import ProfileError
from sealgate.profile import Profile
from sealgate.protocol.receipts import NumberSealer, Receipt
from sealgate.receipts import read_numbers, write_numbers
from security.key_files import read_secret
from tests.conftest import check_security, run_security, toy_settings
from tests.security.audit.test_audit_command import records
from tests.support.bundles import NAME
from tests.support.live import wait_for
from tests.support.servers import Server, sealgate, serve

ROWS = np.array([[1, 2, 3], [4, 5, 6.5]], dtype=np.float32)
ONCE = RetryPolicy(max_retries=0)
INTERVAL_S = 0.6
FIELD = b"sealgate-receipt"


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {
        "SEALGATE_AUDIT_CHECKPOINT_INTERVAL_S": str(INTERVAL_S),
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts") / "home"
    return Path(shutil.copytree(pristine, folder))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serve("", home, extra=settings(home), alone=True) as running:
        yield running


@pytest.fixture(scope="module")
def profile(home: Path, server: Server) -> Path:
    """What `python -m security profile` writes: with the key of the log."""
    path = home / "profile.json"
    check_security(
        home,
        *("profile", "--url", server.url, "--model", NAME, "--out", str(path)),
        *("--allow", "explain"),
        **settings(home),
    )
    return path


@pytest.fixture
def client(profile: Path) -> Iterator[Client]:
    with Client.from_profile(profile) as client:
        yield client


def ask(client: Client, rows: object = ROWS) -> ReceiptNumber:
    answer = client.infer(NAME, {"features": rows})
    assert isinstance(answer, Answers)
    (number,) = answer.receipts
    return number


def test_a_receipt_for_an_answer(client: Client) -> None:
    number = ask(client)
    receipt = client.receipt(number)  # waits for the checkpoint
    digest = client.passport(NAME).model_sha256
    proven = client.verify_receipt(receipt, number, model_sha256=digest)
    assert proven.request_id == number.request_id
    assert (proven.fields["rows"], proven.fields["status"]) == (2, 200)
    assert abs(proven.time_us / 1e6 - time.time()) < 60
    assert len(receipt) <= 7 << 10  # the log has a key of ML-DSA-65, too
    # By its number alone, too.
    assert client.verify_receipt(client.receipt(number.number), number)


def test_asynchronously_and_of_several_requests(profile: Path) -> None:
    async def go() -> None:
        async with AsyncClient.from_profile(profile) as client:
            rows = np.zeros((130, 3), dtype=np.float32)
            answer = await client.infer(NAME, {"features": rows})
            assert len(answer.receipts) == 3
            assert len({number.request_id for number in answer.receipts}) == 3
            for number in answer.receipts:
                receipt = await client.receipt(number)
                assert client.verify_receipt(receipt, number).fields["rows"] in (64, 2)

    asyncio.run(go())


def test_for_an_explanation(client: Client) -> None:
    found = client.explain(NAME, {"features": ROWS[:1]})
    (number,) = found.receipts
    proven = client.verify_receipt(client.receipt(number), number)
    assert proven.fields["action"] == "explain"


def test_before_its_checkpoint(profile: Path) -> None:
    loaded = Profile.load(profile)
    options = Options(retry=ONCE, log_keys=loaded.log_keys)
    with Client(loaded.url, token=loaded.token, options=options) as client:
        number = ask(client)
        with pytest.raises(OverloadedError) as refused:
            client.receipt(number)
        assert refused.value.status == 409
        assert refused.value.type == "https://sealgate.dev/problems/receipt-pending"
        assert refused.value.retry_after_s == 1
        assert refused.value.sealed
        time.sleep(INTERVAL_S)

        def there() -> bool:
            try:
                return bool(client.receipt(number))
            except OverloadedError:
                return False

        wait_for(there, timeout_s=20)


def test_only_for_who_asked(home: Path, client: Client, profile: Path) -> None:
    """Another subject learns as much of a real number as of one that is made up."""
    number = ask(client)
    client.receipt(number)
    flags = ("--scope", f"infer:{NAME}", "--subject", "mallory", "--lifetime", "600")
    token = check_security(home, "token", *flags).strip()
    key = read_secret(home / "keys" / "audit.key")
    forged = [
        number.number,
        number.number[:-2] + ("AA" if number.number[-2:] != "AA" else "BB"),
        "A" * 60,
        NumberSealer(b"x" * 32).seal("1-1", 1),
        # Whoever had the key: the start of a writer, a record that is not there.
        *(NumberSealer(key).seal(writer, 0) for writer in (writers(home)[0], "1-1")),
    ]
    seen = set()
    with Client(client.url, token=token) as other:
        for text in forged:
            with pytest.raises(NotFoundError) as refused:
                other.receipt(text)
            seen.add(json.dumps(refused.value.problem, sort_keys=True))
    assert len(seen) == 1
    # The same subject with another token may.
    own = check_security(
        home, "token", "--scope", f"infer:{NAME}", "--subject", "developer"
    ).strip()
    with Client(client.url, token=own) as same:
        assert same.receipt(number)


def writers(home: Path) -> list[str]:
    return sorted({p.name.partition(".")[0] for p in (home / "audit").glob("*.jsonl")})


def test_what_is_no_request_for_one(client: Client, server: Server) -> None:
    number = ask(client).number
    for method, path, status in (
        ("POST", f"/v2/receipts/{number}", 405),
        ("GET", "/v2/receipts/", 404),
        ("GET", f"/v2/receipts/{number}/", 404),
        ("GET", "/v2/receipts/%2e%2e/", 404),
        ("GET", f"/v2/receipts/{'A' * 4000}", 404),
        ("GET", "/v2/receipts", 404),
    ):
        answer = client.forward(method, path)
        assert answer.status == status, path
    bare = httpx.get(f"{server.url}/v2/receipts/{number}")
    assert bare.status_code == 401
    with pytest.raises(ReceiptError, match="not the number"):
        client.receipt("../models/toy")


def test_numbers_are_inside_the_seal(client: Client, home: Path) -> None:
    """And come with answers of models, and with nothing else."""
    path = f"/v2/models/{NAME}"
    for method, where in (
        ("GET", path),
        ("GET", f"{path}/attestations"),
        ("GET", "/v2"),
    ):
        assert FIELD not in dict(client.forward(method, where).headers)
    refused = client.forward("POST", f"{path}/infer", body=b"{}")
    assert refused.status == 400
    assert FIELD not in dict(refused.headers)
    number = ask(client)
    assert number.number not in (home / "audit").joinpath(writers(home)[-1]).name


def test_receipts_are_recorded_and_charged(client: Client, home: Path) -> None:
    number = ask(client)
    client.receipt(number)
    fetched = [item for item in records(home) if item["action"] == "receipt"]
    assert fetched[-1]["model"] == NAME
    assert {item["outcome"] for item in fetched} <= {"allow", "refuse"}


def test_the_command(home: Path, profile: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n4,5,6.5\n")
    infer = ("infer", "--profile", profile, "--input", "rows.csv")
    done = sealgate(*infer, "--receipts", "numbers.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (number,) = read_numbers(tmp_path / "numbers.jsonl")
    fetched = sealgate(
        "receipt", "fetch", "numbers.jsonl", "--profile", profile, cwd=tmp_path
    )
    assert fetched.returncode == 0, fetched.stderr
    path = fetched.stdout.strip()
    assert path == f"receipts/{number.request_id}.receipt"
    # One that is not there keeps back no other's.
    gone = ReceiptNumber("A", "0" * 16, NAME)
    write_numbers(tmp_path / "some.jsonl", [gone, number])
    some = ("receipt", "fetch", "some.jsonl", "--profile", profile, "--output", "some")
    fetched = sealgate(*some, cwd=tmp_path)
    assert (fetched.returncode, fetched.stdout) == (
        1, f"some/{number.request_id}.receipt\n",
    )  # fmt: skip
    assert fetched.stderr.startswith(f"refused: {'0' * 16}: ")
    assert len(fetched.stderr.splitlines()) == 1
    # Offline: the keys alone.
    shutil.copy(home / "audit.vkey", tmp_path)
    offline = ("receipt", "verify", path, "--log-key", "audit.vkey")
    wanted = ("--numbers", "numbers.jsonl", "--tlog-proof", "log.tlog-proof")
    checked = sealgate(*offline, *wanted, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"request {number.request_id}\n")
    assert "cosigned" not in checked.stdout
    proof = (tmp_path / "log.tlog-proof").read_bytes()
    assert proof.startswith(b"c2sp.org/tlog-proof@v1\nindex ")
    for extra, message in (
        (("--required", "1"), "1 witnesses are required of 0"),
        (("--witness", "audit.vkey"), "required_witnesses: say how many"),
        (("--log-key", "numbers.jsonl"), "log_keys"),
        (("--numbers", "none.jsonl"), "none.jsonl"),
    ):
        wrong = sealgate(*offline, *extra, cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert message in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
    other = ReceiptNumber("A", "0" * 16, NAME)
    write_numbers(tmp_path / "others.jsonl", [other])
    for extra in (
        ("--request-id", "0" * 16),
        ("--model-sha256", "0" * 64),
        ("--numbers", "others.jsonl"),
    ):
        wrong = sealgate(*offline, *extra, cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr.startswith("refused: ")
    data = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert sealgate(*offline, cwd=tmp_path).returncode == 1


def test_a_request_id_that_is_a_path(tmp_path: Path, profile: Path) -> None:
    write_numbers(tmp_path / "n.jsonl", [ReceiptNumber("A", "../../x", NAME)])
    done = sealgate("receipt", "fetch", "n.jsonl", "--profile", profile, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a request's id" in done.stderr


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"number":1,"request_id":"a","model":"b"}', "x", '{"a":']
)
def test_files_that_are_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ProfileError, match="line 2"):
        read_numbers(path)
    with pytest.raises(ProfileError, match="No such file"):
        read_numbers(tmp_path / "none")


def test_without_keys_nothing_is_verified(client: Client, profile: Path) -> None:
    loaded = Profile.load(profile)
    with Client(loaded.url, token=loaded.token) as bare:
        number = ask(bare)
        receipt = bare.receipt(number)
        with pytest.raises(ProfileError, match="log_keys"):
            bare.verify_receipt(receipt, number)
    with pytest.raises(ReceiptError, match="another request"):
        client.verify_receipt(receipt, ask(client))
    assert Receipt.decode(receipt).checkpoint


def test_the_log_still_verifies(home: Path, server: Server) -> None:
    done = run_security(home, "audit", "verify")
    assert done.returncode == 0, done.stderr
