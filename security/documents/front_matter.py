"""The YAML at the top of a model card, as model hubs read it.

Fields: https://huggingface.co/docs/hub/model-cards. Numbers are the report's own, not
rounded. Data sets are not listed under `datasets`: hubs would link to theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from security.documents.facts import Facts
from security.documents.markup import yaml_number, yaml_text

__all__ = ["front_matter"]

_HUB_LICENSE = re.compile(r"[A-Za-z0-9.+-]{1,64}")


def front_matter(facts: Facts) -> str:
    """The block between two lines of three hyphens, without a line break after it."""
    lines = ["---", *_license(facts.use.license), 'library_name: "onnx"']
    if facts.task:
        lines.append(f"pipeline_tag: {yaml_text(facts.task)}")
    tags = ["onnx", "sealgate"]
    if facts.condition("provenance", "differentially_private") is True:
        tags.append("differential-privacy")
    lines += ["tags:", *(f"  - {yaml_text(tag)}" for tag in tags)]
    return "\n".join([*lines, *_model_index(facts), "---"])


def _license(stated: str) -> list[str]:
    if not stated:
        return []
    if _HUB_LICENSE.fullmatch(stated):
        return [f"license: {yaml_text(stated.lower())}"]
    return ['license: "other"', f"license_name: {yaml_text(stated)}"]


def _model_index(facts: Facts) -> Iterator[str]:
    report = facts.reports.get("quality")
    if report is None or not report.datasets or not report.metrics or not facts.task:
        return
    rows = report.datasets[0]
    yield "model-index:"
    yield f"  - name: {yaml_text(facts.manifest.name)}"
    yield "    results:"
    yield f"      - task: {{type: {yaml_text(facts.task)}}}"
    name, role = yaml_text(rows.name), yaml_text(rows.role)
    yield f"        dataset: {{name: {name}, type: {name}, split: {role}}}"
    yield "        metrics:"
    for name, metric in report.metrics.items():
        value = yaml_number(metric.value)
        yield f"          - {{type: {yaml_text(name)}, value: {value}}}"
