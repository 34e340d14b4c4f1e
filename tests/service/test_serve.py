"""`python -m security serve`: one process, one gate, bytes from anywhere."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from bentoml._internal.resource import system_resources

from sealgate import Client
from service import __main__ as server_itself
from tests.conftest import TAG, mint, run_security, toy_settings
from tests.security.admission.test_sources import layout
from tests.support.bundles import NAME, Keys, write_bundle
from tests.support.live import wait_for
from tests.support.servers import ROOT, environment, free_port, serve

pytestmark = pytest.mark.slow

ROWS = {"features": np.ones((2, 3), dtype=np.float32)}


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the deployment, with an empty model store."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    shutil.rmtree(home / "bentoml" / "models")
    return home


def options(home: Path) -> tuple[str, ...]:
    return ("--policy", str(home / "policy.toml"))


def keys(home: Path) -> Keys:
    return Keys.of(home)


def refused(home: Path, *targets: str, code: int = 1, **extra: str) -> str:
    """The one line that it ends with; nothing listens."""
    port = free_port()
    result = run_security(
        home, "serve", *targets, "--port", str(port), *options(home), **extra
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    return result.stderr


def children(pid: int) -> list[str]:
    result = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout.split()


def test_a_folder_of_bundles_by_one_process(home: Path, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(home / "bundle", bundles / "toy")
    write_bundle(bundles / "second", keys(home), name="second")
    with serve(str(bundles), home, own=options(home), fresh=True) as server:
        assert children(server.pid) == []
        challenge = httpx.get(f"{server.url}/v2").headers["www-authenticate"]
        assert f'resource_metadata="{server.url}/.well-known/' in challenge
        log = server.log.read_text()
        assert log.index(f"admitted {TAG}") < log.index(f"listening on {server.url}")
        # The profile was written for it: token, pinned keys, the first model's name.
        with Client.from_profile(home / "profile.json") as client:
            assert client.url == server.url
            for name in (NAME, "second"):
                assert client.infer(name, ROWS)["label"].shape == (2,)
                assert client.passport(name).model == f"{name}:1.0.0"


def test_an_oci_layout(home: Path, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", home / "bundle")
    with (
        serve(str(image), home, own=options(home)),
        Client.from_profile(home / "profile.json") as client,
    ):
        assert client.infer(NAME, ROWS)["label"].shape == (2,)


def test_a_bento_by_its_lock(home: Path) -> None:
    """Built by `package`; its own code serves it."""
    packaged = run_security(home, "package", str(home / "bundle"), *options(home))
    assert packaged.returncode == 0, packaged.stderr
    with (
        serve("sealgate:latest", home, own=options(home), cwd=home) as server,
        Client.from_profile(home / "profile.json") as client,
    ):
        assert client.infer(NAME, ROWS)["label"].shape == (2,)
        code = Path(f"/proc/{server.pid}/cwd").resolve()
        assert code.is_relative_to(home / "bentoml" / "bentos")


def test_several_workers(home: Path) -> None:
    own = (*options(home), "--workers", "2")
    with (
        serve(str(home / "bundle"), home, own=own, fresh=True) as server,
        Client.from_profile(home / "profile.json") as client,
    ):
        wait_for(lambda: len(children(server.pid)) == 2)
        assert client.infer(NAME, ROWS)["label"].shape == (2,)


def test_what_changes_on_disk_does_not_change_what_runs(home: Path) -> None:
    """The bytes that were verified run on; what is there now is not what they are."""
    bundle = home / "bundle"
    extra = {"SEALGATE_DEPLOYMENT_POLL_S": "0.1"}
    with (
        serve(str(bundle), home, own=options(home), extra=extra),
        Client.from_profile(home / "profile.json") as client,
    ):
        before = client.infer(NAME, ROWS)["probabilities"]
        shutil.rmtree(bundle)
        other = np.array([[-9, 9], [-9, 9], [9, -9]], dtype=np.float32)
        write_bundle(bundle, Keys.generate(), weights=other)
        after = client.infer(NAME, ROWS)["probabilities"]
        np.testing.assert_array_equal(before, after)


def test_the_operators_command_loads_from_the_folder(
    home: Path, tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(home / "bundle", bundles / "1")
    extra = toy_settings(home) | {
        "SEALGATE_SERVICE_MODELS": f"path:{bundles}",
        "SEALGATE_DEPLOYMENT_POLL_S": "0.1",
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }
    headers = {"authorization": f"Bearer {mint(home, 'infer:toy')}"}
    with serve(str(bundles), home, own=options(home), extra=extra) as server:
        write_bundle(bundles / "2", keys(home), version="2.0.0")
        changed = run_security(home, "models", "load", "toy:2.0.0", **extra)
        assert changed.returncode == 0, changed.stdout + changed.stderr
        answer = httpx.get(f"{server.url}/v2/models/toy", headers=headers).json()
        assert sorted(answer["versions"]) == ["1.0.0", "2.0.0"]
        listed = run_security(home, "models", "list", **extra).stdout
        assert "default 1.0.0; also 2.0.0" in listed
    # From then on the plan decides, and says so to whoever names something else.
    line = refused(home, str(bundles), code=2, **extra)
    assert "plan.json decides what is served (load toy:2.0.0)" in line


def test_what_is_refused_before_a_port_is_open(home: Path, tmp_path: Path) -> None:
    bundle = home / "bundle"
    (bundle / "evidence" / "quality.json").unlink()
    assert f"{TAG} refused: quality report is missing" in refused(home, str(bundle))
    assert not (home / "profile.json").exists()
    (tmp_path / "empty").mkdir()
    line = refused(home, str(tmp_path / "empty"))
    assert "empty: no bundle is there" in line
    assert "toy:9.9.9 is not in the model store" in refused(home, "toy:9.9.9")
    assert "is no folder, and no full tag" in refused(home, "toy", code=2)
    assert "sealgate:none" in refused(home, "sealgate:none", code=2)
    line = refused(home, "sealgate:none", "toy:1.0.0", code=2)
    assert "a Bento holds its own models" in line
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bento.yaml").write_text("service: service.app:Sealgate\n")
    line = refused(home, str(tmp_path / "old"), code=2)
    assert "was built before `serve` could serve it: build it again" in line


@pytest.mark.parametrize("arguments", [("--help",), ("--port", "x")])
def test_usage_of_the_server_itself(arguments: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == (0 if "--help" in arguments else 2)
    assert "usage: python -m service" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0"), "--workers: a number from 1 to 1024"),
        (("--port", "65536"), "--port: a number from 1 to 65535"),
        (("--timeout-graceful-shutdown", "-1"), "a number from 1 to 86400"),
    ],
)
def test_numbers_that_the_server_cannot_use(
    arguments: tuple[str, ...], message: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["service", *arguments])
    with pytest.raises(SystemExit) as ended:
        server_itself.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_bentoml_reads_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("BENTOML_PORT", "3999")
    options = "services.sealgate.workers=3 services.sealgate.workers="
    for value, workers in (("2", 2), ("cpu_count", int(system_resources()["cpu"]))):
        monkeypatch.setenv("BENTOML_CONFIG_OPTIONS", options + value)
        args = server_itself._parser().parse_args([])
        assert (args.port, args.workers) == (3999, max(1, workers))


def test_a_host_that_has_no_address(pristine: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    result = subprocess.run(
        [sys.executable, "-m", "service", "--host", "nohost.invalid"],
        cwd=ROOT, env=environment(home, toy_settings(home)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: nohost.invalid:3000: ")
    assert "Unknown error" not in line


STOPPED = """
import argparse, io, signal, sys
from service.__main__ import _listen
from security.settings.loading import load_settings

