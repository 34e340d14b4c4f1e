"""The server under the chart's environment, with keys that its containers copied.

`bentoml serve` runs on this machine, its folders below another one; what a container
adds is shown by tests/interop/image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from sealgate import Client, Options
from security.sealing.keyring import generate_key
from tests.interop.kubernetes import tools
from tests.interop.kubernetes.variants import IMAGE, VARIANTS
from tests.support.certificates import certificate
from tests.support.issuers import ED_KEY, jwk, token
from tests.support.kubelets import mount, moved, once, script_of, shell
from tests.support.servers import free_port, serve

pytestmark = pytest.mark.skipif(
    os.environ.get("INTEROP") != "kubernetes", reason="run make interop-kubernetes"
)

ISSUER = "https://issuer.example"
ROWS = {"features": np.ones((2, 3), dtype=np.float32)}


def secrets(home: Path, folder: Path) -> None:
    """What the page has people put into Secrets and ConfigMaps, mounted."""
    made = folder / "made"
    shutil.copytree(home / "keys" / "hpke", made / "hpke")
    for name in ("server", "trust", "tls", "client-ca"):
        (made / name).mkdir()
    for name in ("audit.key", "identity.pem", "checkpoint.pem"):
        shutil.copy(home / "keys" / name, made / "server")
    shutil.copy(home / "trust.json", made / "trust")
    (made / "trust" / "jwks.json").write_text(
        json.dumps({"keys": [jwk(ED_KEY, "key")]})
    )
    certificate(folder, "authority", authority=True)
    new_certificate(folder)
    for name in ("hpke", "server", "tls"):
        mount(made / name, folder / "secrets" / name)
    shutil.copy(folder / "authority.pem", made / "client-ca" / "ca.crt")
    mount(made / "client-ca", folder / "client-ca")
    mount(made / "trust", folder / "trust")
    shutil.copytree(home / "bundle", folder / "models")
    (folder / "state").mkdir()


def new_certificate(folder: Path) -> None:
    """What cert-manager does long before the old one ends."""
    certificate(folder, "server", issuer="authority")
    shutil.copy(folder / "server.pem", folder / "made" / "tls" / "tls.crt")
    shutil.copy(folder / "server.key", folder / "made" / "tls" / "tls.key")


def values(home: Path, folder: Path, port: int) -> dict[str, Any]:
    made = folder / "made" / "trust"
    policy = (home / "policy.toml").read_text()
    return {
        **IMAGE,
        "access": {
            "issuer": ISSUER,
            "audience": "us",
            "resource": f"https://127.0.0.1:{port}",
        },
        "trust": {
            "trust": (made / "trust.json").read_text(),
            "jwks": (made / "jwks.json").read_text(),
        },
        "files": {"policy": policy},
        "models": {"claim": "bundles"},
        "tls": {"enabled": True, "clientCertificates": "optional", "clientCa": "x"},
        "settings": {"quotas": {"on_failure": "refuse"}},
    }


def claims() -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": "us",
        "sub": "somebody",
        "client_id": "notebook",
        "jti": "one",
        "iat": now,
        "exp": now + 600,
        "scope": "infer:toy",
    }


def seen(url: str) -> bytes:
    """The certificate that a server shows."""
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=5) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_serves_and_follows_its_secrets(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    secrets(pristine, tmp_path)
    items = tools.render(values(pristine, tmp_path, port), tmp_path)
    pod = tools.pod(tools.of_kind(items, "Deployment")[0])["spec"]
    keys, follow = pod["initContainers"]
    copied = shell(script_of(keys), tmp_path)
    assert (copied.returncode, copied.stderr) == (0, "")
    (files,) = (
        item["data"]
        for item in tools.of_kind(items, "ConfigMap")
        if item["metadata"]["name"].endswith("-files")
    )
    (tmp_path / "config").mkdir()
    for name, text in files.items():
        (tmp_path / "config" / name).write_text(text)
    (server,) = pod["containers"]
    given = {item["name"]: moved(item["value"], tmp_path) for item in server["env"]}
    given["BENTOML_HOME"] = str(tmp_path / "bentoml")
    graceful = server["args"][server["args"].index("--timeout-graceful-shutdown") + 1]
    authority = str(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    context = ssl.create_default_context(cafile=authority)
    bearer = token(ED_KEY, claims(), alg="EdDSA")
    with (
        serve(
            "service.app:Sealgate",
            tmp_path / "state",
            extra=given,
            tls=context,
            port=port,
            graceful_s=int(graceful),
        ) as running,
        Client(running.url, token=bearer, options=Options()) as client,
    ):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            where = server[probe]["httpGet"]
            assert where["scheme"] == "HTTPS"
            url = running.url + where["path"]
            assert httpx.get(url, verify=context).status_code == 200
        assert client.infer("toy", ROWS)["label"].shape == (2,)
        offered = f"{running.url}/.well-known/ohttp-gateway"
        before = httpx.get(offered, verify=context).content
        shown = seen(running.url)
        new_certificate(tmp_path)
        generate_key(tmp_path / "made" / "hpke", 200, created_at=time.time())
        for name in ("hpke", "tls"):
            mount(tmp_path / "made" / name, tmp_path / "secrets" / name)
        assert shell(once(follow), tmp_path).returncode == 0
        eventually(lambda: seen(running.url) != shown)
        eventually(lambda: httpx.get(offered, verify=context).content != before)
        # This client still seals to the older key, within its overlap.
        assert client.infer("toy", ROWS)["label"].shape == (2,)
        with Client(running.url, token=bearer, options=Options()) as newcomer:
            assert newcomer.infer("toy", ROWS)["label"].shape == (2,)
    assert list((tmp_path / "state" / "audit").glob("*.jsonl"))


@pytest.mark.parametrize("name", ["trial", "trial-tls"])
def test_the_trials_redis_is_one_that_servers_take(name: str, tmp_path: Path) -> None:
    """Its command line at a real Redis: it forgets nothing, strangers get nothing."""
    redis = pytest.importorskip("redis", reason="the redis package is not installed")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on this machine")
    made = tools.render({**VARIANTS[name], **IMAGE}, tmp_path)
    pod = next(
        tools.pod(item)
        for item in tools.of_kind(made, "Deployment")
        if item["metadata"]["name"] == "sealgate-redis"
    )
    (container,) = pod["spec"]["containers"]
    for folder in ("acl", "data", "tls"):
        (tmp_path / folder).mkdir()
    (tmp_path / "acl" / "users.acl").write_text(
        "user default off\nuser sealgate on >password ~sealgate:* +@all\n"
    )
    certificate(tmp_path, "authority", authority=True)
    certificate(tmp_path, "redis", issuer="authority")
    shutil.copy(tmp_path / "redis.pem", tmp_path / "tls" / "tls.crt")
    shutil.copy(tmp_path / "redis.key", tmp_path / "tls" / "tls.key")
    port = str(free_port())
    _, *arguments = (
        re.sub(r"^/(acl|data|tls)\b", rf"{tmp_path}/\1", argument).replace("6379", port)
        for argument in container["args"]
    )
    if "--tls-port" not in arguments:
        arguments += ["--port", port]
    command = [program, *arguments, "--bind", "127.0.0.1"]
    scheme, more = "redis", ""
    if name == "trial-tls":
        scheme, more = "rediss", f"?ssl_ca_certs={tmp_path}/authority.pem"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"{scheme}://sealgate:password@127.0.0.1:{port}/0{more}"
            with closing(redis.Redis.from_url(url)) as client:
                eventually(lambda: listens(int(port)))
                assert client.info("memory")["maxmemory_policy"] == "noeviction"
                assert client.info("persistence")["aof_enabled"] == 1
            stranger = url.replace("sealgate:password@", "")
            with (
                closing(redis.Redis.from_url(stranger)) as client,
                pytest.raises(redis.AuthenticationError),
            ):
                client.ping()
        finally:
            process.terminate()
