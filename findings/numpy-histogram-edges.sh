#!/usr/bin/env bash
# numpy 2.4.6: a histogram of single-precision shares differs by how its equal bins are given.
#
# Guess: ten bins over (0, 1) and the eleven edges of linspace(0, 1, 11) are the same bins,
# so both give the same counts of the same values.
# Seen: with a number of bins the edges get the precision of the values, with edges they keep
# their own. The tenths 0.0 to 0.9, one of each, are ten ones in the first histogram; in the
# second two bins are empty and two are double. digitize agrees with the second.
# Who is hurt: whoever compares a histogram of training rows made one way with one of served
# rows made the other: the usual index of stability alarms (above 0.25) on the very same rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np

tenths = np.tile(np.arange(10) / 10, 1000).astype(np.float32)
edges = np.linspace(0, 1, 11)
by_number = np.histogram(tenths, bins=10, range=(0, 1))[0]
by_edges = np.histogram(tenths, bins=edges)[0]
digitised = np.bincount(np.digitize(tenths, edges) - 1, minlength=10)
print("number of bins:", *by_number)
print("edges:         ", *by_edges)
print("digitize:      ", *digitised)
p, q = ((c + 0.5) / (c + 0.5).sum() for c in (by_number, by_edges))
print(f"index of stability above 0.25: {((q - p) * np.log(q / p)).sum() > 0.25}")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
number of bins: 1000 1000 1000 1000 1000 1000 1000 1000 1000 1000
edges:          1000 1000 1000 1000 1000 1000 2000 0 2000 0
digitize:       1000 1000 1000 1000 1000 1000 2000 0 2000 0
index of stability above 0.25: True
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
