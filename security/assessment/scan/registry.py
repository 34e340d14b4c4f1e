"""The checks of a scan, in the order in which they run and are reported."""

from __future__ import annotations

from security.assessment.evasion.check import EvasionCheck
from security.assessment.evasion.cost import CostCheck
from security.assessment.evasion.smoothing import SmoothingCheck
from security.assessment.poisoning.check import PoisoningCheck
from security.assessment.poisoning.trigger_check import TriggerCheck
from security.assessment.privacy.attributes import AttributeCheck
from security.assessment.privacy.canary_check import CanaryCheck
from security.assessment.privacy.extraction import ExtractionCheck
from security.assessment.privacy.inversion import InversionCheck
from security.assessment.privacy.membership import MembershipCheck
from security.assessment.scan.basics import AnswersCheck
from security.assessment.scan.checks import ScanCheck
from security.assessment.scan.explanation_check import ExplanationCheck
from security.assessment.scan.fairness_check import FairnessCheck
from security.assessment.scan.quality_check import QualityCheck

__all__ = ["all_checks"]


def all_checks() -> tuple[ScanCheck, ...]:
    """One of each. Worker processes call this too."""
    return (
        AnswersCheck(),
        EvasionCheck(),
        CostCheck(),
        SmoothingCheck(),
        QualityCheck(),
        FairnessCheck(),
        MembershipCheck(),
        CanaryCheck(),
        AttributeCheck(),
        InversionCheck(),
        ExtractionCheck(),
        PoisoningCheck(),
        TriggerCheck(),
        ExplanationCheck(),
    )
