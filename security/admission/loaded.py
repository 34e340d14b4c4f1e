"""onnxruntime sessions over admitted bytes.

A session is made from the very bytes that the gate checked; the path is never opened
again. The session must agree with the signed manifest, and every request is validated
against that manifest before it comes here. What its output policy withholds does not
leave this module: whoever runs a model for a caller, for a trial or to share a run gets
what any caller may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime as ort

from models.errors import ProviderError, SessionError
from models.manifest import Manifest
from models.sessions import Session, make_session
from sealgate.protocol.tensors import Array
from security.admission.gate import Admission
from security.admission.signature import Signature
from security.errors import AdmissionRefused, InferenceFailedError, SettingsError
from security.settings.runtime import RuntimeSettings

__all__ = ["LoadedModel"]


class LoadedModel:
    """A model that is ready to run.

    Attributes:
        admission: the bundle, and what admitted it.
        manifest: the contract that requests are validated against.
        release: what may leave of its outputs, and what is made of them.
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
        self.release = self.manifest.release
        self._session = _session(admission.bundle.model, settings)
        self._signature = Signature(self._session, self.manifest)

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions,
    ) -> list[Array]:
        """Run once, in the calling thread; what comes is what may leave.

        Raises:
            InferenceFailedError: as `Signature.run`; or an output that is withheld.
        """
        if self.release.as_it_is:
            return self._signature.run(inputs, outputs, options)
        if not {*outputs} <= {*self.release.names}:
            raise InferenceFailedError("an output was asked for that is withheld")
        sources = self.release.sources(outputs)
        arrays = self._signature.run(inputs, sources, options)
        return self.release.answer(outputs, dict(zip(sources, arrays)))

    def run_whole(
        self, inputs: Mapping[str, Array], options: ort.RunOptions
    ) -> list[Array]:
        """Every output as the model gives it, to learn how it runs; none may leave.

        Raises:
            InferenceFailedError: as `Signature.run`.
        """
        names = [tensor.spec.name for tensor in self.manifest.outputs]
        return self._signature.run(inputs, names, options)


def _session(model: bytes, settings: RuntimeSettings) -> Session:
    try:
        return make_session(
            model,
            providers=settings.providers,
            intra_op_threads=settings.intra_op_threads,
            inter_op_threads=settings.inter_op_threads,
        )
    except ProviderError as error:
        raise SettingsError(f"runtime.providers: {error}") from None
    except SessionError as error:
        raise AdmissionRefused(17, str(error)) from None
