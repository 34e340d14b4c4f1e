#!/usr/bin/env bash
# fairlearn 0.15.0: a perfect classifier has the worst equalized odds there are, if one group has
# no row of the second class.
#
# Guess: a rate of no rows is undefined: the group is left out, or the answer is NaN, as the
# ratio of selection rates that are all 0 is.
# Seen: the true positive rate of a group without positives is 0, without a warning. Right
# answers on every row then have equalized odds and equal opportunity differences of 1, their
# maximum, and a ratio of 0; one wrong row of that group, or a thousand, changes nothing of it.
# Who is hurt: whoever assesses small groups, or crosses two sensitive features: the group that
# decides is the emptiest. Look at how many rows each rate is of.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  fairlearn==0.15.0 scikit-learn==1.9.1 pandas==3.1.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import warnings

import numpy as np
from fairlearn import metrics

warnings.simplefilter("error")
groups = np.repeat(["a", "b", "c"], [400, 400, 5])
truth = np.tile([0, 1], 403)[:805]
for name, last in (("one positive among them", 1), ("none", 0)):
    truth[-5:] = [0, 0, 0, 0, last]
    seen = [
        getattr(metrics, measure)(truth, truth, sensitive_features=groups)
        for measure in (
            "equalized_odds_difference",
            "equal_opportunity_difference",
            "equalized_odds_ratio",
        )
    ]
    print(f"five rows of c, {name}:", *seen)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ratio = metrics.demographic_parity_ratio(
        truth, np.zeros_like(truth), sensitive_features=groups
    )
print("ratio of selection rates that are all 0:", ratio)
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
five rows of c, one positive among them: 0.0 0.0 1.0
five rows of c, none: 1.0 1.0 0.0
ratio of selection rates that are all 0: nan
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
