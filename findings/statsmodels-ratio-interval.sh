#!/usr/bin/env bash
# statsmodels 0.15.0: the score interval of a ratio leaves out the estimate at the edge.
#
# Guess: the interval of 30 of 30 against 30 of 30 contains their ratio, which is 1, and
# two rates of 0 of 10 and 0 of 20 give a wide interval, or an error.
# Seen: the lower end lies above 1, and the second interval is (nan, nan), with no error.
# Who is hurt: whoever reports a disparate impact ratio of groups that are all accepted,
# or a policy that compares such an end with a bound.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import math

from statsmodels.stats.proportion import confint_proportions_2indep as interval

low, high = interval(30, 30, 30, 30, compare="ratio", method="score")
print(f"30 of 30 against 30 of 30, ratio 1: {low:.10f} to {high:.4f}")
none = interval(0, 10, 0, 20, compare="ratio", method="score")
print("0 of 10 against 0 of 20:", tuple(float(end) for end in none))
if not (low > 1 and all(math.isnan(end) for end in none)):
    raise SystemExit("changed")
PY
