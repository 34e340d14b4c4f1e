"""The chart, rendered by helm, held to schemas and rules: ``make interop-kubernetes``.

No cluster runs here. What is shown: the chart renders what its values mean and refuses
what it must; documents pass Kubernetes' schemas of the versions named, read strictly;
each promise about a pod is a rule of deploy/kubernetes/admission.yaml that our pods
keep and that a pod without it breaks.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shlex
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from security.key_files import write_secret
from security.sealing.keyring import generate_key
from security.settings.loading import load_settings
from tests.interop.kubernetes import tools
from tests.interop.kubernetes.variants import DIGEST, IMAGE, REFUSED, VARIANTS
from tests.support.servers import ROOT

pytestmark = pytest.mark.skipif(
    os.environ.get("INTEROP") != "kubernetes", reason="run make interop-kubernetes"
)

DEPLOY = ROOT / "deploy"
# Whose schemas Kubernetes does not have.
CUSTOM = {"Certificate", "PrometheusRule", "ServiceMonitor"}

Made = dict[str, Any]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Made]]:
    folder = tmp_path_factory.mktemp("values")
    return {
        name: tools.render(merged(values), folder) for name, values in VARIANTS.items()
    }


def merged(values: Made) -> Made:
    image = {**IMAGE["image"], **values.get("image", {})}
    return {**values, "image": image}


def server(items: list[Made]) -> Made:
    """The Deployment of the server itself."""
    return next(
        item
        for item in tools.of_kind(items, "Deployment")
        if not item["metadata"]["name"].endswith("-redis")
    )


def containers(made: Made) -> list[Made]:
    return [*made["spec"].get("initContainers", []), *made["spec"]["containers"]]


# The chart itself.


def test_the_manifest_is_what_the_chart_renders() -> None:
    text = tools.template().stdout
    head, _, _ = tools.MANIFEST.read_text().partition("apiVersion:")
    made = head + tools.manifest(text)
    if os.environ.get("RECORD"):
        tools.MANIFEST.write_text(made)
    assert tools.MANIFEST.read_text() == made
    assert made.startswith("# ")


def test_lint_finds_nothing() -> None:
    result = tools.run_helm("lint", "--strict", tools.CHART, "--values", tools.EXAMPLE)
    assert result.returncode == 0, result.stdout
    assert "ERROR" not in result.stdout
    assert "WARNING" not in result.stdout


def test_a_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    """The alerts are a link in the sources, and a file in the package."""
    result = tools.run_helm("package", tools.CHART, "--destination", tmp_path)
    assert result.returncode == 0, result.stderr
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        packed = archive.extractfile("sealgate/files/alerts.yml")
        assert packed is not None
        assert packed.read() == (DEPLOY / "alerts.yml").read_bytes()
    rules = ("--set", "metrics.rules.enabled=true")
    assert tools.template(*rules, chart=package).stdout == tools.template(*rules).stdout


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    values, reason = REFUSED[name]
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(values))
    result = tools.template("--values", path)
    assert result.returncode != 0
    assert result.stdout == ""
    assert reason in result.stderr


def test_notes_say_what_is_lost(tmp_path: Path) -> None:
    """`helm template` leaves the notes out; a dry run of an installation shows them."""
    path = tmp_path / "values.yaml"
    shown = {}
    for name in ("example", "trial", "shared"):
        path.write_text(json.dumps(merged(VARIANTS[name])))
        values = ("--values", tools.EXAMPLE, "--values", path)
        result = tools.run_helm(
            "install", "sealgate", tools.CHART, "--dry-run=client", *values
        )
        assert result.returncode == 0, result.stderr
        shown[name] = result.stdout.partition("NOTES:")[2]
    assert "One replica, without a Redis" in shown["example"]
    assert "is for trials" in shown["trial"]
    assert "plaintext" in shown["trial"]
    assert "trials" not in shown["shared"]
    assert "without a Redis" not in shown["shared"]


def commands(page: str) -> list[list[str]]:
    """What the page has people type, with helm and kubectl."""
    joined = page.replace("\\\n", " ")
    shown = re.findall(r"^\$ ((?:helm|kubectl) .*)$", joined, re.MULTILINE)
    return [shlex.split(command.partition(" | ")[0]) for command in shown]


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Those that make something, without a cluster.

    What they make of keys is mounted and loaded in tests/house/test_kubernetes.py.
    """
    (tmp_path / "deploy").symlink_to(DEPLOY)
    generate_key(tmp_path / "keys" / "hpke", 1, created_at=1_700_000_000.0)
    for name in ("audit.key", "identity.pem", "checkpoint.pem", "checkpoint.mldsa.pem"):
        write_secret(tmp_path / "keys" / name, b"x" * 32)
    for name, text in (
        ("trust.json", '{"roles":{}}'),
        ("jwks.json", '{"keys":[]}'),
        ("redis.url", "rediss://sealgate:password@redis:6380/0"),
    ):
        (tmp_path / name).write_text(text)
    made = {}
    for program, *words in commands((ROOT / "docs" / "kubernetes.md").read_text()):
        if "create" not in words and "install" not in words:
            continue
        if "--dry-run=client" not in words:
            words.append("--dry-run=client")
        if program == "kubectl":
            words += ["-o", "yaml"]
        result = tools.run(program, *words, folder=tmp_path)
        assert result.returncode == 0, (words, result.stderr)
        if program == "kubectl":
            item = yaml.safe_load(result.stdout)
            made[item["metadata"]["name"]] = set(item.get("data", ()))
        else:
            assert "rollout status deployment/sealgate" in result.stdout
    assert made == {
        "sealgate": set(),
        "sealgate-hpke": {"1-20231114T221320Z.pem"},
        "sealgate-server": {
            "audit.key",
            "identity.pem",
            "checkpoint.pem",
            "checkpoint.mldsa.pem",
        },
        "sealgate-redis": {"url"},
    }


