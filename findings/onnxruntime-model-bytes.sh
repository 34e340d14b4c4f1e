#!/usr/bin/env bash
# onnxruntime 1.31.1: a session that was made from bytes keeps them for as long as it lives.
#
# Guess: a session copies what it needs; once the caller drops its bytes, a model given as
# bytes costs as much memory as the same file given by its path.
# Seen: by path once its size, by bytes twice, though nobody else holds them and the second
# copy is never read: only a change of execution providers would need it. Emptying the
# session's attribute gives the memory back, and it goes on answering.
# Who is hurt: whoever verifies a model's digest and loads the same bytes, so that nobody can
# change the file in between: each model and each worker costs twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.4
cat >"$folder/make.py" <<'PY'
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

weights = numpy_helper.from_array(np.zeros((5000, 5000), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5000])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5000])], [weights],
)  # fmt: skip
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10),
     sys.argv[1])  # fmt: skip
PY
cat >"$folder/load.py" <<'PY'
import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import onnxruntime

path, how = Path(sys.argv[1]), sys.argv[2]


def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


options = onnxruntime.SessionOptions()
# Without a copy of the weights in another order.
options.add_session_config_entry("session.disable_prepacking", "1")
before = resident()
model = str(path) if how == "by path" else path.read_bytes()
session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
del model
if how == "by bytes, then emptied":
    session._model_bytes = None
held = resident() - before
session.run(None, {"x": np.zeros((1, 5000), np.float32)})
print(f"{how}: {round(held / path.stat().st_size)} times its size")
PY
"$folder/venv/bin/python" "$folder/make.py" "$folder/model.onnx"
for how in "by path" "by bytes" "by bytes, then emptied"; do
  "$folder/venv/bin/python" "$folder/load.py" "$folder/model.onnx" "$how"
done | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
by path: 1 times its size
by bytes: 2 times its size
by bytes, then emptied: 1 times its size
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
