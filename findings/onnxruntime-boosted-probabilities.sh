#!/usr/bin/env bash
# onnxruntime 1.31.1: the smaller probability of a boosted classifier of two classes is what
# single precision leaves of one minus the larger, so its log-odds are wrong from a margin of
# about ten on, and infinite from seventeen on.
#
# Guess: TreeEnsembleClassifier with LOGISTIC gives both classes the logistic function of
# their own margin, as Softmax gives 1e-9 where that is the answer.
# Seen: the probability at margin 14 is off by 0.4 percent, at 18 it is exactly 0.
# Who is hurt: whoever ranks rare events by the small probability, takes its logarithm for a
# loss, or explains log-odds: read the margin from the model, not from its probabilities.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import math

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def boosted(margin):
    node = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
        post_transform="LOGISTIC", classlabels_int64s=[0, 1],
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0], class_nodeids=[1, 2], class_ids=[0, 0],
        class_weights=[-margin, margin],
    )  # fmt: skip
    floats, integers = TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        [node], "boosted",
        [helper.make_tensor_value_info("x", floats, ["n", 1])],
        [
            helper.make_tensor_value_info("label", integers, ["n"]),
            helper.make_tensor_value_info("scores", floats, ["n", 2]),
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString())


for margin in (5.0, 14.0, 18.0):
    scores = boosted(margin).run(["scores"], {"x": np.float32([[1.0]])})[0][0]
    exact = 1 / (1 + math.exp(margin))
    print(f"margin {margin:g}: off by {abs(scores[0] / exact - 1):.1%} of {exact:.1e}")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
margin 5: off by 0.0% of 6.7e-03
margin 14: off by 0.4% of 8.3e-07
margin 18: off by 100.0% of 1.5e-08
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
