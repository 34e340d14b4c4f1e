"""Keras by tf2onnx and by its own export."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from cases import Case, Made, Split, classes, numbers


def _model(width: int, activation: str | None) -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((6,), name="rows"),
        keras.layers.Dense(32, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(width, activation),
    ]
    return keras.Sequential(layers)


def _fitted(width: int, activation: str | None, loss: str) -> tuple[Any, Split]:
    labels = [0, 1] if width == 1 else list(range(width))
    data = numbers() if loss == "mse" else classes(*labels)
    model = _model(width, activation)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(data.x, data.y, epochs=10, verbose=0)
    return model, data


def _tf2onnx(model: Any) -> bytes:
    signature = (tf.TensorSpec((None, 6), tf.float32, name="rows"),)
    made, _ = tf2onnx.convert.from_function(
        tf.function(lambda rows: model(rows, training=False)),
        input_signature=signature,
        opset=15,
    )
    return bytes(made.SerializeToString())


def _keras_to_onnx(model: Any) -> bytes:
    made, _ = tf2onnx.convert.from_keras(model, opset=15)
    return bytes(made.SerializeToString())


def _own(model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export(path, format="onnx", verbose=False)
        return path.read_bytes()


def _made(
    width: int, activation: str | None, loss: str, convert: Callable[[Any], bytes]
) -> Made:
    model, data = _fitted(width, activation, loss)
    said = np.asarray(model.predict(data.rows, verbose=0))
    form = "score" if activation is None else "probability"
    if loss == "mse":
        answers = {"value": said[:, 0]}
    elif width == 1:
        answers = {form: said[:, 0]}
    else:
        scores = {f"{form}:{i}": said[:, i] for i in range(width)}
        answers = {"prediction": said.argmax(axis=1), **scores}
    return Made(convert(model), data.rows, data.truth, answers)


_KINDS = {
    "softmax": ("Sequential, softmax", 3, "softmax", "sparse_categorical_crossentropy"),
    "sigmoid": ("Sequential, one sigmoid", 1, "sigmoid", "binary_crossentropy"),
    "regressor": ("Sequential, a number", 1, None, "mse"),
}
PACKAGES = ("tf2onnx", "tensorflow-cpu", "keras", "onnx")
CASES = {
    f"keras-{way}-{name}": Case(
        exporter, shown, PACKAGES, partial(_made, width, activation, loss, convert)
    )
    for way, exporter, convert in (
        ("function", "tf2onnx, from_function", _tf2onnx),
        ("model", "tf2onnx, from_keras", _keras_to_onnx),
        ("own", "Keras, model.export", _own),
    )
    for name, (shown, width, activation, loss) in _KINDS.items()
}
