"""What `push` writes, by other people's tools: skopeo, umoci, and a real registry.

`make interop-oci` installs them; the layouts and a registry of our own are tried by
tests/security/registry, without any of them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.bundle import read_bundle
from tests.conftest import TAG, make_deployment, toy_settings
from tests.support.bundles import write_bundle
from tests.support.certificates import certificate
from tests.support.in_process import security_result
from tests.support.servers import environment, free_port

pytestmark = pytest.mark.skipif(
    os.environ.get("INTEROP") != "oci", reason="make interop-oci"
)

USER, PASSWORD = "robot", "pass:word"


def call(*command: object, **extra: str) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    result = subprocess.run(
        [*map(str, command)],
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@dataclass(frozen=True)
class Place:
    """A deployment, and a registry that it may log in to."""

    home: Path
    host: str = ""
    authority: Path = Path()
    logins: Path = Path()

    def run(self, *arguments: object) -> str:
        ca = ("--ca", self.authority) if self.host in str(arguments) else ()
        extra = {"REGISTRY_AUTH_FILE": str(self.logins)} if self.host else {}
        result = security_result(
            self.home,
            *map(str, (*arguments, *ca)),
            extra=toy_settings(self.home) | extra,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("oci") / "home"
    make_deployment(home)
    return home


@pytest.fixture
def place(deployment: Path, tmp_path: Path) -> Place:
    return Place(Path(shutil.copytree(deployment, tmp_path / "home")))


@pytest.fixture
def registry(place: Place, tmp_path: Path) -> Iterator[Place]:
    """docker-registry, over TLS, for one user."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    certificate(tmp_path, "ca", authority=True)
    certificate(tmp_path, "server", issuer="ca")
    hashed = call("htpasswd", "-Bbn", USER, PASSWORD)
    (tmp_path / "users").write_text(hashed)
    port = free_port()
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "tls": {
                "certificate": str(tmp_path / "server.pem"),
                "key": str(tmp_path / "server.key"),
            },
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "users")}},
    }
    (tmp_path / "config.yml").write_text(json.dumps(config))
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    logins = tmp_path / "auth.json"
    host = f"127.0.0.1:{port}"
    logins.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(tmp_path / "config.yml")],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"https://{host}/v2/", verify=False)  # noqa: S501
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield Place(place.home, host, tmp_path / "ca.pem", logins)
    finally:
        process.terminate()
        process.wait()


def test_a_layout_by_skopeo_and_umoci(place: Place, tmp_path: Path) -> None:
    bundle, layout, copy = place.home / "bundle", tmp_path / "a", tmp_path / "b"
    pushed = place.run("push", bundle, f"oci:{layout}").splitlines()[1]
    digest = pushed.partition("@")[2]
    found = json.loads(call("skopeo", "inspect", f"oci:{layout}:1.0.0"))
    assert found["Digest"] == digest
    assert len(found["Layers"]) == 1
    call("umoci", "unpack", "--rootless", "--image", f"{layout}:1.0.0", tmp_path / "c")
    unpacked = tmp_path / "c" / "rootfs"
    assert os.listdir(unpacked) == ["models"]
    assert read_bundle(unpacked / "models") == read_bundle(bundle)
    assert f"verified {TAG}" in place.run("verify", unpacked / "models")
    # A copy has all of the evidence; the digest, too, where skopeo is told to keep it.
    call("skopeo", "copy", f"oci:{layout}:1.0.0", f"oci:{copy}:v")
    assert f"verified {TAG}" in place.run("verify", f"oci:{copy}:v")
    copy = tmp_path / "exact"
    keeping = ("--preserve-digests", f"oci:{layout}:1.0.0", f"oci:{copy}:v")
    call("skopeo", "copy", *keeping)
    assert f"verified {TAG}" in place.run("verify", f"oci:{copy}@{digest}")
    # In Docker's own form too, whose layers are compressed.
    docker = tmp_path / "dir"
    call("skopeo", "copy", "--format", "v2s2", f"oci:{copy}:v", f"dir:{docker}")
    call("skopeo", "copy", f"dir:{docker}", f"oci:{tmp_path / 'back'}:v")
    assert f"verified {TAG}" in place.run("verify", f"oci:{tmp_path / 'back'}:v")


