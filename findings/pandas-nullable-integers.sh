#!/usr/bin/env bash
# pandas 3.1.1: a nullable column of 64-bit integers is rounded once one of them is missing.
#
# Guess: to_numpy() of an Int64 column gives int64, or objects where a value is missing, as
# a nullable column of booleans does.
# Seen: with one missing value it gives float64 and says nothing: neighbours above 2**53
# become one number. Without a missing value they stay two.
# Who is hurt: whoever hands identifiers (accounts, persons, hashed categories) to a model
# or to a split by owner: two owners become one in the files that have a gap, and only there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pandas==3.1.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import pandas as pd

first, second = 2**62 + 1, 2**62 + 2
for gap in ([], [None]):
    found = pd.array([first, second, *gap], dtype="Int64").to_numpy()
    kept = int(found[0]) == first and found[0] != found[1]
    place = "with a gap" if gap else "without a gap"
    print(f"{place}: {found.dtype}, {'two numbers' if kept else 'one number'}")
print(f"booleans with a gap: {pd.array([True, None], dtype='boolean').to_numpy().dtype}")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
without a gap: int64, two numbers
with a gap: float64, one number
booleans with a gap: object
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
