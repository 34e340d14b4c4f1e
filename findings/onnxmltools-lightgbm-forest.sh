#!/usr/bin/env bash
# onnxmltools 1.16.0: a LightGBM random forest of two classes, exported, answers one class.
#
# Guess: the file gives LightGBM's probabilities to about 1e-7, as it does for boosting.
# Seen: with boosting_type="rf" the file puts the sum of the trees, not their mean, into the
# logistic function, and divides the result by 100 whatever the number of trees: the second
# class never has more than 0.01, and its label is never answered. No warning, and ONNX's
# full check and onnxruntime take the file.
# Who is hurt: whoever deploys the export without comparing it with the original. A fraud
# model that never answers "fraud" still has most of its rows right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxmltools==1.16.0 lightgbm==4.7.0 scikit-learn==1.9.1 pandas==3.1.1 \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import warnings

import numpy as np
import onnxmltools
import onnxruntime as ort
from lightgbm import LGBMClassifier
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import make_classification

warnings.simplefilter("ignore")
x, y = make_classification(600, 6, n_informative=4, random_state=1)
x = x.astype(np.float32)


def compared(**how: object) -> tuple[float, int, int]:
    """Largest gap of a probability; rows of class 1 by LightGBM, and by the file."""
    model = LGBMClassifier(n_estimators=20, verbose=-1, **how).fit(x, y)
    made = onnxmltools.convert_lightgbm(
        model,
        initial_types=[("X", FloatTensorType([None, 6]))],
        target_opset=15,
        zipmap=False,
    )
    session = ort.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    label, shares = session.run(None, {"X": x})
    gap = float(np.abs(shares[:, 1] - model.predict_proba(x)[:, 1]).max())
    return gap, int(model.predict(x).sum()), int(label.sum())


for name, how in (
    ("boosting", {}),
    ("forest", {"boosting_type": "rf", "subsample": 0.7, "subsample_freq": 1}),
):
    gap, own, file = compared(**how)
    print(f"{name}: gap {gap:.2g}; class 1 on {own} rows, by the file on {file}")
PY
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null |
  tee "$folder/seen"
grep -Eq "^boosting: gap [0-9.]+e-0[6-9]" "$folder/seen" &&
  grep -Eq "^forest: gap 0\.[5-9].* by the file on 0$" "$folder/seen" ||
  { echo "changed" >&2; exit 1; }
