"""A bare handler for v2 requests: Starlette and uvicorn, nothing checked.

Run by uvicorn with ``MODELS``, a folder of ONNX files, in the environment.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


SESSIONS = {
    path.stem: _session(path) for path in Path(os.environ["MODELS"]).glob("*.onnx")
}


async def infer(request: Request) -> Response:
    body = await request.body()
    head = request.headers.get("inference-header-content-length")
    document = orjson.loads(body if head is None else memoryview(body)[: int(head)])
    tensor = document["inputs"][0]
    if head is None:
        array = np.array(tensor["data"], np.float32)
    else:
        array = np.frombuffer(body, np.float32, offset=int(head))
    name = request.path_params["model"]
    (result,) = SESSIONS[name].run(None, {"x": array.reshape(tensor["shape"])})
    output = {
        "name": "y",
        "datatype": "FP32",
        "shape": result.shape,
        "data": result.ravel().tolist(),
    }
    content = orjson.dumps({"model_name": name, "outputs": [output]})
    return Response(content, media_type="application/json")


app = Starlette(routes=[Route("/v2/models/{model}/infer", infer, methods=["POST"])])
