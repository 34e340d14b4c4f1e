"""Triton with pytriton's Python backend: an instance of each model per worker."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def _infer(path: Path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options)

    @batch
    def infer(x):
        return {"y": session.run(None, {"x": x})[0]}

    return infer


config = TritonConfig(
    http_port=int(os.environ["PORT"]),
    http_address="127.0.0.1",
    allow_grpc=False,
    allow_metrics=False,
)
with Triton(config=config) as triton:
    for path in sorted(Path(os.environ["MODELS"]).glob("*.onnx")):
        shape = ort.InferenceSession(path).get_inputs()[0].shape[1:]
        known = tuple(size if isinstance(size, int) else -1 for size in shape)
        triton.bind(
            model_name=path.stem,
            infer_func=[_infer(path) for _ in range(int(os.environ["WORKERS"]))],
            inputs=[Tensor(name="x", dtype=np.float32, shape=known)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=16),
            strict=False,
        )
    triton.serve()
