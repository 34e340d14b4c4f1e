"""The image under the manifest: built by the command, run by runc as the pod says.

`make interop-image` installs what builds and runs it, from Debian. No registry is
asked: the base images are made of this machine's files, packages come as wheels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import yaml

from sealgate import Client, Options
from sealgate.protocol import dsse
from sealgate.protocol.statement import Statement
from security.admission.trust_store import load_trust
from security.documents.provenance import PROVENANCE_TYPE
from tests.conftest import check_security, run_security, toy_settings
from tests.interop.image.base import make_root, make_tools
from tests.interop.image.pods import Door, Pod, Running
from tests.support.bundles import NAME, Keys, write_bundle
from tests.support.issuers import ED_KEY, jwk
from tests.support.servers import ROOT, bentoml, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "image", reason="make interop-image runs it"
    ),
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all(map(shutil.which, ("buildah", "umoci", "runc", "strip"))),
        reason="needs root, buildah, umoci, runc and binutils",
    ),
]

MANIFEST = ROOT / "deploy" / "kubernetes" / "deployment.yaml"
# What stands in capitals there.
ISSUER, AUDIENCE, HOST = "https://issuer.example", "urn:models", "https://m.example"
ROWS = {"features": [[1.0, 2.0, 3.0]]}
# Printed at the end, with `-s`: docs/container.md has them.
FIGURES: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Built:
    """An image that the command built.

    Attributes:
        folder: that the command wrote.
        bundle: the image, unpacked.
        home: SEALGATE_HOME of who built it.
        options: that it was built with.
    """

    folder: Path
    bundle: Path
    home: Path
    options: tuple[str, ...]

    def document(self, digest: str) -> Any:
        """A JSON document of the saved image."""
        name = digest.removeprefix("sha256:")
        return json.loads((self.folder / "image/blobs/sha256" / name).read_bytes())

    @property
    def manifest(self) -> Any:
        """Of the saved image."""
        index = json.loads((self.folder / "image" / "index.json").read_bytes())
        return self.document(index["manifests"][0]["digest"])

    @property
    def config(self) -> Any:
        """Of the saved image."""
        return self.document(self.manifest["config"]["digest"])


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """buildah with a store of its own, isolated as it can be in a container."""
    folder = tmp_path_factory.mktemp("containers")
    settings = folder / "storage.conf"
    places = ("--root", folder / "storage", "--runroot", folder / "run")
    trial = ("buildah", "--storage-driver", "overlay", *places, "images")
    works = subprocess.run(trial, capture_output=True, check=False).returncode == 0
    settings.write_text(
        f'[storage]\ndriver = "{"overlay" if works else "vfs"}"\n'
        f'graphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        patch.delenv("STORAGE_DRIVER", raising=False)
        yield
    # The store of layers stays mounted, and could not be removed.
    lines = Path("/proc/mounts").read_text().splitlines()
    for mount in reversed([line.split()[1] for line in lines]):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", mount], check=True)


def make_image(folder: Path, tag: str, *lines: str) -> str:
    """An image of a folder's contents; returns its name with its digest."""
    dockerfile = folder.parent / f"{tag}.Dockerfile"
    dockerfile.write_text("\n".join([*lines, ""]))
    name = f"localhost/python:{tag}"
    run = ("buildah", "bud", "--quiet", "--timestamp=0", "--pull=missing")
    subprocess.run(
        [*run, "--file", dockerfile, "--tag", name, folder],
        check=True,
        capture_output=True,
    )
    form = "{{.Tag}} {{.Digest}}"
    shown = subprocess.check_output(["buildah", "images", "--format", form], text=True)
    digests = dict(line.split() for line in shown.splitlines() if " " in line)
    return f"localhost/python@{digests[tag]}"


