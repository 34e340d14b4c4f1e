"""Evaluates the CEL of an admission policy on objects, as the API server does.

Run in the environment of `make interop-kubernetes`; reads a question as JSON, answers
with the rules that each object breaks, by the words before their messages' colon.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import cel

Made = dict[str, Any]


def images(item: Made) -> Made:
    """What Kyverno calls `images`, of a pod."""
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return {
        kind: [each["image"] for each in item["spec"].get(kind, [])] for kind in kinds
    }


def context(policy: Made, item: Made) -> cel.Context:
    """An object, and the variables of the policy in their order.

    Kyverno's function looks at a registry; here an image is signed if its annotation of
    the pod says so, so that rules are tried on both.
    """
    signed = item.get("metadata", {}).get("annotations", {}).get("signed", "").split()
    values: Made = {
        "object": item,
        "images": images(item),
        "attestors": {each["name"]: each for each in policy.get("attestors", [])},
        "variables": {},
    }
    for variable in policy.get("variables", []):
        made = cel.evaluate(variable["expression"], values)
        values["variables"][variable["name"]] = made
    found = cel.Context(values)
    found.add_function(
        "verifyImageSignatures", lambda image, keys: len(keys) * (image in signed)
    )
    return found


def broken(policy: Made, item: Made) -> list[str]:
    """Rules that are not true; one that cannot be evaluated refuses, too."""
    rules = []
    made = context(policy, item)
    for rule in policy["validations"]:
        try:
            passed = cel.evaluate(rule["expression"], made) is True
        except (RuntimeError, TypeError, ValueError):
            passed = False
        if not passed:
            rules.append(rule["message"].partition(":")[0])
    return rules


def main() -> None:
    question = json.load(sys.stdin)
    policy = question["policy"]
    json.dump([broken(policy, item) for item in question["objects"]], sys.stdout)


if __name__ == "__main__":
    main()
