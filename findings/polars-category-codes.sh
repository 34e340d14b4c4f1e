#!/usr/bin/env bash
# polars 2.1.0: the codes of a categorical column depend on what the process has read before.
#
# Guess: to_physical() counts the categories of a column from 0, in the order in which they come,
# as pandas and pyarrow do, and polars itself when it hands the column to pyarrow.
# Seen: all categorical columns that are given no Categories share one numbering for as long as
# any of them lives. The same column has the codes 0 and 1 alone, and 2 and 3 beside another.
# Who is hurt: whoever trains on such codes: the training, which read two columns, and the server,
# which reads them in another order or one alone, give a category different numbers, all of them
# in range. An Enum, which lists its categories, has the same codes everywhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  polars==2.1.0 pyarrow==26.0.1
cat >"$folder/run.py" <<'PY'
import sys

import polars as pl

if sys.argv[1] == "beside another":
    regions = pl.Series(["north", "south"], dtype=pl.Categorical)
colours = ["red", "blue", "red"]
column = pl.Series(colours, dtype=pl.Categorical)
listed = pl.Series(colours, dtype=pl.Enum(["red", "blue"]))
print(
    f"{sys.argv[1]}:",
    *("polars", column.to_physical().to_list()),
    *("pyarrow", column.to_arrow().indices.to_pylist()),
    *("Enum", listed.to_physical().to_list()),
)
PY
for where in alone "beside another"; do
  "$folder/venv/bin/python" "$folder/run.py" "$where"
done | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
alone: polars [0, 1, 0] pyarrow [0, 1, 0] Enum [0, 1, 0]
beside another: polars [2, 3, 2] pyarrow [0, 1, 0] Enum [0, 1, 0]
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
