"""Giving a bundle another output policy, before anybody has signed anything.

The policy is in the manifest, which the root digest covers: whatever was said of the
bundle has to be said again. Reports about the model file still hold, since it is the
same; what was measured through another policy does not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.bundle import (
    BOM_FILE,
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    MODEL_SIGNATURE_FILE,
    Bundle,
    read_bundle,
    report_file,
)
from models.errors import BundleError
from models.files import write_atomic
from models.manifest import Manifest
from models.output_policy import OutputPolicy
from models.report import KINDS

__all__ = ["restrict"]

_MEASURED_THROUGH_IT = ("membership",)


def restrict(folder: Path, policy: OutputPolicy) -> Bundle:
    """Give a bundle another output policy.

    Its reports are bound to the new manifest. What no longer holds is removed: every
    signature, the documents, and reports of what answers give away.

    Returns:
        The bundle as it is now; as it was, if it had this policy.

    Raises:
        BundleError: it cannot be read or written, or its model is sealed.
        ManifestError: the policy is not one for its outputs.
    """
    before = read_bundle(folder)
    if before.manifest.output_policy == policy:
        return before
    if before.sealed:
        raise BundleError("the model is sealed: its reports are about sealed bytes")
    changed = replace(before.manifest, output_policy=policy).to_json()
    Manifest.from_json(changed)
    gone = {MODEL_CARD_FILE, BOM_FILE, MODEL_SIGNATURE_FILE}
    gone |= {report_file(kind) for kind in _MEASURED_THROUGH_IT}
    for name in sorted(before.files):
        if name in gone or name.startswith("attestations/"):
            (folder / name).unlink()
    write_atomic(folder / MANIFEST_FILE, changed)
    subject = read_bundle(folder).subject
    for kind in KINDS:
        name = report_file(kind)
        if name in before.files and name not in gone:
            report = replace(before.report(kind), subject=subject)
            write_atomic(folder / name, report.to_json())
    return read_bundle(folder)
