"""The public log of offers through real servers, and clients that demand it."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate import (
    AsyncClient,
    Client,
    NotFoundError,
    NotOfferedError,
    Options,
    ReceiptError,
    RetryPolicy,
)
from sealgate.errors import ProfileError
from sealgate.keys import parse_configs
from sealgate.offers import OfferedLog
from sealgate.options import options_of
from sealgate.profile import Profile
from sealgate.protocol.cosignatures import CosignatureVerifier, parse_note_key
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig, encode_list
from sealgate.protocol.offers import (
    OFFERS_PATH,
    key_leaf,
    offer_of,
    offers_trust,
    verdict_leaf,
)
from sealgate.protocol.receipts import LogTrust, Receipt
from security.audit.journal import load_verifier
from tests.conftest import check_security, mint, run_security, toy_settings
from tests.support.bundles import NAME
from tests.support.live import wait_for
from tests.support.patience import SpoiledError, once
from tests.support.servers import ROOT, Server, sealgate, serve
from tests.support.witnesses import RunningWitness, witness

OTHER_WITNESS = str(
    CosignatureVerifier("other.test", Ed25519PrivateKey.generate().public_key())
)
ROWS = np.array([[1, 2, 3]], dtype=np.float32)


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {
        "SEALGATE_CONFIG": str(home / "service.toml"),
        "SEALGATE_ACCESS_PERMISSIONS": str(ROOT / "deploy" / "access.toml"),
        "SEALGATE_AUDIT_CHECKPOINT_INTERVAL_S": "0.5",
        "SEALGATE_AUDIT_OFFERS": "true",
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }


@pytest.fixture(scope="module")
def home(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offering") / "home"
    return Path(shutil.copytree(pristine, folder))


@pytest.fixture(scope="module")
def watched(home: Path) -> Iterator[RunningWitness]:
    """A real witness of both logs, which the settings require."""
    log = load_verifier(home / "audit.vkey")
    offers = offers_trust(LogTrust((log,))).log
    options = ("--every", "0.01")
    folder = home / "witness"
    with witness(folder, [log, *offers], *options, algorithms=["ed25519"]) as running:
        text = (ROOT / "deploy" / "service.toml").read_text()
        (home / "service.toml").write_text(
            f"{text}\n[audit.witnesses]\nrequired = 1\ninterval_s = 0.3\n"
            f'[[audit.witnesses.witness]]\nurl = "{running.url}"\n'
            f"vkeys = {json.dumps([*running.vkeys])}\n"
        )
        yield running


@pytest.fixture(scope="module")
def server(home: Path, watched: RunningWitness) -> Iterator[Server]:
    """Two workers, which find the same to offer at the same time."""
    extra = settings(home) | {
        "BENTOML_CONFIG_OPTIONS": "services.sealgate.workers=2",
    }
    with serve("", home, extra=extra, alone=True) as running:
        shown = f"{running.url}{OFFERS_PATH}checkpoint"

        def is_offered() -> bool:
            """Two key configurations, the release and a verdict, all cosigned."""
            note = httpx.get(shown).text
            return "witness.test/w1" in note and int(note.split("\n")[1]) >= 4

        # Each time on a connection of its own, which either worker may take; and one
        # of them may show what it read half a second ago.
        wait_for(lambda: all(is_offered() for _ in range(40)))
        yield running


@pytest.fixture
def profile(home: Path, server: Server) -> Profile:
    path = home / "profile.json"
    check_security(
        home,
        *("profile", "--url", server.url, "--model", NAME, "--out", str(path)),
        **settings(home),
    )
    return replace(Profile.load(path), require_offered=True, require_passport=True)


def client_of(profile: Profile, **changes: Any) -> Client:
    options = replace(options_of(profile), **changes)
    return Client(profile.url, token=profile.token, options=options)


def kinds(entries: list[dict[str, Any]]) -> list[str]:
    return sorted(entry["kind"] for entry in entries)


def test_what_is_in_use_is_there_once(profile: Profile) -> None:
    with client_of(profile) as client:
        assert client.infer(NAME, {"features": ROWS})
        entries = client.offers()
        configs = parse_configs(client.keys())
    offered = {entry["sha256"] for entry in entries if entry["kind"].startswith("key")}
    assert offered == {offer_of(key_leaf(c.encode()))["sha256"] for c in configs}
    found = kinds(entries)
    assert found == ["key-configuration"] * len(configs) + ["release", "verdict"]


def test_asynchronously(profile: Profile) -> None:
    async def go() -> None:
        async with AsyncClient(
            profile.url, token=profile.token, options=options_of(profile)
        ) as client:
            assert await client.infer(NAME, {"features": ROWS})
            assert len(await client.offers()) >= 3

    asyncio.run(go())


def test_a_key_that_is_rotated_is_there_before_it_is_published(
    home: Path, profile: Profile
) -> None:
    with client_of(profile) as client:
        before = client.keys()
        count = len(client.offers())
        check_security(
            home, "keys", "rotate", "--role", "sealing", "--force", **settings(home)
        )

        def rotated() -> bool:
            with client_of(profile) as fresh:
                assert fresh.infer(NAME, {"features": ROWS})
                return fresh.keys() != before

        wait_for(rotated, timeout_s=60)
        entries = client.offers()
        assert client.infer(NAME, {"features": ROWS})  # by the key of before, too
    assert len(entries) > count
    assert len({str(entry) for entry in entries}) == len(entries)


def test_a_passport_that_is_not_there(profile: Profile) -> None:
    """A verdict that only one caller is shown; or the right one, with another salt."""
    with client_of(profile) as client:
        passport = client.passport(NAME)
    log = OfferedLog(profile.url, options_of(profile))
    for verdict, salt, there in (
        (passport.verdict_sha256, b"x" * 32, False),
        ("0" * 64, b"x" * 32, False),
        ("", b"", True),
    ):
        leaf = verdict_leaf(verdict, salt) if verdict else passport.offer
        with client_of(profile) as client:
            steps = log.check(leaf, "passport of toy")
            if there:
                client._run(steps)
                continue
            with pytest.raises(NotOfferedError, match="passport of toy is not in"):
                client._run(steps)


def test_receipts_of_one_worker_from_the_other(profile: Profile) -> None:
    """Cosigned: each worker makes the receipt for any other's record."""
    patient = replace(options_of(profile), retry=RetryPolicy(max_retries=50))
    writers = set()
    for _ in range(6):
        with Client(profile.url, token=profile.token, options=patient) as client:
            (number,) = client.infer(NAME, {"features": ROWS}).receipts
        for _ in range(2):
            with Client(profile.url, token=profile.token, options=patient) as client:
                receipt = client.receipt(number)
                proven = client.verify_receipt(receipt, number)
        assert [*proven.witnesses] == ["witness.test/w1"]
        assert abs(proven.witnesses["witness.test/w1"] - time.time()) < 60
        assert len(profile.log_keys) == 2  # ML-DSA-65 beside Ed25519
        assert len(receipt) <= 7 << 10
        writers.add(Receipt.decode(receipt).writer_checkpoint.split(b"\n")[0])
        if len(writers) == 2:
            break
    strict = replace(patient, witness_keys=(*patient.witness_keys, OTHER_WITNESS))
    strict = replace(strict, required_witnesses=2)
    with (
        Client(profile.url, token=profile.token, options=strict) as client,
        pytest.raises(ReceiptError, match="1 of 2 required witnesses"),
    ):
        client.verify_receipt(receipt, number)


