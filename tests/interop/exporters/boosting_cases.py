"""LightGBM, XGBoost and CatBoost: by onnxmltools, and by CatBoost's own export."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxmltools
from cases import ROWS, TRAINED, Case, Made, Split, answers_of, classes, numbers
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRanker, LGBMRegressor
from onnxmltools.convert.common.data_types import FloatTensorType
from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier

TWO = partial(classes, 0, 1)
NAMED = partial(classes, "no", "yes")
ONE_TWO = partial(classes, 1, 2)
THREE = partial(classes, 0, 1, 2)
MISSING = partial(classes, 0, 1, missing=True)
COUNTS = partial(numbers, positive=True)

Convert = Callable[[Any, int], bytes]


def _lightgbm(model: Any, width: int) -> bytes:
    initial = [("X", FloatTensorType([None, width]))]
    made = onnxmltools.convert_lightgbm(
        model, initial_types=initial, target_opset=15, zipmap=False
    )
    return bytes(made.SerializeToString())


def _xgboost(model: Any, width: int) -> bytes:
    initial = [("X", FloatTensorType([None, width]))]
    made = onnxmltools.convert_xgboost(model, initial_types=initial, target_opset=15)
    return bytes(made.SerializeToString())


def _catboost_tools(model: Any, width: int) -> bytes:
    initial = [("X", FloatTensorType([None, width]))]
    made = onnxmltools.convert_catboost(model, initial_types=initial, target_opset=15)
    return bytes(made.SerializeToString())


def _catboost_own(model: Any, width: int) -> bytes:
    del width
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save_model(str(path), format="onnx")
        return path.read_bytes()


def _fitted(
    make: Callable[[], Any], split: Callable[[], Split], convert: Convert
) -> Made:
    data, model = split(), make()
    model.fit(data.x, data.y)
    made = convert(model, data.x.shape[1])
    return Made(made, data.rows, data.truth, answers_of(model, data.rows))


def _ranker(convert: Convert) -> Made:
    data = numbers()
    model = LGBMRanker(n_estimators=20, verbose=-1)
    model.fit(data.x, (data.y / 6).astype(int), group=[20] * (TRAINED // 20))
    made = convert(model, data.x.shape[1])
    truth = data.truth
    return Made(made, data.rows, truth, {"value": model.predict(data.rows)})


def _categories() -> Made:
    """One column of codes, told to be categories."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS + TRAINED, 3)).astype(np.float32)
    x[:, 0] = rng.integers(0, 8, len(x))
    y = (np.isin(x[:, 0], [1, 4, 6]) ^ (x[:, 1] > 0.3)).astype(int)
    model = LGBMClassifier(n_estimators=20, verbose=-1)
    model.fit(x[:TRAINED], y[:TRAINED], categorical_feature=[0])
    rows = x[TRAINED:]
    made = _lightgbm(model, 3)
    return Made(made, rows, y[TRAINED:], answers_of(model, rows))


def _threshold() -> Made:
    data = TWO()
    model = CatBoostClassifier(iterations=20, depth=4, verbose=False)
    model.fit(data.x, data.y)
    model.set_probability_threshold(0.2)
    made = _catboost_own(model, 6)
    return Made(made, data.rows, data.truth, answers_of(model, data.rows))


def _cat_texts() -> Made:
    data = TWO()
    x = np.column_stack([data.x, np.where(data.x[:, 0] > 0, "a", "b")]).astype(object)
    model = CatBoostClassifier(iterations=20, depth=4, verbose=False, cat_features=[6])
    model.fit(x, data.y)
    rows = np.column_stack([data.rows, np.where(data.rows[:, 0] > 0, "a", "b")])
    return Made(_catboost_own(model, 7), data.rows, data.truth, answers_of(model, rows))


LGBM = partial(LGBMClassifier, n_estimators=20, verbose=-1)
LGBMR = partial(LGBMRegressor, n_estimators=20, verbose=-1)
XGB = partial(XGBClassifier, n_estimators=20, max_depth=4)
XGBR = partial(XGBRegressor, n_estimators=20, max_depth=4)
CAT = partial(CatBoostClassifier, iterations=20, depth=4, verbose=False)
CATR = partial(CatBoostRegressor, iterations=20, depth=4, verbose=False)

