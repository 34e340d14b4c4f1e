"""What every door demands of a bundle: the gate, and the checks after it.

The gate's checks 1 to 15 are about evidence. Here follow those of files beside it:

24. a sealed model's ciphertext is bound to the evidence (`confidential`);
25. a model.sig is about these very files (`model_signature`).

16 is a Bento's lock (`hooks`), 17 the model in onnxruntime (the service's), 20 to 23
are the gate's about waivers, 26 is what else is wrong with a Bento (`outside`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from models.bundle import Bundle
from security.admission import gate
from security.admission.confidential import check_sealed
from security.admission.gate import Admission
from security.admission.model_signature import check_signature
from security.admission.policy import Policy, load_policy
from security.admission.steps import Scene
from security.admission.trust import TrustRoot, load_trust
from security.settings.admission import AdmissionSettings

__all__ = ["verify_bundle", "verify_with"]


def verify_bundle(bundle: Bundle, settings: AdmissionSettings) -> Admission:
    """Verify a bundle under a deployment's policy and trust root, now.

    Raises:
        KeyFileError: the trust root cannot be used.
        SettingsError: the policy cannot be used.
        AdmissionRefused: the first check that failed.
    """
    return verify_with(
        bundle,
        load_policy(settings.policy),
        load_trust(settings.trust),
        now=datetime.now(UTC),
    )


def verify_with(
    bundle: Bundle, policy: Policy, trust: TrustRoot, *, now: datetime
) -> Admission:
    """As `verify_bundle`, with what was read already.

    Raises:
        AdmissionRefused: the first check that failed.
    """
    admission = gate.verify(bundle, policy, trust, now=now)
    scene = Scene(bundle, policy, trust, now)
    check_sealed(scene)
    check_signature(scene)
    return admission
