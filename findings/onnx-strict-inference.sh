#!/usr/bin/env bash
# onnx 1.23.2: shape inference is stricter without the type check than with it.
#
# Guess: `infer_shapes(strict_mode=True)` accepts what `check_model(full_check=True)`
# accepts, and `check_type=True`, a further check, can only refuse more.
# Seen: a Scaler of ai.onnx.ml before a Concat passes the full check, fails strict
# inference (TypeInferenceError: the operator has no inference function), and passes
# strict inference once `check_type=True` is given too.
# Who is hurt: whoever gates models of scikit-learn, LightGBM or XGBoost exports by
# strict inference refuses honest files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import onnx
from onnx import TensorProto, checker, helper, shape_inference

scaler = helper.make_node(
    "Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0, 0.0], scale=[1.0, 1.0]
)
concat = helper.make_node("Concat", ["s"], ["y"], axis=1)
graph = helper.make_graph(
    [scaler, concat],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
)
opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)

checker.check_model(model, full_check=True)
print(f"onnx {onnx.__version__}: the full check accepts the model")
try:
    shape_inference.infer_shapes(model, strict_mode=True)
except shape_inference.InferenceError as error:
    print("strict inference refuses it:", str(error).splitlines()[0][:120])
else:
    raise SystemExit("changed: strict inference accepts it")
shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
print("strict inference with check_type=True accepts it")
PY
