"""deploy/kubernetes: the examples parse, and agree with the settings and the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from security.settings.loading import load_settings
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
IMAGE = "REGISTRY/sealgate"


def documents(name: str) -> dict[str, Any]:
    items = yaml.safe_load_all((FOLDER / name).read_text())
    return {item["kind"]: item for item in items}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    spec = documents("deployment.yaml")["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    return spec["template"]["spec"]


def test_every_file_is_named_in_the_docs() -> None:
    text = (ROOT / "docs" / "confidential.md").read_text()
    for path in FOLDER.iterdir():
        assert f"deploy/kubernetes/{path.name}" in text


def test_the_environment_is_of_settings_that_exist(
    pod: dict[str, Any], tmp_path: Path
) -> None:
    (server,) = pod["containers"]
    given = {item["name"]: item["value"] for item in server["env"]}
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert given["SEALGATE_HOME"] in mounts
    ours = {name: value for name, value in given.items() if "SEALGATE" in name}
    settings = load_settings(ours | {"SEALGATE_HOME": str(tmp_path)})
    assert settings.service.environment == "production"


def test_a_pod_has_the_time_that_its_end_takes(pod: dict[str, Any]) -> None:
    (server,) = pod["containers"]
    arguments = server["args"]
    graceful = int(arguments[arguments.index("--timeout-graceful-shutdown") + 1])
    program, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    # The readiness probe must have had its turn before the signal comes.
    assert int(seconds) >= server["readinessProbe"]["periodSeconds"]
    rest = pod["terminationGracePeriodSeconds"] - int(seconds) - graceful
    assert rest >= 5


def test_every_mount_is_a_volume(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["initContainers"] + pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_nothing_can_be_written_or_gained(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["initContainers"] + pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_server_gets_every_key_that_it_needs(pod: dict[str, Any]) -> None:
    (copy,) = pod["initContainers"][0]["args"]
    copied = set(re.findall(r"/([\w*]+\.\w+)", copy))
    assert copied == {
        *("*.pem", "model.pem", "audit.key", "identity.pem"),
        "checkpoint.pem",
        *("trust.json", "jwks.json"),
    }
    trust = documents("deployment.yaml")["ConfigMap"]["data"]
    assert trust.keys() == {"trust.json", "jwks.json"}


def test_admission_is_of_the_image_that_is_deployed(pod: dict[str, Any]) -> None:
    policy = documents("admission-kyverno.yaml")["ClusterPolicy"]["spec"]
    signature, only = policy["rules"]
    (images,) = signature["verifyImages"]
    assert policy["validationFailureAction"] == "Enforce"
    assert policy["failurePolicy"] == "Fail"
    assert images["required"]
    assert images["verifyDigest"]
    assert images["imageReferences"] == [f"{IMAGE}*"]
    (each,) = only["validate"]["foreach"]
    (condition,) = each["deny"]["conditions"]["all"]
    assert condition["value"] == f"{IMAGE}*"
    for container in pod["initContainers"] + pod["containers"]:
        assert container["image"] == f"{IMAGE}@sha256:DIGEST"
