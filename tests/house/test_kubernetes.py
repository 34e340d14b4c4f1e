"""deploy/kubernetes, deploy/kserve and the chart agree with the code and their page.

What needs helm and Kubernetes' schemas is in tests/interop/kubernetes.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from security.access.permissions import ACTIONS
from security.audit.journal import (
    generate_checkpoint_key,
    generate_ml_dsa_key,
    load_signer,
)
from security.key_files import read_secret, write_secret
from security.sealing.keyring import generate_key, load_keyring
from security.settings.loading import load_settings
from service.telemetry.metrics import FAMILIES
from tests.support.kubelets import mount, moved, once, script_of, shell
from tests.support.servers import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "sealgate"
IMAGE = "REGISTRY/sealgate@sha256:DIGEST"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
PORT = 3000

Made = dict[str, Any]


def documents(path: Path) -> dict[str, Made]:
    return {item["kind"]: item for item in yaml.safe_load_all(path.read_text())}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Made]:
    return documents(DEPLOY / "kubernetes" / "deployment.yaml")


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Made]) -> Made:
    spec = manifest["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    found: Made = spec["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def runtime() -> Made:
    found: Made = documents(DEPLOY / "kserve" / "servingruntime.yaml")["ServingRuntime"]
    return found["spec"]


@pytest.fixture(scope="module")
def predictor() -> Made:
    path = DEPLOY / "kserve" / "inferenceservice.yaml"
    found: Made = documents(path)["InferenceService"]["spec"]["predictor"]
    return found


def test_every_file_is_named_in_the_docs() -> None:
    paths = [*(DEPLOY / "kubernetes").iterdir(), *(DEPLOY / "kserve").iterdir()]
    for path in paths:
        assert path.relative_to(ROOT).as_posix() in PAGE


# The pod.


def servers(pod: Made, runtime: Made) -> Iterator[Made]:
    yield from pod["containers"]
    yield from runtime["containers"]


def test_the_environment_is_of_settings_that_exist(
    pod: Made, runtime: Made, tmp_path: Path
) -> None:
    for server in servers(pod, runtime):
        given = {item["name"]: item["value"] for item in server["env"]}
        mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
        assert given["SEALGATE_HOME"] in mounts
        ours = {name: value for name, value in given.items() if "SEALGATE" in name}
        settings = load_settings(ours | {"SEALGATE_HOME": str(tmp_path)})
        assert settings.service.environment == "production"


def test_a_pod_has_the_time_that_its_end_takes(
    pod: Made, runtime: Made, predictor: Made
) -> None:
    graceful_args = " ".join(runtime["containers"][0]["args"]).split()
    for server, arguments, whole in (
        (pod["containers"][0], pod["containers"][0]["args"], pod),
        (runtime["containers"][0], graceful_args, predictor),
    ):
        graceful = int(arguments[arguments.index("--timeout-graceful-shutdown") + 1])
        program, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        # The readiness probe must have had its turn before the signal comes.
        assert int(seconds) >= server["readinessProbe"]["periodSeconds"]
        assert graceful <= load_settings({}).service.shutdown_timeout_s
        rest = whole["terminationGracePeriodSeconds"] - int(seconds) - graceful
        assert rest >= 5


def test_the_charts_drain_is_the_servers() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    drain = values["drain"]
    assert drain["graceful"] == load_settings({}).service.shutdown_timeout_s
    # No pre-stop may be shorter than the readiness probe's period in the template.
    template = (CHART / "templates" / "deployment.yaml").read_text()
    _, _, probe = template.partition("readinessProbe:")
    period = int(re.findall(r"periodSeconds: (\d+)", probe)[0])
    least = schema["properties"]["drain"]["properties"]["preStop"]["minimum"]
    assert least >= period


def test_every_mount_is_a_volume(pod: Made, runtime: Made) -> None:
    for whole in (pod, runtime):
        volumes = {volume["name"] for volume in whole["volumes"]}
        for container in whole.get("initContainers", []) + whole["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_nothing_can_be_written_or_gained(pod: Made, predictor: Made) -> None:
    for whole in (pod, predictor):
        assert whole["securityContext"]["runAsNonRoot"] is True
        assert whole["automountServiceAccountToken"] is False
        assert whole["securityContext"] == pod["securityContext"]
    for container in pod["initContainers"] + pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_ports_are_one(manifest: dict[str, Made], pod: Made, runtime: Made) -> None:
    for server in servers(pod, runtime):
        (port,) = server["ports"]
        assert port["containerPort"] == PORT
    (rule,) = manifest["NetworkPolicy"]["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [PORT]
    assert manifest["NetworkPolicy"]["spec"]["egress"] == []


# Keys are copied as the server wants them: the scripts are run.


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """Secrets as a kubelet mounts them: links, readable by a group."""
    home = tmp_path / "made"
    generate_key(home / "hpke", 1)
    generate_checkpoint_key(home / "server" / "checkpoint.pem")
    generate_ml_dsa_key(home / "server" / "checkpoint.mldsa.pem")
    for name in ("audit.key", "identity.pem", "identity.mldsa.pem", "dpop.key"):
        write_secret(home / "server" / name, b"x" * 32)
    (home / "trust").mkdir()
    for name in ("trust.json", "jwks.json"):
        (home / "trust" / name).write_text("{}")
    for volume in ("hpke", "server"):
        mount(home / volume, tmp_path / "secrets" / volume)
    mount(home / "trust", tmp_path / "trust")
    (tmp_path / "state").mkdir()
    return tmp_path


def loads(folder: Path) -> None:
    """What a server reads, by its own readers."""
    settings = load_settings(
        {"SEALGATE_HOME": str(folder / "state"), "SEALGATE_AUDIT_NAME": "HOST/audit"}
    )
    load_keyring(settings.sealing.keys)
    assert len(load_signer(settings.audit).verifiers) == 2
    mldsa = settings.sealing.identity_mldsa
    for path in (settings.audit.pseudonym_key, settings.access.dpop_key, mldsa):
        assert read_secret(path) == b"x" * 32
    assert settings.admission.trust.read_text() == "{}"
    assert settings.audit.directory.is_dir()


def test_keys_are_copied_as_the_server_takes_them(pod: Made, mounts: Path) -> None:
    keys, follow = pod["initContainers"]
    assert (keys["name"], follow["name"]) == ("keys", "follow")
    for _ in range(2):  # a pod's init containers may run again
        result = shell(script_of(keys), mounts)
        assert (result.returncode, result.stderr) == (0, "")
        loads(mounts)
    for path in (mounts / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_kserve_copies_the_same(pod: Made, runtime: Made, mounts: Path) -> None:
    script = script_of(runtime["containers"][0])
    copying, found, command = script.partition("exec ")
    assert found
    dockerfile = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
    (entry,) = re.findall(r"(?m)^ENTRYPOINT (.*)$", dockerfile)
    assert command.split() == [*json.loads(entry), *pod["containers"][0]["args"]]
    assert shell(copying, mounts).returncode == 0
    loads(mounts)
    # KServe runs Go's templates over its containers.
    assert "{{" not in json.dumps(runtime)


@pytest.mark.parametrize("name", ["audit.key", "checkpoint.pem", "identity.pem"])
def test_a_pod_without_a_key_does_not_start(name: str, pod: Made, mounts: Path) -> None:
    (mounts / "secrets" / "server" / name).unlink()
    result = shell(script_of(pod["initContainers"][0]), mounts)
    assert result.returncode != 0
    assert name in result.stderr


def test_keys_are_followed(pod: Made, mounts: Path) -> None:
    """A new key appears and an old one goes, with no moment without any."""
    keys, follow = pod["initContainers"]
    assert follow["restartPolicy"] == "Always"
    shell(script_of(keys), mounts)
    ring = mounts / "state" / "keys" / "hpke"
    before = (ring / "1.pem").stat().st_mtime_ns
    assert shell(once(follow), mounts).returncode == 0
    # A key whose name has no time is as old as its file.
    assert (ring / "1.pem").stat().st_mtime_ns == before
    made = mounts / "made" / "hpke"
    generate_key(made, 2)
    mount(made, mounts / "secrets" / "hpke")
    assert shell(once(follow), mounts).returncode == 0
    assert load_keyring(ring).ids == (1, 2)
    (made / "1.pem").unlink()
    mount(made, mounts / "secrets" / "hpke")
    (mounts / "made" / "trust" / "jwks.json").write_text('{"keys":[]}')
    mount(mounts / "made" / "trust", mounts / "trust")
    assert shell(once(follow), mounts).returncode == 0
    assert load_keyring(ring).ids == (2,)
    assert (mounts / "state" / "jwks.json").read_text() == '{"keys":[]}'
    assert {path.name for path in ring.iterdir()} == {"2.pem"}
    assert not (mounts / "state" / "taken").exists()


def test_following_ends_when_it_is_told_to(pod: Made, mounts: Path) -> None:
    """The first process of a container ignores signals that it does not name."""
    script = script_of(pod["initContainers"][1])
    # Its sleep may outlive it, so nobody waits for its output.
    with subprocess.Popen(
        ["/bin/sh", "-c", moved(script, mounts)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for _ in range(200):
            if (mounts / "state" / "audit").is_dir():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(5) == 0


# The chart's values.


def leaves(values: Made, where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def test_the_values_table_is_that_of_the_chart() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = PAGE.partition("| value | default | meaning |\n")[2].partition("\n\n")[0]
    stated = {}
    for line in rows.splitlines()[1:]:
        name, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
        stated[name.strip("`")] = yaml.safe_load(default.strip("`"))
    whole = {"resources", "networkPolicy.from"}
    made = dict(leaves({k: v for k, v in values.items() if k != "resources"}))
    made["resources"] = values["resources"]
    assert stated == made
    assert whole <= stated.keys()


def test_the_schema_knows_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def same(made: Made, said: Made) -> None:
        assert said["additionalProperties"] is False
        assert list(made) == list(said["properties"]) == said["required"]
        for name, value in made.items():
            inner = said["properties"][name]
            if "properties" in inner:
                same(value, inner)

    same(values, schema)


def test_the_charts_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


# Metrics, alerts, scaling.


def test_the_autoscalers_series_exist() -> None:
    adapter = documents_of(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    name, labels = re.fullmatch(r"(\w+)\{(.*)\}", rule["seriesQuery"]).groups()
    family = FAMILIES[name.removesuffix("_count")]
    assert family.kind == "histogram"
    given = {*re.findall(r"(\w+)!?=", labels)}
    # The last two are the ServiceMonitor's.
    assert given - {"namespace", "pod"} <= {*family.labels}
    assert '"open"' in rule["metricsQuery"]
    assert '"open"' not in (ROOT / "service" / "routes.py").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert rule["name"]["as"] == values["autoscaling"]["metric"]


def documents_of(path: Path) -> Made:
    found: Made = yaml.safe_load(path.read_text())
    return found


def test_alerts_are_one_file() -> None:
    link = CHART / "files" / "alerts.yml"
    assert link.is_symlink()
    assert link.resolve() == DEPLOY / "alerts.yml"
    # The alerts name the job that the ServiceMonitor gives.
    assert 'up{job="sealgate"}' in link.read_text()
    monitor = (CHART / "templates" / "monitoring.yaml").read_text()
    assert "jobLabel: app.kubernetes.io/name" in monitor
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    assert "app.kubernetes.io/name: sealgate\n" in helpers
    assert "scopes: [metrics]" in monitor
    assert "metrics" in ACTIONS


# Admission, and KServe.


def test_admission_is_of_the_image_that_is_deployed(
    pod: Made, runtime: Made, predictor: Made
) -> None:
    policy = documents(DEPLOY / "kubernetes" / "admission-kyverno.yaml")
    spec = policy["ImageValidatingPolicy"]["spec"]
    assert spec["failurePolicy"] == "Fail"
    assert spec["validationActions"] == ["Deny"]
    assert spec["validationConfigurations"] == {
        "mutateDigest": False,
        "verifyDigest": True,
        "required": True,
    }
    # Of a pattern that left an image out, nothing would be asked.
    assert spec["matchImageReferences"] == [{"glob": "*"}]
    for container in pod["initContainers"] + pod["containers"] + runtime["containers"]:
        assert container["image"] == IMAGE
    assert predictor["model"]["storageUri"].startswith("oci+native://REGISTRY/")


def test_both_policies_hold_the_same_pods() -> None:
    kubernetes = documents(DEPLOY / "kubernetes" / "admission.yaml")
    kyverno = documents(DEPLOY / "kubernetes" / "admission-kyverno.yaml")
    own = kubernetes["ValidatingAdmissionPolicy"]["spec"]
    binding = kubernetes["ValidatingAdmissionPolicyBinding"]["spec"]
    theirs = kyverno["ImageValidatingPolicy"]["spec"]
    assert own["failurePolicy"] == "Fail"
    assert binding["validationActions"] == ["Deny"]
    assert (
        binding["matchResources"]["namespaceSelector"]
        == theirs["matchConstraints"]["namespaceSelector"]
    )
    assert (
        own["matchConstraints"]["resourceRules"]
        == theirs["matchConstraints"]["resourceRules"]
    )


def test_the_page_lists_every_promise() -> None:
    policy = documents(DEPLOY / "kubernetes" / "admission.yaml")
    rules = policy["ValidatingAdmissionPolicy"]["spec"]["validations"]
    messages = [rule["message"].split(": ", 1) for rule in rules]
    rows = PAGE.partition("| rule | what a pod must be |\n")[2].partition("\n\n")[0]
    stated = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in rows.splitlines()[1:]
    ]
    assert stated == messages


def test_kserve_serves_the_mounted_model(runtime: Made, predictor: Made) -> None:
    (server,) = runtime["containers"]
    given = {item["name"]: item["value"] for item in server["env"]}
    assert given["SEALGATE_SERVICE_MODELS"] == "path:/mnt/models"
    (form,) = runtime["supportedModelFormats"]
    assert predictor["model"]["modelFormat"]["name"] == form["name"]
    # HTTP is what the server speaks; its gRPC is the client's proxy.
    assert runtime["protocolVersions"] == [predictor["model"]["protocolVersion"]]
    # What one replica keeps to itself, two would not share.
    assert predictor["maxReplicas"] == 1
    assert predictor["deploymentStrategy"] == {"type": "Recreate"}
