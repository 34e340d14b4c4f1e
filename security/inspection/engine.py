"""What the pinned onnxruntime loads, as constants: inspection itself loads no engine.

Measured on onnxruntime 1.31; tests/security/inspection/test_engine.py asks the
installed one again. ONNX's own library knows later versions, which no server here runs.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "MAX_ELEMENT_TYPE",
    "MAX_IR_VERSION",
    "MIN_IR_VERSION",
    "OPERATOR_SETS",
    "ORT_FORMAT",
]

# IR 3 is of ONNX 1.0; below it, initializers had no place.
MIN_IR_VERSION, MAX_IR_VERSION = 3, 13

# TensorProto.DataType: INT2.
MAX_ELEMENT_TYPE = 26

# By domain, the newest version. In these domains onnxruntime prefers its own operators
# to a function of the file, whatever the function computes.
OPERATOR_SETS: Mapping[str, int] = {
    "": 26,
    "ai.onnx.ml": 5,
    "ai.onnx.preview": 1,
    "ai.onnx.preview.training": 1,
    "ai.onnx.training": 1,
    "com.microsoft": 1,
    "com.microsoft.experimental": 1,
    "com.microsoft.nchwc": 1,
    "com.ms.internal.nhwc": 26,
    "org.pytorch.aten": 1,
}

# Bytes 4 to 8 of its own format, by which a session that is not told knows it.
ORT_FORMAT = b"ORTM"
