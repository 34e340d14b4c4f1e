#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.31.1: categories that are kept as floating-point numbers, as
# pandas does with a column that had gaps, become other categories once exported.
#
# Guess: an unknown category stays unknown, and two known categories stay two.
# Seen: the exported one-hot encoder cuts the fraction off first, so that 1.5 and 2.9, unknown
# in scikit-learn, are the categories 1 and 2. The exported ordinal encoder rounds to single
# precision first, so that neighbouring nine-digit codes become one category.
# Who is hurt: whoever serves identifiers or codes from a nullable column: rows are answered
# as somebody else's, and values that training would call unknown are not.
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
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder


def served(model, rows):
    session = onnxruntime.InferenceSession(to_onnx(model, rows).SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: rows})[0]


def show(name, trained, got):
    print(name, "trained", trained.tolist(), "served", got.tolist())


known = np.array([[1.0], [2.0]])
encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(known)
rows = np.array([[1.0], [1.5], [2.9]])
show("one-hot:", encoder.transform(rows).astype(int), served(encoder, rows).astype(int))

codes = np.array([[123456789.0], [123456790.0], [5.0]])
ordinal = OrdinalEncoder().fit(codes)
show(
    "ordinal:",
    ordinal.transform(codes).ravel().astype(int),
    served(ordinal, codes).ravel().astype(int),
)
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
one-hot: trained [[1, 0], [0, 0], [0, 0]] served [[1, 0], [1, 0], [0, 1]]
ordinal: trained [1, 2, 0] served [1, 1, 0]
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
