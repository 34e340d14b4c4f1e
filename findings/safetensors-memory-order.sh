#!/usr/bin/env bash
# safetensors 0.8.0: an array that numpy keeps column by column is saved as other numbers.
#
# Guess: save() writes the values, as 0.7.0 did, or refuses an array that does not lie row by
# row in memory, as the same library does with torch's tensors.
# Seen: the bytes are written as they lie under the shape that the array has: the values are
# all there and stand elsewhere. Its documentation asks for contiguous arrays, which numpy says
# these are, column by column. The components of scikit-learn's PCA are such an array.
# Who is hurt: whoever saves what scikit-learn learnt, or a transposed weight: shapes, types,
# sums and digests of the file are in order, and the model that is loaded is another one. Known
# as safetensors' issue 825. Call numpy.ascontiguousarray before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  safetensors==0.8.0 scikit-learn==1.9.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
from safetensors.numpy import load, save
from sklearn.decomposition import PCA

rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
learnt = PCA(3, svd_solver="full").fit(rows).components_
weights = {
    "learnt": learnt,
    "the same, row by row": np.ascontiguousarray(learnt),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
for name, values in weights.items():
    back = load(save({"weight": values}))["weight"]
    same = np.array_equal(back, values)
    sorts = np.array_equal(np.sort(back, axis=None), np.sort(values, axis=None))
    print(
        f"{name}: contiguous {values.flags.forc}, shape kept {back.shape == values.shape}, "
        f"the same numbers {sorts}, in their places {same}"
    )
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
learnt: contiguous True, shape kept True, the same numbers True, in their places False
the same, row by row: contiguous True, shape kept True, the same numbers True, in their places True
transposed: contiguous True, shape kept True, the same numbers True, in their places False
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
