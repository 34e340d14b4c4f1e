"""`policy`: check one, say in words what it demands, compare two, add to one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from models import metrics
from models.output_policy import ALL_SCORES, OutputPolicy
from security.admission.comparison import compare
from security.admission.policy import (
    Policy,
    Requirement,
    Threshold,
    load_policy,
    parse_policy,
    policy_mistakes,
    read_policy_bytes,
)
from security.commands.options import Subparsers
from security.commands.policy_new import extended, profile_names
from security.config_reader import hint
from security.errors import SettingsError
from security.settings.loading import load_settings

__all__ = ["add_parser", "explain"]


# Without a word on it the trust root decides, which this command does not look at.
_MODES = {
    None: "",
    "both": " with P-256 and one with ML-DSA-65",
    "any": " with P-256, and one with ML-DSA-65 where there is such a signature",
    "classical": " with P-256",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand, with its own subcommands."""
    parser = subparsers.add_parser(
        "policy",
        help="check, explain and compare policies",
        description="Check a policy, say in words what it demands, compare two.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="list every mistake, with its line",
        description="List every mistake in policies, with file and line. Exits 1 if "
        "there is one.",
    )
    check.add_argument("file", type=Path, nargs="+")
    check.set_defaults(run=_check)
    words = actions.add_parser(
        "explain",
        help="say what a model needs",
        description="Say in words what a model needs: from whom, how fresh, how good.",
    )
    words.add_argument(
        "--model", metavar="NAME", help="only what a model of this name needs"
    )
    words.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="policy (default: admission.policy of the settings)",
    )
    words.set_defaults(run=_explain)
    diff = actions.add_parser(
        "diff",
        help="say what got stricter, looser, added, removed",
        description="Compare two policies. Exits 1 if anything got looser or was "
        "removed, so that a pipeline can stop there.",
    )
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    diff.set_defaults(run=_diff)
    new = actions.add_parser(
        "new",
        help="add an entry for a model, from a profile of deploy/policies",
        description="Print the policy with an entry after it that asks of one model "
        "what a profile does, with the profile's comments. Verdict and waivers stay "
        "the policy's. Exits 2 if an entry matches the model already.",
    )
    new.add_argument(
        "--from", dest="profile", required=True, choices=profile_names(), help="profile"
    )
    new.add_argument("--model", required=True, metavar="NAME", help="the model's name")
    new.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="what the entry is added to (default: admission.policy of the settings)",
    )
    new.add_argument(
        "--out", type=Path, metavar="FILE", help="a new file, in place of printing"
    )
    new.set_defaults(run=_new)


def explain(policy: Policy, model: str | None = None) -> Iterator[str]:
    """What a policy demands, one sentence per line.

    Args:
        policy: the policy.
        model: a model's name; without it, the defaults and every pattern.
    """
    if model is not None:
        rules = policy.rules_for(model)
        why = f"by the entry for {rules.match!r}" if rules else "by the defaults"
        yield f"{model} needs, {why}:"
        yield from _all_requirements(policy.required(model))
        yield from _leaving(policy.leaving(model))
    else:
        yield "A model needs, unless an entry below matches its name:"
        yield from _all_requirements(policy.requirements)
        yield from _leaving(policy.default_leaving)
        for entry in policy.models:
            yield f"A model whose name is {entry.match!r} needs instead:"
            yield from _all_requirements(policy.under(entry))
            yield from _leaving(entry.leaving or policy.default_leaving)
            if entry.without:
                yield f"  - no evidence of: {', '.join(entry.without)}"
    yield from _promotions(policy, model)
    mode = policy.verdict_signatures
    signed = _signed(policy.verdict_signers, policy.verdict_min_signers, mode)
    yield (
        f"The verdict: {signed}, {_stamped(policy.verdict_timestamps)}"
        f"no older than {_days(policy.verdict_max_age.days)}."
    )
    for kind in policy.verdict_recomputed:
        yield f"What {kind} claims is proved must have been recomputed from its rows."
    yield _waivers(policy)


def _leaving(policy: OutputPolicy) -> Iterator[str]:
    if policy != ALL_SCORES:
        yield f"  - of its answers may leave at most: {policy}."


