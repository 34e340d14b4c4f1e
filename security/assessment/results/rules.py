"""Rules of a scan: stable ids, severities, and what to do about each.

Structural findings keep the ids of `security.inspection.findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from security.inspection.findings import SEVERITIES

__all__ = ["SCAN_RULES", "ScanRule", "severity_at_least"]


@dataclass(frozen=True)
class ScanRule:
    """One thing that a scan can find.

    Attributes:
        severity: one of `findings.SEVERITIES`, "error" being the worst.
        title: what must hold.
        why: what goes wrong where it does not.
        remedy: what to do.
        atlas: technique ids of MITRE ATLAS.
        nist: terms of NIST AI 100-2.
        owasp: entries of the OWASP Machine Learning Security Top 10.
    """

    severity: str
    title: str
    why: str
    remedy: str
    atlas: tuple[str, ...] = ()
    nist: tuple[str, ...] = ()
    owasp: tuple[str, ...] = ()


def severity_at_least(severity: str, bound: str) -> bool:
    """Whether a severity is as bad as another, or worse.

    >>> severity_at_least("error", "warning"), severity_at_least("note", "warning")
    (True, False)
    """
    return SEVERITIES.index(severity) <= SEVERITIES.index(bound)


_EVASION = {
    "atlas": ("AML.T0015", "AML.T0043"),
    "nist": ("evasion",),
    "owasp": ("ML01:2023",),
}
_TRAIN = (
    "Train adversarially at this radius, or reject inputs outside the ranges that "
    "callers need, and scan again."
)

SCAN_RULES: Mapping[str, ScanRule] = {
    "evasion-broken": ScanRule(
        "error",
        "most rows keep their class within the stated radius",
        "Small changes of an input give an attacker the answer that suits them.",
        _TRAIN,
        **_EVASION,
    ),
    "evasion-weak": ScanRule(
        "warning",
        "nearly all rows keep their class within the stated radius",
        "An attacker who may pick the input finds one that small changes turn.",
        _TRAIN,
        **_EVASION,
    ),
    "evasion-unreliable": ScanRule(
        "warning",
        "the attacks worked as attacks on this model must",
        "What resists a broken attack is not robust: gradients are masked, answers "
        "are noisy, or the search ended too early.",
        "Read which check failed; take the masking out of the way, or run a profile "
        "with more queries. Do not publish the number.",
        **_EVASION,
    ),
    "evasion-change": ScanRule(
        "error",
        "small changes of an input move a predicted number by no more than tolerated",
        "An attacker who may pick the input shifts the number that others act on.",
        _TRAIN,
        **_EVASION,
    ),
    "evasion-change-unstated": ScanRule(
        "note",
        "it is stated by how much a predicted number may move",
        "Without a tolerance, changes are held to what the model is off by anyway: "
        "whether they matter is not known.",
        "State `tolerance` in the data configuration, and scan again.",
        **_EVASION,
    ),
    "evasion-edits": ScanRule(
        "warning",
        "a few edits of a text keep its class",
        "Whoever writes the text gets the answer that suits them by a misspelling.",
        "Normalise and correct texts before the model reads them; train with such "
        "edits; scan again. State `edits` in the data configuration.",
        **_EVASION,
    ),
    "evasion-cost": ScanRule(
        "error",
        "changing a row's class costs more than an attacker would spend",
        "Changes that a real attacker can make, at a price they would pay, suffice.",
        "Drop or harden the columns that the attack used most; scan again.",
        **_EVASION,
    ),
    "evasion-cost-unstated": ScanRule(
        "note",
        "it is stated what changes cost, and what an attacker would spend",
        "A cost of 1 is a column's whole range: whether anybody would pay it is not "
        "known, so nothing is concluded.",
        "State `cost` of columns and `max_cost` in the data configuration, and scan "
        "again.",
        **_EVASION,
    ),
    "corruption-mild": ScanRule(
        "warning",
        "data that are a little worn get the same answers",
        "No attacker is needed: noise and rounding that every pipeline has cost more "
        "than chance explains.",
        "Train on rows with such noise, or measure and send what the model reads more "
        "exactly.",
        nist=("availability",),
    ),
    "corruption": ScanRule(
        "note",
        "it is known what worn data cost",
        "A column in another unit, or without values, is a fault of the data that "
        "nobody sees in an answer.",
        "Check ranges and units where the data come in: the manifest's ranges refuse "
        "or clip what cannot be.",
        nist=("availability",),
    ),
    "answer-not-finite": ScanRule(
        "error",
        "answers are numbers",
        "NaN or infinity compares as nothing: callers decide at random.",
        "Find the rows in the report; clip or impute inside the graph.",
        atlas=("AML.T0029",),
        nist=("availability",),
    ),
    "answer-withheld": ScanRule(
        "note",
        "every row gets an answer",
        "The model abstains where its set is not one class: such a row counts as "
        "neither right nor turned.",
        "Nothing need be done; figures of every row come from a scan of the bundle.",
    ),
    "answer-random": ScanRule(
        "warning",
        "the same row gets the same answer",
        "Noise hides a model from attacks without making it robust, and no figure "
        "here can be reproduced.",
        "Scan the model without the noise of its output policy.",
        nist=("evasion",),
    ),
    "answer-constant": ScanRule(
        "error",
        "the model tells classes apart",
        "A model with one answer withstands every attack and is of no use.",
        "Check that data and model belong together.",
    ),
    "answer-reading": ScanRule(
        "note",
        "outputs are what the file declares, and say one thing",
        "Callers who read another output, or its declaration, decide otherwise.",
        "Read the decision at the top of the report; state another by --decision.",
    ),
    "quality-calibration": ScanRule(
        "warning",
        "a stated confidence of 90% is right nine times in ten",
        "Who acts on a confidence that is off acts wrongly at a rate nobody knows.",
        "Calibrate on other rows than these, by temperature for instance, inside the "
        "graph.",
    ),
    "coverage-below": ScanRule(
        "warning",
        "intervals and sets hold the truth as often as the manifest states",
        "Who acts on an interval that is too narrow acts on a certainty that is not "
        "there.",
        "Calibrate on rows of the kind that is asked about now.",
    ),
    "coverage-not-measured": ScanRule(
        "warning",
        "a stated coverage is measured on rows that had no part in its calibration",
        "A coverage that nobody measured is a claim.",
        "Give more held-out rows; calibrate on a smaller share of them.",
    ),
    "quality-missing": ScanRule(
        "note",
        "a missing value gets an answer",
        "NaN in, NaN out: the caller gets no decision for an incomplete row.",
        "Impute inside the graph, or let the manifest's ranges refuse such rows.",
    ),
    "quality-out-of-range": ScanRule(
        "note",
        "a value beyond its range gets an answer, or a refusal",
        "Values that training never saw lead to answers nobody has checked.",
        "Clip inside the graph, or let the manifest's ranges refuse such rows.",
    ),
    "fairness-selection": ScanRule(
        "error",
        "groups get the positive class at least four fifths as often as each other",
        "A group of people is passed over; in several jurisdictions that is evidence "
        "of discrimination.",
        "Find out which columns stand in for the group; retrain without them, with "
        "constraints, or with thresholds that were agreed upon.",
        nist=("fairness",),
        owasp=("ML08:2023",),
    ),
    "fairness-gap": ScanRule(
        "warning",
        "errors fall on all groups alike",
        "One group pays for the mistakes of a model that is right on average.",
        "Look at the group's share of the training data; retrain with more of it.",
        nist=("fairness",),
        owasp=("ML08:2023",),
    ),
    "fairness-small-group": ScanRule(
        "note",
        "every group has enough rows to say something about it",
        "What was not measured is not fair; it is unknown.",
        "Collect held-out rows of that group.",
        nist=("fairness",),
    ),
    "membership-beyond-claim": ScanRule(
        "error",
        "members are recognised no more often than the claimed epsilon allows",
        "The training did not do what its evidence says: the guarantee is false.",
        "Do not deploy. Look for rows that reached the training unaccounted, or for "
        "steps without clipping or noise.",
        atlas=("AML.T0024.000",),
        nist=("membership-inference", "privacy"),
        owasp=("ML04:2023",),
    ),
    "membership-exposed": ScanRule(
        "warning",
        "members are hardly told from other rows",
        "Someone who has a person's row learns that the person was in the data.",
        "Train with differential privacy, or with a smaller epsilon. Rounding or "
        "withholding scores leaves the attack as it was.",
        atlas=("AML.T0024.000",),
        nist=("membership-inference", "privacy"),
        owasp=("ML04:2023",),
    ),
    "membership-output-policy": ScanRule(
        "note",
        "nobody takes an output policy for a protection of the training data",
        "Whether scores are rounded or withheld, attackers compare an answer with what "
        "models that knew the row, or did not, would have answered.",
        "Train with differential privacy; let quotas and the extraction budget price "
        "the questions.",
        atlas=("AML.T0024.000",),
        nist=("membership-inference", "privacy"),
        owasp=("ML04:2023",),
    ),
    "canary-beyond-claim": ScanRule(
        "error",
        "planted units are recognised no more often than the claimed mechanism allows",
        "The mechanism gives less privacy than its accountant books: every model it "
        "trained carries a false guarantee.",
        "Do not train with this installation, nor deploy what it trained. Look at the "
        "noise, the clipping and the sampler, in that order; the two canaries say "
        "which.",
        atlas=("AML.T0024.000",),
        nist=("membership-inference", "privacy"),
        owasp=("ML04:2023",),
    ),
    "attribute-inferred": ScanRule(
        "warning",
        "answers add nothing to guesses of a person's secret column",
        "Who knows the rest of a row learns the secret from the model's answer.",
        "Leave the column out, and what stands in for it; answer with labels or "
        "rounded scores; train with differential privacy.",
        atlas=("AML.T0024.001",),
        nist=("privacy", "reconstruction"),
        owasp=("ML03:2023",),
    ),
    "inversion-recognised": ScanRule(
        "note",
        "pictures drawn from the model look like no class",
        "Where a class is one person, whoever has the file can draw them.",
        "Keep the file confidential, answer with labels or rounded scores; do not "
        "make a person a class.",
        atlas=("AML.T0024.001",),
        nist=("privacy", "reconstruction"),
        owasp=("ML03:2023",),
    ),
    "extraction-cheap": ScanRule(
        "note",
        "a copy of the model costs more questions than a caller may ask",
        "Who owns a copy attacks it without being seen, and owes nobody for it.",
        "Set quotas and an extraction budget per subject and model. Labels alone only "
        "raise the number of questions; rounding hardly does.",
        atlas=("AML.T0024.002",),
        nist=("extraction",),
        owasp=("ML05:2023",),
    ),
    "explanations-tell-members": ScanRule(
        "warning",
        "attributions do not tell who was in the training data",
        "Whoever may ask why an answer was given learns who was trained on.",
        "Let no explanation leave (`outputs --no-explanations`), or "
        "train with differential privacy: attributions of such a model told nothing.",
        atlas=("AML.T0024.000",),
        nist=("membership-inference", "privacy"),
        owasp=("ML04:2023",),
    ),
    "explanations-sell-copies": ScanRule(
        "note",
        "explained answers do not make a copy cheaper than plain ones",
        "An explanation says how the model would answer mixed rows, too.",
        "Grant `explain:MODEL` to few, and hold their rows to quotas: an explanation "
        "counts as all the rows it took.",
        atlas=("AML.T0024.002",),
        nist=("extraction",),
        owasp=("ML05:2023",),
    ),
    "poisoned-rows": ScanRule(
        "error",
        "no pattern in training rows of a class decides the answer",
        "Someone put the pattern there: whoever shows it gets the answer they want.",
        "Look at the listed rows and find out where they come from; train again "
        "without them, from data whose origin is known.",
        atlas=("AML.T0020", "AML.T0018.000"),
        nist=("poisoning", "backdoor"),
        owasp=("ML02:2023", "ML10:2023"),
    ),
    "trigger": ScanRule(
        "error",
        "no small, fixed change sends every input to one class",
        "Whoever knows the change gets that answer for any input: a planted backdoor "
        "looks like this.",
        "Do not deploy. Find out where the weights and the data come from; train again "
        "from data whose origin is known, and scan again.",
        atlas=("AML.T0018.000", "AML.T0043.004"),
        nist=("backdoor",),
        owasp=("ML10:2023",),
    ),
    "no-gradient": ScanRule(
        "note",
        "the graph converts, so that attacks can follow its gradient",
        "Black-box attacks alone find less.",
        "Read the reason in the report; export the model with supported operators.",
    ),
    "no-certificate": ScanRule(
        "note",
        "it is proved for some rows that nothing within the radius turns them",
        "What attacks did not break may still break: only a bound says that it cannot.",
        "Read the reason in the report; docs/assessment.md lists the operators and the "
        "ranges that bounds need.",
    ),
    "certificate-contradicted": ScanRule(
        "error",
        "bounds, attacks and the served model agree about every row",
        "A proof that an attack refutes, or of another model than is served, is none.",
        "Do not state the figure. Report the model to whoever maintains the bounds.",
        **_EVASION,
    ),
    "ranges-from-data": ScanRule(
        "note",
        "the range of every column is stated",
        "A radius is a share of a range; ranges of a sample are only a guess.",
        "State ranges in the data configuration, or in the bundle's manifest.",
    ),
}
