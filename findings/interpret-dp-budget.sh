#!/usr/bin/env bash
# interpret-core 0.7.8: a private EBM of epsilon 1 spends .87, though its accountant is exact.
#
# Guess: noise is found with Gaussian differential privacy, which adds Gaussian queries up
# exactly, so that what the model spends in all is the epsilon that was asked for.
# Seen: the exact sum is taken within the histograms and within the boosting alone. Between
# the two, epsilon is split .1 to .9 and delta in halves, and the claims are added as plain
# numbers: of epsilon 1 the two together spend .869, of 3 they spend 2.62. It is a promise
# kept with room, and noise that nobody asked for.
# Who is hurt: whoever trades accuracy for epsilon: with one noise for all queries the same
# epsilon allows about a seventh less of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  interpret-core==0.7.8 dp-accounting==0.6.0 scikit-learn==1.9.1 pandas==3.1.1 numpy==2.4.4
cat >"$folder/spent.py" <<'PY'
import math
import warnings

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from interpret.privacy import DPExplainableBoostingClassifier

warnings.simplefilter("ignore")
DELTA, COLUMNS, ROUNDS = 1e-5, 3, 100
random = np.random.default_rng(0)
rows = random.random((2000, COLUMNS))
classes = (rows[:, 0] + 0.3 * random.normal(size=2000) > 0.5).astype(int)


def spent(parts, delta):
    accountant = PLDAccountant()
    for noise, queries in parts:
        one = dp_event.GaussianDpEvent(noise / math.sqrt(queries))
        accountant.compose(one)
    return accountant.get_epsilon(delta)


for epsilon, whole in ((1.0, 0.869), (3.0, 2.62)):
    model = DPExplainableBoostingClassifier(
        epsilon=epsilon, delta=DELTA, max_rounds=ROUNDS, outer_bags=1, random_state=1,
        privacy_bounds={column: (0.0, 1.0) for column in range(COLUMNS)},
    ).fit(rows, classes)  # fmt: skip
    histograms = (model.noise_scale_binning_, COLUMNS)
    boosting = (model.noise_scale_boosting_ / model.learning_rate, COLUMNS * ROUNDS)
    parts = [spent([part], DELTA / 2) for part in (histograms, boosting)]
    total = spent([histograms, boosting], DELTA)
    print(f"epsilon {epsilon:g}: parts {parts[0]:.3f} and {parts[1]:.3f}, together {total:.3f}")
    assert np.allclose(parts, [0.1 * epsilon, 0.9 * epsilon], rtol=5e-3), parts
    assert abs(total - whole) < 0.01, total
PY
"$folder/venv/bin/python" "$folder/spent.py"
