"""The checks, in the order in which they run and are reported.

Each is imported when it is first wanted: some of their libraries take seconds.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from security.assessment.plan.checks import ScanCheck

__all__ = ["NAMES", "WITHOUT_MODEL", "check_of"]

_ROOM = "security.assessment.checks"
_CHECKS = {
    "answers": "answers:AnswersCheck",
    "evasion": "evasion.check:EvasionCheck",
    "evasion-cost": "evasion.cost:CostCheck",
    "smoothing": "evasion.smoothing:SmoothingCheck",
    "quality": "quality:QualityCheck",
    "fairness": "fairness:FairnessCheck",
    "membership": "privacy.membership:MembershipCheck",
    "canaries": "privacy.canary_check:CanaryCheck",
    "attributes": "privacy.attributes:AttributeCheck",
    "inversion": "privacy.inversion:InversionCheck",
    "extraction": "privacy.extraction:ExtractionCheck",
    "poisoning": "poisoning.check:PoisoningCheck",
    "trigger": "poisoning.trigger_check:TriggerCheck",
    "explanations": "explanations:ExplanationCheck",
}
NAMES = tuple(_CHECKS)
WITHOUT_MODEL = ("quality", "fairness")
"""What can be concluded from predictions alone."""


@cache
def check_of(name: str) -> ScanCheck:
    """The check of a name in `NAMES`. Worker processes call this too."""
    module, _, kind = _CHECKS[name].partition(":")
    check: ScanCheck = getattr(import_module(f"{_ROOM}.{module}"), kind)()
    return check
