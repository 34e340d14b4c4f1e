#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.31.1: scikit-learn's Normalizer by the maximum turns signs
# round once it is exported.
#
# Guess: the exported transformer divides a row by its largest absolute value, as
# scikit-learn does, and as the exported L1 and L2 do with their norms.
# Seen: it divides by the largest value. Rows of negative numbers come out positive, rows
# whose largest absolute value is negative are not scaled to 1. Rows without negative
# numbers are the same, so a test on counts or shares passes.
# Who is hurt: whoever serves such a pipeline on centred data: preprocessing differs between
# training and serving, without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  skl2onnx==1.20.0 onnxruntime==1.31.1 scikit-learn==1.9.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.preprocessing import Normalizer

rows = np.array([[4, 2], [-4, 1], [-4, -2]], np.float32)
for norm in ("l1", "l2", "max"):
    model = Normalizer(norm).fit(rows)
    session = onnxruntime.InferenceSession(to_onnx(model, rows).SerializeToString())
    served = session.run(None, {session.get_inputs()[0].name: rows})[0]
    for row, trained, got in zip(rows, model.transform(rows), served):
        same = np.allclose(trained, got, atol=1e-6)
        print(norm, row, "same" if same else f"{trained} served as {got}")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
l1 [4. 2.] same
l1 [-4.  1.] same
l1 [-4. -2.] same
l2 [4. 2.] same
l2 [-4.  1.] same
l2 [-4. -2.] same
max [4. 2.] same
max [-4.  1.] [-1.    0.25] served as [-4.  1.]
max [-4. -2.] [-1.  -0.5] served as [2. 1.]
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
