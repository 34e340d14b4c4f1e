"""Who makes evidence about this machine, by the type that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from sealgate.protocol.tpm2 import TPM2
from security.attestation.quotes import TpmAttester
from security.errors import SettingsError
from security.settings.attestation import AttestationSettings

__all__ = ["ENTRY_POINTS", "Attester", "load_attester"]

# Of packages that bring another type: each takes the settings, and gives an attester.
ENTRY_POINTS = "sealgate.attesters"


class Attester(Protocol):
    """Makes evidence about this machine."""

    def attest(self, nonce: bytes) -> Mapping[str, Any]:
        """Evidence over a nonce, as a JSON object with its ``type``.

        It may take seconds; it is not called from an event loop.

        Args:
            nonce: 32 bytes, bound into the evidence.

        Raises:
            AttesterError: there is none to be had now.
        """


_BUILT_IN: Mapping[str, Callable[[AttestationSettings], Attester]] = {
    TPM2: TpmAttester.from_settings
}


def load_attester(settings: AttestationSettings) -> Attester | None:
    """The attester that the settings name; None where they name none.

    Raises:
        SettingsError: no package, or several, bring this type.
        TpmError: its attestation key cannot be used.
    """
    if not settings.type:
        return None
    factory = _BUILT_IN.get(settings.type)
    if factory is None:
        found = entry_points(group=ENTRY_POINTS, name=settings.type)
        if len(found) != 1:
            raise SettingsError(
                f"attestation.type: {len(found)} packages make evidence of type "
                f"{settings.type!r}"
            )
        (point,) = found
        factory = point.load()
    return factory(settings)
