"""Check 29 of the gate: how much of each answer may leave. No I/O.

The manifest says it (`models.output_policy`), so the root digest and every statement
cover it. Here it is held to what a policy demands, and to what evidence was measured
through; `gate` holds the verdict to it, and `security.admission.loaded` every answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.output_policy import ALL_SCORES
from models.report import Report
from security.admission.steps import Scene, Steps
from security.errors import AdmissionRefused

__all__ = ["OUTPUT_CHECK", "output_steps"]

OUTPUT_CHECK = 29
# What somebody learns from answers depends on what is in them.
_FROM_ANSWERS = ("membership",)


def output_steps(scene: Scene, reports: Mapping[str, Report]) -> Steps[None]:
    """The part of check 29 that needs no verdict."""
    manifest = scene.bundle.manifest
    own, demanded = manifest.output_policy, scene.policy.leaving(manifest.name)
    if wider := own.wider_than(demanded):
        yield AdmissionRefused(
            OUTPUT_CHECK,
            f"{own} may leave, and the policy allows {demanded}: {', '.join(wider)}",
        )
    for kind in _FROM_ANSWERS:
        if kind not in reports:
            continue
        # Releases that knew of no policy measured all that a model answers.
        through = reports[kind].conditions.get("output_policy", str(ALL_SCORES))
        if through != str(own):
            yield AdmissionRefused(
                OUTPUT_CHECK, f"{kind} was measured through {through!r}, not {own}"
            )
