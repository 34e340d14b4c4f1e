"""The process that parses a hostile model: limits first, then ONNX, then input.

Reads the model from standard input and writes one JSON object to standard output. It
has no secrets, an empty working directory and no environment; `structure` starts it.
Once its libraries are loaded it can open nothing: no file, no socket, no process.
"""

from __future__ import annotations

import ctypes
import json
import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from security.inspection.findings import Finding, StructureLimits

__all__: list[str] = []

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL = 9
# What shape inference needs the numbers of (shapes, axes, repeats) is small.
_MAX_KEPT_ELEMENTS = 1024


def _main() -> int:
    limits = StructureLimits(**json.loads(sys.argv[1]))
    size = int(sys.argv[2])
    _confine(limits, size)
    # Imported here: the limits must stand before a large library is loaded.
    import onnx  # noqa: PLC0415

    from security.inspection import backdoor  # noqa: PLC0415
    from security.inspection import rules as graph_rules  # noqa: PLC0415

    # 0, 1 and 2 are open. From here on nothing else can be, a socket neither.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    findings, counts = _inspect(
        (onnx, graph_rules.walk_model, backdoor.analyse), limits, size
    )
    answer = {"findings": [asdict(item) for item in findings], "counts": counts}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _confine(limits: StructureLimits, size: int) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes + 6 * size),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (value, value))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def _inspect(
    tools: tuple[Any, Any, Any], limits: StructureLimits, size: int
) -> tuple[tuple[Finding, ...], dict[str, int]]:
    onnx, walk_model, analyse = tools
    model = onnx.ModelProto()
    try:
        # The only copy of the bytes is gone once they are parsed.
        model.ParseFromString(sys.stdin.buffer.read(size))
    except Exception:  # noqa: BLE001  (protobuf's DecodeError, which has no type stubs)
        return (Finding("parse", "not a protobuf message of ONNX"),), {}
    if not model.HasField("graph"):
        return (Finding("parse", "there is no graph"),), {}
    findings, counts = walk_model(model, limits)
    if _refused(findings):
        return findings, counts
    weights = _thin(onnx, model)
    findings += _checker((onnx, walk_model), model, limits)
    if not _refused(findings):
        findings += analyse(model, limits, weights)
    return findings, counts


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


def _checker(
    tools: tuple[Any, Any], model: Any, limits: StructureLimits
) -> tuple[Finding, ...]:
    onnx, walk_model = tools
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(
            model, strict_mode=True, data_prop=True
        )
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,  # the file is too large for one protobuf message
    ) as error:
        lines = str(error).splitlines() or [""]
        return (Finding("checker", ascii(lines[0][:200])),)
    # The same rules again: a small file can infer a tensor of any size.
    return tuple(
        item for item in walk_model(inferred, limits)[0] if item.rule == "dimension"
    )


if __name__ == "__main__":
    sys.exit(_main())
