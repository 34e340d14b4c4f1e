"""policy.toml: which evidence a model needs, from whom, how fresh, how good.

Every table is closed: an unknown key is an error, because a misspelt threshold would
otherwise be a threshold that does not hold. A mistake is reported with its line.
deploy/policy.schema.json says the same as a JSON Schema, for editors.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import KINDS, OBSERVED
from sealgate.protocol.statement import Resource
from sealgate.protocol.versions import unread
from security.admission.certified import CERTIFIED
from security.admission.rules import (
    MAX_SIGNERS,
    PROMOTION_KINDS,
    SIGNATURES,
    TIMESTAMPS,
    ModelRules,
    Policy,
    Promotion,
    Requirement,
    Threshold,
    WaiverRules,
)
from security.admission.toml_lines import Notes, Table, syntax_line
from security.admission.trust import ROLES
from security.errors import SettingsError

__all__ = [
    "ModelRules",
    "Policy",
    "Promotion",
    "Requirement",
    "Threshold",
    "WaiverRules",
    "load_policy",
    "parse_policy",
    "policy_mistakes",
    "read_policy_bytes",
]

MAX_POLICY_BYTES = 1 << 20
MAX_DAYS = 3650
MAX_WAIVER_DAYS = 365
MAX_COUNT = 1_000_000_000

_PROOF = ("signatures", "timestamps")
_SIGNED = ("signers", "max_age_days", *_PROOF)
_MEASURED = ("min_n", "conditions", "metrics")
_PATTERN = re.compile(r"[A-Za-z0-9._*?-]{1,63}")


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        SettingsError: unreadable or malformed; the message has file, line and key.
    """
    return parse_policy(read_policy_bytes(path), name=path.name)


def read_policy_bytes(path: Path) -> bytes:
    """A policy file's bytes, within bounds.

    Raises:
        SettingsError: missing, linked or too long.
    """
    try:
        return read_regular(path, max_bytes=MAX_POLICY_BYTES, follow_links=True)
    except BundleError as error:
        raise SettingsError(f"policy {path}: {error}") from None


def parse_policy(data: bytes, *, name: str) -> Policy:
    """Parse a policy's bytes.

    Raises:
        SettingsError: malformed; the message has file, line and key.
    """
    policy, mistakes = _read(data, name)
    if policy is None or mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise SettingsError(f"policy {mistakes[0]}{more}")
    return policy


def policy_mistakes(data: bytes, *, name: str) -> list[str]:
    r"""Every mistake in a policy's bytes as ``file:line: what``; none if it is valid.

    >>> policy_mistakes(b"version = 1\nverdct = 2", name="p.toml")[0]
    'p.toml:1: [require]: needs at least one kind of evidence'
    """
    return _read(data, name)[1]


def _read(data: bytes, name: str) -> tuple[Policy | None, list[str]]:
    try:
        text = data.decode("utf-8")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOML, UTF-8, an integer of thousands of digits, thousands of brackets
        line, reason = syntax_line(error, data)
        return None, [f"{name}:{line}: {reason}"]
    notes = Notes()
    resource = Resource(name, hashlib.sha256(data).hexdigest())
    policy = _policy(Table(document, (), "policy", notes), resource)
    return policy, [f"{name}:{line}: {text}" for line, text in notes.by_line(text)]