def test_a_model_pack_by_skopeo(place: Place, tmp_path: Path) -> None:
    layout, copy = tmp_path / "a", tmp_path / "b"
    place.run(
        "push", place.home / "bundle", f"oci:{layout}:1", "--artifact", "modelpack"
    )
    raw = json.loads(call("skopeo", "inspect", "--raw", f"oci:{layout}:1"))
    assert raw["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    call("skopeo", "copy", f"oci:{layout}:1", f"oci:{copy}:1")
    # Its referrers stayed behind, and that is seen.
    result = security_result(
        place.home, "verify", f"oci:{copy}:1", extra=toy_settings(place.home)
    )
    assert result.returncode == 2
    assert "No such file" in result.stderr


@pytest.mark.parametrize("form", ["image", "modelpack"])
def test_a_real_registry(registry: Place, tmp_path: Path, form: str) -> None:
    bundle, name = registry.home / "bundle", f"{registry.host}/org/toy"
    pushed = registry.run("push", bundle, f"{name}:1", "--artifact", form)
    again = registry.run("push", bundle, f"{name}:2", "--artifact", form)
    reference = pushed.splitlines()[1]
    assert again.splitlines()[1] == reference
    assert f"verified {TAG}" in registry.run("verify", reference)
    registry.run("pull", f"{name}:2", "--out", tmp_path / "out")
    assert read_bundle(tmp_path / "out") == read_bundle(bundle)
    client = httpx.Client(
        base_url=f"https://{registry.host}/v2/org/toy/",
        verify=False,  # noqa: S501
        auth=(USER, PASSWORD),
        headers={"accept": "application/vnd.oci.image.index.v1+json"},
    )
    with client:
        digest = reference.partition("@")[2]
        index = client.get(f"manifests/{digest.replace(':', '-')}")
        listed = index.json()["manifests"] if index.status_code == 200 else []
    assert len(listed) == (4 if form == "modelpack" else 0)


def test_copies_into_and_out_of_a_registry(registry: Place, tmp_path: Path) -> None:
    """skopeo may compress a layer on its way; the bundle in it is the same."""
    bundle, layout = registry.home / "bundle", tmp_path / "a"
    registry.run("push", bundle, f"oci:{layout}:1")
    name, options = f"{registry.host}/org/toy", ("--authfile", registry.logins)
    for tag, more in (("oci", ()), ("docker", ("--format", "v2s2"))):
        there = f"docker://{name}:{tag}"
        tls = ("--dest-tls-verify=false", *options, *more)
        call("skopeo", "copy", *tls, f"oci:{layout}:1", there)
        assert f"verified {TAG}" in registry.run("verify", f"{name}:{tag}")
        tls = ("--src-tls-verify=false", *options)
        call("skopeo", "copy", *tls, there, f"oci:{tmp_path / tag}:1")
        registry.run("pull", f"oci:{tmp_path / tag}", "--out", tmp_path / f"{tag}-out")
        assert read_bundle(tmp_path / f"{tag}-out") == read_bundle(bundle)


def test_memory_is_one_bundle_and_little_more(registry: Place, tmp_path: Path) -> None:
    """100 MB; what is printed is in docs/oci.md."""
    bundle, name = tmp_path / "large", f"{registry.host}/org/large:1"
    keys = _keys(registry.home)
    write_bundle(bundle, keys, weights=_weights())
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    peaks = {}
    for action in (
        ("verify", bundle),
        ("push", bundle, name, "--ca", registry.authority),
        ("pull", name, "--out", tmp_path / "out", "--ca", registry.authority),
        ("push", bundle, f"oci:{tmp_path / 'layout'}"),
        ("pull", f"oci:{tmp_path / 'layout'}", "--out", tmp_path / "again"),
    ):
        extra = toy_settings(registry.home) | {
            "REGISTRY_AUTH_FILE": str(registry.logins)
        }
        start = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, action)],
            env=environment(registry.home, extra),
            capture_output=True,
            text=True,
            check=True,
        )
        wall_s = time.monotonic() - start
        peak, cpu_s = map(float, result.stdout.splitlines()[-1].split())
        kind = "layout" if "oci:" in str(action) else "registry"
        kind = "folder" if action[0] == "verify" else kind
        peaks[f"{action[0]} {kind}"] = peak
        print(
            f"{action[0]:<6} {kind:<8} {size / 1e6:.0f} MB: {wall_s:.1f} s, "
            f"{cpu_s:.1f} s of CPU, peak {peak / 2**20:.0f} MiB"
        )
    assert max(peaks.values()) < peaks["verify folder"] + (32 << 20), peaks


# The peak of a process that was forked counts its parent's; the kernel's own does not.
MEASURED = """
import sys, time
from security.commands import main
code = main(sys.argv[1:])
(peak,) = [l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")]
print(int(peak) * 1024, time.process_time())
sys.exit(code)
"""


def _keys(home: Path):
    from tests.support.bundles import Keys

    return Keys.of(home)


def _weights() -> np.ndarray:
    """A model's weights of 100 MB; nothing runs it."""
    return np.zeros((3, (100 << 20) // 12), dtype=np.float32)
