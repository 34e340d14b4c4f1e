"""Giving a bundle another output policy, explanations, or intervals of its answers.

Before anybody has signed anything: all of it is in the manifest, which the root digest
covers, so that whatever was said of the bundle has to be said again. What its training
says still holds, and cannot be had again. What was measured can, and whoever signs it
shall have measured it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from models.bundle import (
    BOM_FILE,
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    MODEL_SIGNATURE_FILE,
    Bundle,
    read_bundle,
    report_file,
)
from models.conformal import Conformal
from models.errors import BundleError
from models.explanations import Explanations
from models.files import write_atomic
from models.manifest import Manifest, Tensor
from models.output_policy import OutputPolicy
from models.report import KINDS

__all__ = ["kept_reports", "restrict"]

_MEASURED = ("fairness", "membership", "quality", "robustness", "structure")


def restrict(
    folder: Path,
    policy: OutputPolicy | None = None,
    explanations: Explanations | None = None,
    conformal: Conformal | Literal["keep"] | None = "keep",
    *,
    answer: Tensor | None = None,
) -> Bundle:
    """Give a bundle another output policy, or other explanations; None keeps its own.

    A quantile that was found for answers of other decimals is removed: it says nothing
    of these.

    The reports of its training are bound to the new manifest, and wait for signatures.
    Every signature, the documents, and what an assessment measured are removed.

    Args:
        folder: of the bundle.
        policy: that it shall have.
        explanations: that it shall have.
        conformal: that it shall have; None for none.
        answer: an output with a public range, or names of classes, that it lacked.

    Returns:
        The bundle as it is now; as it was, if it had these.

    Raises:
        BundleError: it cannot be read or written, its model is sealed, or a report is
            about another model.
        ManifestError: they do not fit the model.
    """
    before = read_bundle(folder)
    old = before.manifest
    wanted = old.output_policy if policy is None else policy
    if conformal == "keep":
        kept_one = old.conformal
        stale = kept_one is not None and kept_one.decimals != wanted.decimals
        conformal = None if stale else kept_one
    outputs = old.outputs
    if answer is not None:
        own = answer.spec.name
        outputs = tuple(answer if o.spec.name == own else o for o in outputs)
    manifest = replace(
        old,
        outputs=outputs,
        output_policy=wanted,
        explanations=old.explanations if explanations is None else explanations,
        conformal=conformal,
    )
    if manifest == old:
        return before
    kept = kept_reports(before)
    changed = manifest.to_json()
    Manifest.from_json(changed)
    gone = {MODEL_CARD_FILE, BOM_FILE, MODEL_SIGNATURE_FILE}
    gone |= {report_file(kind) for kind in _MEASURED}
    for name in sorted(before.files):
        if name in gone or name.startswith("attestations/"):
            (folder / name).unlink()
    write_atomic(folder / MANIFEST_FILE, changed)
    subject = read_bundle(folder).subject
    for kind in kept:
        report = replace(before.report(kind), subject=subject)
        write_atomic(folder / report_file(kind), report.to_json())
    return read_bundle(folder)


def kept_reports(bundle: Bundle) -> list[str]:
    """Kinds of the reports that a bundle keeps when its manifest changes.

    Raises:
        BundleError: it cannot change: it is sealed, or a report is about another model.
    """
    if bundle.sealed:
        raise BundleError("the model is sealed: its reports are about sealed bytes")
    kept = [k for k in KINDS if k not in _MEASURED and report_file(k) in bundle.files]
    for kind in kept:
        if bundle.report(kind).subject != bundle.subject:
            raise BundleError(f"{kind} report is about another model")
    return kept
