#!/usr/bin/env bash
# onnxruntime 1.31.1: whether a score that is no number wins depends on its place, and on whether
# the scores are a vector or a row of one.
#
# Guess: ArgMax and ReduceMax treat NaN in one way wherever it stands: torch, numpy and the
# specification's own evaluator let it win.
# Seen: in a row, NaN wins in the first place and is passed over in the others; the same scores
# as a vector are answered as numpy does. The maximum of a row is NaN in the first case only,
# and MaxPool never gives it.
# Who is hurt: whoever finds broken answers by looking for NaN in them. A network whose scores
# broke down answers a class, the first more often than others, and a check of the maximum of
# its scores passes. Look at all the scores.
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
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def answers(kind: str, scores: np.ndarray) -> tuple[float, float]:
    """What onnxruntime says, and the specification's evaluator."""
    last, extra, options, weights = scores.ndim - 1, [], {"keepdims": 0}, []
    if kind == "ArgMax":
        options["axis"] = last
    elif kind == "ReduceMax":
        extra, weights = ["axes"], [numpy_helper.from_array(np.array([last]), "axes")]
    else:
        options = {"kernel_shape": [scores.shape[-1]]}
    shape = list(scores.shape)
    left = [*shape[:-1], 1] if kind == "MaxPool" else shape[:-1]
    result = TensorProto.INT64 if kind == "ArgMax" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *extra], ["y"], **options)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", result, left)],
        weights,
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return tuple(
        np.asarray(judge.run(None, {"x": scores})[0]).item()
        for judge in (session, ReferenceEvaluator(model))
    )


for place in range(3):
    scores = np.array([3, 2, 1], np.float32)
    scores[place] = np.nan
    row = scores[np.newaxis]
    vector, _ = answers("ArgMax", scores)
    index, wanted = answers("ArgMax", row)
    largest, _ = answers("ReduceMax", row)
    pooled, _ = answers("MaxPool", row[np.newaxis])
    print(
        f"{scores.tolist()}: class {vector} as a vector, {index} as a row "
        f"(specification {wanted}); maximum {largest:g}, pooled {pooled:g}"
    )
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null |
  tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
[nan, 2.0, 1.0]: class 0 as a vector, 0 as a row (specification 0); maximum nan, pooled 2
[3.0, nan, 1.0]: class 1 as a vector, 0 as a row (specification 1); maximum 3, pooled 3
[3.0, 2.0, nan]: class 2 as a vector, 0 as a row (specification 2); maximum 3, pooled 3
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