_LIGHTGBM: dict[str, tuple[str, Callable[[], Any], Callable[[], Split]]] = {
    "two": ("LGBMClassifier", LGBM, TWO),
    "names": ("LGBMClassifier, classes no and yes", LGBM, NAMED),
    "onetwo": ("LGBMClassifier, classes 1 and 2", LGBM, ONE_TWO),
    "three": ("LGBMClassifier, 3 classes", LGBM, THREE),
    "missing": ("LGBMClassifier, fitted with missing values", LGBM, MISSING),
    "zero-missing": (
        "LGBMClassifier, zero_as_missing",
        partial(LGBM, zero_as_missing=True),
        MISSING,
    ),
    "dart": ("LGBMClassifier, dart", partial(LGBM, boosting_type="dart"), TWO),
    "forest": (
        "LGBMClassifier, rf",
        partial(LGBM, boosting_type="rf", subsample=0.7, subsample_freq=1),
        TWO,
    ),
    "regressor": ("LGBMRegressor", LGBMR, numbers),
    "poisson": ("LGBMRegressor, poisson", partial(LGBMR, objective="poisson"), COUNTS),
    "tweedie": ("LGBMRegressor, tweedie", partial(LGBMR, objective="tweedie"), COUNTS),
    "regressor-missing": (
        "LGBMRegressor, fitted with missing values",
        LGBMR,
        partial(numbers, missing=True),
    ),
}
_XGBOOST: dict[str, tuple[str, Callable[[], Any], Callable[[], Split]]] = {
    "two": ("XGBClassifier", XGB, TWO),
    "three": ("XGBClassifier, 3 classes", XGB, THREE),
    "missing": ("XGBClassifier, fitted with missing values", XGB, MISSING),
    "forest": ("XGBRFClassifier", partial(XGBRFClassifier, n_estimators=20), TWO),
    "dart": ("XGBClassifier, dart", partial(XGB, booster="dart"), TWO),
    "raw": (
        "XGBClassifier, binary:logitraw",
        partial(XGB, objective="binary:logitraw"),
        TWO,
    ),
    "regressor": ("XGBRegressor", XGBR, numbers),
    "poisson": (
        "XGBRegressor, count:poisson",
        partial(XGBR, objective="count:poisson"),
        COUNTS,
    ),
    "logistic": (
        "XGBRegressor, reg:logistic",
        partial(XGBR, objective="reg:logistic"),
        partial(classes, 0, 1),
    ),
    "linear": ("XGBRegressor, gblinear", partial(XGBR, booster="gblinear"), numbers),
}
_CATBOOST: dict[str, tuple[str, Callable[[], Any], Callable[[], Split]]] = {
    "two": ("CatBoostClassifier", CAT, TWO),
    "onetwo": ("CatBoostClassifier, classes 1 and 2", CAT, ONE_TWO),
    "signed": ("CatBoostClassifier, classes -1 and 1", CAT, partial(classes, -1, 1)),
    "names": ("CatBoostClassifier, classes no and yes", CAT, NAMED),
    "three": ("CatBoostClassifier, 3 classes", CAT, THREE),
    "missing": ("CatBoostClassifier, fitted with missing values", CAT, MISSING),
    "cross-entropy": (
        "CatBoostClassifier, CrossEntropy",
        partial(CAT, loss_function="CrossEntropy"),
        TWO,
    ),
    "one-vs-all": (
        "CatBoostClassifier, MultiClassOneVsAll",
        partial(CAT, loss_function="MultiClassOneVsAll"),
        THREE,
    ),
    "regressor": ("CatBoostRegressor", CATR, numbers),
    "poisson": (
        "CatBoostRegressor, Poisson",
        partial(CATR, loss_function="Poisson"),
        COUNTS,
    ),
    "tweedie": (
        "CatBoostRegressor, Tweedie",
        partial(CATR, loss_function="Tweedie:variance_power=1.5"),
        COUNTS,
    ),
}

LIGHTGBM = ("onnxmltools, LightGBM", ("onnxmltools", "lightgbm", "onnx"))
XGBOOST = ("onnxmltools, XGBoost", ("onnxmltools", "xgboost-cpu", "onnx"))
CATBOOST = ("CatBoost's own", ("catboost",))
CATBOOST_TOOLS = ("onnxmltools, CatBoost", ("onnxmltools", "catboost", "onnx"))


def _cases(
    kind: str, exporter: tuple[str, tuple[str, ...]], listed: Any, convert: Convert
) -> dict[str, Case]:
    return {
        f"{kind}-{name}": Case(
            exporter[0], shown, exporter[1], partial(_fitted, make, split, convert)
        )
        for name, (shown, make, split) in listed.items()
    }


CASES = {
    **_cases("lightgbm", LIGHTGBM, _LIGHTGBM, _lightgbm),
    "lightgbm-ranker": Case(
        LIGHTGBM[0], "LGBMRanker", LIGHTGBM[1], partial(_ranker, _lightgbm)
    ),
    "lightgbm-categories": Case(
        LIGHTGBM[0], "LGBMClassifier, a categorical column", LIGHTGBM[1], _categories
    ),
    **_cases("xgboost", XGBOOST, _XGBOOST, _xgboost),
    **_cases("catboost", CATBOOST, _CATBOOST, _catboost_own),
    "catboost-threshold": Case(
        CATBOOST[0], "CatBoostClassifier, threshold 0.2", CATBOOST[1], _threshold
    ),
    "catboost-texts": Case(
        CATBOOST[0], "CatBoostClassifier, a categorical column", CATBOOST[1], _cat_texts
    ),
    **_cases(
        "catboost-tools",
        CATBOOST_TOOLS,
        {name: _CATBOOST[name] for name in ("two", "regressor")},
        _catboost_tools,
    ),
}