def _policy(table: Table, resource: Resource) -> Policy:
    known = ("version", "verdict", "waivers", "require", "models")
    table.close((*known, "output_policy", "promotion", *_PROOF))
    proof = _proof(table, _Proof())
    version = table.values.get("version")
    if type(version) is not int or version != 1:
        found = f"v{version}" if type(version) is int else version
        text = unread(found, "v1").replace("v1", "version = 1", 1)
        table.note(text, "version")
    verdict = table.table("verdict", "[verdict]")
    verdict.close((*_SIGNED, "min_signers", "recomputed"))
    recomputed = "recomputed" in verdict.values
    of_verdict = _proof(verdict, proof)
    requirements = _requirements(table, "", proof)
    if not requirements:
        table.notes.add(("require",), "[require]: needs at least one kind of evidence")
    policy = Policy(
        resource=resource,
        verdict_signers=verdict.choices("signers", ROLES, "roles"),
        verdict_max_age=_days(verdict, "max_age_days", MAX_DAYS),
        requirements=requirements,
        verdict_min_signers=verdict.count("min_signers", 1, MAX_SIGNERS, 1),
        waivers=_waivers(table, proof),
        models=tuple(
            _model(item, requirements, proof) for item in table.tables("models")
        ),
        default_leaving=_leaving(table, "[output_policy]") or ALL_SCORES,
        promotion=_promotion(table, "", proof) or Promotion(),
        signatures=proof.signatures,
        verdict_signatures=of_verdict.signatures,
        verdict_timestamps=of_verdict.timestamps,
        verdict_recomputed=verdict.choices("recomputed", CERTIFIED, "kinds")
        if recomputed
        else (),
    )
    _check_models(table, policy)
    return policy


@dataclass(frozen=True)
class _Proof:
    """What must show who signed, and when: as a requirement's."""

    signatures: str | None = None
    timestamps: bool = False


def _proof(table: Table, default: _Proof) -> _Proof:
    """What a table says of it; what holds for all where it says nothing."""
    mode = table.values.get("signatures", default.signatures)
    if "signatures" in table.values and mode not in SIGNATURES:
        table.note(f"signatures must be one of {', '.join(SIGNATURES)}", "signatures")
        mode = default.signatures
    stamps = table.values.get("timestamps")
    if "timestamps" in table.values and stamps not in TIMESTAMPS:
        table.note(f"timestamps must be one of {', '.join(TIMESTAMPS)}", "timestamps")
    needed = default.timestamps if stamps is None else stamps == "required"
    return _Proof(mode, needed)


def _requirements(table: Table, prefix: str, proof: _Proof) -> tuple[Requirement, ...]:
    kinds = table.table("require", f"[{prefix}require]")
    return tuple(
        _requirement(kind, kinds.table(kind, f"[{prefix}require.{kind}]"), proof)
        for kind in kinds.values
    )


def _requirement(kind: str, table: Table, proof: _Proof) -> Requirement:
    if kind not in KINDS:
        table.note(f"no such kind; one of {', '.join(KINDS)}")
    table.close((*_SIGNED, *_MEASURED, "min_signers"))
    return Requirement(
        kind=kind,
        signers=table.choices("signers", ROLES, "roles"),
        max_age=_days(table, "max_age_days", MAX_DAYS),
        conditions=_conditions(table),
        thresholds=_thresholds(table),
        min_signers=table.count("min_signers", 1, MAX_SIGNERS, 1),
        **vars(_proof(table, proof)),
    )


def _thresholds(table: Table) -> tuple[Threshold, ...]:
    min_n = table.count("min_n", 0, MAX_COUNT, 0)
    metrics = table.table("metrics", f"{table.where} metrics")
    return tuple(
        _threshold(metrics.table(name, f"{table.where} metrics.{name}"), name, min_n)
        for name in metrics.values
    )


def _promotion(table: Table, prefix: str, proof: _Proof) -> Promotion | None:
    if "promotion" not in table.values:
        return None
    promotion = table.table("promotion", f"[{prefix}promotion]")
    promotion.close((*PROMOTION_KINDS, "stays_monitored"))
    stays = promotion.values.get("stays_monitored", False)
    if type(stays) is not bool:
        promotion.note("stays_monitored must be true or false", "stays_monitored")
    if stays is True and "monitoring" not in promotion.values:
        promotion.note("stays_monitored needs a table monitoring", "stays_monitored")
    return Promotion(
        tuple(
            _promoted(kind, promotion.table(kind, f"[{prefix}promotion.{kind}]"), proof)
            for kind in promotion.values
            if kind in PROMOTION_KINDS
        ),
        stays_monitored=stays is True,
    )


