"""`keys … --role sealing`, and a client that pins the identity key across rotations."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from sealgate import Client, SealgateError
from sealgate.protocol.dsse import key_hint, public_pem
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from sealgate.protocol.keyconfig import decode_list
from security.admission.trust import ROLES
from security.commands import build_parser
from security.commands.config import _without_secrets
from security.errors import KeyFileError
from security.key_files import write_secret
from security.sealing import rotation
from security.sealing.keyring import KeyRing, generate_key, load_keyring, load_keys
from security.sealing.live import LiveRing
from security.sealing.publish import load_identity, load_mldsa_identity
from tests.conftest import Command, check_security, run_security, toy_settings
from tests.support.bundles import NAME
from tests.support.live import wait_for
from tests.support.servers import serve

ROWS = {"features": [[1.0, 2.0, 3.0]]}


def hpke(home: Path) -> Path:
    return home / "keys" / "hpke"


@pytest.fixture
def home(security: Command, tmp_path: Path) -> Path:
    assert security("keygen").returncode == 0
    return tmp_path / "home"


def test_keygen_makes_a_key_of_each_kem_and_an_identity(home: Path) -> None:
    kems = {item.key.kem_id for item in load_keys(hpke(home))}
    assert kems == {KEM_X25519, KEM_XWING}
    assert (home / "keys" / "identity.pem").stat().st_mode & 0o777 == 0o600


def test_keygen_prints_the_pin_and_changes_nothing_the_second_time(
    security: Command, home: Path
) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    path = home / "keys" / "identity.pem"
    identity = load_identity(path).public_key()
    lines = security("keygen").stdout.splitlines()
    assert f"kept      {path}  sha256:{key_hint(identity)}" in lines
    assert all(line.startswith("kept      ") for line in lines)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert after == before
    shown = security("keys", "public", "--identity").stdout
    lattice = load_mldsa_identity(home / "keys" / "identity.mldsa.pem").public_key()
    assert shown == public_pem(identity) + public_pem(lattice)


def test_a_passphrase_that_the_server_finds_encrypts_its_keys(
    security: Command, tmp_path: Path
) -> None:
    secret = tmp_path / "passphrase"
    write_secret(secret, b"correct horse\n")
    variable = {"SEALGATE_KEY_PASSPHRASE_FILE": str(secret)}
    for expected in ("generated", "kept"):
        result = security("keygen", **variable)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(expected)
    rotated = ("keys", "rotate", "--role", "sealing", "--force")
    assert security(*rotated, **variable).returncode == 0
    folder = tmp_path / "home" / "keys"
    files = [*(folder / "hpke").iterdir(), folder / "identity.pem"]
    assert len(files) == 5
    for path in files:
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert "X-Wing  sealing" in security("keys", "list", **variable).stdout
    result = security(*rotated, "--passphrase-file", str(secret), **variable)
    assert result.returncode == 2
    assert "SEALGATE_KEY_PASSPHRASE_FILE, where the server finds it" in result.stderr


def test_a_passphrase_of_signers_leaves_the_servers_keys_alone(
    security: Command, tmp_path: Path
) -> None:
    secret = tmp_path / "passphrase"
    write_secret(secret, b"correct horse\n")
    for _ in range(2):
        made = security("keygen", "--passphrase-file", str(secret))
        assert made.returncode == 0, made.stderr
    assert len(load_keys(hpke(tmp_path / "home"))) == 2


def test_list_says_which_how_old_and_until_when(security: Command, home: Path) -> None:
    lines = security("keys", "list", "--role", "sealing").stdout.splitlines()
    pattern = r"(\d) +(X25519|X-Wing) +sealing  current, 0 min old, due 20\S+Z"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert {match and (match[1], match[2]) for match in found} == {
        ("1", "X-Wing"),
        ("2", "X25519"),
    }
    one, other = security("keys", "list", "--role", "release").stdout.splitlines()
    assert "  release          trusted" in one
    assert "  release          trusted" in other
    shutil.rmtree(hpke(home))
    hpke(home).mkdir()
    lines = security("keys", "list").stdout.splitlines()
    roles = dict.fromkeys(line.split()[1] for line in lines)
    assert [*roles] == [*ROLES, "model"]


@pytest.mark.parametrize(
    "action", ["list", "generate", "rotate", "retire", "add", "revoke", "public"]
)
def test_help_of_each_action(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["keys", action, "--help"])
    assert caught.value.code == 0
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: python -m security keys {action}")
    assert description.endswith(".")


def test_nothing_is_rotated_before_it_is_due(security: Command, home: Path) -> None:
    before = sorted(path.name for path in hpke(home).iterdir())
    result = security("keys", "rotate", "--role", "sealing")
    assert result.returncode == 0
    assert "no sealing key is due" in result.stdout
    assert sorted(path.name for path in hpke(home).iterdir()) == before


def test_rotation_keeps_the_old_keys_for_their_overlap(
    security: Command, home: Path
) -> None:
    result = security("keys", "rotate", "--role", "sealing", "--force")
    assert result.returncode == 0, result.stderr
    assert len(load_keys(hpke(home))) == 4
    lines = security("keys", "list").stdout.splitlines()
    assert sum("sealing  current" in line for line in lines) == 2
    assert sum("sealing  overlap" in line for line in lines) == 2


def test_a_named_key_is_retired_at_once(security: Command, home: Path) -> None:
    security("keys", "rotate", "--role", "sealing", "--force")
    result = security("keys", "retire", "--role", "sealing", "1")
    assert result.stdout.splitlines()[-1] == "retired 1 keys"
    assert 1 not in {item.key_id for item in load_keys(hpke(home))}


def test_the_last_keys_are_not_retired(security: Command, home: Path) -> None:
    result = security("keys", "retire", "--role", "sealing", "1", "2")
    assert result.returncode == 2
    assert "no key would be left" in result.stderr
    assert len(load_keys(hpke(home))) == 2


def test_an_unknown_key_is_not_retired(security: Command, home: Path) -> None:
    result = security("keys", "retire", "--role", "sealing", "99")
    assert result.returncode == 2
    assert "there is no key 99" in result.stderr
    assert len(load_keys(hpke(home))) == 2


def test_generate_adds_keys(security: Command, home: Path) -> None:
    result = security("keys", "generate", "--role", "sealing")
    assert result.returncode == 0
    assert len(load_keys(hpke(home))) == 4


def test_the_configuration_hides_the_stores_password(
    security: Command, home: Path
) -> None:
    url = "redis://name:hunter2@127.0.0.1:6379/0"
    result = security("config", SEALGATE_SEALING_REPLAY_STORE=url)
    assert result.returncode == 0, result.stderr
    assert "hunter2" not in result.stdout
    shown = json.loads(result.stdout)["sealing"]["replay_store"]
    assert shown == "redis://***@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("local", "local"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("rediss://:hunter2@cache", "rediss://***@cache"),
        ("redis://a:hun@ter2@cache", "redis://***@cache"),
        ("redis://a:hunt/er2@cache", "redis://***@cache"),
        ("redis://cache/0?password=hunter2", "redis://cache/0?***"),
    ],
)
def test_no_part_of_a_url_shows_a_password(url: str, shown: str) -> None:
    assert _without_secrets(url) == shown


@pytest.fixture(scope="module")
def own(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that these tests may change."""
    home = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(pristine, home)
    return home


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home)


