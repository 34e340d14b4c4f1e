"""Holds documents to Kubernetes' schemas, or to those of custom resources, strictly.

Run in the environment of `make interop-kubernetes`; reads a question as JSON, answers
with the list of faults.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import yaml

# It reads the definitions of a version, several megabytes, for every document.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)


def built_in(item: dict[str, Any], version: str) -> str | None:
    try:
        kubernetes_validate.validate(item, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{item['kind']} {version}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{item['kind']} {version}: no schema"
    return None


def strict(schema: Any) -> Any:
    """A structural schema that refuses what it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "nullable"}
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_to_all:
        made.setdefault("additionalProperties", False)
    return made


def custom_schemas(files: list[str], kinds: set[str]) -> dict[tuple[str, str], Any]:
    """Schemas of some kinds, by apiVersion and kind."""
    found = {}
    for path in files:
        with open(path, encoding="utf-8") as file:
            crds = [crd for crd in yaml.load_all(file, yaml.CSafeLoader) if crd]
        for spec in (crd["spec"] for crd in crds):
            if spec["names"]["kind"] not in kinds:
                continue
            for version in spec["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                api = f"{spec['group']}/{version['name']}"
                if version["served"]:
                    found[api, spec["names"]["kind"]] = schema
    return found


def custom(item: dict[str, Any], schemas: dict[tuple[str, str], Any]) -> list[str]:
    schema = schemas.get((item["apiVersion"], item["kind"]))
    if schema is None:
        return [f"{item['kind']}: no schema"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(item)
    return [f"{item['kind']} {error.json_path}: {error.message}" for error in errors]


def main() -> None:
    question = json.load(sys.stdin)
    if "crds" in question:
        kinds = {item["kind"] for item in question["documents"]}
        schemas = custom_schemas(question["crds"], kinds)
        found = [f for item in question["documents"] for f in custom(item, schemas)]
    else:
        found = [
            fault
            for item in question["documents"]
            for version in question["versions"]
            if (fault := built_in(item, version)) is not None
        ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
