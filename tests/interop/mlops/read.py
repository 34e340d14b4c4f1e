"""Run by the tracking side's Python: what a version and a run hold, as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import mlflow

kind, name, *rest = sys.argv[1:]
client = mlflow.MlflowClient()
found: dict[str, object] = {}
if kind == "register":
    found["version"] = mlflow.register_model(f"runs:/{rest[0]}/model", name).version
    run_id = rest[0]
elif kind == "version":
    version = client.get_model_version(name, rest[0])
    found |= {"aliases": list(version.aliases), "tags": version.tags}
    run_id = version.run_id
else:
    run_id = name
run = client.get_run(run_id).data
found |= {"params": run.params, "metrics": run.metrics, "run_tags": run.tags}
found["history"] = [
    (item.step, item.value) for item in client.get_metric_history(run_id, "epsilon")
]
artifacts = {}
for top in ("sealgate", "model"):
    if not client.list_artifacts(run_id, top):
        continue
    folder = Path(client.download_artifacts(run_id, top))
    artifacts |= {
        f"{top}/{file.relative_to(folder).as_posix()}": hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }
found["artifacts"] = artifacts
print(json.dumps(found))
