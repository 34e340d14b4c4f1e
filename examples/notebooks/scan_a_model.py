# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scan a model you were given
#
# Somebody sends `model.onnx` and a table of rows that it never saw. Before it is let in: what
# does it withstand, whom does it serve less well, where is it wrong? And when the next version
# comes: what got worse, by more than chance?
#
# Here the model is a small network on the UCI Adult census, made below in a minute, since a
# notebook needs one to be given. `ADULT` names the folder with `adult.data.gz` and
# `adult.test.gz` (archive.ics.uci.edu, data set 2).

# %%
import csv
import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import display

ADULT = Path(os.environ["ADULT"]).resolve()
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## What was given
#
# Six columns, a hidden layer, two classes; one version trained for long, one held small by
# weight decay. A scan needs the file alone, not the framework that made it.

# %%
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

COLUMNS = [
    "age",
    "education-num",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "sex",
]
PLACES = [0, 4, 10, 11, 12, 9]  # in the file
SCALE = np.array([90, 16, 99999, 4356, 99, 1], np.float32)


def rows(name, most):
    """Features and labels of the first rows of one of the files."""
    with gzip.open(ADULT / name, "rt") as file:
        found = [
            [cell.strip() for cell in row] for row in csv.reader(file) if len(row) == 15
        ][:most]
    features = [
        [float(row[p] == "Male") if p == 9 else float(row[p]) for p in PLACES]
        for row in found
    ]
    return np.array(features, np.float32), np.array(
        [">50K" in row[14] for row in found]
    )


def given(path, **how):
    """Train a network and write it as an ONNX file."""
    features, labels = rows("adult.data.gz", 6000)
    net = MLPClassifier((16,), max_iter=60, random_state=0, **how)
    net.fit(features / SCALE, labels)
    first = (net.coefs_[0] / SCALE[:, None]).astype(np.float32)
    # Two scores from one: softmax of (0, z) is the logistic function of z.
    last = np.hstack([0 * net.coefs_[1], net.coefs_[1]]).astype(np.float32)
    end = np.array([0, net.intercepts_[1][0]], np.float32)
    held = {
        "w1": first,
        "b1": net.intercepts_[0].astype(np.float32),
        "w2": last,
        "b2": end,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "adult",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


given(work / "model.onnx", alpha=0.0)
given(work / "next.onnx", alpha=1.0)

features, labels = rows("adult.test.gz", 4000)
with open(work / "holdout.csv", "w", newline="") as file:
    table_of_rows = csv.writer(file)
    table_of_rows.writerow([*COLUMNS, "label"])
    table_of_rows.writerows([*row, int(label)] for row, label in zip(features, labels))

# %% [markdown]
# ## What is known about the columns
#
# An attacker changes a row within what a row can be: ranges, and what cannot be changed at
# all. Groups to compare stand in the same file.

# %%
(work / "columns.toml").write_text(
    """
sensitive = ["sex"]
positive = "1"
classes = ["0", "1"]

"""
    + "\n".join(
        f'[[columns]]\nname = "{name}"\nlow = {low}\nhigh = {high}\n'
        for name, low, high in [
            ("age", 17, 90),
            ("education-num", 1, 16),
            ("capital-gain", 0, 99999),
            ("capital-loss", 0, 4356),
            ("hours-per-week", 1, 99),
            ("sex", 0, 1),
        ]
    )
)

# %% [markdown]
# ## The scan

# %%
from security.commands import main as security


def scan(name):
    """Run the command on a model; where it wrote what it found."""
    out = work / f"{name}-scan"
    code = security(
        ["scan", str(work / f"{name}.onnx"), "--data", str(work / "holdout.csv")]
        + ["--data-config", str(work / "columns.toml"), "--out", str(out), "--no-color"]
        + ["--check", "quality", "--check", "fairness", "--check", "evasion"]
        + ["--max-rows", "200", "--jobs", "1"]
    )
    assert code == 0
    return out / "scan.json"


before = scan("model")

# %% [markdown]
# ## How much must be changed to change an answer
#
# Each curve is the share of rows that keep their right answer while an attacker may move every
# column by up to the radius, as a share of its range.

# %%
from security.assessment.reporting.comparison import compare
from security.assessment.reporting.figures import of_check, of_comparison, read_scan

found = read_scan(before)
evasion = of_check(found, "evasion")
evasion[0]

# %% [markdown]
# ## The worst rows
#
# The rows that the least change turned over, with what was changed.

# %%
for figure in evasion:
    if figure.title.startswith("Rows"):
        display(figure)

# %% [markdown]
# ## Whom it serves less well

# %%
for figure in of_check(found, "fairness"):
    display(figure)

# %% [markdown]
# ## The next version
#
# The same rows, the same seed: differences are of the models. What is within chance is not
# shown; each of the others has passed a test that knows how many were made.

# %%
after = read_scan(scan("next"))
of_comparison(compare(found, after))

# %% [markdown]
# `python -m security compare BEFORE AFTER` says the same in a pipeline, with an exit code
# ([In a pipeline](../ci.md)). `scan.html` beside each scan.json has everything
# ([Assessment](../assessment.md)).
