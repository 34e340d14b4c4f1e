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
# # Train privately, see what it costs
#
# A model learns from people. With differential privacy, what anyone can learn about one of
# them from the model is bounded by *ε*: the smaller, the less. It costs accuracy. How much,
# and what an attacker still finds out, is measured here, on the UCI Adult census: who earns
# more than 50,000 dollars, 32,561 rows, with an official test file of 16,281.
#
# `ADULT` names the folder with `adult.data.gz` and `adult.test.gz` (archive.ics.uci.edu, data
# set 2). `make docs` runs this file and shows what came out; as a notebook it is opened with
# [Jupytext](https://jupytext.readthedocs.io).

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import display

ADULT = Path(os.environ["ADULT"]).resolve()
EXAMPLES = Path(os.environ.get("EXAMPLES", "..")).resolve()
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The recipe
#
# `examples/adult.toml` is a configuration as `python -m security train` takes it. What is
# public about the data stands in it, ranges and categories, so that nothing is read off the
# rows. One thing is changed from training to training: ε.

# %%
from security.training.config import load_config

recipe = (EXAMPLES / "adult.toml").read_text()
for name in ("adult.data.gz", "adult.test.gz"):
    (work / name).symlink_to(ADULT / name)
print(recipe[recipe.index("[privacy]") : recipe.index("# Ranges")])


# %% [markdown]
# ## One bundle for each ε
#
# `train_bundle` is what the command runs: it books ε in a ledger before it touches a row,
# trains with noise, and writes the model with the evidence for it. `epsilon` is recomputed
# from the noise by two accountants; nothing here types it in.

# %%
from models.bundle import read_bundle
from security.training.ledger import Ledger
from security.training.run import train_bundle


def quiet(*_):
    """Progress, which a notebook does not need."""


EPSILONS = [0.3, 1.0, 3.0, 8.0]
bundles = {}
for epsilon in EPSILONS:
    config_file = work / f"adult-{epsilon}.toml"
    # Noise costs least where gradients are cut at the length that it allows.
    clip = 4.0 if epsilon >= 3 else 1.0
    config_file.write_text(
        recipe.replace("epsilon = 3.0", f"epsilon = {epsilon}").replace(
            "max_grad_norm = 4.0", f"max_grad_norm = {clip}"
        )
    )
    config = load_config(config_file)
    folder = work / f"adult-{epsilon}"
    train_bundle(config, folder, quiet, ledger=Ledger(work / f"ledger-{epsilon}"))
    privacy = read_bundle(folder).report("privacy")
    bundles[epsilon] = (config_file, folder, privacy)
    stated = {
        name: privacy.metrics[name].value for name in ("epsilon", "noise_multiplier")
    }
    print(f"asked for {epsilon}: {stated}")

# %% [markdown]
# Each training has a ledger of its own here, since the four are compared with each other and
# only one would be published. Who trains four times on the same rows and looks at all four
# has spent the sum; one ledger for all of them would say so, and refuse at its limit.
#
# ## What is left of accuracy, and what an attacker finds
#
# The scan asks each model about its test file, and attacks it for membership: an attacker who
# has a row guesses from the answers whether the model was trained on it. 0.5 is guessing.

# %%

from security.assessment.reporting.figures import lines, of_check, read_scan, table
from security.commands import main as security

scans = {}
for epsilon, (config_file, folder, _) in bundles.items():
    out = work / f"scan-{epsilon}"
    code = security(
        [
            "scan",
            str(folder),
            "--data",
            str(config_file),
            "--train-data",
            str(config_file),
        ]
        + [
            "--check",
            "quality",
            "--check",
            "membership",
            "--out",
            str(out),
            "--no-color",
        ]
    )
    assert code == 0
    scans[epsilon] = read_scan(out / "scan.json")


# %%
def metric(epsilon, check, name):
    """A figure of a scan: value, and the ends of its interval."""
    (result,) = (one for one in scans[epsilon]["results"] if one["check"] == check)
    found = result["metrics"][name]
    return found["value"], found["low"], found["high"]


accuracy = [[e, *metric(e, "quality", "accuracy")] for e in EPSILONS]
attack = [[e, *metric(e, "membership", "auc")] for e in EPSILONS]

# %% [markdown]
# For comparison the same rows without privacy, by gradient boosting of scikit-learn: what the
# noise has to be held against. Its ε is infinite.

# %%
from sklearn.ensemble import HistGradientBoostingClassifier
from security.training.data import load_split

train, test = load_split(load_config(bundles[3.0][0]))
named = [place for place, column in enumerate(train.columns) if column.categories]
boosted = HistGradientBoostingClassifier(categorical_features=named, random_state=0)
boosted.fit(train.features, train.labels)
without = boosted.score(test.features, test.labels)
print(f"without privacy: {without:.3f}")

# %%
lines(
    "Accuracy on rows of the test file by epsilon, with 95% intervals",
    {"with privacy": accuracy, "without": [[e, without] for e in EPSILONS]},
    x="epsilon",
    y="accuracy",
    log_x=True,
)

# %%
lines(
    "AUC of the best membership attack by epsilon; 0.5 is guessing",
    {"attack": attack},
    x="epsilon",
    y="AUC",
    log_x=True,
    y_low=0.4,
    y_high=0.7,
)

# %%
table(
    "What privacy costs",
    ["epsilon", "noise multiplier", "accuracy", "attack's AUC"],
    [
        [
            epsilon,
            bundles[epsilon][2].metrics["noise_multiplier"].value,
            metric(epsilon, "quality", "accuracy")[0],
            metric(epsilon, "membership", "auc")[0],
        ]
        for epsilon in EPSILONS
    ],
)

# %% [markdown]
# ## Where it is wrong
#
# The same figures as in `scan.html`: which groups the model serves less well, and how far its
# confidence can be believed.

# %%
for figure in of_check(scans[3.0], "quality")[:3]:
    display(figure)

# %% [markdown]
# From here, `python -m security package` signs the evidence and asks the policy
# ([I have a CSV](../from-csv.md)); [Training](../training.md) says what ε rests on.
