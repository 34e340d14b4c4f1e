"""Verify a bundle from Python: what every door demands, for other people's pipelines.

`verify` makes the checks of `python -m security verify BUNDLE`, which calls it; those
of `bentoml build`, of the server's start and of loading are the same (`doors`). It
imports no torch, no onnxruntime and no BentoML. It needs the policy, the trust root and
the checks of this package, so it is not part of the client's `sealgate`.

>>> verify(Path("no-such-bundle"), trust=Path("trust.json"), policy=Path("p.toml"))
Traceback (most recent call last):
    ...
models.errors.BundleError: no-such-bundle: No such file or directory
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from models.bundle import Bundle, read_bundle
from security.admission import gate
from security.admission.confidential import check_sealed
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.model_signature import check_signature
from security.admission.policy import load_policy
from security.admission.steps import Scene
from security.admission.trust import load_trust
from security.errors import AdmissionRefused

__all__ = ["all_refusals", "verify"]


def verify(
    folder: Path | Bundle, *, trust: Path, policy: Path, now: datetime | None = None
) -> Admission:
    """Verify a bundle: its files, its evidence, its verdict, and what lies beside them.

    Args:
        folder: of the bundle, or a bundle that was read already.
        trust: the trust root: public keys by role. Your own, never the bundle's.
        policy: that the verdict must have been made under, byte for byte.
        now: the time that freshness is measured at; the clock's by default.

    Returns:
        The bytes that were checked (``bundle``), the evidence (``reports``), what was
        let pass (``waivers``), until when it holds (``expires_at``), and what evidence
        of an earlier release leaves open (``notices``).

    Raises:
        AdmissionRefused: the first check that failed; ``check`` is its number.
        BundleError: the folder is not a bundle.
        KeyFileError: the trust root cannot be used.
        SettingsError: the policy cannot be used.
    """
    bundle = folder if isinstance(folder, Bundle) else read_bundle(Path(folder))
    return verify_with(
        bundle, load_policy(policy), load_trust(trust), now=now or datetime.now(UTC)
    )


def all_refusals(
    folder: Path | Bundle, *, trust: Path, policy: Path, now: datetime | None = None
) -> list[AdmissionRefused]:
    """Every check that fails, in order; none if `verify` would return.

    Raises:
        BundleError, KeyFileError, SettingsError: as `verify`.
    """
    bundle = folder if isinstance(folder, Bundle) else read_bundle(Path(folder))
    root, rules = load_trust(trust), load_policy(policy)
    scene = Scene(bundle, rules, root, now or datetime.now(UTC))
    found = gate.all_refusals(bundle, rules, root, now=scene.now)
    for check in (check_sealed, check_signature):
        try:
            check(scene)
        except AdmissionRefused as refusal:
            found.append(refusal)
    return found
