"""Two policies: what got stricter, what looser, for which models.

Models are compared by example: one name for each pattern of either policy, one for each
pair of patterns that can match the same name, and one that no pattern is meant for. A
character that no name has stands for "any" in them, so only wildcards match it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from models.output_policy import OutputPolicy
from security.admission.rules import Policy, Promotion, Requirement, Threshold

__all__ = ["Change", "compare"]

_ANY = "\0"
_ANYTHING = _ANY * 64


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        models: the pattern, or patterns, whose models it is for; "" for the defaults,
            "*" for what holds for every model.
        effect: "stricter", "looser", "added" or "removed". A value that was replaced by
            one that is neither stricter nor looser counts as looser.
        what: in words.
    """

    models: str
    effect: str
    what: str

    @property
    def loosens(self) -> bool:
        """Whether a model may now pass that did not before."""
        return self.effect in ("looser", "removed")


def compare(old: Policy, new: Policy) -> list[Change]:
    """Every difference in what two policies demand, defaults first."""
    changes = [Change("*", *item) for item in _for_all(old, new)]
    seen: set[tuple[str | None, ...]] = set()
    for models, name in _examples(old, new):
        before, after = old.required(name), new.required(name)
        which = tuple(
            rules.match if rules else None
            for rules in (old.rules_for(name), new.rules_for(name))
        )
        if which not in seen:
            leaving = _leaving(old.leaving(name), new.leaving(name))
            was, now = old.promotion_of(name), new.promotion_of(name)
            found = (*_kinds(before, after), *leaving, *_promotions(was, now))
            changes += [Change(models, *item) for item in found]
        seen.add(which)
    return changes


def _examples(old: Policy, new: Policy) -> Iterator[tuple[str, str]]:
    """Names to compare by, each with the patterns that it stands for."""
    yield "", _ANYTHING
    entries = (*old.models, *new.models)
    patterns = list(dict.fromkeys(rules.match for rules in entries))
    for pattern in patterns:
        yield pattern, pattern.replace("*", _ANYTHING).replace("?", _ANY)
    for first, second in combinations(patterns, 2):
        name = _meet(first, second)
        if name is not None:
            yield f"{first} and {second}", name


@cache
def _meet(first: str, second: str) -> str | None:
    """A name that both patterns match, or None.

    >>> _meet("a*", "*b")
    'ab'
    >>> _meet("a*", "b*")
    """
    if not first or not second:
        return "" if not (first + second).strip("*") else None
    if second[0] == "*" and first[0] != "*":
        first, second = second, first
    if first[0] == "*":
        rest = _meet(first[1:], second)
        if rest is not None:
            return rest
        return _then(second[0], _meet(first, second[1:]))
    if first[0] == "?" or second[0] in ("?", first[0]):
        letter = second[0] if first[0] == "?" else first[0]
        return _then(letter, _meet(first[1:], second[1:]))
    return None


def _then(letter: str, rest: str | None) -> str | None:
    if rest is None:
        return None
    return {"*": "", "?": _ANY}.get(letter, letter) + rest


Found = Iterator[tuple[str, str]]


def _for_all(old: Policy, new: Policy) -> Found:
    yield from _roles(old.verdict_signers, new.verdict_signers, "verdict: signers")
    yield from _count(
        old.verdict_min_signers, new.verdict_min_signers, "verdict: min_signers"
    )
    yield from _count(
        -old.verdict_max_age.days, -new.verdict_max_age.days, "verdict: max_age_days"
    )
    modes = old.verdict_signatures, new.verdict_signatures
    yield from _signatures(*modes, "verdict: signatures")
    yield from _stamps(old.verdict_timestamps, new.verdict_timestamps, "verdict")
    for kind in sorted({*old.verdict_recomputed} ^ {*new.verdict_recomputed}):
        effect = "stricter" if kind in new.verdict_recomputed else "looser"
        yield effect, f"verdict: recomputed: {kind}"
    before, after = old.waivers, new.waivers
    yield from _signatures(before.signatures, after.signatures, "waivers: signatures")
    yield from _stamps(before.timestamps, after.timestamps, "waivers")
    yield from _roles(before.signers, after.signers, "waivers: signers")
    yield from _roles(before.kinds, after.kinds, "waivers: kinds")
    yield from _count(-before.max_age.days, -after.max_age.days, "waivers: max_days")


