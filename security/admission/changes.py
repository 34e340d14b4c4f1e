"""Changes of a plan: each takes the plan in force and returns the next, or refuses.

Each is one or two steps of `security.admission.lifecycle`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from security.admission.lifecycle import Canary, Default, Live, Shadow, Warm, find
from security.admission.plan import ModelPlan, Plan
from security.errors import PlanError

__all__ = [
    "load",
    "reload",
    "rollback",
    "set_canary",
    "set_default",
    "set_shadow",
    "split_tag",
    "unload",
]


def split_tag(tag: str) -> tuple[str, str]:
    """Name and version of a full tag.

    Raises:
        PlanError: not a full tag.
    """
    name, colon, version = tag.partition(":")
    if not colon or not name or not version or version == "latest":
        raise PlanError(f"{tag!r} is not a full tag like name:1.0.0")
    return name, version


def load(plan: Plan, tag: str) -> Plan:
    """Serve a further version; the first one of a model is its default.

    Raises:
        PlanError: not a full tag.
    """
    name, version = split_tag(tag)
    model = plan.models.get(name)
    if model is None:
        return _with(plan, name, ModelPlan({version: Warm(0).promote()}))
    if version in model.versions:
        return plan
    return _with(plan, name, model.change(**{version: Warm(0)}))


def reload(plan: Plan, tag: str) -> Plan:
    """Read a version from the store again, and verify it again.

    Raises:
        PlanError: it is not loaded.
    """
    name, version, model = _loaded(plan, tag)
    state = model.versions[version]
    again = replace(state, content=state.content + 1)
    return _with(plan, name, model.change(**{version: again}))


def unload(plan: Plan, tag: str) -> Plan:
    """Serve a version no more; a model goes with its last version.

    Raises:
        PlanError: it is not loaded, the default of others, or the last of all.
    """
    name, version, model = _loaded(plan, tag)
    left = {v: state for v, state in model.versions.items() if v != version}
    if not left:
        models = {n: m for n, m in plan.models.items() if n != name}
        if not models:
            raise PlanError(f"{tag} is all that is served")
        return replace(plan, models=models)
    if isinstance(model.versions[version], Default):
        raise PlanError(f"{tag} is the default: make another version that first")
    return _with(plan, name, ModelPlan(left))


def set_default(plan: Plan, tag: str) -> Plan:
    """Let a version answer the requests that name none, and load it if need be.

    A trial of it ends with that.

    Raises:
        PlanError: not a full tag.
    """
    name, version = split_tag(tag)
    plan = load(plan, tag)
    model = plan.models[name]
    chosen = model.versions[version]
    if isinstance(chosen, Default):
        return plan
    steps: dict[str, Live[int]] = {version: chosen.promote()}
    before = model.versions[model.default]
    if isinstance(before, Default):
        steps[model.default] = before.retire()
    return _with(plan, name, model.change(**steps))


def set_canary(plan: Plan, tag: str, percent: int) -> Plan:
    """Let a version answer a share of the requests that name none; at 0 no more.

    It takes the place of another canary; a shadow becomes one.

    Raises:
        PlanError: not a full tag, the default itself, or no percentage.
    """
    return _try(plan, tag, percent, Canary)


def set_shadow(plan: Plan, tag: str, percent: int) -> Plan:
    """Let a version run on a share of the requests that name none; at 0 no more.

    It takes the place of another shadow; a canary becomes one.

    Raises:
        PlanError: as `set_canary`.
    """
    return _try(plan, tag, percent, Shadow)


def rollback(
    plan: Plan, history: Sequence[Plan], name: str, generation: int | None = None
) -> Plan:
    """Give a model back what it was before its last change, or in a generation.

    A second time in a row takes the first one back.

    Raises:
        PlanError: there is nothing to go back to.
    """
    now = plan.models.get(name)
    for older in reversed(history):
        if older.generation >= plan.generation and generation is None:
            continue
        then = older.models.get(name)
        wanted = older.generation == generation if generation is not None else True
        if wanted and then is not None and then != now:
            return _with(plan, name, then)
    raise PlanError(f"{name}: no other state of it is kept")


def _try(
    plan: Plan, tag: str, percent: int, kind: type[Canary[int] | Shadow[int]]
) -> Plan:
    name, version = split_tag(tag)
    if not 0 <= percent <= 100:
        raise PlanError(f"{percent} is no percentage")
    if name not in plan.models:
        raise PlanError(f"{name} has no default version to try {tag} beside")
    model = load(plan, tag).models[name]
    state = model.versions[version]
    if isinstance(state, Default):
        raise PlanError(f"{tag} is the default already")
    steps: dict[str, Live[int]] = {}
    before = find(model.versions, kind)
    if before is not None:
        steps[before] = _rest(model.versions[before])
    if percent:
        warm = _rest(state)
        steps[version] = (
            warm.try_as_canary(percent)
            if kind is Canary
            else warm.try_as_shadow(percent)
        )
    return _with(plan, name, model.change(**steps))


def _rest(state: Live[int]) -> Warm[int]:
    """No more on trial."""
    return state if isinstance(state, Warm) else state.retire()


def _loaded(plan: Plan, tag: str) -> tuple[str, str, ModelPlan]:
    name, version = split_tag(tag)
    model = plan.models.get(name)
    if model is None or version not in model.versions:
        raise PlanError(f"{tag} is not loaded")
    return name, version, model


def _with(plan: Plan, name: str, model: ModelPlan) -> Plan:
    return replace(plan, models={**plan.models, name: model})
