#!/usr/bin/env bash
# onnxruntime 1.31.1: an array whose bytes stand the other way round is answered as other numbers.
#
# Guess: an input in big-endian order, as NetCDF 3, FITS and the digits of MNIST are read, is
# converted, as numpy does in every calculation, or refused, as onnx does when such an array is
# to be a weight.
# Seen: run() takes it for single precision, which it is, and reads its bytes as if they were in
# the machine's order: 1.0 is 4.6e-41. Every row gets the answer of a row of zeros, with no error.
# Who is hurt: whoever serves or assesses a model on measurements from such files. Shapes, types
# and the count of answers are right, and dtype == numpy.float32 is the only check that tells.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

graph = helper.make_graph(
    [helper.make_node("Sigmoid", ["x"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
)
opsets = [helper.make_opsetid("", 20)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
session = ort.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
native = np.array([-4, -1, 0, 1, 4], np.float32)
swapped = native.astype(">f4")
print("equal for numpy:", np.array_equal(native, swapped))
for name, rows in (("native", native), ("swapped", swapped)):
    print(f"{name}:", *(f"{share:.2f}" for share in session.run(None, {"x": rows})[0]))
try:
    numpy_helper.from_array(swapped)
    print("onnx takes it as a weight")
except ValueError:
    print("onnx refuses it as a weight")
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null |
  tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
equal for numpy: True
native: 0.02 0.27 0.50 0.73 0.98
swapped: 0.50 0.50 0.50 0.50 0.50
onnx refuses it as a weight
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