def _signatures(old: str | None, new: str | None, what: str) -> Found:
    """Which algorithms must have signed: by the trust root is between any and both."""
    if old != new:
        order = ("classical", "any", None, "both")
        effect = "stricter" if order.index(new) > order.index(old) else "looser"
        yield (
            effect,
            f"{what}: {old or 'by the trust root'} -> {new or 'by the trust root'}",
        )


def _leaving(old: OutputPolicy, new: OutputPolicy) -> Found:
    """What may leave of answers; less is stricter."""
    if old != new:
        effect = "looser" if new.wider_than(old) else "stricter"
        yield effect, f"output_policy: {old} -> {new}"


def _promotions(old: Promotion, new: Promotion) -> Found:
    for effect, what in _kinds(old.requirements, new.requirements):
        yield effect, f"promotion: {what}"
    stays = int(old.stays_monitored), int(new.stays_monitored)
    yield from _count(*stays, "promotion: stays_monitored")


def _kinds(old: tuple[Requirement, ...], new: tuple[Requirement, ...]) -> Found:
    before = {item.kind: item for item in old}
    after = {item.kind: item for item in new}
    for kind in {**before, **after}:
        if kind not in after:
            yield "removed", kind
        elif kind not in before:
            yield "added", kind
        else:
            yield from _requirement(before[kind], after[kind])


def _requirement(old: Requirement, new: Requirement) -> Found:
    kind = old.kind
    yield from _roles(old.signers, new.signers, f"{kind}: signers")
    yield from _count(old.min_signers, new.min_signers, f"{kind}: min_signers")
    yield from _signatures(old.signatures, new.signatures, f"{kind}: signatures")
    yield from _count(-old.max_age.days, -new.max_age.days, f"{kind}: max_age_days")
    yield from _stamps(old.timestamps, new.timestamps, kind)
    for name in {**old.conditions, **new.conditions}:
        what = f"{kind}: condition {name}"
        if name not in new.conditions:
            yield "removed", what
        elif name not in old.conditions:
            yield "added", what
        elif _same(old.conditions[name], new.conditions[name]):
            continue
        else:
            change = f"{old.conditions[name]!r} -> {new.conditions[name]!r}"
            yield "looser", f"{what}: {change}, another value"
    yield from _thresholds(old, new)


def _thresholds(old: Requirement, new: Requirement) -> Found:
    before = {item.metric: item for item in old.thresholds}
    after = {item.metric: item for item in new.thresholds}
    for name in {**before, **after}:
        what = f"{old.kind}: metric {name}"
        if name not in after:
            yield "removed", what
        elif name not in before:
            yield "added", what
        else:
            yield from _threshold(before[name], after[name], what)


def _threshold(old: Threshold, new: Threshold, what: str) -> Found:
    yield from _bound(old.low, new.low, 1, f"{what}: min")
    yield from _bound(old.high, new.high, -1, f"{what}: max")
    yield from _count(old.min_n, new.min_n, f"{what}: min_n")
    if old.bound != new.bound:
        effect = "stricter" if new.bound == "interval" else "looser"
        yield effect, f"{what}: bound {old.bound} -> {new.bound}"


def _bound(old: float | None, new: float | None, sign: int, what: str) -> Found:
    if old == new:
        return
    if old is None or new is None:
        yield ("stricter" if old is None else "looser"), f"{what} {old} -> {new}"
        return
    effect = "stricter" if (new - old) * sign > 0 else "looser"
    yield effect, f"{what} {old:g} -> {new:g}"


def _count(old: int, new: int, what: str) -> Found:
    """More is stricter; what is stricter when smaller comes in negated."""
    if old != new:
        effect = "stricter" if new > old else "looser"
        yield effect, f"{what} {abs(old)} -> {abs(new)}"


def _stamps(old: bool, new: bool, what: str) -> Found:
    if old != new:
        text = "timestamps required" if new else "timestamps no longer required"
        yield ("stricter" if new else "looser"), f"{what}: {text}"


def _roles(old: tuple[str, ...], new: tuple[str, ...], what: str) -> Found:
    """Fewer is stricter."""
    if gone := [item for item in old if item not in new]:
        yield "stricter", f"{what}: no longer {', '.join(gone)}"
    if come := [item for item in new if item not in old]:
        yield "looser", f"{what}: also {', '.join(come)}"


def _same(old: object, new: object) -> bool:
    return old == new and isinstance(old, bool) == isinstance(new, bool)
