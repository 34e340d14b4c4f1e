"""deploy/container: the Dockerfile agrees with manifest, project and `verify`."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from typing import Any

import pytest
import yaml

from tests.support.servers import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # BentoML makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from security.admission.outside.image import OWN_PATH, check_config

TEXT = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
# What the last stage says, one instruction a line.
FINAL = re.sub(r"\\\n\s*", "", TEXT).rpartition("\nFROM ")[2]


def instruction(name: str) -> str:
    (found,) = re.findall(rf"(?m)^{name} (.*)$", FINAL)
    return str(found)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The image's configuration, as the Dockerfile gives it."""
    return {
        "User": instruction("USER"),
        "WorkingDir": instruction("WORKDIR"),
        "Entrypoint": json.loads(instruction("ENTRYPOINT")),
        "Cmd": json.loads(instruction("CMD")),
        "Env": ["PATH=/usr/bin", *instruction("ENV").split()],
    }


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    text = (ROOT / "deploy" / "kubernetes" / "deployment.yaml").read_text()
    items = {item["kind"]: item for item in yaml.safe_load_all(text)}
    spec: dict[str, Any] = items["Deployment"]["spec"]["template"]["spec"]
    return spec


def test_verification_takes_it(config: dict[str, Any]) -> None:
    assert f"/{check_config({'config': config})}" == OWN_PATH
    assert f"/bytecode.py {OWN_PATH}/src {OWN_PATH}/src" in TEXT


def test_the_manifest_runs_it(config: dict[str, Any], pod: dict[str, Any]) -> None:
    context, (server,) = pod["securityContext"], pod["containers"]
    assert config["User"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert server["args"] == config["Cmd"]
    given = {f"{item['name']}={item['value']}" for item in server["env"]}
    assert set(config["Env"][1:]) <= given
    assert server["ports"][0]["containerPort"] == int(instruction("EXPOSE"))
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert mounts == {"/state", "/tmp"}


def test_base_images_have_no_default_and_need_a_digest() -> None:
    assert re.search(r"(?m)^ARG BASE_IMAGE$", TEXT)
    assert set(re.findall(r"(?m)^FROM (\S+)", TEXT)) == {
        "${BASE_IMAGE}",
        "${BUILD_IMAGE}",
    }
    assert "*@sha256:*" in TEXT


def test_dependencies_come_first_and_models_last() -> None:
    copied = re.findall(r"(?m)^COPY (?:--\S+ )*(\S+) (\S+)$", FINAL)
    assert copied == [
        ("/state", "/state"),
        ("/app", "/app"),
        ("/bento", "/bento"),
        ("/model", "/bento"),
    ]


def test_requirements_are_the_bentos_and_hashed() -> None:
    assert "COPY bento/env/python/requirements.txt" in TEXT
    assert "--require-hashes" in TEXT
