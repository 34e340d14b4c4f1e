"""onnxruntime sessions over admitted bytes.

A session is made from the very bytes that the gate checked; the path is never opened
again. The session must agree with the signed manifest, and every request is validated
against that manifest before it comes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime as ort

from models.manifest import Manifest
from sealgate.protocol.tensors import Array
from security.admission.gate import Admission
from security.errors import AdmissionRefused, SettingsError
from security.settings.runtime import RuntimeSettings
from service.inference.signature import Signature

__all__ = ["LoadedModel"]


class LoadedModel:
    """A model that is ready to run.

    Attributes:
        admission: the bundle, and what admitted it.
        manifest: the contract that requests are validated against.
    """

    def __init__(
        self, admission: Admission, settings: RuntimeSettings = RuntimeSettings()
    ) -> None:
        """Make the session.

        Raises:
            AdmissionRefused: onnxruntime cannot load the model, or what it loads has
                other inputs or outputs than the manifest says.
            SettingsError: a provider is not installed, or does not work here.
        """
        self.admission = admission
        self.manifest: Manifest = admission.bundle.manifest
        self.input_specs = tuple(tensor.spec for tensor in self.manifest.inputs)
        self._session = _session(admission.bundle.model, settings)
        self._signature = Signature(self._session, self.manifest)

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions,
    ) -> list[Array]:
        """Run once, in the calling thread.

        Raises:
            InferenceFailedError: as `Signature.run`.
        """
        return self._signature.run(inputs, outputs, options)


def _session(model: bytes, settings: RuntimeSettings) -> ort.InferenceSession:
    providers = list(settings.providers)
    missing = set(providers).difference(ort.get_available_providers())
    if missing:
        raise SettingsError(f"runtime.providers: {min(missing)} is not installed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    # Fatal errors only: what a run fails on is the caller's, and would fill the log.
    options.log_severity_level = 4
    # Models may carry session options of their own in their metadata: not from a file.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights in another file are in no digest: a folder that cannot be has none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/none"
    )
    try:
        session = ort.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # noqa: BLE001  (no base class)
        raise AdmissionRefused(17, f"onnxruntime cannot load it: {error}") from None
    # onnxruntime falls back to the CPU by itself, where nobody asked for that.
    for provider in providers:
        if provider not in session.get_providers():
            raise SettingsError(f"runtime.providers: {provider} does not work here")
    return session
