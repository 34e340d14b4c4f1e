"""What DVC shows of a bundle: its root digest, and every metric by its kind.

python summary.py BUNDLE FILE.json
"""

import json
import sys
from pathlib import Path

bundle, out = map(Path, sys.argv[1:])
reports = [json.loads(file.read_bytes()) for file in sorted(bundle.glob("evidence/*"))]
(root,) = {report["subject"]["root_sha256"] for report in reports}
metrics = {
    report["kind"]: {
        name: metric["value"]
        for name, metric in report["metrics"].items()
        if "/" not in name
    }
    for report in reports
}
summary = {"root_sha256": root, "metrics": metrics}
out.write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
