"""MODEL_CARD.md: a bundle's evidence, for people.

A pure function of the bundle before its verdict, which binds the card by digest: who
has the bundle can compute the card again and compare. Every number is a report's,
rounded to four digits: intervals outward, epsilon and delta up. Every word that a
report or the manifest brought is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from models.bundle import MODEL_FILE, Bundle
from models.manifest import Tensor
from models.output_policy import ALL_SCORES
from models.report import Metric, Report, format_time
from security.documents.curves import curves
from security.documents.facts import Facts, Signature, Verdict, read_facts
from security.documents.front_matter import front_matter
from security.documents.glance import glance
from security.documents.glossary import CONDITIONS, METRICS, VALUES
from security.documents.limitations import limitations
from security.documents.markup import code, number, prose, table
from security.documents.values import condition, interval, metric_number, metric_value

__all__ = ["model_card"]

_TASKS = {
    "tabular-classification": " that classifies rows of a table",
    "tabular-regression": " that predicts a number from a row of a table",
}
# How a number was learnt, by its scale.
_SCALES = {
    "linear": ", and learnt by differences",
    "sqrt": ", and learnt by differences of its square root",
    "log": ", and learnt by factors",
}


def model_card(bundle: Bundle) -> bytes:
    """Write the model card.

    Args:
        bundle: as read; whoever made it may be hostile.

    Returns:
        MODEL_CARD.md: UTF-8, the same bytes for the same bundle.

    Raises:
        BundleError: a report or attestation is malformed or about another model.
    """
    facts = read_facts(bundle)
    blocks = [
        front_matter(facts),
        f"# {facts.manifest.name} {facts.manifest.version}",
        *_summary(facts),
        *_use(facts),
        *_inputs(facts),
        *_outputs(facts),
        *curves(facts),
        *_data(facts),
        *_quality(facts),
        *_privacy(facts),
        *_membership(facts),
        *_robustness(facts),
        *_fairness(facts),
        *_structure(facts),
        *_parity(facts),
        *_limitations(facts),
        *_signers(facts),
        *_digests(facts),
    ]
    return ("\n\n".join(blocks) + "\n").encode()


def _summary(facts: Facts) -> Iterator[str]:
    architecture = facts.condition("provenance", "architecture")
    kind = f"{code(architecture)} model" if isinstance(architecture, str) else "model"
    task = _TASKS.get(facts.task, "")
    private = facts.condition("provenance", "differentially_private") is True
    trained = ", trained with differential privacy" if private else ""
    yield (
        f"A {kind}{task}{trained}, in ONNX. This card is computed from the evidence in "
        "the model's bundle: `python -m security documents --check BUNDLE` computes it "
        "again. Numbers have four digits; intervals are rounded outward, epsilon and "
        "delta up."
    )
    rows = list(_glance(facts))
    if rows:
        yield table(("At a glance", "", "Conditions"), rows)


def _glance(facts: Facts) -> Iterator[Sequence[str]]:
    for item in glance(facts):
        yield item.title, item.value, item.conditions
    for verdict in facts.verdicts:
        yield "Verdict", _result(verdict), prose(verdict.summary.verified_at)
    if facts.waivers:
        yield "Waivers", str(len(facts.waivers)), "listed under Signers"


def _result(signed: Signature | Verdict) -> str:
    """What an attestation or a verdict says, if it says it of these very bytes."""
    applies = signed.binds if isinstance(signed, Signature) else signed.current
    passed = signed.passed if isinstance(signed, Signature) else signed.summary.passed
    if not applies:
        return "for other bytes"
    return "PASSED" if passed else "FAILED"


def _use(facts: Facts) -> Iterator[str]:
    use = facts.use
    yield "## Intended use"
    yield _stated(use.intended, "The training configuration states no intended use.")
    yield "## Out of scope"
    yield _stated(
        use.out_of_scope,
        "The training configuration states no use that is out of scope.",
    )
    yield "## License"
    yield _stated(use.license, "The training configuration states no license.")


def _stated(text: str, otherwise: str) -> str:
    """A paragraph of the trainer's own, marked as a quotation."""
    return f"> {prose(text)}" if text else otherwise


