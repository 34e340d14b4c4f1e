"""SARIF 2.1.0: a scan's findings for code scanning tools.

Rule ids are the scan's own and stay. A result's fingerprint is made of rule, target
and place, not of its numbers, so that a tool knows a finding again at the next scan.
Rules point at MITRE ATLAS, NIST AI 100-2 and OWASP as taxonomies (3.19.3, 3.49.13).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from models.report import format_time, parse_time
from sealgate.version import installed_version
from security.assessment.reporting.taxonomies import TAXONOMIES, rule_tags
from security.assessment.results.report import rule_facts

__all__ = ["to_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_URL = "https://sealgate.dev/scan"
# GitHub sorts by this number: above 7 is high, above 4 medium.
_SECURITY_SEVERITY = {"error": "8.0", "warning": "5.0", "note": "2.0"}
# Version 1 was made of the name alone, which two models may share.
_FINGERPRINT = "sealgateFinding/v2"


def to_sarif(report: Mapping[str, Any], *more: Mapping[str, Any]) -> bytes:
    """One run with every finding.

    Args:
        report: as `ScanReport.parse` gives it.
        more: of other models, by the same tools and options. GitHub takes one run of a
            tool in an upload, so that they share it.
    """
    reports = (report, *more)
    version = installed_version()
    rules = sorted({item["rule"] for one in reports for item in one["findings"]})
    run = {
        "tool": {
            "driver": {
                "name": "Sealgate scan",
                **({"version": version} if version else {}),
                "informationUri": _URL,
                "rules": [_rule(rule) for rule in rules],
                "supportedTaxonomies": [_component(name) for name in TAXONOMIES],
            }
        },
        "automationDetails": {
            "id": f"sealgate-scan/{_run(report['target']) if not more else 'models'}/"
            f"{report['options'].get('profile', '')}"
        },
        "invocations": [_invocation(one) for one in reports],
        "artifacts": [_artifact(one["target"]) for one in reports],
        "taxonomies": [_taxonomy(name, rules) for name in TAXONOMIES],
        "results": [
            _finding(item, rules, one["target"], index)
            for index, one in enumerate(reports)
            for item in one["findings"]
        ],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "data": report.get("data", {}),
            "options": report.get("options", {}),
            "tools": report.get("tools", {}),
        },
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def _rule(rule: str) -> dict[str, Any]:
    facts = rule_facts(rule)
    tags = vars(rule_tags(rule))
    named = [f"{TAXONOMIES[name].name}: {tag}" for name in tags for tag in tags[name]]
    return {
        "id": rule,
        "name": "".join(part.capitalize() for part in rule.split("-")),
        "shortDescription": {"text": _sentence(facts["title"])},
        "fullDescription": {"text": facts["why"]},
        "help": {"text": facts["remedy"]},
        "helpUri": f"{_URL}/rules#{rule}",
        "defaultConfiguration": {"level": facts["severity"]},
        "relationships": [
            {
                "target": {"id": tag, "toolComponent": _component(name)},
                "kinds": ["relevant"],
            }
            for name in tags
            for tag in tags[name]
        ],
        "properties": {
            "tags": ["security", "machine-learning", *named],
            "precision": "high",
            "security-severity": _SECURITY_SEVERITY[facts["severity"]],
        },
    }


def _finding(
    item: Mapping[str, Any], rules: Sequence[str], target: Mapping[str, Any], index: int
) -> dict[str, Any]:
    known = target.get("id", target["name"])
    where = item["where"] or item["rule"]
    fingerprint = hashlib.sha256(
        "\0".join((item["rule"], known, item["where"])).encode()
    ).hexdigest()
    properties = {"metric": item["metric"], "evidence": item["evidence"]}
    return {
        "ruleId": item["rule"],
        "ruleIndex": rules.index(item["rule"]),
        "level": item["severity"],
        "kind": "fail",
        "message": {"text": _sentence(item["message"])},
        "locations": [
            {
                # Tools insist on a line, which a model file has not.
                "physicalLocation": {
                    "artifactLocation": {"uri": _place(target), "index": index},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [{"fullyQualifiedName": where, "kind": "object"}],
            }
        ],
        "partialFingerprints": {_FINGERPRINT: fingerprint},
        "properties": {key: value for key, value in properties.items() if value},
    }


def _invocation(report: Mapping[str, Any]) -> dict[str, Any]:
    notes = [
        {
            "level": "note",
            "descriptor": {"id": result["check"]},
            "message": {"text": f"{result['check']} {result['status']}: {why}"},
        }
        for result in report["results"]
        if (why := result["reason"])
    ]
    times = report.get("times", {})
    value: dict[str, Any] = {
        "executionSuccessful": True,
        "toolExecutionNotifications": notes,
    }
    if "started_at" in times:
        began = parse_time(times["started_at"])
        value["startTimeUtc"] = format_time(began)
        value["endTimeUtc"] = format_time(
            began + timedelta(seconds=round(times.get("wall_s", 0)))
        )
    return value


def _artifact(target: Mapping[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = {
        "location": {"uri": _place(target)},
        "roles": ["analysisTarget"],
    }
    if target.get("sha256"):
        value["hashes"] = {"sha-256": target["sha256"]}
    return value


def _taxonomy(name: str, rules: Sequence[str]) -> dict[str, Any]:
    known = TAXONOMIES[name]
    used = sorted({tag for rule in rules for tag in vars(rule_tags(rule))[name]})
    return {
        "name": known.name,
        "version": known.version,
        "informationUri": known.url,
        "isComprehensive": False,
        "taxa": [
            {"id": tag, "shortDescription": {"text": known.names[tag]}} for tag in used
        ],
    }


def _component(name: str) -> dict[str, str]:
    return {"name": TAXONOMIES[name].name}


def _place(target: Mapping[str, Any]) -> str:
    """The file below the root, or its name where it is elsewhere."""
    return _uri(target.get("path") or target["name"])


def _run(target: Mapping[str, Any]) -> str:
    """Names the runs of one model: two that share a name are told apart."""
    if target.get("path") or "id" not in target:
        return _place(target)
    return f"{_uri(target['name'])}-{target['id'][:12]}"


def _uri(name: str) -> str:
    """A relative reference, whatever the name holds."""
    return quote(name, safe="/.-_") or "model"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
