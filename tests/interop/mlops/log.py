"""Run by the tracking side's Python: what a data scientist logs, as JSON on the end."""

from __future__ import annotations

import hashlib
import json

import mlflow
import mlflow.onnx
import mlflow.sklearn
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TRAINED = slice(284)


def fitted(penalty: float):
    source = load_breast_cancer()
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)
    )
    return pipeline.fit(source.data[TRAINED], source.target[TRAINED])


def exported(pipeline):
    row = np.zeros((1, 30), np.float32)
    return to_onnx(pipeline, row, options={"zipmap": False}, target_opset=21)


def weighted():
    """A product with weights, which are tensors: linear models have attributes."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["scores"])],
        "weighted",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


mlflow.set_experiment("credit")
digests = []
with mlflow.start_run() as run:
    for penalty in (0.1, 0.2):
        model = exported(fitted(penalty))
        digests.append(hashlib.sha256(model.SerializeToString()).hexdigest())
        name = f"model-{len(digests)}"
        mlflow.onnx.log_model(model, name=name, registered_model_name="credit")
    # Weights in a file of their own, however small.
    mlflow.onnx.log_model(
        weighted(),
        name="split",
        registered_model_name="split",
        size_threshold=0,
    )
    mlflow.sklearn.log_model(
        fitted(0.1),
        name="pickled",
        registered_model_name="pickled",
        serialization_format="cloudpickle",
    )
client = mlflow.MlflowClient()
client.set_registered_model_alias("credit", "champion", "1")
split = [item.path for item in mlflow.artifacts.list_artifacts("models:/split/1")]
said = {"run_id": run.info.run_id, "digests": digests, "split": split}
print(json.dumps(said))
