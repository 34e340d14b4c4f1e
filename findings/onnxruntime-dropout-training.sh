#!/usr/bin/env bash
# onnxruntime 1.31.1: whether Dropout in training mode is random depends on where it stands,
# and on the level of optimisation.
#
# Guess: a Dropout whose input `training_mode` is a stored True drops values at random
# wherever it stands, as ONNX says, and optimisation changes no result.
# Seen: between two operators it is removed from the level "basic" on, and two runs give
# the same; with optimisation off, or as the last operator, it is random.
# Who is hurt: whoever exports a network in training mode tests it with the default level,
# sees nothing, and gets random answers from another runtime, another level, or once
# somebody cuts the graph behind it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper


def model(last: bool) -> bytes:
    """x, Relu, Dropout, and another Relu unless Dropout is the last."""
    nodes = [
        helper.make_node("Relu", ["x"], ["kept"]),
        helper.make_node("Dropout", ["kept", "ratio", "training"], ["dropped"]),
    ]
    nodes += [] if last else [helper.make_node("Relu", ["dropped"], ["y"])]
    out = "dropped" if last else "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", 64])],
        [
            helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("training", TensorProto.BOOL, [], [True]),
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def answers(last: bool, level: str) -> str:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(
        model(last), options, providers=["CPUExecutionProvider"]
    )
    rows = np.ones((8, 64), np.float32)
    first, second = (session.run(None, {"x": rows})[0] for _ in range(2))
    return "the same twice" if np.array_equal(first, second) else "random"


for last, level in (
    (False, "ORT_ENABLE_ALL"),
    (False, "ORT_ENABLE_BASIC"),
    (False, "ORT_DISABLE_ALL"),
    (True, "ORT_ENABLE_ALL"),
):
    place = "last" if last else "in between"
    print(f"{place}, {level}: {answers(last, level)}")
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
in between, ORT_ENABLE_ALL: the same twice
in between, ORT_ENABLE_BASIC: the same twice
in between, ORT_DISABLE_ALL: random
last, ORT_ENABLE_ALL: random
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
