"""What the last layer of a graph reads, for each row: by onnxruntime itself.

The value becomes one more output of the same graph, so that no interpreter can differ
from what is served, and any graph that has a last linear layer will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from security.assessment.plan.context import Context
from security.assessment.targets.target import OnnxTarget
from security.errors import AssessmentError

__all__ = ["Activations", "last_layer_input"]

_LINEAR = frozenset(("Conv", "Gemm", "LinearClassifier", "MatMul"))


def last_layer_input(model: bytes, output: str) -> str:
    """The value that the last linear layer before an output reads.

    Args:
        model: the inspected file.
        output: the graph's output with scores or labels.

    Raises:
        AssessmentError: there is none: trees, neighbours, kernels.
    """
    graph = onnx.load_model_from_string(model).graph
    stored = {item.name for item in graph.initializer} | {""}
    stored |= {name for node in graph.node if not node.input for name in node.output}
    made = {name: node for node in graph.node for name in node.output}
    value, seen = output, 0
    while (node := made.get(value)) is not None and seen < len(graph.node):
        inputs = [name for name in node.input if name not in stored]
        if not inputs:
            break
        if node.op_type in _LINEAR:
            return inputs[0]
        value, seen = inputs[0], seen + 1
    raise AssessmentError("no linear layer comes before the scores")


class Activations:
    """A second session of the same graph, with what its last layer reads."""

    def __init__(self, context: Context) -> None:
        """Open it.

        Raises:
            AssessmentError: there is no such layer.
        """
        job = context.job
        self._name = last_layer_input(job.source.model, job.reading.output)
        self._space = job.space
        self._target: OnnxTarget | None = None
        if self._name != job.spec.name:
            self._target = OnnxTarget(_exposed(job.source.model, self._name))
            self._target.shape = job.shape

    def of(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """``(n, features)`` of rows ``(n, d)``; a linear model reads the columns."""
        if self._target is None:
            return self._space.to_z(rows)
        values = self._target.values(rows, self._name)
        return np.asarray(values.reshape(len(rows), -1), np.float64)


def _exposed(model: bytes, name: str) -> bytes:
    proto = onnx.load_model_from_string(model)
    if all(item.name != name for item in proto.graph.output):
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    data: bytes = proto.SerializeToString()
    return data