def test_a_pinned_identity_outlives_rotations_under_load(own: Path) -> None:
    """The rotated server drops no request, and the profile stays good."""
    with serve("service.app:Sealgate", own, extra=settings(own), alone=True) as server:
        check_security(
            own, "profile", "--url", server.url, "--model", NAME, **settings(own)
        )
        profile = json.loads((own / "profile.json").read_bytes())
        assert profile["identity_keys"]
        assert profile["key_configs"] is None
        stop = threading.Event()
        failures: list[BaseException] = []
        answered = [0]

        def ask() -> None:
            with Client.from_profile(own / "profile.json") as client:
                while not stop.is_set():
                    try:
                        client.infer(NAME, ROWS)
                        answered[0] += 1
                    except SealgateError as error:
                        failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: answered[0] > 20)
            check_security(own, "keys", "rotate", "--role", "sealing", "--force")
            newest = max(item.key_id for item in load_keys(hpke(own)))

            def offered() -> bool:
                with Client.from_profile(own / "profile.json") as client:
                    assert client.infer(NAME, ROWS)["label"].tolist() == [1]
                    configs = decode_list(client.keys())
                return newest in {config.key_id for config in configs}

            wait_for(offered)  # the server looks at its ring once a second
            so_far = answered[0]
            wait_for(lambda: answered[0] > so_far + 30 or bool(failures))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert answered[0] > 50


