#!/usr/bin/env bash
# onnxruntime 1.31.1: after quantize_dynamic a row's answer depends on the rows beside it.
#
# Guess: a network answers each row of a batch as it answers that row alone, up to rounding
# in the last bits, quantised or not.
# Seen: the scale of DynamicQuantizeLinear is taken over the whole tensor, all rows of the
# batch included. One row of values a hundred times as large beside another moves that one's
# scores by more than ten times what quantising did; unquantised, nothing moves.
# Who is hurt: a server that gathers requests of several callers into one batch gives each
# an answer that depends on the others; an evaluation in batches does not measure what a
# single request gets. Static quantisation (QDQ) has fixed scales, and does not do this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

folder = Path(sys.argv[1])
random = np.random.default_rng(0)
weights = random.normal(size=(16, 4)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    [numpy_helper.from_array(weights, "w")],
)
opsets = [helper.make_opsetid("", 20)]
plain = helper.make_model(graph, opset_imports=opsets, ir_version=10)
onnx.checker.check_model(plain, full_check=True)
onnx.save(plain, folder / "plain.onnx")
quantize_dynamic(folder / "plain.onnx", folder / "quantised.onnx")

row = random.random((1, 16)).astype(np.float32)
beside = 100 * random.random((1, 16)).astype(np.float32)


def answers(name: str) -> tuple[np.ndarray, np.ndarray]:
    session = ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    alone = session.run(None, {"x": row})[0][0]
    among = session.run(None, {"x": np.concatenate([row, beside])})[0][0]
    return alone, among


exact, exact_among = answers("plain.onnx")
alone, among = answers("quantised.onnx")
error = np.abs(alone - exact).max()
print("plain, moved by its neighbour:", bool(np.abs(exact_among - exact).max() > 1e-5))
print(
    "quantised, moved by more than ten times its own error:",
    bool(np.abs(among - alone).max() > 10 * error),
)
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" "$folder" \
  2>/dev/null | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
plain, moved by its neighbour: False
quantised, moved by more than ten times its own error: True
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