class Out(io.TextIOWrapper):
    def write(self, text):
        if "listening" in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)

async def app(scope, receive, send):
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    print("shut down")
    await send({"type": "lifespan.shutdown.complete"})

sys.stdout = Out(sys.stdout.detach())
args = argparse.Namespace(host="127.0.0.1", port=0, timeout_graceful_shutdown=5)
sys.exit(_listen(args, load_settings(), app))
"""


def test_it_is_told_to_stop_as_soon_as_it_says_that_it_listens(home: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED],
        cwd=ROOT, env=environment(home, toy_settings(home)),
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "shut down" in ended.stdout


def test_a_port_that_is_taken(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_security(
            home, "serve", str(home / "bundle"), "--port", str(port), *options(home)
        )
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line == f"error: 127.0.0.1:{port}: Address already in use"


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    """And not the port, which is none of its business."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(home, toy_settings(home) | {"BENTOML_HOME": "/dev/null/home"}),
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == "error: /dev/null/home: Not a directory\n"


def test_in_production_no_profile_is_written(home: Path) -> None:
    extra = {
        "SEALGATE_SERVICE_ENVIRONMENT": "production",
        "SEALGATE_ACCESS_ISSUER": "https://issuer.example",
        "SEALGATE_ACCESS_RESOURCE": "https://models.example",
    }
    with serve(str(home / "bundle"), home, own=options(home), extra=extra):
        assert not (home / "profile.json").exists()


def build(home: Path, models: str) -> subprocess.CompletedProcess[str]:
    extra = toy_settings(home) | {"SEALGATE_SERVICE_MODELS": models}
    return subprocess.run(
        [sys.executable, "-m", "bentoml", "build"],
        cwd=ROOT, env=environment(home, extra),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_folder_cannot_be_packaged_beside_models(
    pristine: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    result = build(home, f"path:{home}/bundle,{TAG}")
    assert result.returncode == 1
    assert "a Bento packages what is in the model store" in result.stderr


def test_a_bento_without_a_model_serves_what_is_mounted(
    home: Path, tmp_path: Path
) -> None:
    """The folder need not be there when it is built; what is in it then is verified."""
    mounted, extra = tmp_path / "mounted", toy_settings(home)
    result = build(home, f"path:{mounted}")
    assert result.returncode == 0, result.stderr
    assert f"notice: no model is packaged: path:{mounted}" in result.stderr
    (bento,) = (home / "bentoml" / "bentos" / "sealgate").glob("*/src")
    checked = run_security(home, "verify", str(bento.parent), **extra)
    assert checked.stdout.startswith("verified a Bento without a model"), checked.stderr

    def starting(models: str) -> str:
        port = str(free_port())
        ended = subprocess.run(
            [sys.executable, "-m", "service", "--port", port],
            cwd=bento,
            env=environment(home, extra | {"SEALGATE_SERVICE_MODELS": models}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 1, ended.stderr
        return ended.stderr.splitlines()[-1]

    assert "refused: service.models names no model to serve" in starting(TAG)
    write_bundle(mounted / "any-name", Keys.generate())
    assert f"{TAG} refused: " in starting(f"path:{mounted}")
    shutil.rmtree(mounted)
    shutil.copytree(home / "bundle", mounted / "any-name")
    extra["SEALGATE_SERVICE_MODELS"] = f"path:{mounted}"
    extra["SEALGATE_SEALING_REQUIRE_SEALED"] = "false"
    headers = {"authorization": f"Bearer {mint(home, 'infer:toy')}"}
    with serve(str(bento.parent), home, extra=extra, cwd=bento, alone=True) as server:
        assert f"admitted {TAG}" in server.log.read_text()
        answer = httpx.get(f"{server.url}/v2/models/toy", headers=headers).json()
        assert answer["versions"] == ["1.0.0"]
