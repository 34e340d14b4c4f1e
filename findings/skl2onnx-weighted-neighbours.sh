#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.31.1: neighbours that are weighted by distance, once exported,
# all weigh the same.
#
# Guess: KNeighborsRegressor(weights="distance") answers as in scikit-learn, up to rounding.
# Seen: the file has the steps that would weigh the neighbours, and its answers are those of
# weights="uniform", in single and in double precision: the nearest row, even one that is the
# very row asked for, counts no more than the others.
# Who is hurt: whoever serves such a model. It was chosen over the uniform one because it is
# better, the types and shapes are the same, and many answers are near. A callable is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  skl2onnx==1.20.0 onnx==1.23.2 onnxruntime==1.31.1 scikit-learn==1.9.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnxruntime as ort
from skl2onnx import to_onnx
from sklearn.neighbors import KNeighborsRegressor

known = np.array([[0.0], [1.0], [10.0]])
values = np.array([0.0, 10.0, 100.0])
asked = np.array([[0.0], [0.1], [0.9], [1.0]])
for weights in ("uniform", "distance"):
    for kind in (np.float32, np.float64):
        model = KNeighborsRegressor(2, weights=weights).fit(known.astype(kind), values)
        rows = asked.astype(kind)
        session = ort.InferenceSession(
            to_onnx(model, rows[:1]).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        served = session.run(None, {"X": rows})[0].ravel()
        trained = model.predict(rows)
        print(weights, np.dtype(kind), "trained", *trained.round(3), "served", *served)
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null |
  tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
uniform float32 trained 5.0 5.0 5.0 5.0 served 5.0 5.0 5.0 5.0
uniform float64 trained 5.0 5.0 5.0 5.0 served 5.0 5.0 5.0 5.0
distance float32 trained 0.0 1.0 9.0 10.0 served 5.0 5.0 5.0 5.0
distance float64 trained 0.0 1.0 9.0 10.0 served 5.0 5.0 5.0 5.0
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
