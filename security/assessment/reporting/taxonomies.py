"""The catalogues that findings are tagged with.

MITRE ATLAS techniques (atlas.mitre.org, data version 5), the attack classes of NIST
AI 100-2 E2025, and the OWASP Machine Learning Security Top 10 (2023). Rules of a scan
carry their own tags; the structural ones are tagged here, by what an attacker does
with what they find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from security.assessment.results.rules import SCAN_RULES

__all__ = ["TAXONOMIES", "Tags", "Taxonomy", "rule_tags"]


@dataclass(frozen=True)
class Tags:
    """What one rule is tagged with.

    Attributes:
        atlas: technique ids of MITRE ATLAS.
        nist: attack classes of NIST AI 100-2.
        owasp: entries of the OWASP Machine Learning Security Top 10.
    """

    atlas: tuple[str, ...] = ()
    nist: tuple[str, ...] = ()
    owasp: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taxonomy:
    """One catalogue.

    Attributes:
        name: as tools show it.
        version: of the catalogue.
        url: where it is published.
        names: title of each entry in use, by id.
    """

    name: str
    version: str
    url: str
    names: Mapping[str, str]


TAXONOMIES: Mapping[str, Taxonomy] = {
    "atlas": Taxonomy(
        "MITRE ATLAS",
        "5.6.0",
        "https://atlas.mitre.org/techniques/",
        {
            "AML.T0010.003": "Model",
            "AML.T0011.000": "Unsafe AI Artifacts",
            "AML.T0015": "Evade AI Model",
            "AML.T0018": "Manipulate AI Model",
            "AML.T0018.000": "Poison AI Model",
            "AML.T0018.001": "Modify AI Model Architecture",
            "AML.T0020": "Poison Training Data",
            "AML.T0024.000": "Infer Training Data Membership",
            "AML.T0024.001": "Invert AI Model",
            "AML.T0024.002": "Extract AI Model",
            "AML.T0029": "Denial of AI Service",
            "AML.T0031": "Erode AI Model Integrity",
            "AML.T0043": "Craft Adversarial Data",
            "AML.T0043.004": "Insert Backdoor Trigger",
        },
    ),
    "nist": Taxonomy(
        "NIST AI 100-2",
        "E2025",
        "https://doi.org/10.6028/NIST.AI.100-2e2025",
        {
            "availability": "Availability breakdown",
            "backdoor": "Backdoor poisoning",
            "evasion": "Evasion",
            "extraction": "Model extraction",
            "fairness": "Integrity: unequal treatment of groups",
            "integrity": "Integrity violation",
            "membership-inference": "Membership inference",
            "poisoning": "Poisoning",
            "privacy": "Privacy compromise",
            "reconstruction": "Data reconstruction",
            "supply-chain": "Supply chain attack",
        },
    ),
    "owasp": Taxonomy(
        "OWASP Machine Learning Security Top 10",
        "2023",
        "https://owasp.org/www-project-machine-learning-security-top-10/",
        {
            "ML01:2023": "Input Manipulation Attack",
            "ML02:2023": "Data Poisoning Attack",
            "ML03:2023": "Model Inversion Attack",
            "ML04:2023": "Membership Inference Attack",
            "ML05:2023": "Model Theft",
            "ML06:2023": "AI Supply Chain Attacks",
            "ML08:2023": "Model Skewing",
            "ML09:2023": "Output Integrity Attack",
            "ML10:2023": "Model Poisoning",
        },
    ),
}

_BRANCH = Tags(("AML.T0018.001", "AML.T0043.004"), ("backdoor",), ("ML10:2023",))
_EXHAUSTION = Tags(("AML.T0029",), ("availability",), ("ML06:2023",))
_ARTEFACT = Tags(("AML.T0010.003", "AML.T0011.000"), ("supply-chain",), ("ML06:2023",))
_BRANCHES = frozenset(
    {"branch-if", "branch-mask", "branch-select", "branch-shape", "output-constant"}
    | {"attention-mask", "sentinel"}
)
_EXHAUSTING = frozenset(
    {"dimension", "expansion", "file-size", "function-count", "function-cycle"}
    | {"initializer-count", "inspection-limits", "loop-bound", "loop-open", "nesting"}
    | {"node-count"}
)


def rule_tags(rule: str) -> Tags:
    """The tags of a rule of a scan, or of structural inspection.

    >>> rule_tags("external-data").owasp
    ('ML06:2023',)
    """
    known = SCAN_RULES.get(rule)
    if known is not None:
        return Tags(known.atlas, known.nist, known.owasp)
    if rule in _BRANCHES:
        return _BRANCH
    return _EXHAUSTION if rule in _EXHAUSTING else _ARTEFACT
