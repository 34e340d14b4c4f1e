"""Trees as tensors by Hummingbird, then to ONNX.

Hummingbird leaves to torch.onnx.export which of its exporters runs. The present default
takes none of its modules; all but one case say ``dynamo=False`` in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from cases import Case, Made, Split, answers_of, classes, numbers
from hummingbird.ml import convert
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from xgboost import XGBClassifier


def _default(make: Callable[[], Any], split: Callable[[], Split]) -> Made:
    data, model = split(), make()
    model.fit(data.x, data.y)
    made = convert(model, "onnx", data.rows)
    answers = answers_of(model, data.rows)
    return Made(made.model.SerializeToString(), data.rows, data.truth, answers)


def _made(make: Callable[[], Any], split: Callable[[], Split]) -> Made:
    older = partial(torch.onnx.export, dynamo=False)
    with mock.patch.object(torch.onnx, "export", older):
        return _default(make, split)


FOREST = {"n_estimators": 10, "max_depth": 5, "random_state": 0}
_LISTED: dict[str, tuple[str, Callable[[], Any], Callable[[], Split]]] = {
    "logistic": ("LogisticRegression", LogisticRegression, partial(classes, 0, 1)),
    "forest": (
        "RandomForestClassifier",
        partial(RandomForestClassifier, **FOREST),
        partial(classes, 0, 1, 2),
    ),
    "forest-onetwo": (
        "RandomForestClassifier, classes 1 and 2",
        partial(RandomForestClassifier, **FOREST),
        partial(classes, 1, 2),
    ),
    "forest-regressor": (
        "RandomForestRegressor",
        partial(RandomForestRegressor, **FOREST),
        numbers,
    ),
    "svc": ("SVC without probability", SVC, partial(classes, 0, 1)),
    "lightgbm": (
        "LGBMClassifier",
        partial(LGBMClassifier, n_estimators=10, verbose=-1),
        partial(classes, 0, 1),
    ),
    "lightgbm-regressor": (
        "LGBMRegressor",
        partial(LGBMRegressor, n_estimators=10, verbose=-1),
        numbers,
    ),
    "xgboost": (
        "XGBClassifier",
        partial(XGBClassifier, n_estimators=10, max_depth=4),
        partial(classes, 0, 1),
    ),
}
PACKAGES = ("hummingbird-ml", "torch", "onnx")
CASES = {
    f"hummingbird-{name}": Case(
        "Hummingbird, dynamo=False", shown, PACKAGES, partial(_made, make, split)
    )
    for name, (shown, make, split) in _LISTED.items()
} | {
    "hummingbird-default": Case(
        "Hummingbird",
        "RandomForestClassifier",
        PACKAGES,
        partial(_default, *_LISTED["forest"][1:]),
    )
}