def test_a_key_configuration_that_is_not_there(profile: Profile) -> None:
    """As whoever is in between, or has the identity key, would show it to one."""
    config = KeyConfig(9, KEM_X25519, PrivateKey.generate().public_bytes)
    with (
        client_of(profile, key_configs=encode_list([config])) as client,
        pytest.raises(NotOfferedError, match=r"sha256:.* is not in the public log"),
    ):
        client.infer(NAME, {"features": ROWS})


def test_whose_log_it_is_not(profile: Profile, home: Path) -> None:
    other = profile.log_keys[0].replace("sealgate", "stranger")
    with pytest.raises(ProfileError, match="log_keys"):
        client_of(profile, log_keys=(other,))
    with pytest.raises(ProfileError, match="log_keys"):
        client_of(profile, log_keys=())
    with pytest.raises(ProfileError, match="2 witnesses are required of 1"):
        client_of(profile, required_witnesses=2)


def test_the_command(profile: Profile, home: Path, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_bytes(profile.to_json())
    keys = []
    for number, key in enumerate(profile.log_keys):
        (tmp_path / f"{number}.vkey").write_text(f"{key}\n")
        keys += ["--log-key", f"{number}.vkey"]
    (tmp_path / "w.vkey").write_text(profile.witness_keys[0])
    # Anybody who watches: no profile, no token.
    watching = ("offers", "--url", profile.url, *keys, "--witness", "w.vkey")
    done = sealgate(*watching, "--required", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('0 {"kind": "')
    own = sealgate("offers", "--profile", "profile.json", cwd=tmp_path)
    assert own.stdout.splitlines()[: len(lines)] == lines
    printed = sealgate("offers", "--vkeys", *keys, cwd=tmp_path)
    assert printed.stdout.split() == [
        str(key)
        for key in offers_trust(
            LogTrust(tuple(map(parse_note_key, profile.log_keys)))
        ).log
    ]
    # Several keys in one file, as `witness vkey` prints them.
    (tmp_path / "all.vkeys").write_text("\n".join((*profile.log_keys, "")))
    (tmp_path / "two.vkeys").write_text(f"{profile.witness_keys[0]}\n{OTHER_WITNESS}\n")
    files = ("--log-key", "all.vkeys", "--witness", "two.vkeys", "--required", "1")
    of_files = sealgate("offers", "--url", profile.url, *files, cwd=tmp_path)
    assert of_files.stdout.splitlines()[: len(lines)] == lines, of_files.stderr
    wrong = sealgate(*watching, "--required", "2", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    infer = ("infer", "--profile", "profile.json", "--input", "rows.csv")
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n")
    assert sealgate(*infer, cwd=tmp_path).returncode == 0


def test_parts_of_the_log_in_the_open(server: Server) -> None:
    prefix = server.url + OFFERS_PATH
    checkpoint = httpx.get(f"{prefix}checkpoint")
    assert checkpoint.status_code == 200
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"
    assert checkpoint.headers["cache-control"] == "max-age=1"
    size = int(checkpoint.text.splitlines()[1])
    for path, length in ((f"tile/0/000.p/{size}", 32 * size), ("tile/0/000.p/1", 32)):
        tile = httpx.get(prefix + path)
        assert (tile.status_code, len(tile.content)) == (200, length)
        assert "immutable" in tile.headers["cache-control"]
    for path in (
        "",
        "tile",
        f"tile/0/000.p/{size + 1}",
        "tile/0/000",
        "leaves",
        "x/" * 999,
    ):
        assert httpx.get(prefix + path).status_code == 404, path
    assert httpx.post(f"{prefix}checkpoint").status_code == 405
    head = httpx.head(f"{prefix}checkpoint")
    assert (head.status_code, head.content) == (200, b"")


def test_both_logs_are_cosigned_by_the_command(
    home: Path, server: Server, watched: RunningWitness, tmp_path: Path
) -> None:
    """As on a machine where no server runs: in a copy, whose cosignatures are gone."""
    folders = (tmp_path / str(number) for number in itertools.count())

    def scene() -> None:
        copy = Path(shutil.copytree(home, next(folders)))
        for name in ("log.cosigned", "offers.cosigned"):
            (copy / "audit" / name).unlink()
        variables = settings(copy) | {"SEALGATE_CONFIG": str(home / "service.toml")}
        done = run_security(copy, "audit", "cosign", **variables)
        told = [line.split()[-1] for line in done.stdout.splitlines()]
        if "disagrees" in told:  # the server went on, and the witness saw it before
            raise SpoiledError(done.stdout)
        assert told == ["cosigned", "checkpoints", "cosigned", "offers"]
        assert (copy / "audit" / "offers.cosigned").exists()

    once(scene)


def test_the_audit_log_verifies_beside_it(home: Path, server: Server) -> None:
    done = run_security(home, "audit", "verify", **settings(home))
    assert done.returncode == 0, done.stderr


def test_the_log_of_offers_does_not_vouch_for_the_audit_log(
    pristine: Path, tmp_path: Path
) -> None:
    """A witness that refuses one of the two: the alert on that one's age is told so."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    offers = offers_trust(LogTrust((load_verifier(home / "audit.vkey"),))).log
    token = mint(home, "metrics")
    extra = settings(home)
    del extra["SEALGATE_CONFIG"]
    with witness(tmp_path / "w", [*offers], algorithms=["ed25519"]) as running:
        extra["SEALGATE_AUDIT_WITNESSES"] = (
            f'{{required = 1, interval_s = 0.1, witness = [{{url = "{running.url}", '
            f'vkeys = ["{running.vkeys[0]}"]}}]}}'
        )
        with serve("", home, extra=extra, alone=True) as server:
            shown = f"{server.url}{OFFERS_PATH}checkpoint"
            wait_for(lambda: "witness.test/w1" in httpx.get(shown).text)
            headers = {"authorization": f"Bearer {token}"}

            def metrics() -> str:
                return httpx.get(f"{server.url}/metrics", headers=headers).text

            wait_for(lambda: 'outcome="refused"' in metrics())
            wait_for(lambda: 'outcome="cosigned"' in metrics())
            assert "\nsealgate_audit_witnessed_seconds 0.0\n" in metrics()


def test_a_server_without_the_log(home: Path, profile: Profile) -> None:
    """Nothing is told, no salt comes with a passport, and who demands it refuses."""
    extra = settings(home) | {
        "SEALGATE_AUDIT_OFFERS": "false",
        "SEALGATE_AUDIT_RECEIPTS": "false",
    }
    token = mint(home, f"infer:{NAME}")
    with serve("", home, extra=extra, alone=True) as quiet:
        assert httpx.get(f"{quiet.url}{OFFERS_PATH}checkpoint").status_code != 200
        bare = Options(trusted_keys=profile.trusted_keys)
        with Client(quiet.url, token=token, options=bare) as client:
            assert client.passport(NAME).offer == b""
            assert client.infer(NAME, {"features": ROWS}).receipts == ()
            with pytest.raises(NotFoundError):
                client.receipt("A" * 60)
        away = replace(profile, url=quiet.url, token=token)
        with (
            client_of(away) as client,
            pytest.raises(Exception, match="no log of offers"),
        ):
            client.infer(NAME, {"features": ROWS})
