"""The only place that makes an onnxruntime session, so that all read one model alike.

A file can be one model for one session and another for the next: onnxruntime guesses a
format from the first bytes, takes options from a model's metadata where the environment
says so, follows paths to weights, and falls back to another provider with a line on
standard output. None of that is left open here:

1. the bytes are ONNX, whatever they begin with (``session.load_model_format``);
2. no option is read from the model, and none from a file;
3. weights are inside the bytes: the folder for other files cannot exist;
4. released operator sets only, whatever the environment says;
5. providers, threads and the level of optimisation are stated, and there is no
   fallback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from models.errors import ProviderError, SessionError

__all__ = [
    "CPU",
    "MAPS",
    "SEQUENCE",
    "TYPES",
    "NodeArg",
    "Session",
    "make_session",
    "shape_of",
]

CPU = ("CPUExecutionProvider",)

# Types of tensors as onnxruntime writes them, and the datatypes of requests.
TYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
# What else is answered as tensors: the type of keys and that of values, or of elements.
MAPS = re.compile(r"seq\(map\((int64|string),(tensor\(\w+\))\)\)")
SEQUENCE = re.compile(r"seq\((tensor\(\w+\))\)")

_CONFIG: Mapping[str, str] = {
    "session.load_model_format": "ONNX",
    # Weights in another file are in no digest: a folder that cannot be has none.
    "session.model_external_initializers_file_folder_path": "/dev/null/none",
    "session.allow_released_opsets_only": "1",
}
_OPTIONS_FROM_MODEL = "ORT_LOAD_CONFIG_FROM_MODEL"
_FATAL = 4  # onnxruntime's severities: verbose, info, warning, error, fatal


class NodeArg(Protocol):
    """An input or output as onnxruntime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """What is used of a session of onnxruntime."""

    def get_inputs(self) -> Sequence[NodeArg]:
        """What it takes."""

    def get_outputs(self) -> Sequence[NodeArg]:
        """What it gives."""

    def get_providers(self) -> Sequence[str]:
        """What it runs on."""

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[Any]:
        """Compute outputs, all where None is asked for."""

    def run_with_ort_values(
        self,
        output_names: Sequence[str],
        input_dict_ort_values: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[Any]:
        """The same with values of onnxruntime's own."""


def make_session(
    model: bytes,
    *,
    providers: Sequence[str] = CPU,
    intra_op_threads: int = 1,
    inter_op_threads: int = 1,
) -> Session:
    """Load a model that was inspected.

    Args:
        model: the bytes of an ONNX file.
        providers: of onnxruntime, the first one that fits a node runs it.
        intra_op_threads: threads of one run.
        inter_op_threads: likewise, for branches of the graph.

    Raises:
        ProviderError: a provider is not installed, or does not work here.
        SessionError: onnxruntime refuses the model.
    """
    # Only where a session is made: what needs none imports without onnxruntime.
    import onnxruntime  # noqa: PLC0415

    missing = set(providers).difference(onnxruntime.get_available_providers())
    if missing:
        raise ProviderError(f"{min(missing)} is not installed")
    if os.environ.get(_OPTIONS_FROM_MODEL, "0") != "0":
        raise SessionError(f"{_OPTIONS_FROM_MODEL} is set: models choose no options")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = inter_op_threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Fatal errors only: what a run fails on is the caller's, and would fill the log.
    options.log_severity_level = _FATAL
    for key, value in _CONFIG.items():
        options.add_session_config_entry(key, value)
    try:
        session: Session = onnxruntime.InferenceSession(
            model,
            options,
            providers=list(providers),
            enable_fallback=0,
            read_config_from_model=0,
        )
    except Exception as error:  # noqa: BLE001  (its exceptions share no other base)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SessionError(f"onnxruntime refuses the model: {reason}") from None
    for provider in providers:
        if provider not in session.get_providers():
            raise ProviderError(f"{provider} does not work here")
    # Kept to begin again with other providers, which nobody does: a copy of the model.
    session._model_bytes = None  # type: ignore[attr-defined]  # noqa: SLF001
    return session


def shape_of(node: NodeArg) -> tuple[int, ...]:
    """The sizes of an input or output; -1 where symbolic or missing: dynamic."""
    return tuple(size if isinstance(size, int) else -1 for size in node.shape)
