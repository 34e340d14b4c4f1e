"""scikit-learn without what it imports and a few learners never use."""

from __future__ import annotations

import json
import subprocess
import sys

from security.assessment.sklearn_library import DEFERRED
from tests.support.servers import ROOT

OURS = "from security.assessment.sklearn_library import sklearn, DEFERRED\n"
PLAIN = (
    "from importlib import import_module\n"
    "sklearn = lambda part: import_module(f'sklearn.{part}')\n"
)
LEARNERS = """
import json, numpy as np
random = np.random.default_rng(0)
rows, classes = random.random((200, 4)), random.integers(0, 3, 200)
forest = sklearn("ensemble").RandomForestClassifier(random_state=1).fit(rows, classes)
found = [forest.predict_proba(rows).tolist()]
modules = sorted(sys.modules)
near = sklearn("neighbors").KNeighborsClassifier(3).fit(rows, classes)
found += [near.predict(rows).tolist()]
found.append(float(sklearn("metrics").silhouette_score(rows, classes)))
"""


def run(code: str) -> str:
    """What it prints, in a process that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_learners_are_the_same_and_a_forest_imports_nothing_that_is_deferred() -> None:
    shown = LEARNERS + "print(json.dumps(found))\nprint(json.dumps(modules))"
    ours, modules = map(json.loads, run(OURS + shown).splitlines())
    plain, known = map(json.loads, run(PLAIN + shown).splitlines())
    assert ours == plain
    assert not DEFERRED & set(modules)
    assert set(known) >= DEFERRED  # or deferring them is of no use


def test_what_is_deferred_is_there_when_it_is_used() -> None:
    """SciPy's optimizers, distributions and splines, by scikit-learn and by others."""
    code = """
linear = sklearn("linear_model").LogisticRegression().fit(rows, classes)
normal = sklearn("preprocessing").QuantileTransformer(
    n_quantiles=50, output_distribution="normal").fit_transform(rows)
spline = sklearn("preprocessing").SplineTransformer().fit_transform(rows)
import pandas, scipy.optimize, scipy.stats
from scipy.stats import norm
frame = pandas.DataFrame(rows, columns=list("abcd"))
found += [linear.predict(frame.to_numpy()).tolist(), normal.tolist(), spline.tolist()]
found.append([scipy.stats.norm.cdf(1.0), float(norm.ppf(0.3)), len(frame)])
print(json.dumps(found))
"""
    ours, plain = (json.loads(run(way + LEARNERS + code)) for way in (OURS, PLAIN))
    assert ours == plain


def test_an_engine_for_files_imports_no_http_client() -> None:
    code = "import security.assessment.engine.run\nprint(*sys.modules)"
    assert not {"sealgate.client", "httpx", "httpcore"} & {*run(code).split()}