def _inputs(facts: Facts) -> Iterator[str]:
    yield "## Inputs"
    yield table(
        ("Name", "Type", "Shape"), (_tensor(item) for item in facts.manifest.inputs)
    )
    yield (
        f"At most {facts.manifest.max_rows} rows in one request; a dimension of -1 is "
        "free."
    )
    public = ""
    if facts.condition("privacy", "preprocessing") == "public_ranges":
        public = " The ranges are public: they were chosen without the training rows."
    # A graph that came from elsewhere does what it likes beyond the ranges.
    imported = facts.condition("provenance", "imported") is True
    clipped = "" if imported else "; values outside a range are clipped to it"
    for tensor in facts.manifest.inputs:
        if tensor.columns:
            yield (
                f"Columns of {code(tensor.spec.name)}, in this order{clipped}.{public}"
            )
            yield table(
                ("Column", "From", "To"),
                (
                    (code(item.name), number(item.low), number(item.high))
                    for item in tensor.columns
                ),
            )


def _outputs(facts: Facts) -> Iterator[str]:
    yield "## Outputs"
    yield table(
        ("Name", "Type", "Shape", "Labels, in this order"),
        (
            (*_tensor(item), ", ".join(code(label) for label in item.labels) or "-")
            for item in facts.manifest.outputs
        ),
    )
    yield from _number(facts)
    policy, release = facts.manifest.output_policy, facts.manifest.release
    if policy != ALL_SCORES:
        names = ", ".join(code(name) for name in release.names)
        yield (
            f"Of an answer leaves: {policy}; callers may ask for {names}. This bounds "
            "what one answer tells. Members of the training data are found as before: "
            "see the membership evidence."
        )
    yield from _conformal(facts)


def _conformal(facts: Facts) -> Iterator[str]:
    """What intervals or sets are stated to hold, and what that does not mean."""
    own = facts.manifest.conformal
    if own is None:
        return
    names = " and ".join(map(code, own.names))
    what = "a set of classes" if own.of_classes else "an interval"
    private = (
        f"with noise, at an epsilon of {number(own.epsilon)}"
        if own.epsilon is not None
        else f"without privacy for them ({own.waiver})"
    )
    yield (
        f"Answers of {code(own.output)} come with {what} ({names}) that holds the "
        f"truth with probability {number(own.coverage)}: split conformal, from "
        f"{own.rows} held-out rows, {private}. It holds of all rows together, as long "
        "as they are exchangeable with those; not of each group, and not of a world "
        "that has changed."
    )


def _number(facts: Facts) -> Iterator[str]:
    """Of a number that was learnt here: its range and scale."""
    output, provenance = facts.manifest.number, facts.reports.get("provenance")
    target = None if provenance is None else provenance.details.get("target")
    if output is None or output.bounds is None or not isinstance(target, dict):
        return
    low, high = map(number, output.bounds)
    scale = _SCALES.get(str(target.get("scale")), "")
    yield (
        f"{code(output.spec.name)} is a number from {low} to {high}, in its own unit. "
        f"The range is public: targets beyond it were clamped to it{scale}."
        f"{_clamped(facts)}"
    )


def _clamped(facts: Facts) -> str:
    """How many training targets were, as far as that is told."""
    told = facts.metric("privacy", "clamped_targets")
    if told is None:
        return " How many were is not told."
    noisy = told.low is not None
    how = ", told with noise that epsilon covers" if noisy else ""
    figure = metric_value("clamped_targets", told)
    return f" That was a share of {figure} of the training targets{how}."


