"""The process that parses a hostile model: limits first, then ONNX, then input.

Reads the model from standard input and writes one JSON object to standard output. It
has no secrets, an empty working directory and no environment; `structure` starts it.
Once its libraries are loaded it can open nothing: no file, no socket, no process.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, BinaryIO

from security.inspection.confined import close_everything, confine, load
from security.inspection.engine import ORT_FORMAT
from security.inspection.findings import Finding, StructureLimits

__all__: list[str] = []

# What shape inference needs the numbers of (shapes, axes, repeats) is small.
_MAX_KEPT_ELEMENTS = 1024


def _main() -> int:
    limits, _ = confine(sys.argv[1])
    tools = load(_tools)
    close_everything()
    findings, counts, description = _inspect(tools, limits, sys.stdin.buffer)
    answer = {
        "findings": [asdict(item) for item in findings],
        "counts": counts,
        "description": description,
    }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _tools() -> Any:
    # Imported here: the limits must stand before a large library is loaded.
    import onnx  # noqa: PLC0415

    from security.inspection import (  # noqa: PLC0415
        backdoor,
        description,
        order,
        rules,
        wire,
    )

    return SimpleNamespace(
        onnx=onnx,
        backdoor=backdoor,
        description=description,
        order=order,
        rules=rules,
        wire=wire,
    )


def _inspect(
    tools: Any, limits: StructureLimits, stream: BinaryIO
) -> tuple[tuple[Finding, ...], dict[str, int], dict[str, Any]]:
    """Findings, counts, and what the file says of itself."""
    model = tools.onnx.ModelProto()
    problem = _read(tools, model, stream)
    if problem is not None:
        return (problem,), {}, {}
    # Before anything is taken out of it.
    description = tools.description.describe(model, limits)
    findings, counts = tools.rules.walk_model(model, limits)
    if not _refused(findings):
        findings = _inferring(tools, model, limits, findings)
    return findings, counts, description


def _inferring(
    tools: Any, model: Any, limits: StructureLimits, findings: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    """The findings, and those of rules that need types and sizes."""
    weights = _thin(tools.onnx, model)
    findings += _checker(tools, model, limits)
    if not _refused(findings):
        findings += tools.backdoor.analyse(model, limits, weights)
    return findings


def _read(tools: Any, model: Any, stream: BinaryIO) -> Finding | None:
    """Parse what comes in; what other readers would read in another way."""
    # The only copy of the bytes is gone once they are parsed and compared.
    data = stream.read()
    if data[4:8] == ORT_FORMAT:
        return Finding("format", f"bytes 4 to 8 are {ORT_FORMAT!r}")
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001  (protobuf's DecodeError, which has no type stubs)
        return Finding("parse", "not a protobuf message of ONNX")
    if not model.HasField("graph"):
        return Finding("parse", "there is no graph")
    problem = tools.wire.check_wire(data, model)
    if problem is None:
        return None
    rule, where, message = problem
    return Finding(rule, message, where)


def _refused(findings: tuple[Finding, ...]) -> bool:
    return any(item.severity == "error" for item in findings)


def _thin(onnx: Any, model: Any) -> Mapping[str, int]:
    """Turn large initializers into inputs of their type and shape; names and ranks.

    The walk has compared their bytes with their shapes, and no rule after it needs
    them. The checker and shape inference would each copy them, twice.
    """
    graph = model.graph
    inputs = {entry.name for entry in graph.input}
    large = [
        (index, tensor)
        for index, tensor in enumerate(graph.initializer)
        if math.prod(tensor.dims) > _MAX_KEPT_ELEMENTS
    ]
    weights = {tensor.name: len(tensor.dims) for _, tensor in large}
    for _, tensor in large:
        if tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(
                    tensor.name, tensor.data_type, list(tensor.dims)
                )
            )
    for index, _ in reversed(large):
        del graph.initializer[index]
    return weights


def _checker(tools: Any, model: Any, limits: StructureLimits) -> tuple[Finding, ...]:
    onnx = tools.onnx
    findings: tuple[Finding, ...] = ()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        # onnxruntime sorts what the checker wants sorted.
        if not tools.order.sort_nodes(model.graph):
            return (_rejected(error),)
        findings = (Finding("node-order", "places are those after sorting", "graph"),)
    try:
        if findings:
            onnx.checker.check_model(model)
        inferred = _inferred(onnx, model)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,  # the file is too large for one protobuf message
    ) as error:
        return (_rejected(error),)
    return (*findings, *tools.rules.walk_sizes(inferred, limits))


def _rejected(error: Exception) -> Finding:
    lines = str(error).splitlines() or [""]
    return Finding("checker", ascii(lines[0][:200]))


def _inferred(onnx: Any, model: Any) -> Any:
    """The model with all types and sizes that follow from it.

    With ``check_type`` this is the inference of ONNX's full check: an operator without
    inference of its own (many of ai.onnx.ml) leaves what follows it unknown, and is no
    error. Sizes that depend on computed values are known only with ``data_prop``,
    which the full check does not use: where that fails alone, it does not count.
    """
    infer = onnx.shape_inference.infer_shapes
    try:
        return infer(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return infer(model, check_type=True, strict_mode=True, data_prop=False)


if __name__ == "__main__":
    sys.exit(_main())
