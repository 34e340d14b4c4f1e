"""BentoML's native API with numpy arrays, as its documentation has it."""

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=int(os.environ["WORKERS"]))
class Native:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.sessions = {
            path.stem: ort.InferenceSession(path, options)
            for path in Path(os.environ["MODELS"]).glob("*.onnx")
        }

    @bentoml.api
    def mlp(self, x: np.ndarray) -> np.ndarray:
        return self._run("mlp", x)

    @bentoml.api
    def image(self, x: np.ndarray) -> np.ndarray:
        return self._run("image", x)

    def _run(self, model: str, x: np.ndarray) -> np.ndarray:
        return self.sessions[model].run(None, {"x": x.astype(np.float32)})[0]
