"""The points of Annex IV, and what a bundle's evidence says to each.

Titles are ours. Each function yields the sentences that evidence supports, and the gaps
that it leaves; the letters are the annex' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from models.manifest import Tensor
from models.output_policy import ALL_SCORES
from models.report import Report
from security.documents.glance import glance
from security.documents.glossary import CONDITIONS, METRICS
from security.documents.limitations import limitations
from security.documents.markup import code, number, prose
from security.documents.sourced import Gap, Sentence, Sourced
from security.documents.values import condition, metric_value

__all__ = ["POINTS", "SOURCE_FREE"]

# Where the provider's name belongs, which no evidence holds.
SOURCE_FREE = "1"

Said = Iterator[Sentence | Gap]


def _general(bundle: Sourced) -> Said:
    facts, subject = bundle.facts, bundle.facts.bundle.subject
    yield _say(
        f"(a) The model is {code(subject.name)}, version {code(subject.version)}.",
        "manifest",
    )
    uses = (
        ("Its intended purpose", facts.use.intended),
        (
            "Out of scope",
            facts.use.out_of_scope,
        ),
    )
    for what, text in uses:
        if text and "provenance" in facts.reports:
            yield _say(
                f"(a) {what}, as its trainer states: {prose(text)}", "provenance"
            )
    if not facts.use.intended:
        yield Gap("(a) The intended purpose.")
    yield Gap("(a) How this version relates to earlier ones.")
    yield Gap(
        "(b) With which hardware and software outside of it the system interacts."
    )
    yield Sentence(
        "(c) The reports were made with:",
        tuple(facts.reports) or ("manifest",),
        ("Report", "Software"),
        tuple((kind, _tools(report)) for kind, report in facts.reports.items()),
    )
    yield Gap("(c) Requirements of version updates.")
    yield _say(
        f"(d) It is one ONNX file, SHA-256 {code(subject.onnx_sha256)}, in a bundle "
        f"whose root digest is {code(subject.root_sha256)}.",
        *("model", "manifest"),
    )
    yield Gap("(d) The other forms in which the system is put into service.")
    yield Gap("(e) The hardware on which it is intended to run.")
    yield Gap("(f) Pictures of a product that it is a component of.")
    if "card" in bundle.sources:
        yield _say(
            "(g), (h) For the deployer there is a model card, computed from the "
            "evidence and bound by the verdict.",
            *("card", "verdict"),
        )
    yield Gap("(g), (h) The user interface, and instructions for use beyond the card.")


def _development(bundle: Sourced) -> Said:
    yield from _method(bundle)
    yield Gap("(b) The reasons of the design choices and of the trade-offs made.")
    yield Gap("(c) The computing resources used to develop, train, test and validate.")
    yield from _data(bundle)
    leaving = bundle.facts.manifest.output_policy
    if leaving != ALL_SCORES:
        yield _say(f"(e) Of an answer leaves: {prose(str(leaving))}.", "manifest")
    yield Gap("(e) The measures of human oversight, and how they were assessed.")
    yield Gap("(f) Changes to the system that were determined beforehand.")
    yield from _tests(bundle)
    yield from _security(bundle, "(h) ")


def _method(bundle: Sourced) -> Said:
    reports = bundle.facts.reports
    if "provenance" not in reports:
        yield Gap("(a) How the model was developed.")
    for kind in ("provenance", "privacy"):
        if kind in reports:
            yield Sentence(
                f"(a), (b) The {kind} report states of its development:",
                (kind,),
                ("Condition", "Stated", "Meaning"),
                tuple(
                    (code(name), condition(value), CONDITIONS.get(name, "-"))
                    for name, value in sorted(reports[kind].conditions.items())
                ),
            )


def _data(bundle: Sourced) -> Said:
    facts = bundle.facts
    for item, kinds in facts.datasets.items():
        yield _say(
            f"(d), (g) {item.rows} rows of {code(item.name)} ({code(item.role)}), "
            f"SHA-256 as used {code(item.sha256)}.",
            *kinds,
        )
    personal = facts.condition("provenance", "personal_data")
    if isinstance(personal, bool):
        about = "are about people" if personal else "are not about people"
        yield _say(f"(d) The rows {about}, as the trainer states.", "provenance")
    yield Gap(
        "(d) Where the data comes from, how it was obtained, selected, labelled and "
        "cleaned."
    )


def _tests(bundle: Sourced) -> Said:
    for kind, report in bundle.facts.reports.items():
        passed = sum(check.passed for check in report.checks)
        yield Sentence(
            f"(g) Of the {kind} report {passed} of {len(report.checks)} checks passed; "
            "it measured:",
            (kind,),
            ("Metric", "Value", "Meaning"),
            tuple(_measured(report)),
        )
        if report.conditions and kind not in ("privacy", "provenance"):
            stated = _conditions(report)
            yield _say(f"(g) The {kind} report was made under: {stated}.", kind)
    yield _say(
        "(g) The reports are dated and signed; the gate verified every signature "
        "against the reader's trust root and policy, and the verdict binds them.",
        "verdict",
    )


def _measured(report: Report) -> Iterator[tuple[str, ...]]:
    for full, metric in report.metrics.items():
        name, _, group = full.partition("/")
        whom = f" of {code(group)}" if group else ""
        value = metric_value(name, metric)
        yield f"{code(name)}{whom}", value, METRICS.get(name, "-")


def _figures(bundle: Sourced, kind: str, start: str) -> Said:
    """The figures that a reader asks for first, of one kind."""
    found = [item for item in glance(bundle.facts) if item.kind == kind]
    for item in found:
        under = f", under {item.conditions}" if item.conditions else ""
        yield _say(f"{start}{item.title}: {item.value}{under}.", kind)
    if not found:
        yield Gap(f"{start}There is no verified {kind} evidence.")


def _security(bundle: Sourced, letter: str) -> Said:
    """Article 15(5), attack by attack; point 2(h) asks for the same."""
    yield Gap(
        f"{letter}Data poisoning: no evidence says that training was tested on it."
    )
    for kind, attack in _ATTACKS.items():
        yield from _figures(bundle, kind, f"{letter}{attack}. ")
    errors = bundle.facts.metric("structure", "errors")
    if errors is not None:
        yield _say(
            f"{letter}Model poisoning. The inspection of the file finds "
            f"{metric_value('errors', errors)} errors; a backdoor in the weights is "
            "invisible to it.",
            "structure",
        )


_ATTACKS = {
    "robustness": "Adversarial examples",
    "membership": "Confidentiality attacks",
    "privacy": "Confidentiality of training rows",
}


def _functioning(bundle: Sourced) -> Said:
    facts = bundle.facts
    for kind, what in _DEGREES.items():
        if kind in facts.reports:
            measured = tuple(_measured(facts.reports[kind]))
            header = ("Metric", "Value", "Meaning")
            yield Sentence(f"The degrees of {what}:", (kind,), header, measured)
        else:
            yield Gap(f"The degrees of {what}.")
    if facts.use.limitations and "provenance" in facts.reports:
        text = prose(facts.use.limitations)
        yield _say(f"Limitations, as its trainer states: {text}", "provenance")
    if facts.reports:
        computed = limitations(facts, bundle.unverified)
        limits = " ".join(prose(text) for text in computed)
        yield _say(f"Limits, computed from these reports: {limits}", *facts.reports)
    for tensor in facts.manifest.inputs:
        yield _input(bundle, tensor)
    yield Gap(
        "Foreseeable unintended outcomes, and risks to health, safety and rights."
    )
    yield Gap("The measures of human oversight.")


_DEGREES = {"quality": "accuracy", "fairness": "accuracy for groups of people"}


def _input(bundle: Sourced, tensor: Tensor) -> Sentence:
    shape = ", ".join(map(str, tensor.spec.shape))
    # A graph that came from elsewhere does what it likes beyond the ranges.
    clips = bundle.facts.condition("privacy", "preprocessing") == "public_ranges"
    clipped = clips and bool(tensor.columns)
    more = "; values beyond a column's range are clipped" if clipped else ""
    return Sentence(
        f"Input {code(tensor.spec.name)}: {tensor.spec.datatype} ({shape}){more}.",
        ("manifest", "privacy") if clipped else ("manifest",),
        ("Column", "From", "To"),
        tuple(
            (code(item.name), number(item.low), number(item.high))
            for item in tensor.columns
        ),
    )


def _appropriateness(bundle: Sourced) -> Said:
    kinds = ", ".join(bundle.facts.reports)
    if kinds:
        yield _say(
            f"The policy that the verdict names asks for evidence of: {kinds}.",
            "verdict",
        )
    yield Gap("Why these metrics suit this system.")


def _risks(bundle: Sourced) -> Said:
    for waiver in bundle.admission.waivers.values():
        yield _say(f"A requirement was waived: {prose(str(waiver))}", "verdict")
    yield Gap("The risk management system (Article 9).")


def _changes(bundle: Sourced) -> Said:
    del bundle
    yield Gap("Relevant changes through the lifecycle: one bundle is one version.")


def _standards(bundle: Sourced) -> Said:
    del bundle
    yield Gap("The harmonised standards applied, or what was done instead of them.")


def _declaration(bundle: Sourced) -> Said:
    del bundle
    yield Gap("The EU declaration of conformity (Article 47).")


def _after(bundle: Sourced) -> Said:
    report = bundle.facts.reports.get("reference")
    if report is not None:
        yield _say(
            "A deployment can measure drift against a reference: "
            f"{_conditions(report)}.",
            "reference",
        )
    yield Gap("The system and the plan of post-market monitoring (Article 72).")


def _article_15(bundle: Sourced) -> Said:
    yield from _figures(bundle, "quality", "(1), (3) ")
    yield from _figures(bundle, "robustness", "(4) ")
    yield Gap(
        "(4) Redundancy, fail-safe plans, and feedback loops of learning systems."
    )
    yield from _security(bundle, "(5) ")
    for kind in bundle.unverified:
        yield Gap(
            f"The {kind} report in the bundle: the policy asks nothing of it, so that "
            "no signature of it was verified."
        )


POINTS: Mapping[str, tuple[str, Callable[[Sourced], Said]]] = {
    "1": ("General description", _general),
    "2": ("Elements and development", _development),
    "3": ("Monitoring, functioning and control", _functioning),
    "4": ("Appropriateness of the performance metrics", _appropriateness),
    "5": ("Risk management", _risks),
    "6": ("Changes through the lifecycle", _changes),
    "7": ("Standards applied", _standards),
    "8": ("Declaration of conformity", _declaration),
    "9": ("After the market", _after),
    "Article 15": ("Accuracy, robustness and cybersecurity", _article_15),
}


def _say(text: str, *sources: str) -> Sentence:
    return Sentence(text, sources)


def _tools(report: Report) -> str:
    return prose(", ".join(f"{n} {v}" for n, v in sorted(report.tools.items())))


def _conditions(report: Report) -> str:
    return ", ".join(
        f"{code(name)} {condition(value)}"
        for name, value in sorted(report.conditions.items())
    )
