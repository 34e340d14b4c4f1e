"""onnxruntime sessions over admitted bytes.

A session is made from the very bytes that the gate checked; the path is never opened
again. The session must agree with the signed manifest, and every request is validated
against that manifest before it comes here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort

from models.manifest import Manifest
from sealgate.errors import SealgateError
from sealgate.protocol.tensors import Array, TensorSpec
from security.admission.gate import Admission
from security.errors import AdmissionRefused
from service.metrics import Metrics

__all__ = ["InferenceFailedError", "InferenceTimeoutError", "LoadedModel", "Runtime"]

_PROVIDERS = ["CPUExecutionProvider"]
_ORT_TYPES: Mapping[str, str] = {
    "BOOL": "tensor(bool)",
    "UINT8": "tensor(uint8)",
    "UINT16": "tensor(uint16)",
    "UINT32": "tensor(uint32)",
    "UINT64": "tensor(uint64)",
    "INT8": "tensor(int8)",
    "INT16": "tensor(int16)",
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "FP16": "tensor(float16)",
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
}


class InferenceFailedError(SealgateError):
    """onnxruntime refused an input that the manifest allows."""


class InferenceTimeoutError(SealgateError):
    """A run was stopped at its deadline."""


class LoadedModel:
    """A model that is ready to run.

    Attributes:
        admission: the bundle, and what admitted it.
        manifest: the contract that requests are validated against.
    """

    def __init__(self, admission: Admission) -> None:
        """Make the session.

        Raises:
            AdmissionRefused: onnxruntime cannot load the model, or what it loads has
                other inputs or outputs than the manifest says.
        """
        self.admission = admission
        self.manifest: Manifest = admission.bundle.manifest
        self.input_specs = tuple(tensor.spec for tensor in self.manifest.inputs)
        self._session = _session(admission.bundle.model)
        _check_signature(self._session.get_inputs(), self.input_specs)
        outputs = tuple(tensor.spec for tensor in self.manifest.outputs)
        _check_signature(self._session.get_outputs(), outputs)

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions,
    ) -> list[Array]:
        """Run once, in the calling thread.

        Raises:
            InferenceFailedError: onnxruntime raised; what it said stays here, since it
                may quote the input.
        """
        try:
            result: list[Array] = self._session.run(
                list(outputs), dict(inputs), run_options=options
            )
        except Exception:  # noqa: BLE001  (onnxruntime's errors share no base class)
            raise InferenceFailedError("onnxruntime failed") from None
        return result


class Runtime:
    """The models of one worker, and the thread that runs them."""

    def __init__(
        self,
        admissions: Sequence[Admission],
        *,
        timeout_s: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._models = {
            admission.bundle.manifest.name: LoadedModel(admission)
            for admission in admissions
        }
        self._timeout_s = timeout_s
        self._metrics = metrics or Metrics()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def find(self, name: str, version: str | None = None) -> LoadedModel | None:
        """The model of a name, if its version is the one asked for."""
        model = self._models.get(name)
        if model is None or version not in (None, model.manifest.version):
            return None
        return model

    async def infer(
        self, model: LoadedModel, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array]:
        """Run a model off the event loop, until its deadline.

        Raises:
            InferenceTimeoutError: stopped at the deadline.
            InferenceFailedError: as `LoadedModel.run`.
        """
        options = ort.RunOptions()
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        run = loop.run_in_executor(self._executor, model.run, inputs, outputs, options)
        deadline = loop.call_later(self._timeout_s, _terminate, options)
        try:
            return await run
        except InferenceFailedError:
            if options.terminate:
                raise InferenceTimeoutError("stopped at the deadline") from None
            raise
        finally:
            deadline.cancel()
            elapsed = time.perf_counter() - began
            self._metrics.stage("run", elapsed, model.manifest.name)


def _terminate(options: ort.RunOptions) -> None:
    options.terminate = True


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Models may carry session options of their own in their metadata: not from a file.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights in another file are in no digest: a folder that cannot be has none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/none"
    )
    try:
        return ort.InferenceSession(model, sess_options=options, providers=_PROVIDERS)
    except Exception as error:  # noqa: BLE001  (no base class)
        raise AdmissionRefused(17, f"onnxruntime cannot load it: {error}") from None


def _check_signature(nodes: Sequence[ort.NodeArg], specs: Sequence[TensorSpec]) -> None:
    """Check 17: the session takes and gives what the manifest says."""
    actual = {node.name: node for node in nodes}
    if actual.keys() != {spec.name for spec in specs}:
        raise AdmissionRefused(17, "the model's tensors are not the manifest's")
    for spec in specs:
        node = actual[spec.name]
        shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
        if node.type != _ORT_TYPES[spec.datatype] or shape != spec.shape:
            raise AdmissionRefused(
                17, f"tensor {spec.name!r} is {node.type}{list(shape)}, not {spec}"
            )
