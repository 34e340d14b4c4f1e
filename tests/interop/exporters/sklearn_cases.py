"""scikit-learn by skl2onnx, as its documentation exports models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import skl2onnx
from cases import ROWS, TRAINED, Case, Made, Split, answers_of, classes, numbers
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

TWO = partial(classes, 0, 1)
NAMED = partial(classes, "no", "yes")
ONE_TWO = partial(classes, 1, 2)
SIGNED = partial(classes, -1, 1)
TRUE_FALSE = partial(classes, False, True)
THREE = partial(classes, 0, 1, 2)
COLOURS = partial(classes, "blue", "green", "red")


def _convert(model: Any, initial: list[tuple[str, Any]], **options: Any) -> bytes:
    made = skl2onnx.convert_sklearn(
        model,
        initial_types=initial,
        target_opset={"": 21, "ai.onnx.ml": 3},
        options={id(model): options} if options else None,
    )
    return bytes(made.SerializeToString())


def _plain(model: Any, split: Callable[[], Split], **options: Any) -> Made:
    data = split()
    model.fit(data.x, data.y)
    initial = [("X", FloatTensorType([None, data.x.shape[1]]))]
    made = _convert(model, initial, **options)
    return Made(made, data.rows, data.truth, answers_of(model, data.rows))


def _table() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(3)
    size = ROWS + TRAINED
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 12, size).astype(np.float32),
            "income": rng.normal(30, 9, size).astype(np.float32),
            "region": rng.choice(["north", "south", "west"], size),
        }
    )
    score = (frame.age - 40) / 12 - (frame.income - 30) / 9 + (frame.region == "west")
    return frame, (score + rng.normal(0, 0.5, size) > 0).astype(int).to_numpy()


def _columns() -> Made:
    frame, y = _table()
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "income"]),
            ("texts", OneHotEncoder(), ["region"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression())
    model.fit(frame[:TRAINED], y[:TRAINED])
    initial = [
        ("age", FloatTensorType([None, 1])),
        ("income", FloatTensorType([None, 1])),
        ("region", StringTensorType([None, 1])),
    ]
    rows = frame[TRAINED:]
    inputs = {name: rows[[name]].to_numpy() for name in rows}
    made = _convert(model, initial, zipmap=False)
    return Made(made, inputs, y[TRAINED:], answers_of(model, rows))


def _texts() -> Made:
    rng = np.random.default_rng(4)
    good, bad = ["great", "fine", "love"], ["poor", "awful", "hate"]
    y = rng.integers(0, 2, ROWS + TRAINED)
    texts = np.array(
        [
            " ".join(rng.choice([*(good if label else bad), "the", "film", "was"], 6))
            for label in y
        ]
    )
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(texts[:TRAINED], y[:TRAINED])
    made = _convert(model, [("text", StringTensorType([None, 1]))], zipmap=False)
    rows = texts[TRAINED:]
    inputs = {"text": rows.reshape(-1, 1).astype(object)}
    return Made(made, inputs, y[TRAINED:], answers_of(model, rows))


def _tuned() -> TunedThresholdClassifierCV:
    return TunedThresholdClassifierCV(LogisticRegression(), scoring="recall", cv=3)


def _voting() -> VotingClassifier:
    parts = [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=4))]
    return VotingClassifier(parts, voting="soft", flatten_transform=False)


def _stacking() -> StackingClassifier:
    parts = [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=4))]
    return StackingClassifier(parts, final_estimator=LogisticRegression(), cv=3)


def _log_target() -> TransformedTargetRegressor:
    return TransformedTargetRegressor(
        LinearRegression(), func=np.log1p, inverse_func=np.expm1
    )


FOREST = partial(RandomForestClassifier, n_estimators=20, max_depth=6, random_state=0)
PLAIN = {"zipmap": False}

# Name: what is shown, the estimator, its data, options of the conversion.
_LISTED: dict[
    str, tuple[str, Callable[[], Any], Callable[[], Split], dict[str, Any]]
] = {
    "logistic": ("LogisticRegression", LogisticRegression, TWO, PLAIN),
    "logistic-names": (
        "LogisticRegression, classes no and yes, as zipmap",
        LogisticRegression,
        NAMED,
        {},
    ),
    "logistic-onetwo": (
        "LogisticRegression, classes 1 and 2",
        LogisticRegression,
        ONE_TWO,
        PLAIN,
    ),
    "logistic-bool": (
        "LogisticRegression, classes False and True",
        LogisticRegression,
        TRUE_FALSE,
        PLAIN,
    ),
    "logistic-three": (
        "LogisticRegression, 3 classes",
        LogisticRegression,
        THREE,
        PLAIN,
    ),
    "sgd": (
        "SGDClassifier, log loss",
        partial(SGDClassifier, loss="log_loss", random_state=0),
        TWO,
        PLAIN,
    ),
    "perceptron": ("Perceptron", Perceptron, TWO, PLAIN),
    "ridge-classifier": ("RidgeClassifier", RidgeClassifier, TWO, PLAIN),
    "linear-svc": ("LinearSVC", LinearSVC, TWO, {}),
    "linear-svc-three": ("LinearSVC, 3 classes", LinearSVC, COLOURS, {}),
    "svc": ("SVC without probability", SVC, TWO, PLAIN),
    "svc-three": ("SVC without probability, 3 classes", SVC, THREE, PLAIN),
    "svc-probability": (
        "SVC with probability",
        partial(SVC, probability=True, random_state=0),
        TWO,
        PLAIN,
    ),
    "knn": ("KNeighborsClassifier", KNeighborsClassifier, THREE, PLAIN),
    "gaussian-nb": ("GaussianNB", GaussianNB, THREE, PLAIN),
    "bernoulli-nb": ("BernoulliNB", BernoulliNB, TWO, PLAIN),
    "lda": ("LinearDiscriminantAnalysis", LinearDiscriminantAnalysis, THREE, PLAIN),
    "qda": (
        "QuadraticDiscriminantAnalysis",
        partial(QuadraticDiscriminantAnalysis, reg_param=0.1),
        TWO,
        PLAIN,
    ),
    "tree": (
        "DecisionTreeClassifier",
        partial(DecisionTreeClassifier, max_depth=6),
        COLOURS,
        PLAIN,
    ),
    "forest": ("RandomForestClassifier", FOREST, TWO, PLAIN),
    "forest-signed": (
        "RandomForestClassifier, classes -1 and 1",
        FOREST,
        SIGNED,
        PLAIN,
    ),
    "forest-missing": (
        "RandomForestClassifier, fitted with missing values",
        FOREST,
        partial(classes, 0, 1, missing=True),
        PLAIN,
    ),
    "extra-trees": (
        "ExtraTreesClassifier",
        partial(ExtraTreesClassifier, n_estimators=20, max_depth=6, random_state=0),
        THREE,
        PLAIN,
    ),
    "gradient-boosting": (
        "GradientBoostingClassifier",
        partial(GradientBoostingClassifier, n_estimators=30, random_state=0),
        TWO,
        PLAIN,
    ),
    "hist-gradient-boosting": (
        "HistGradientBoostingClassifier",
        partial(HistGradientBoostingClassifier, max_iter=20),
        TWO,
        PLAIN,
    ),
    "adaboost": (
        "AdaBoostClassifier",
        partial(AdaBoostClassifier, random_state=0),
        TWO,
        PLAIN,
    ),
    "bagging": (
        "BaggingClassifier",
        partial(BaggingClassifier, random_state=0),
        TWO,
        PLAIN,
    ),
    "voting": ("VotingClassifier, soft", _voting, TWO, PLAIN),
    "stacking": ("StackingClassifier", _stacking, TWO, PLAIN),
    "mlp": (
        "MLPClassifier",
        partial(MLPClassifier, hidden_layer_sizes=(16,), max_iter=200, random_state=0),
        THREE,
        PLAIN,
    ),
    "one-vs-rest": (
        "OneVsRestClassifier",
        lambda: OneVsRestClassifier(LogisticRegression()),
        THREE,
        PLAIN,
    ),
    "gaussian-process": (
        "GaussianProcessClassifier",
        GaussianProcessClassifier,
        TWO,
        PLAIN,
    ),
    "scaled": (
        "Pipeline of StandardScaler and LogisticRegression",
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        NAMED,
        PLAIN,
    ),
    "sigmoid": (
        "CalibratedClassifierCV, sigmoid",
        lambda: CalibratedClassifierCV(GaussianNB(), method="sigmoid", cv=3),
        TWO,
        PLAIN,
    ),
    "isotonic": (
        "CalibratedClassifierCV, isotonic",
        lambda: CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=3),
        TWO,
        PLAIN,
    ),
    "temperature": (
        "CalibratedClassifierCV, temperature",
        lambda: CalibratedClassifierCV(
            LogisticRegression(), method="temperature", cv=3
        ),
        TWO,
        PLAIN,
    ),
    "tuned-threshold": ("TunedThresholdClassifierCV", _tuned, TWO, PLAIN),
    "fixed-threshold": (
        "FixedThresholdClassifier at 0.2",
        lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.2),
        TWO,
        PLAIN,
    ),
    "isolation-forest": (
        "IsolationForest",
        partial(IsolationForest, n_estimators=20, random_state=0),
        SIGNED,
        {},
    ),
    "one-class-svm": ("OneClassSVM", OneClassSVM, SIGNED, {}),
    "kmeans": ("KMeans", partial(KMeans, 3, n_init=1, random_state=0), THREE, {}),
    "linear": ("LinearRegression", LinearRegression, numbers, {}),
    "ridge": ("Ridge", Ridge, numbers, {}),
    "lasso": ("Lasso", Lasso, numbers, {}),
    "linear-two": (
        "LinearRegression, 2 outputs",
        LinearRegression,
        partial(numbers, outputs=2),
        {},
    ),
    "poisson": (
        "PoissonRegressor",
        PoissonRegressor,
        partial(numbers, positive=True),
        {},
    ),
    "quantile": (
        "QuantileRegressor",
        partial(QuantileRegressor, alpha=0.01),
        numbers,
        {},
    ),
    "svr": ("SVR", SVR, numbers, {}),
    "knn-regressor": ("KNeighborsRegressor", KNeighborsRegressor, numbers, {}),
    "tree-regressor": (
        "DecisionTreeRegressor",
        partial(DecisionTreeRegressor, max_depth=6),
        numbers,
        {},
    ),
    "forest-regressor": (
        "RandomForestRegressor",
        partial(RandomForestRegressor, n_estimators=20, max_depth=6, random_state=0),
        numbers,
        {},
    ),
    "forest-regressor-missing": (
        "RandomForestRegressor, fitted with missing values",
        partial(RandomForestRegressor, n_estimators=20, max_depth=6, random_state=0),
        partial(numbers, missing=True),
        {},
    ),
    "gradient-boosting-regressor": (
        "GradientBoostingRegressor",
        partial(GradientBoostingRegressor, n_estimators=30, random_state=0),
        numbers,
        {},
    ),
    "hist-gradient-boosting-regressor": (
        "HistGradientBoostingRegressor",
        partial(HistGradientBoostingRegressor, max_iter=20),
        numbers,
        {},
    ),
    "mlp-regressor": (
        "MLPRegressor",
        partial(MLPRegressor, hidden_layer_sizes=(16,), max_iter=300, random_state=0),
        numbers,
        {},
    ),
    "gaussian-process-regressor": (
        "GaussianProcessRegressor",
        partial(GaussianProcessRegressor, alpha=0.1, random_state=0),
        numbers,
        {},
    ),
    "log-target": (
        "TransformedTargetRegressor, log1p",
        _log_target,
        partial(numbers, positive=True),
        {},
    ),
}


def _case(shown: str, make: Callable[[], Made]) -> Case:
    return Case("skl2onnx", shown, ("skl2onnx", "scikit-learn", "onnx"), make)


def _listed(
    estimator: Any, split: Callable[[], Split], options: dict[str, Any]
) -> Made:
    return _plain(estimator(), split, **options)


CASES = {
    f"sklearn-{name}": _case(shown, partial(_listed, estimator, split, options))
    for name, (shown, estimator, split, options) in _LISTED.items()
} | {
    "sklearn-columns": _case(
        "Pipeline of ColumnTransformer (numbers, one-hot texts)", _columns
    ),
    "sklearn-text": _case("Pipeline of TfidfVectorizer and LogisticRegression", _texts),
}
