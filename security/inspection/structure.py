"""Structural inspection of an untrusted ONNX file.

ONNX's own assurance case leaves resource exhaustion out and calls its checker
best-effort; the parser is C++ and the file is hostile. So every step that interprets
the bytes happens in a child process with limits on processor time, memory, output and
wall clock: it may crash or hang, and that is one more finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.errors import AssessmentError
from security.inspection.confined import run_confined
from security.inspection.findings import RULES, Finding, StructureLimits

__all__ = ["Inspection", "examine", "inspect"]

_CHILD = "security.inspection.child"
_MAX_ANSWER_BYTES = 1 << 20
_FIELDS = ("rule", "message", "where", "explanation")


@dataclass(frozen=True)
class Inspection:
    """What was found in a file.

    Attributes:
        findings: in the order found; a file is refused if one is an "error".
        counts: nodes, initializers, functions; empty if the file did not parse.
        description: what it says of itself, in texts of strangers; by heading, as
            `security.inspection.description` has them. Empty if it did not parse.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, int] = field(default_factory=dict)
    description: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that refuse the file."""
        return tuple(item for item in self.findings if item.severity == "error")


def inspect(
    model: bytes, limits: StructureLimits = StructureLimits()
) -> tuple[Finding, ...]:
    """Inspect a model file and return what was found.

    >>> inspect(b"not a model")[0].rule
    'parse'
    """
    return examine(model, limits).findings


def examine(model: bytes, limits: StructureLimits = StructureLimits()) -> Inspection:
    """Inspect a model file; findings and counts.

    Args:
        model: the bytes of an ONNX file, hostile.
        limits: of the file and of the process.

    Raises:
        AssessmentError: the process could not be started, or answered nonsense.
        ModuleNotFoundError: onnx is not installed.
    """
    if len(model) > limits.max_model_bytes:
        message = f"{len(model)} bytes, at most {limits.max_model_bytes} allowed"
        return Inspection((Finding("file-size", message),))
    try:
        answer, code = run_confined(_CHILD, [model], limits, _MAX_ANSWER_BYTES)
    except OSError as error:
        raise AssessmentError(f"inspection cannot start: {error}") from None
    if answer is None:
        return _exceeded(f"not finished after {limits.wall_s:g} s")
    if code != 0 or len(answer) > _MAX_ANSWER_BYTES:
        return _exceeded(f"the process ended with code {code}")
    return _parse(answer)


def _exceeded(message: str) -> Inspection:
    return Inspection((Finding("inspection-limits", message),))


def _parse(data: bytes) -> Inspection:
    """The child's answer. It handled hostile bytes, so it is not believed blindly."""
    try:
        answer = strict_json.loads_object(data, max_bytes=_MAX_ANSWER_BYTES)
        findings = tuple(_finding(item) for item in answer["findings"])
        counts = {str(name): int(count) for name, count in answer["counts"].items()}
        description = {
            str(heading): {str(key): _fact(value) for key, value in facts.items()}
            for heading, facts in answer["description"].items()
        }
    except (JsonError, KeyError, TypeError, ValueError, AttributeError):
        raise AssessmentError("the inspecting process answered nonsense") from None
    return Inspection(findings, counts, description)


def _fact(value: Any) -> str | int:
    return value if type(value) is int else str(value)


def _finding(item: dict[str, Any]) -> Finding:
    if item["rule"] not in RULES:
        raise ValueError(item["rule"])
    return Finding(*(str(item[name]) for name in _FIELDS))
