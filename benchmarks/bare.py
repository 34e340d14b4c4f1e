"""The same inference by a bare Starlette handler: no caller, no limit, no record.

Run by uvicorn with ``MODEL``, the path of an ONNX file, in the environment.
"""

import os

import numpy as np
import onnxruntime as ort
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_OPTIONS = ort.SessionOptions()
_OPTIONS.intra_op_num_threads = _OPTIONS.inter_op_num_threads = 1
_SESSION = ort.InferenceSession(
    os.environ["MODEL"], _OPTIONS, providers=["CPUExecutionProvider"]
)
_NAMES = [output.name for output in _SESSION.get_outputs()]


async def ready(request: Request) -> Response:
    return Response()


async def infer(request: Request) -> Response:
    (tensor,) = orjson.loads(await request.body())["inputs"]
    array = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    arrays = _SESSION.run(_NAMES, {tensor["name"]: array})
    outputs = [
        {"name": name, "shape": result.shape, "data": result.ravel().tolist()}
        for name, result in zip(_NAMES, arrays)
    ]
    content = orjson.dumps({"outputs": outputs})
    return Response(content, media_type="application/json")


app = Starlette(
    routes=[
        Route("/v2/health/ready", ready),
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
    ]
)