def test_a_wrong_identity_is_refused(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run_security(other, "keygen").returncode == 0
    with serve("service.app:Sealgate", own, extra=settings(own), alone=True) as server:
        check_security(
            own, "profile", "--url", server.url, "--model", NAME, **settings(own)
        )
        document = json.loads((own / "profile.json").read_bytes())
        check_security(other, "profile", "--url", server.url, "--model", NAME)
        strange = json.loads((other / "profile.json").read_bytes())
        document["identity_keys"] = strange["identity_keys"]
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(document))
        with (
            Client.from_profile(path) as client,
            pytest.raises(SealgateError, match=r"identity|trusted"),
        ):
            client.infer(NAME, ROWS)


# A folder as Kubernetes mounts a Secret: links to files behind `..data`, which is
# itself a link, and is replaced by one rename.


def publish(mount: Path, source: Path, stamp: str) -> None:
    """What the kubelet does to mount a Secret, and again when the Secret changes."""
    real = mount / f"..{stamp}"
    real.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, real / path.name)
    (mount / "..data_tmp").symlink_to(real.name)
    (mount / "..data_tmp").replace(mount / "..data")
    for path in source.iterdir():
        link = mount / path.name
        if not link.is_symlink():
            link.symlink_to(Path("..data") / path.name)
    for link in mount.iterdir():
        if not link.exists():
            link.unlink()


@pytest.fixture
def mounted(home: Path, tmp_path: Path) -> Path:
    publish(tmp_path / "mount", hpke(home), "2026_11_21_03_00_00.1")
    return tmp_path / "mount"


def test_a_ring_as_kubernetes_mounts_it(mounted: Path) -> None:
    assert {item.key_id for item in load_keys(mounted)} == {1, 2}


def test_a_mounted_key_that_others_may_read_is_refused(mounted: Path) -> None:
    (target,) = (mounted / "..data").glob("1-*.pem")
    target.chmod(0o644)
    with pytest.raises(KeyFileError, match="permissions 0644 let others in"):
        load_keys(mounted)


class Clock:
    """Ahead of what was written, so that the folder counts as settled."""

    def __init__(self) -> None:
        self.now = time.time() + 3600

    def __call__(self) -> float:
        self.now += 1  # every look is due
        return self.now


def live(folder: Path) -> LiveRing:
    clock = Clock()
    return LiveRing(folder, overlap_s=1e6, clock=clock, monotonic=clock)


def test_a_swap_of_the_mount_is_noticed(home: Path, mounted: Path) -> None:
    ring = live(mounted)
    before: KeyRing = ring.current()
    assert before.ids == (1, 2)
    rotation.generate(hpke(home), now=time.time())
    publish(mounted, hpke(home), "2026_11_22_03_00_00.1")
    assert ring.current().ids == (1, 2, 3, 4)
    rotation.retire(hpke(home), now=time.time(), overlap_s=1e6, key_ids=[1, 2])
    publish(mounted, hpke(home), "2026_11_22_05_00_00.1")
    assert ring.current().ids == (3, 4)
    # A request in work keeps the ring that it began with.
    assert before.ids == (1, 2)


def test_a_swap_that_keeps_every_name_is_noticed(home: Path, mounted: Path) -> None:
    ring = live(mounted)
    before = ring.current().document
    for path in list(hpke(home).iterdir()):
        kem_id = KEM_XWING if path.name.startswith("1-") else KEM_X25519
        path.unlink()
        made = generate_key(hpke(home), int(path.name[0]), kem_id=kem_id)
        made.rename(path)
    publish(mounted, hpke(home), "2026_11_22_03_00_00.1")
    assert ring.current().document != before
    assert ring.current().document == load_keyring(mounted).document


def test_half_a_swap_leaves_the_last_ring(home: Path, mounted: Path) -> None:
    ring = live(mounted)
    before = ring.current().document
    (mounted / "..data").rename(mounted / "..gone")
    assert ring.current().document == before
    (mounted / "..gone").rename(mounted / "..data")
    assert ring.current().document == before
