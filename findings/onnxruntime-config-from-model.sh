#!/usr/bin/env bash
# onnxruntime 1.31.1: saying no to options from the model breaks every model.
#
# Guess: the argument `read_config_from_model=0` overrides the environment variable
# ORT_LOAD_CONFIG_FROM_MODEL=1, or changes nothing where it is not set.
# Seen: with the variable set, a session made from bytes with the argument at 0 fails
# for every model ("ModelProto needs to be parsed"); without the variable it loads.
# Who is hurt: a server that switches the options off for safety does not start in an
# environment that somebody prepared for another program.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/load.py" <<'PY'
import onnxruntime as ort
from onnx import TensorProto, helper

graph = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
)
opsets = [helper.make_opsetid("", 20)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
try:
    ort.InferenceSession(
        model.SerializeToString(),
        providers=["CPUExecutionProvider"],
        read_config_from_model=0,
    )
    print("loads")
except Exception as error:
    print("fails:", str(error)[:110])
PY
without=$("$folder/venv/bin/python" "$folder/load.py")
with=$(ORT_LOAD_CONFIG_FROM_MODEL=1 "$folder/venv/bin/python" "$folder/load.py" | grep fails:)
echo "without the variable: $without"
echo "with the variable:    $with"
[[ $without == loads && $with == *"fails: "* ]] || { echo "changed" >&2; exit 1; }
