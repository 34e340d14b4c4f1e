"""The checks, in the order in which they run and are reported.

Each is imported when it is first wanted: some of their libraries take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from security.assessment.plan.checks import ScanCheck

__all__ = [
    "NAMES",
    "NO_NUMBER",
    "NO_PARTS",
    "WITHOUT_MODEL",
    "check_of",
    "check_of_number",
]

_ROOM = "security.assessment.checks"
_CHECKS = {
    "answers": "answers:AnswersCheck",
    "evasion": "evasion.check:EvasionCheck",
    "evasion-cost": "evasion.cost:CostCheck",
    "edits": "edits:EditsCheck",
    "smoothing": "evasion.smoothing:SmoothingCheck",
    "corruption": "corruption:CorruptionCheck",
    "quality": "quality:QualityCheck",
    "fairness": "fairness:FairnessCheck",
    "membership": "privacy.membership:MembershipCheck",
    "canaries": "privacy.canary_check:CanaryCheck",
    "attributes": "privacy.attributes:AttributeCheck",
    "inversion": "privacy.inversion:InversionCheck",
    "extraction": "privacy.extraction:ExtractionCheck",
    "explanation-attacks": "privacy.explained:ExplainedCheck",
    "poisoning": "poisoning.check:PoisoningCheck",
    "trigger": "poisoning.trigger_check:TriggerCheck",
    "explanations": "explanations:ExplanationCheck",
}
# Of a model that predicts a number: what the same questions are there.
_OF_NUMBERS = {
    "answers": "numbers.answers:NumberAnswersCheck",
    "evasion": "numbers.change:ChangeCheck",
    "quality": "numbers.quality:NumberQualityCheck",
    "fairness": "numbers.fairness:NumberFairnessCheck",
    "membership": "numbers.membership:ResidualCheck",
}
_CLASS = "the model predicts a number, and this is about classes: "
NO_NUMBER: Mapping[str, str] = {
    "evasion-cost": _CLASS + "what turning a row into another one costs",
    "edits": _CLASS + "how few edits of a text turn it",
    "smoothing": _CLASS + "a certificate that the class stays",
    "attributes": _CLASS + "guesses of a secret column from the given class",
    "inversion": _CLASS + "pictures of a class",
    "extraction": _CLASS + "how often a copy gives the same one",
    "explanation-attacks": _CLASS + "log-odds of the given class",
    "poisoning": _CLASS + "rows of one that resemble another's",
    "trigger": _CLASS + "a pattern that sends every row to one",
}
"""Why a check does not apply to a model that predicts a number."""
_ONE = "for models of one input of numbers: "
NO_PARTS: Mapping[str, str] = {
    "smoothing": _ONE + "noise means nothing elsewhere",
    "inversion": _ONE + "it follows the gradient",
    "extraction": _ONE + "it asks about rows drawn from ranges",
    "explanation-attacks": _ONE + "its reference is the middle of ranges",
    "poisoning": _ONE + "it looks at what the last layer reads",
    "trigger": _ONE + "it searches values of one table",
}
"""Why a check does not apply to a model of several inputs, or of texts."""
NAMES = tuple(_CHECKS)
WITHOUT_MODEL = ("quality", "fairness")
"""What can be concluded from predictions alone."""


@cache
def check_of(name: str) -> ScanCheck:
    """The check of a name in `NAMES`. Worker processes call this too."""
    return _made(_CHECKS[name])


@cache
def check_of_number(name: str) -> ScanCheck:
    """The same for a model that predicts a number; of no name in `NO_NUMBER`."""
    return _made(_OF_NUMBERS.get(name) or _CHECKS[name])


def _made(place: str) -> ScanCheck:
    module, _, kind = place.partition(":")
    check: ScanCheck = getattr(import_module(f"{_ROOM}.{module}"), kind)()
    return check