def _promoted(kind: str, table: Table, proof: _Proof) -> Requirement:
    """A comparison is of evidence that the gate has checked: nobody signs it again."""
    signed = kind in OBSERVED
    # A timer makes these, with no authority at hand: stamps only where it says so.
    given = replace(proof, timestamps=False) if signed else _Proof()
    table.close((*_SIGNED, *_MEASURED) if signed else _MEASURED)
    return Requirement(
        kind=kind,
        signers=table.choices("signers", ROLES, "roles") if signed else (),
        max_age=_days(table, "max_age_days", MAX_DAYS) if signed else timedelta(0),
        conditions=_conditions(table),
        thresholds=_thresholds(table),
        **vars(_proof(table, given) if signed else given),
    )


def _conditions(table: Table) -> dict[str, Any]:
    conditions = table.table("conditions", f"{table.where} conditions")
    for name, value in conditions.values.items():
        # NaN equals nothing, so no report could meet it.
        if not isinstance(value, str | int | float | bool) or value != value:  # noqa: PLR0124
            table.notes.add(
                (*conditions.path, name),
                f"{conditions.where}.{name}: expected a string, number or boolean",
            )
    return conditions.values


def _threshold(table: Table, metric: str, min_n: int) -> Threshold:
    table.close(("min", "max", "min_n", "bound"))
    low, high = table.number("min"), table.number("max")
    if "min" not in table.values and "max" not in table.values:
        table.note("expected min, max or both")
    if low is not None and high is not None and low > high:
        table.note("min is above max: nothing can meet it", "min")
    bound = table.values.get("bound", "value")
    if bound not in ("value", "interval"):
        table.note('bound must be "value" or "interval"', "bound")
    count = table.count("min_n", 0, MAX_COUNT, min_n)
    return Threshold(metric, low, high, count, str(bound))


def _waivers(table: Table, proof: _Proof) -> WaiverRules:
    if "waivers" not in table.values:
        return WaiverRules()
    waivers = table.table("waivers", "[waivers]")
    waivers.close(("signers", "max_days", "kinds", *_PROOF))
    return WaiverRules(
        signers=waivers.choices("signers", ROLES, "roles"),
        max_age=_days(waivers, "max_days", MAX_WAIVER_DAYS),
        kinds=waivers.choices("kinds", (*KINDS, *PROMOTION_KINDS), "kinds"),
        **vars(_proof(waivers, proof)),
    )


def _model(
    table: Table, defaults: tuple[Requirement, ...], proof: _Proof
) -> ModelRules:
    table.close(("match", "require", "without", "output_policy", "promotion"))
    match = table.values.get("match")
    if not isinstance(match, str) or not _PATTERN.fullmatch(match):
        table.note("match must be a model's name, with * or ?", "match")
        match = ""
    without: tuple[str, ...] = ()
    if "without" in table.values:
        without = table.choices("without", KINDS, "kinds")
    rules = ModelRules(
        match,
        _requirements(table, "models.", proof),
        without,
        leaving=_leaving(table, "[models.output_policy]"),
        promotion=_promotion(table, "models.", proof),
    )
    own = {item.kind for item in rules.requirements}
    for kind in without:
        if kind in own:
            table.note(f"both requires {kind} and goes without it", "without")
        if kind not in {item.kind for item in defaults}:
            table.note(f"goes without {kind}, which no default requires", "without")
    return rules


def _leaving(table: Table, where: str) -> OutputPolicy | None:
    """What may leave of answers at most; None where nothing is said."""
    if "output_policy" not in table.values:
        return None
    own = table.table("output_policy", where)
    mistakes = list(OutputPolicy.mistakes(own.values))
    for key, message in mistakes:
        own.note(f"{key} {message}".strip(), key or None)
    return None if mistakes else OutputPolicy(**own.values)


def _check_models(table: Table, policy: Policy) -> None:
    """What only shows when entries are seen beside each other."""
    seen: set[str] = set()
    for index, rules in enumerate(policy.models):
        path = ("models", index, "match")
        if rules.match and seen & {"*", rules.match}:
            table.notes.add(path, f"{rules.match!r}: an entry above matches it already")
        seen.add(rules.match)
        if policy.requirements and not policy.under(rules):
            table.notes.add(
                ("models", index), f"{rules.match!r}: requires no evidence at all"
            )


def _days(table: Table, key: str, most: int) -> timedelta:
    return timedelta(days=table.count(key, 1, most))
