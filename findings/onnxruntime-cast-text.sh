#!/usr/bin/env bash
# onnxruntime 1.31.1, onnx 1.23.2: neighbouring nine-digit codes in double precision become one
# text, and the specification's own evaluator gives two other ones.
#
# Guess: a double cast to a text is written with the digits that tell it from others, in plain
# notation, as the operator's documentation says, and both implementations agree.
# Seen: onnxruntime keeps eight digits of a double, in scientific notation from there on, so
# 123456789 and 123456790 are the same text. The reference gives both in full, with ".0". A
# truth value is "1" in one and "True" in the other. 64-bit integers agree.
# Who is hurt: graphs that look codes up as texts after a cast: accounts of a column that was
# read as double (it had gaps) share an entry, and a lookup tested with the reference misses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

COLUMNS = {
    "double": (TensorProto.DOUBLE, np.array([123456789.0, 123456790.0])),
    "integer": (TensorProto.INT64, np.array([123456789, 123456790])),
    "boolean": (TensorProto.BOOL, np.array([True, False])),
}
for name, (kind, values) in COLUMNS.items():
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        "cast",
        [helper.make_tensor_value_info("x", kind, [None])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [None])],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    served = session.run(None, {"x": values})[0]
    reference = ReferenceEvaluator(model).run(None, {"x": values})[0]
    print(f"{name}: onnxruntime", *served, "reference", *reference)
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
double: onnxruntime 1.2345679e+08 1.2345679e+08 reference 123456789.0 123456790.0
integer: onnxruntime 123456789 123456790 reference 123456789 123456790
boolean: onnxruntime 1 0 reference True False
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
