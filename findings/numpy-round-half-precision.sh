#!/usr/bin/env bash
# numpy 2.4.6: rounding half-precision probabilities to five decimals gives nothing but NaN.
#
# Guess: 0.3 in half precision has four digits at most, so rounding to five decimals leaves it
# as it is, as rounding to four does, and as torch's round does.
# Seen: from five decimals on every value becomes NaN, 0 included: the values are multiplied
# by 100000, which half precision cannot hold, and infinity is divided by infinity. Four
# decimals are right. A warning says "overflow" at most, once a process.
# Who is hurt: whoever serves half-precision models and rounds their scores, so that answers
# tell less: one more decimal in a setting, and every answer is NaN, which sorts as the
# largest score.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import warnings

import numpy as np

warnings.simplefilter("ignore")
scores = np.array([0.0, 0.3, 0.7], dtype=np.float16)
for decimals in (4, 5):
    print(decimals, "decimals:", *np.round(scores, decimals))
print("in single precision:", *np.round(scores.astype(np.float32), 5).astype(np.float16))
print("place of the largest score:", np.argmax(np.round(scores, 5)))
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
4 decimals: 0.0 0.3 0.7
5 decimals: nan nan nan
in single precision: 0.0 0.3 0.7
place of the largest score: 0
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
