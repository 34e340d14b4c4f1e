"""What a bundle's evidence is in MLflow's terms: metrics, parameters, tags, a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST_FILE, MODEL_FILE, SEALED_FILE, Bundle, report_file
from models.files import write_atomic
from models.report import KINDS, format_time
from security.admission.gate import Admission
from security.tracking.mlmodel import MLMODEL_FILE

__all__ = ["metrics_of", "params_of", "tags_of", "write_evidence", "write_model"]

_KEY = re.compile(r"[\w./ -]{1,250}", re.ASCII)
_MAX_VALUE = 500
_MODEL = """\
artifact_path: model
flavors:
  onnx:
    data: {file}
    onnx_version: {onnx}
    providers: [CPUExecutionProvider]
run_id: {run_id}
"""


def metrics_of(bundle: Bundle) -> dict[str, float]:
    """Every metric of the evidence but those of single groups, ``sealgate.KIND.NAME``.

    Raises:
        ReportError: a report is malformed.
    """
    found = {}
    for kind in KINDS:
        if report_file(kind) in bundle.files:
            for name, metric in bundle.report(kind).metrics.items():
                # What follows a slash is a group: names are the data's, and many.
                if "/" not in name and _KEY.fullmatch(name):
                    found[f"sealgate.{kind}.{name}"] = metric.value
    return found


def tags_of(
    bundle: Bundle, admission: Admission | None, policy_sha256: str = ""
) -> dict[str, str]:
    """Which model it is, and what was decided of it.

    Args:
        bundle: the model's.
        admission: what the gate found, or None where there is no verdict.
        policy_sha256: of the policy that it found it under.
    """
    subject = bundle.subject
    tags = {
        "sealgate.model": f"{subject.name}:{subject.version}",
        "sealgate.root": f"sha256:{subject.root_sha256}",
        "sealgate.onnx": f"sha256:{subject.onnx_sha256}",
        "sealgate.verdict": "none",
    }
    if admission is None:
        return tags
    expires = admission.expires_at
    tags |= {
        "sealgate.verdict": "admitted",
        "sealgate.verdict_sha256": admission.verdict_sha256,
        "sealgate.policy_sha256": policy_sha256,
        "sealgate.waivers": str(len(admission.waivers)),
    }
    return tags | ({"sealgate.expires": format_time(expires)} if expires else {})


def params_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A training configuration's single values, by their dotted names.

    Lists, such as columns and classes, are in the evidence only.

    >>> params_of({"privacy": {"epsilon": 3.0}, "data": {"classes": ["a"]}})
    {'privacy.epsilon': '3.0'}
    """
    return {name: str(value)[:_MAX_VALUE] for name, value in _scalars(config, "")}


def _scalars(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _scalars(value, f"{full}.")
        elif isinstance(value, str | int | float) and _KEY.fullmatch(full):
            yield full, value


def write_evidence(bundle: Bundle, folder: Path) -> None:
    """Write all of a bundle but its model into a folder."""
    for name, data in bundle.files.items():
        if name not in (MODEL_FILE, SEALED_FILE):
            write_atomic(folder / name, data)


def write_model(bundle: Bundle, folder: Path, *, run_id: str, onnx: str) -> None:
    """Write a model as MLflow keeps one, its bytes as they are.

    Args:
        bundle: the model's, not sealed.
        folder: for it.
        run_id: of the run that it is from.
        onnx: the version of the library.
    """
    write_atomic(folder / MODEL_FILE, bundle.model)
    text = _MODEL.format(file=MODEL_FILE, onnx=onnx, run_id=run_id)
    write_atomic(folder / MLMODEL_FILE, text.encode())
    write_atomic(folder / MANIFEST_FILE, bundle.files[MANIFEST_FILE])