def _tensor(tensor: Tensor) -> tuple[str, str, str]:
    shape = ", ".join(str(size) for size in tensor.spec.shape)
    return code(tensor.spec.name), tensor.spec.datatype, f"({shape})"


def _data(facts: Facts) -> Iterator[str]:
    yield "## Data"
    if not facts.datasets:
        yield "No report names a data set."
        return
    personal = facts.condition("provenance", "personal_data")
    if isinstance(personal, bool):
        about = "are about people" if personal else "are not about people"
        yield f"The training report says that the rows {about}."
    yield table(
        ("Data set", "Role", "Rows", "SHA-256 of the rows as used", "Evidence on it"),
        (
            (
                code(item.name),
                code(item.role),
                str(item.rows),
                f"`{item.sha256}`",
                ", ".join(kinds),
            )
            for item, kinds in facts.datasets.items()
        ),
    )


def _quality(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "quality", "Performance")


def _privacy(facts: Facts) -> Iterator[str]:
    report = facts.reports.get("privacy")
    yield "## Privacy"
    if report is None:
        yield _absent("privacy")
        return
    epsilon, delta = (facts.metric("privacy", name) for name in ("epsilon", "delta"))
    if epsilon is not None and delta is not None:
        yield (
            f"**Epsilon is {metric_value('epsilon', epsilon)} at delta "
            f"{metric_value('delta', delta)}**, under every assumption below; a claim "
            "without them means nothing."
        )
        yield from _odds(epsilon)
    yield table(
        ("Assumption", "Stated", "Meaning"),
        (
            (code(name), condition(value), _meaning(name, value))
            for name, value in sorted(report.conditions.items())
        ),
    )
    yield _metrics(report)
    yield from _checks(report)


def _odds(epsilon: Metric) -> Iterator[str]:
    if epsilon.value < 100:  # beyond, the factor is no number for people
        yield (
            "Whoever learns everything about the model can change the odds they gave "
            "to a row being among the training rows by a factor of at most e^epsilon = "
            f"{number(math.exp(epsilon.value), 'up')}, save with chance delta."
        )


def _membership(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "membership", "Membership inference")


def _robustness(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "robustness", "Robustness")
    if facts.curve:
        norm, units = (
            condition(facts.condition("robustness", name)) for name in ("norm", "units")
        )
        yield f"Security curve, norm {norm}, in {units}:"
        yield _curve(facts)


def _curve(facts: Facts) -> str:
    """By radius what attacks left standing, and what is proved, where anything is."""
    some = any(item.proved is not None for item in facts.curve)
    rows = (
        (
            number(item.radius),
            number(item.share, "down"),
            *(("-" if item.proved is None else number(item.proved, "down"),) * some),
            str(item.n),
        )
        for item in facts.curve
    )
    return table(("Radius", _curve_title(facts), *("Proved",) * some, "n"), rows)


def _curve_title(facts: Facts) -> str:
    of_number = facts.condition("robustness", "predicts") == "number"
    return "Answers within the tolerance" if of_number else "Robust accuracy"


def _fairness(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "fairness", "Fairness by group")


def _structure(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "structure", "Structure of the file")


def _parity(facts: Facts) -> Iterator[str]:
    yield from _section(facts, "parity", "Parity with the trained model")


def _section(facts: Facts, kind: str, title: str) -> Iterator[str]:
    """Metrics, conditions and failed checks of a report."""
    yield f"## {title}"
    report = facts.reports.get(kind)
    if report is None:
        yield _absent(kind)
        return
    if report.datasets:
        rows = (
            f"{item.rows} rows of {code(item.name)} ({code(item.role)})"
            for item in report.datasets
        )
        yield f"Measured on {' and '.join(rows)}."
    if report.metrics:
        yield _metrics(report)
    if report.conditions:
        yield "Conditions: " + "; ".join(
            f"{code(name)} = {condition(value)}"
            for name, value in sorted(report.conditions.items())
        )
    yield from _checks(report)


