"""The table that the example trains on: biopsies, published with scikit-learn.

python rows.py FILE.csv
"""

import csv
import sys

from sklearn.datasets import load_breast_cancer

KEPT = (
    "mean radius",
    "mean texture",
    "mean concave points",
    "worst radius",
    "worst texture",
    "worst concave points",
    "worst smoothness",
)

source = load_breast_cancer()
places = [list(source.feature_names).index(name) for name in KEPT]
with open(sys.argv[1], "w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(name.replace(" ", "_") for name in KEPT), "kind"])
    for row, target in zip(source.data, source.target):
        writer.writerow([*row[places], source.target_names[target]])