def _promotions(policy: Policy, model: str | None) -> Iterator[str]:
    if model is not None:
        named = [(model, policy.promotion_of(model))]
    else:
        own = [(repr(it.match), it.promotion) for it in policy.models if it.promotion]
        named = [("a version", policy.promotion), *own]
    for name, promotion in named:
        if not promotion.requirements:
            yield f"To answer by default, {name} needs nothing more."
            continue
        yield f"To answer by default in place of another version, {name} needs:"
        for item in promotion.requirements:
            yield f"  - {item.kind}{_of_promotion(item)}."
            yield from _content(item)
        if promotion.stays_monitored:
            yield "  It stays that only while the monitoring report is fresh."


def _of_promotion(item: Requirement) -> str:
    if not item.signers:
        return " with the default, by the evidence of both"
    signed, days = _signed(item.signers, 1, item.signatures), _days(item.max_age.days)
    stamped = _stamped(item.timestamps)
    return f": {signed}, {stamped}its window over for no longer than {days}"


def _all_requirements(requirements: tuple[Requirement, ...]) -> Iterator[str]:
    for item in requirements:
        signed = _signed(item.signers, item.min_signers, item.signatures)
        yield (
            f"  - {item.kind}: {signed}, {_stamped(item.timestamps)}"
            f"no older than {_days(item.max_age.days)}, every check passed."
        )
        yield from _content(item)


def _content(item: Requirement) -> Iterator[str]:
    for name, value in item.conditions.items():
        yield f"      {name} must be {_value(value)}."
    for threshold in item.thresholds:
        yield f"      {_threshold(threshold)}."


def _threshold(item: Threshold) -> str:
    bounds = []
    if item.low is not None:
        bounds.append(f"at least {item.low:g}")
    if item.high is not None:
        bounds.append(f"at most {item.high:g}")
    worse = "the worse end of the interval of " if item.bound == "interval" else ""
    samples = f", measured on at least {item.min_n} samples" if item.min_n else ""
    return f"{worse}{item.metric} must be {' and '.join(bounds)}{samples}"


def _signed(roles: tuple[str, ...], signers: int, mode: str | None) -> str:
    who, how = " or ".join(roles), _MODES[mode]
    if signers == 1:
        return f"signed by {'an' if who[0] in 'aeiou' else 'a'} {who} key{how}"
    return f"signed by {signers} different keys of {who}{how}"


def _stamped(demanded: bool) -> str:
    return "with a trusted time stamp, " if demanded else ""


def _waivers(policy: Policy) -> str:
    rules = policy.waivers
    if not rules.kinds:
        return "Nothing may be waived."
    return (
        f"May be waived: {', '.join(rules.kinds)}; "
        f"{_signed(rules.signers, 1, rules.signatures)}, "
        f"{_stamped(rules.timestamps)}for at most {_days(rules.max_age.days)}."
    )


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"


def _check(args: argparse.Namespace) -> int:
    failed = False
    for path in args.file:
        data = read_policy_bytes(path)
        mistakes = policy_mistakes(data, name=str(path))
        failed = failed or bool(mistakes)
        print("\n".join(mistakes) or f"{path}: ok")
        if not mistakes:
            for line in _unknown(parse_policy(data, name=str(path))):
                print(f"{path}: note: {line}")
    return int(failed)


def _unknown(policy: Policy) -> Iterator[str]:
    """Metrics that nothing here measures: others may, or the name is misspelt."""
    models = (item for rules in policy.models for item in rules.requirements)
    own = [rules.promotion for rules in policy.models if rules.promotion]
    promoted = (it for part in (policy.promotion, *own) for it in part.requirements)
    for item in (*policy.requirements, *models, *promoted):
        for threshold in item.thresholds:
            name, kind = threshold.metric, item.kind
            if not metrics.known(kind, name):
                close = hint(name.partition("/")[0], metrics.names_of(kind))
                yield f"{kind}: nothing here measures {name!r}{close}"


def _new(args: argparse.Namespace) -> int:
    base = args.policy or load_settings().admission.policy
    text = extended(base, args.profile, args.model)
    if args.out is None:
        print(text, end="")
        return 0
    if args.out.exists():
        raise SettingsError(f"{args.out} exists already")
    with args.out.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"wrote {args.out}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    policy = load_policy(args.file or load_settings().admission.policy)
    print("\n".join(explain(policy, args.model)))
    return 0


def _diff(args: argparse.Namespace) -> int:
    changes = compare(load_policy(args.old), load_policy(args.new))
    for change in changes:
        models = {"": "defaults", "*": "every model"}.get(change.models, change.models)
        print(f"{change.effect:<8}  {models}: {change.what}")
    if not changes:
        print("no difference in what is demanded")
    return int(any(change.loosens for change in changes))