def _absent(kind: str) -> str:
    return f"There is no {kind} report in the bundle."


def _metrics(report: Report) -> str:
    """A table of a report's metrics, without columns that would be empty.

    A slash parts the name of a metric from the group that it was measured on.
    """
    header = ("Metric", "Group", "Value", "Interval", "n", "Meaning")
    rows = [_metric_row(name, metric) for name, metric in report.metrics.items()]
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return table(
        [header[i] for i in used], ([row[i] or "-" for i in used] for row in rows)
    )


def _metric_row(full_name: str, metric: Metric) -> Sequence[str]:
    name, _, group = full_name.partition("/")
    return (
        code(name),
        code(group) if group else "",
        metric_number(name, metric),
        interval(metric),
        "" if metric.n is None else str(metric.n),
        METRICS.get(name, ""),
    )


def _checks(report: Report) -> Iterator[str]:
    total, failed = len(report.checks), [c for c in report.checks if not c.passed]
    if total:
        yield f"Checks passed: {total - len(failed)} of {total}."
    if failed:
        yield "\n".join(
            f"- {code(check.id)} **failed**: {prose(check.message)}" for check in failed
        )


def _meaning(name: str, value: object) -> str:
    return VALUES.get((name, str(value))) or CONDITIONS.get(name, "")


def _limitations(facts: Facts) -> Iterator[str]:
    yield "## Limitations"
    if facts.use.limitations:
        yield "Stated by the trainer:"
        yield _stated(facts.use.limitations, "")
    yield "Computed from the evidence:"
    yield "\n".join(f"- {prose(item)}" for item in limitations(facts))


def _signers(facts: Facts) -> Iterator[str]:
    yield "## Signers"
    yield (
        "The keys that the attestations name, by the SHA-256 of the public key in PEM. "
        "This card checks no signature and knows no roles: `python -m security verify "
        "BUNDLE` does both, against the reader's own trust root."
    )
    yield table(
        ("Evidence", "Result", "Reported", "Key"),
        (row for kind in facts.reports for row in _signer_rows(facts, kind)),
    )
    yield from (_verdict(verdict) for verdict in facts.verdicts)
    if facts.waivers:
        yield "Waivers:"
        yield "\n".join(f"- {prose(item)}" for item in facts.waivers)


def _signer_rows(facts: Facts, kind: str) -> Iterator[Sequence[str]]:
    when, signatures = format_time(facts.reports[kind].created_at), facts.signatures
    if kind not in signatures:
        yield kind, "not signed", when, "-"
    for signature in signatures.get(kind, ()):
        yield kind, _result(signature), when, f"`{signature.hint}`"


def _verdict(verdict: Verdict) -> str:
    summary = verdict.summary
    return (
        f"Verdict: {_result(verdict)} at {prose(summary.verified_at)}, by "
        f"{code(summary.verifier)}, under policy {code(summary.policy.name)} (SHA-256 "
        f"`{summary.policy.sha256}`), on {len(summary.inputs)} statements; key "
        f"`{verdict.hint}`."
    )


def _statements(facts: Facts) -> Iterator[Signature | Verdict]:
    for signatures in facts.signatures.values():
        yield from signatures
    yield from facts.verdicts


def _digests(facts: Facts) -> Iterator[str]:
    subject = facts.bundle.subject
    yield "## Digests"
    rows = [
        ("root (OpenSSF model signing)", f"`{subject.root_sha256}`"),
        (f"`{MODEL_FILE}`", f"`{subject.onnx_sha256}`"),
        *((f"`{item.file}`", f"`{item.sha256}`") for item in _statements(facts)),
    ]
    yield table(("What", "SHA-256"), rows)
    tools = {
        (name, version)
        for report in facts.reports.values()
        for name, version in report.tools.items()
    }
    if tools:
        named = (f"{code(name)} {code(version)}" for name, version in sorted(tools))
        yield f"Measured with {', '.join(named)}."
