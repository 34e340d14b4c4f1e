#!/usr/bin/env bash
# onnx 1.23.2, onnxruntime 1.31.1: GroupNormalization of values far from 0 is off by
# hundredths, or is not a number.
#
# Guess: it answers what LayerNormalization and InstanceNormalization do, to four digits: all
# three subtract the mean and divide by the standard deviation.
# Seen: the specification gives this operator a body of others, which takes the variance as the
# mean of squares less the square of the mean, and onnxruntime runs that. In single precision
# degrees Kelvin are hundredths off; around 10,000 the variance comes out negative. With one
# group it is a layer's normalization, and that one is right to a thousandth.
# Who is hurt: whoever raises opset_version. torch 2.13.0 exports a GroupNorm up to opset 20 as
# InstanceNormalization, which is right, and from 21 on as this. Tests with centred inputs see
# no difference.
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

WIDTH = 64


def session(kind: str, **options: int) -> ort.InferenceSession:
    weights = [
        numpy_helper.from_array(make(WIDTH, np.float32), name)
        for name, make in (("scale", np.ones), ("bias", np.zeros))
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "scale", "bias"], ["y"], **options)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        weights,
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


centred = np.random.default_rng(0).normal(size=(200, WIDTH))
sessions = {
    "layer": session("LayerNormalization"),
    "group": session("GroupNormalization", num_groups=1),
}
for middle in (0, 273.15, 10_000):
    rows = (centred + middle).astype(np.float32)
    exact = rows.astype(float)
    exact -= exact.mean(axis=1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    for name, made in sessions.items():
        error = np.abs(made.run(None, {"x": rows})[0] - exact).max()
        size = "NaN" if np.isnan(error) else "above 0.005" if error > 0.005 else "small"
        assert size != "small" or error < 0.001, error
        print(f"around {middle}, {name}: error {size}")
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null |
  tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
around 0, layer: error small
around 0, group: error small
around 273.15, layer: error small
around 273.15, group: error above 0.005
around 10000, layer: error small
around 10000, group: error NaN
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