@pytest.fixture(scope="module")
def bases(tools: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the image is built on, and what with."""
    folder = tmp_path_factory.mktemp("bases")
    make_root(folder / "root")
    make_tools(folder / "tools")
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    slim = make_image(
        folder / "root", "slim", "FROM scratch", "COPY . /", f"ENV {path} LANG=C.UTF-8"
    )
    full = make_image(
        folder / "tools", "full", f"FROM {slim}", "COPY . /", "RUN ldconfig"
    )
    return slim, full


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes",
         "--only-binary", ":all:", "--dest", folder,
         "--requirement", ROOT / "requirements" / "serve.txt"],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


def build_bento(home: Path, settings: Mapping[str, str]) -> str:
    built = subprocess.run(
        bentoml("build", "--output", "tag"),
        cwd=ROOT,
        env=environment(home, settings),
        capture_output=True,
        text=True,
        check=True,
    )
    return built.stdout.strip().rpartition("__tag__:")[2]


def build_image(home: Path, bento: str, options: tuple[str, ...], out: Path) -> str:
    """Run the command, which takes minutes; returns what it printed."""
    command = ["image", bento, *options, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "security", *command],
        cwd=ROOT,
        env=environment(home, toy_settings(home)),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(
    pristine: Path,
    bases: tuple[str, str],
    wheels: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """The image, by the one command."""
    folder = tmp_path_factory.mktemp("built")
    home = Path(shutil.copytree(pristine, folder / "home"))
    slim, full = bases
    options = (
        *("--base", slim, "--build-base", full, "--wheels", str(wheels)),
        *("--builder", "buildah"),
    )
    began = time.monotonic()
    bento = build_bento(home, toy_settings(home))
    shown = build_image(home, bento, options, folder / "out")
    FIGURES["build wall s"] = round(time.monotonic() - began)
    saved = f"{folder}/out/image:{re.split('[:/]', shown.split()[0])[-1]}"
    subprocess.run(["umoci", "unpack", "--image", saved, folder / "unpacked"],
                   check=True, capture_output=True)  # fmt: skip
    return Built(folder / "out", folder / "unpacked", home, options)


@pytest.fixture
def pod(built: Built, tmp_path: Path) -> Pod:
    """The manifest's pod, with a deployment's keys, trust root and issuer."""
    text = MANIFEST.read_text()
    for placeholder, value in (
        ("https://ISSUER", ISSUER),
        ("urn:AUDIENCE", AUDIENCE),
        ("https://HOST", HOST),
    ):
        assert placeholder in text
        text = text.replace(placeholder, value)
    documents = {item["kind"]: item for item in yaml.safe_load_all(text)}
    spec = documents["Deployment"]["spec"]["template"]["spec"]
    # The toy model is admitted under a policy of its own, as the manifest allows for.
    policy = {"name": "SEALGATE_ADMISSION_POLICY", "value": "/state/policy.toml"}
    spec["containers"][0]["env"].append(policy)
    keys = built.home / "keys"
    public = jwk(ED_KEY, "key", alg="EdDSA", use="sig")
    server = (
        *("model.pem", "audit.key", "identity.pem", "identity.mldsa.pem"),
        *("checkpoint.pem", "checkpoint.mldsa.pem"),
    )
    made = Pod(
        spec,
        built.config,
        built.bundle,
        tmp_path,
        {
            "sealgate-trust": {
                "trust.json": (built.home / "trust.json").read_bytes(),
                "jwks.json": json.dumps({"keys": [public]}).encode(),
            },
            "sealgate-hpke": {
                path.name: path.read_bytes() for path in (keys / "hpke").iterdir()
            },
            "sealgate-server": {name: (keys / name).read_bytes() for name in server},
        },
    )
    shutil.copy(built.home / "policy.toml", made.volumes["state"])
    return made


def token() -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "someone",
        "client_id": "notebook",
        "iat": now,
        "exp": now + 600,
        "jti": os.urandom(8).hex(),
        "scope": f"infer:{NAME} metadata:{NAME}",
    }
    headers = {"typ": "at+jwt", "kid": "key"}
    return jwt.encode(claims, ED_KEY, algorithm="EdDSA", headers=headers)


def wait_until_ready(running: Running, door: Door, path: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert running.process.poll() is None, running.log
        try:
            if httpx.get(f"{door.url}{path}", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready: {running.log}")


def test_a_pod_from_its_start_to_its_end(built: Built, pod: Pod) -> None:
    """Ready; a sealed inference; nothing to write on; and an end without a loss."""
    container = pod.container("sealgate")
    with pod.initialised(), pod.running("sealgate") as running:
        door = Door(running.pid, container["ports"][0]["containerPort"])
        wait_until_ready(running, door, container["readinessProbe"]["httpGet"]["path"])
        FIGURES["CPU s to ready"] = round(running.cpu_s(), 1)
        wait_until_ready(running, door, container["livenessProbe"]["httpGet"]["path"])
        check_confinement(running)
        identity = check_security(built.home, "keys", "public", "--identity")
        options = Options(identity_keys=(identity,))
        with Client(door.url, token=token(), options=options) as client:
            assert client.infer(NAME, ROWS)["label"].tolist() == [1]
            began = time.monotonic()
            check_end(running, door, client)
        assert running.process.wait(60) == 0, running.log
        took = time.monotonic() - began
    assert took < pod.spec["terminationGracePeriodSeconds"]
    assert "Traceback" not in running.log
    records = (pod.volumes["state"] / "audit").glob("*.jsonl")
    assert b"".join(path.read_bytes() for path in records).count(b'"infer"') == 2


def check_confinement(running: Running) -> None:
    """As the manifest says, read from inside."""
    status = running.run("cat", "/proc/1/status").stdout
    found = dict(re.findall(r"(\w+):\t(.*)", status))
    assert found["Uid"].split() == ["10001"] * 4
    assert found["Gid"].split() == ["10001"] * 4
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert {found[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {
        "0" * 16
    }
    for path in ("/bento/models/x", "/bento/src/service/x", "/app/x", "/x"):
        assert running.run("touch", path).returncode != 0
    assert running.run("touch", "/tmp/x").returncode == 0
    # Nothing leads out: no interface but the loopback.
    assert running.run("cat", "/proc/net/route").stdout.count("\n") == 1


def check_end(running: Running, door: Door, client: Client) -> None:
    """preStop, the signal; what is in work is answered, and nothing new is begun."""
    answers: list[Any] = []
    # As many as go into one request to this model.
    rows = {"features": [[1.0, 2.0, 3.0]] * 8}
    # The head of a request arrives before the signal, the rest after it.
    door.hold_next(after_bytes=500)
    asking = threading.Thread(target=lambda: answers.append(client.infer(NAME, rows)))
    asking.start()
    assert door.held.wait(30)
    running.stop()
    refused = wait_for_refusal(door)
    assert refused.headers["connection"] == "close"
    assert running.process.poll() is None
    door.release()
    asking.join(30)
    assert answers[0]["label"].tolist() == [1] * 8


def wait_for_refusal(door: Door) -> httpx.Response:
    deadline = time.monotonic() + 10
    while (answer := httpx.get(f"{door.url}/livez")).status_code != 503:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


def test_nothing_in_it_may_be_written(pod: Pod) -> None:
    """Also where its file system is not read only: by its owners and modes alone."""
    container = dict(pod.container("keys"))
    container["securityContext"] = container["securityContext"] | {
        "readOnlyRootFilesystem": False
    }
    find = "find / -xdev -writable ! -type l ! -path '/proc/*' 2>/dev/null | sort"
    container |= {"name": "look", "args": [find], "volumeMounts": []}
    spec = {**pod.spec, "initContainers": [container], "volumes": []}
    looking = dataclasses.replace(pod, spec=spec, volumes={})
    looking.run_to_end("look")
    found = (pod.folder / "look" / "log").read_text().split()
    # Debian's slim images have the others.
    assert (
        {"/state", "/tmp"}
        <= set(found)
        <= {
            *("/state", "/tmp", "/var/tmp", "/run/lock"),
        }
    )


def test_the_image_passes_from_outside(built: Built, tmp_path: Path) -> None:
    """As an unpacked file system with its configuration; the command saw it saved."""
    settings = toy_settings(built.home)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(built.config))
    rootfs = ("verify", str(built.bundle / "rootfs"), "--image-config", str(config))
    shown = check_security(built.home, *rootfs, "--release", str(ROOT), **settings)
    assert f"verified {NAME}:1.0.0" in shown
    compiled = next((built.bundle / "rootfs/bento/src/service").rglob("guard.*.pyc"))
    data = compiled.read_bytes()
    try:
        compiled.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        refused = run_security(built.home, *rootfs, **settings)
    finally:
        compiled.write_bytes(data)
    assert refused.returncode == 1
    assert "is not the bytecode of service/guard.py" in refused.stderr


def test_what_lies_beside_it(built: Built, bases: tuple[str, str]) -> None:
    """The SBOM names base and models; a signed statement binds it to the image."""
    sbom = (built.folder / "sbom.cdx.json").read_bytes()
    kinds = {part["type"] for part in json.loads(sbom)["components"]}
    assert kinds == {"library", "machine-learning-model", "container"}
    trust = load_trust(built.home / "trust.json")
    signed = (built.folder / "provenance.sigstore.json").read_bytes()
    payload = dsse.verify(signed, trust.keys(("release",))).payload
    statement = Statement.from_json(payload)
    assert statement.predicate_type == PROVENANCE_TYPE
    index = json.loads((built.folder / "image" / "index.json").read_bytes())
    digests = (index["manifests"][0]["digest"], built.manifest["config"]["digest"])
    assert [f"sha256:{item.sha256}" for item in statement.subjects] == list(digests)
    definition = statement.predicate["buildDefinition"]
    assert definition["externalParameters"]["baseImage"] == bases[0]
    (made,) = statement.predicate["runDetails"]["byproducts"]
    assert made["digest"]["sha256"] == hashlib.sha256(sbom).hexdigest()


def test_the_figures(built: Built) -> None:
    """Within what the image aims at: 400 MB, of which a slim Debian is a third."""
    size = subprocess.check_output(["du", "-sm", built.bundle / "rootfs"], text=True)
    FIGURES["rootfs MB"] = int(size.split()[0])
    layers = [round(item["size"] / 1e6, 2) for item in built.manifest["layers"]]
    FIGURES["layers, gzip MB"] = layers
    FIGURES["gzip MB"] = round(sum(layers), 1)
    print(json.dumps(FIGURES, indent=1))
    assert FIGURES["rootfs MB"] <= 400


def test_a_new_model_moves_its_own_layer(built: Built, tmp_path: Path) -> None:
    """Everything below is the same, byte for byte."""
    folder = write_bundle(tmp_path / "b", Keys.generate(), admit=False, version="1.0.1")
    settings = toy_settings(built.home) | {"SEALGATE_SERVICE_MODELS": f"{NAME}:1.0.1"}
    for role in ("trainer", "assessor"):
        check_security(built.home, "sign", str(folder), "--role", role, **settings)
    for command in ("admit", "store"):
        check_security(built.home, command, str(folder), **settings)
    bento = build_bento(built.home, settings)
    build_image(built.home, bento, built.options, tmp_path / "out")
    other = dataclasses.replace(built, folder=tmp_path / "out")
    *below, last = built.manifest["layers"]
    *same, moved = other.manifest["layers"]
    assert same == below
    assert moved != last
    print("a new model moves", moved["size"], "bytes")


def test_a_linter_finds_nothing() -> None:
    hadolint = Path(os.environ["INTEROP_PART"]) / "bin" / "hadolint"
    done = subprocess.run(
        [hadolint, ROOT / "deploy" / "container" / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