def test_an_upgrade_by_the_pages_options(tmp_path: Path) -> None:
    """helm looks for a release first, so its options are given to another command."""
    (tmp_path / "deploy").symlink_to(DEPLOY)
    for program, *words in commands((ROOT / "docs" / "kubernetes.md").read_text()):
        if program == "helm" and words[0] == "upgrade":
            known = tools.run("helm", "upgrade", "--help").stdout
            options = {word for word in words if word.startswith("--")}
            assert all(f"{option} " in known for option in options)
            start = words.index("--reset-then-reuse-values") + 1
            given = itertools.takewhile(lambda w: "rollback" not in w, words[start:])
            assert tools.template(*given).returncode == 0


# Schemas.


def test_kubernetes_schemas(rendered: dict[str, list[Made]]) -> None:
    every = itertools.chain.from_iterable(rendered.values())
    items = [item for item in every if item["kind"] not in CUSTOM]
    for path in ("deployment.yaml", "admission.yaml"):
        items += tools.documents((DEPLOY / "kubernetes" / path).read_text())
    items.append(tools.kserve_pod())
    distinct = {json.dumps(item): item for item in items}
    misspelt = copy.deepcopy(server(rendered["example"]))
    misspelt["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    found = tools.faults([*distinct.values(), misspelt])
    assert len(found) == len(tools.VERSIONS)
    assert all("readynessProbe" in fault for fault in found)


def test_schemas_of_custom_resources(rendered: dict[str, list[Made]]) -> None:
    """Held to the definitions of the projects themselves, which are theirs to ship."""
    beside = ROOT.parent / "shared" / "crds"
    folder = Path(os.environ.get("CRDS") or beside)
    if not folder.is_dir():
        pytest.skip("CRDS names no folder of custom resource definitions")
    every = itertools.chain.from_iterable(rendered.values())
    items = [item for item in every if item["kind"] in CUSTOM]
    assert {item["kind"] for item in items} == CUSTOM
    for path in (
        "kubernetes/admission-kyverno.yaml",
        "kserve/servingruntime.yaml",
        "kserve/inferenceservice.yaml",
    ):
        items += tools.documents((DEPLOY / path).read_text())
    wrong = [{**item, "spec": {**item["spec"], "misspelt": True}} for item in items]
    found = tools.crd_faults([*items, *wrong], folder)
    assert sorted(fault.partition(" ")[0] for fault in found) == sorted(
        item["kind"] for item in items
    )
    assert all("'misspelt' was unexpected" in fault for fault in found)


# Promises about pods: each is kept, and each can be broken.


def locked(made: Made) -> Made:
    found: Made = made["spec"]["containers"][0]["securityContext"]
    return found


def first(made: Made) -> Made:
    found: Made = containers(made)[0]
    return found


def mounted(made: Made, volume: Made, path: str) -> None:
    made["spec"].setdefault("volumes", []).append(volume)
    first(made).setdefault("volumeMounts", []).append(
        {"name": volume["name"], "mountPath": path}
    )


def variable(made: Made) -> Made:
    found: Made = next(
        item
        for item in made["spec"]["containers"][0]["env"]
        if item["name"] == "SEALGATE_SERVICE_ENVIRONMENT"
    )
    return found


def state(made: Made) -> Made:
    found: Made = next(v for v in made["spec"]["volumes"] if v["name"] == "state")
    return found


TOKEN = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
NODE = {"hostPath": {"path": "/"}}

# The rule, and what breaks it.
BREAKS: list[tuple[str, Callable[[Made], object]]] = [
    ("image", lambda pod: first(pod).update(image=f"REGISTRY/other@{DIGEST}")),
    ("image", lambda pod: first(pod).update(image="REGISTRY/sealgate:latest")),
    ("image", lambda pod: first(pod).update(image=f"REGISTRY/sealgate@{DIGEST[:-1]}")),
    ("image", lambda pod: first(pod).update(image=f"REGISTRY/sealgate2@{DIGEST}")),
    ("image", lambda pod: first(pod).update(image=f"x/REGISTRY/sealgate@{DIGEST}")),
    ("debug", lambda pod: pod["spec"].update(ephemeralContainers=[{"image": "x"}])),
    ("root", lambda pod: pod["spec"]["securityContext"].pop("runAsNonRoot")),
    ("root", lambda pod: pod["spec"]["securityContext"].update(runAsUser=0)),
    ("root", lambda pod: first(pod)["securityContext"].update(runAsUser=0)),
    ("root", lambda pod: first(pod)["securityContext"].update(runAsNonRoot=False)),
    ("writable", lambda pod: locked(pod).pop("readOnlyRootFilesystem")),
    ("writable", lambda pod: locked(pod).update(readOnlyRootFilesystem=False)),
    ("privileges", lambda pod: locked(pod).pop("allowPrivilegeEscalation")),
    ("privileges", lambda pod: first(pod)["securityContext"].update(privileged=True)),
    ("capabilities", lambda pod: locked(pod).pop("capabilities")),
    ("capabilities", lambda pod: locked(pod)["capabilities"].update(drop=["CHOWN"])),
    ("capabilities", lambda pod: locked(pod)["capabilities"].update(add=["CHOWN"])),
    ("seccomp", lambda pod: pod["spec"]["securityContext"].pop("seccompProfile")),
    (
        "seccomp",
        lambda pod: locked(pod).update(seccompProfile={"type": "Unconfined"}),
    ),
    ("token", lambda pod: pod["spec"].pop("automountServiceAccountToken")),
    ("token", lambda pod: pod["spec"].update(automountServiceAccountToken=True)),
    ("token", lambda pod: mounted(pod, {"name": "t", **TOKEN}, "/token")),
    ("host", lambda pod: pod["spec"].update(hostNetwork=True)),
    ("host", lambda pod: pod["spec"].update(hostPID=True)),
    ("host", lambda pod: pod["spec"].update(hostIPC=True)),
    ("host", lambda pod: mounted(pod, {"name": "n", **NODE}, "/node")),
    ("host", lambda pod: pod["spec"]["containers"][0]["ports"][0].update(hostPort=80)),
    ("disk", lambda pod: state(pod).update(emptyDir={})),
    ("disk", lambda pod: first(pod).update(volumeMounts=[])),
    ("environment", lambda pod: variable(pod).update(value="development")),
    ("environment", lambda pod: pod["spec"]["containers"][0].pop("env")),
    (
        "environment",
        lambda pod: pod["spec"]["containers"][0]["env"].append(
            {"name": "SEALGATE_SERVICE_ENVIRONMENT", "value": "development"}
        ),
    ),
    ("memory", lambda pod: first(pod)["resources"].pop("limits")),
]


@pytest.fixture(scope="module")
def policy() -> Made:
    text = (DEPLOY / "kubernetes" / "admission.yaml").read_text()
    (found,) = tools.of_kind(tools.documents(text), "ValidatingAdmissionPolicy")
    return found


def promises(policy: Made) -> list[str]:
    return [rule["message"].partition(":")[0] for rule in policy["spec"]["validations"]]


def test_our_pods_keep_every_promise(
    policy: Made, rendered: dict[str, list[Made]]
) -> None:
    pods = [tools.pod(server(items)) for items in rendered.values()]
    kserve = json.loads(json.dumps(tools.kserve_pod()).replace("sha256:DIGEST", DIGEST))
    assert tools.broken(policy, [*pods, kserve]) == [[]] * (len(pods) + 1)


def test_every_promise_can_be_broken(
    policy: Made, rendered: dict[str, list[Made]]
) -> None:
    good = tools.pod(server(rendered["example"]))
    pods = []
    for _, change in BREAKS:
        made = copy.deepcopy(good)
        change(made)
        assert made != good
        pods.append(made)
    assert tools.broken(policy, pods) == [[name] for name, _ in BREAKS]
    assert {name for name, _ in BREAKS} == {*promises(policy)}


def test_the_trials_redis_is_locked_as_the_server_is(
    policy: Made, rendered: dict[str, list[Made]]
) -> None:
    pods = [
        tools.pod(item)
        for name in ("trial", "trial-tls")
        for item in tools.of_kind(rendered[name], "Deployment")
        if item["metadata"]["name"] == "sealgate-redis"
    ]
    # It is no server of ours, and has no /state.
    assert tools.broken(policy, pods) == [["image", "disk", "environment"]] * 2


def test_signatures_are_demanded_of_every_container() -> None:
    text = (DEPLOY / "kubernetes" / "admission-kyverno.yaml").read_text()
    (kyverno,) = tools.documents(text)
    ours, other = f"REGISTRY/sealgate@{DIGEST}", f"REGISTRY/tool@{DIGEST}"

    def made(signed: str, **images: str) -> Made:
        spec = {kind: [{"image": image}] for kind, image in images.items()}
        return {"metadata": {"annotations": {"signed": signed}}, "spec": spec}

    kinds = ("containers", "initContainers", "ephemeralContainers")
    unsigned, not_ours = (rule["message"] for rule in kyverno["spec"]["validations"])
    pods, expected = [made(ours, **dict.fromkeys(kinds, ours))], [[]]
    for kind in kinds:
        images = {**dict.fromkeys(kinds, ours), kind: other}
        pods += [
            made(f"{ours} {other}", **images),
            made(ours, **images),
            made("", **{kind: ours}),
        ]
        expected += [[not_ours], [unsigned, not_ours], [unsigned]]
    assert tools.broken(kyverno, pods) == expected


# Promises about what stands beside the pod.


def test_settings_are_those_of_the_server(
    rendered: dict[str, list[Made]], tmp_path: Path
) -> None:
    """The server's own loader takes every variable, from the files that are mounted."""
    for items in rendered.values():
        (container,) = tools.pod(server(items))["spec"]["containers"]
        given = {
            item["name"]: item.get("value", "rediss://redis:6380/0")
            for item in container["env"]
            if item["name"].startswith("SEALGATE_")
        }
        assert len(given) == sum(
            item["name"].startswith("SEALGATE_") for item in container["env"]
        )
        own = {n: v.replace("/config/", f"{DEPLOY}/") for n, v in given.items()}
        settings = load_settings({**own, "SEALGATE_HOME": str(tmp_path)})
        assert settings.service.environment == "production"
        args = container["args"]
        graceful = args[args.index("--timeout-graceful-shutdown") + 1]
        assert settings.service.shutdown_timeout_s == float(graceful)


def test_settings_keep_their_types(
    rendered: dict[str, list[Made]], tmp_path: Path
) -> None:
    (container,) = tools.pod(server(rendered["files"]))["spec"]["containers"]
    given = {item["name"]: item.get("value", "") for item in container["env"]}
    kept = {
        name: given[name]
        for name in given
        if re.match("SEALGATE_(SERVICE_M|SERVICE_I|SEALING|RUNTIME)", name)
    }
    settings = load_settings({**kept, "SEALGATE_HOME": str(tmp_path)})
    assert settings.service.max_concurrency == 128
    assert settings.service.inference_timeout_s == 2.5
    assert settings.sealing.require_date is False
    assert settings.runtime.providers == ("CPUExecutionProvider",)
    assert settings.service.models == ("path:/models",)


def test_no_secret_is_rendered(rendered: dict[str, list[Made]]) -> None:
    for items in rendered.values():
        assert tools.of_kind(items, "Secret") == []
        for item in tools.of_kind(items, "Deployment"):
            for container in containers(tools.pod(item)):
                for variable in container.get("env", []):
                    assert "://user:" not in variable.get("value", "")


def test_what_replicas_share_comes_from_one_secret(
    rendered: dict[str, list[Made]],
) -> None:
    for name, items in rendered.items():
        (container,) = tools.pod(server(items))["spec"]["containers"]
        stores = [v for v in container["env"] if v["name"].endswith("_STORE")]
        shared = "redis" in VARIANTS[name]
        assert len(stores) == (4 if shared else 0)
        for store in stores:
            source = store["valueFrom"]["secretKeyRef"]
            assert source == {"name": "sealgate-redis", "key": "url"}
        strategy = server(items)["spec"]["strategy"]["type"]
        assert strategy == ("RollingUpdate" if shared else "Recreate")


WAYS_IN = {
    "example": {3000: ["ingress"]},
    "shared": {3000: ["ingress"]},
    "scaled": {3000: ["ingress"], 9090: ["prom"]},
    "tls": {3000: ["ingress", "prom"]},
    "token": {3000: ["ingress", "prom"]},
    "files": {3000: ["ingress"]},
    "trial": {3000: ["ingress"]},
    "trial-tls": {3000: ["ingress"]},
}
DNS = [("kube-system", 53)]
WAYS_OUT = {
    "example": [],
    "shared": [*DNS, ("192.0.2.9/32", 6380), ("192.0.2.9/32", 26380)],
    "scaled": [*DNS, ("192.0.2.9/32", 6380)],
    "tls": [*DNS, ("192.0.2.80/32", 443), ("collector", 4318)],
    "token": [],
    "files": [],
    "trial": [*DNS, ("sealgate-redis", 6379)],
    "trial-tls": [*DNS, ("sealgate-redis", 6379)],
}


def who(peer: Made) -> str:
    """A word for one peer of a NetworkPolicy."""
    if "ipBlock" in peer:
        return str(peer["ipBlock"]["cidr"])
    labels = peer.get("namespaceSelector", peer.get("podSelector"))["matchLabels"]
    return str(next(iter(labels.values())))


@pytest.mark.parametrize("name", VARIANTS)
def test_ways_in_and_out(name: str, rendered: dict[str, list[Made]]) -> None:
    policies = {
        item["metadata"]["name"]: item["spec"]
        for item in tools.of_kind(rendered[name], "NetworkPolicy")
    }
    for spec in policies.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        for rule in spec["ingress"] + spec["egress"]:
            assert rule.get("from") or rule.get("to")
            assert rule["ports"]
    ours = policies["sealgate"]
    pod_labels = tools.pod(server(rendered[name]))["metadata"]["labels"]
    assert ours["podSelector"]["matchLabels"].items() <= pod_labels.items()
    ways_in = {
        port["port"]: [who(peer) for peer in rule["from"]]
        for rule in ours["ingress"]
        for port in rule["ports"]
    }
    assert ways_in == WAYS_IN[name]
    ways_out = [
        (who(peer), port["port"])
        for rule in ours["egress"]
        for peer in rule["to"]
        for port in rule["ports"]
    ]
    assert sorted({*ways_out}) == sorted(WAYS_OUT[name])
    if "sealgate-redis" in policies:
        redis = policies["sealgate-redis"]
        assert redis["egress"] == []
        assert [who(p) for r in redis["ingress"] for p in r["from"]] == ["sealgate"]


def test_selectors_meet_their_pods_alone(rendered: dict[str, list[Made]]) -> None:
    """The trial's Redis is in no Service, budget or policy of the server."""
    for items in rendered.values():
        labels = {
            item["metadata"]["name"]: tools.pod(item)["metadata"]["labels"]
            for item in tools.of_kind(items, "Deployment")
        }
        for item in items:
            selector = item["spec"].get("selector") if "spec" in item else None
            wanted = (selector or {}).get("matchLabels", selector)
            if item["kind"] == "ServiceMonitor":
                services = tools.of_kind(items, "Service")
                labels = {
                    s["metadata"]["name"]: s["metadata"]["labels"] for s in services
                }
            if wanted:
                met = [n for n, has in labels.items() if wanted.items() <= has.items()]
                assert met == [item["metadata"]["name"]]


def test_prometheus_scrapes_with_a_token_or_apart(
    rendered: dict[str, list[Made]],
) -> None:
    endpoints = {
        name: tools.of_kind(rendered[name], "ServiceMonitor")[0]["spec"]["endpoints"][0]
        for name in ("scaled", "tls", "token")
    }
    assert endpoints["scaled"]["port"] == "metrics"
    assert "authorization" not in endpoints["scaled"]
    assert endpoints["tls"]["scheme"] == "https"
    assert endpoints["tls"]["oauth2"]["scopes"] == ["metrics"]
    assert endpoints["tls"]["tlsConfig"]["serverName"] == "sealgate.sealgate.svc"
    token = endpoints["token"]["authorization"]["credentials"]
    assert token == {"name": "metrics-token", "key": "token"}
    (certificate,) = tools.of_kind(rendered["tls"], "Certificate")
    assert "sealgate.sealgate.svc" in certificate["spec"]["dnsNames"]
    for name in endpoints:
        (service,) = tools.of_kind(rendered[name], "Service")
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert endpoints[name]["port"] in ports


def test_alerts_are_the_one_file(rendered: dict[str, list[Made]]) -> None:
    (rule,) = tools.of_kind(rendered["scaled"], "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "alerts.yml").read_text())


def test_the_autoscaler_falls_back_to_cpu(rendered: dict[str, list[Made]]) -> None:
    (scaler,) = tools.of_kind(rendered["scaled"], "HorizontalPodAutoscaler")
    sealed, cpu = scaler["spec"]["metrics"]
    assert sealed["pods"]["metric"]["name"] == "sealgate_sealed_requests_per_second"
    assert cpu["containerResource"]["container"] == "sealgate"
    made = server(rendered["scaled"])
    assert made["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
    # A number here would be set again at every upgrade.
    assert "replicas" not in made["spec"]
    (container,) = tools.pod(made)["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"]


def test_probes_speak_as_the_server_does(rendered: dict[str, list[Made]]) -> None:
    for name, items in rendered.items():
        (container,) = tools.pod(server(items))["spec"]["containers"]
        schemes = {
            container[probe]["httpGet"]["scheme"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        assert schemes == {"HTTPS" if name == "tls" else "HTTP"}


def test_files_are_mounted_as_given(rendered: dict[str, list[Made]]) -> None:
    (files,) = (
        item
        for item in tools.of_kind(rendered["files"], "ConfigMap")
        if item["metadata"]["name"] == "sealgate-files"
    )
    assert files["data"] == {
        f"{name}.toml": f"[{name}.toml]"
        for name in ("access", "quotas", "policy", "service")
    }
    for text in files["data"].values():
        assert tomllib.loads(text)


def test_a_trust_root_may_be_another_config_map(
    rendered: dict[str, list[Made]],
) -> None:
    assert tools.of_kind(rendered["scaled"], "ConfigMap") == []
    volumes = tools.pod(server(rendered["scaled"]))["spec"]["volumes"]
    (trust,) = (volume for volume in volumes if volume["name"] == "trust")
    assert trust["configMap"] == {"name": "own-trust"}


def test_a_changed_trust_root_starts_new_pods(tmp_path: Path) -> None:
    def mark(trust: str) -> str:
        items = tools.render({"trust": {"trust": trust}}, tmp_path)
        made = tools.pod(server(items))["metadata"]["annotations"]
        return str(made["sealgate.dev/config"])

    assert mark('{"a":1}') != mark('{"a":2}')
    assert mark('{"a":1}') == mark('{"a":1}')
