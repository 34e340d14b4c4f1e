"""The JavaScript client: built from its lock file, and a server for it to talk to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol.dsse import public_pem
from security.access.issuer import load_issuer_key
from security.access.issuer import mint as sign_token
from security.admission.keys import load_mldsa_key, load_signing_key
from tests.conftest import mint, toy_settings
from tests.support.bundles import NAME, Keys
from tests.support.npm import install
from tests.support.servers import ROOT, Server, serve

__all__ = ["PACKAGE", "build", "context", "node", "serving"]

PACKAGE = ROOT / "clients" / "js"
_MADE_HERE = shutil.ignore_patterns("node_modules", "dist")


def build(folder: Path) -> Path:
    """The package as a copy in which `npm ci` and `npm run build` ran, or a skip."""
    source = folder / "source"
    shutil.copytree(PACKAGE, source, ignore=_MADE_HERE)
    package = install(source, folder / "package")
    version = node(package, "--version").strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (20, 3):
        pytest.skip(f"node is older than 20.3: {version}")
    result = subprocess.run(
        ["npm", "run", "--silent", "build"],
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return package


def node(package: Path, *arguments: str, **variables: str) -> str:
    """What node prints, with the package as working directory."""
    program = shutil.which("node")
    assert program is not None
    result = subprocess.run(
        [program, *arguments],
        cwd=package,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _public(path: Path) -> str:
    return public_pem(load_signing_key(path).public_key())


@contextmanager
def serving(pristine: Path, folder: Path, *origins: str) -> Iterator[Server]:
    """A server of the toy model, sealed only, that pages of these origins may use."""
    home = Path(shutil.copytree(pristine, folder / "home"))
    extra = toy_settings(home) | {"SEALGATE_SERVICE_ALLOWED_ORIGINS": ",".join(origins)}
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        yield server


def context(server: Server, **more: Any) -> Mapping[str, str]:
    """Where the server is, tokens and keys; for the environment of a test in node."""
    expired = sign_token(
        load_issuer_key(server.home),
        audience="urn:sealgate:local",
        subject="page",
        client_id="page",
        scopes=[f"infer:{NAME}"],
        lifetime_s=600,
        now=int(time.time()) - 7200,
    )
    stranger = ec.derive_private_key(11, ec.SECP256R1()).public_key()
    value = {
        "url": server.url,
        "model": NAME,
        "token": mint(server.home, f"infer:{NAME}"),
        "expired": expired,
        "identity": _public(server.home / "keys" / "identity.pem"),
        "identityMlDsa": public_pem(
            load_mldsa_key(server.home / "keys" / "identity.mldsa.pem").public_key()
        ),
        "trusted": public_pem(Keys.of(server.home).release.public_key()),
        "stranger": public_pem(stranger),
        **more,
    }
    return {"SERVER": json.dumps(value)}
